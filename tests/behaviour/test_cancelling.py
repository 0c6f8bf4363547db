"""A caller that waits no more: what it asked is not begun, or told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed, wait
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import Refused
from tests.campaigns.history import SCALE


class Oven(pyzmp.Node):
    """Notes what became of each call."""

    def on_start(self) -> None:
        self.log: list[str] = []

    @pyzmp.service
    async def bake(self, what: str) -> None:
        self.log.append(f"begun {what}")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.log.append(f"cancelled {what}")
            raise

    @pyzmp.service
    def fry(self, what: str, most: float = 5.0) -> None:
        self.stir(what, most)

    @pyzmp.service(worker=True)
    def grill(self, what: str, most: float = 5.0) -> None:
        self.stir(what, most)

    def stir(self, what: str, most: float) -> None:
        self.log.append(f"begun {what}")
        call, over = pyzmp.current_call(), time.monotonic() + most
        while time.monotonic() < over:
            if call.cancelled:
                self.log.append(f"cancelled {what}")
                call.check()

    @pyzmp.service
    async def said(self) -> list[str]:
        return self.log


@pytest.fixture(params=["process", "thread", "entity"])
def oven(request: Any) -> Iterator[Oven]:
    with Oven("oven", kind=request.param) as node:
        yield node


def said(*lines: str) -> Callable[[], bool]:
    return lambda: set(lines) <= set(Oven.said())


@pytest.mark.parametrize("service", ["bake", "fry", "grill"])
def test_cancelling_a_future_reaches_the_service(oven: Oven, service: str, eventually: Any) -> None:
    future = getattr(Oven, service).submit("bread")
    if service != "fry":  # which lets nobody else have a turn
        eventually(said("begun bread"))
    assert future.cancel()
    assert future.cancelled()
    if service == "fry":
        assert Oven.said() in ([], ["begun bread", "cancelled bread"])
    else:
        eventually(said("begun bread", "cancelled bread"))


def test_cancelling_an_awaited_call_reaches_the_service(oven: Oven, eventually: Any) -> None:
    async def give_up() -> None:
        call = asyncio.ensure_future(Oven.bake.acall("cake"))
        while "begun cake" not in await Oven.said.acall():
            pass
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    asyncio.run(give_up())
    eventually(said("cancelled cake"))


@pytest.mark.parametrize("how", ["blocking", "future", "awaited"])
def test_at_the_deadline_an_async_service_is_cancelled(oven: Oven, how: str, eventually: Any) -> None:
    bake = Oven.bake.with_options(timeout=0.1)
    with pytest.raises(pyzmp.CallTimeout):
        {"blocking": lambda: bake("pie"), "future": lambda: bake.submit("pie").result(),
         "awaited": lambda: asyncio.run(bake.acall("pie"))}[how]()
    eventually(said("begun pie", "cancelled pie"))


def test_what_waits_for_its_turn_is_not_begun_once_it_is_cancelled(oven: Oven) -> None:
    held = Oven.fry.submit("onions", most=0.3)
    waiting = [Oven.fry.submit(f"egg {number}", most=0.0) for number in range(20)]
    for number, future in enumerate(waiting):
        if number % 2:
            future.cancel()
    held.result()
    for number, future in enumerate(waiting):
        if not number % 2:
            future.result()
    eggs = [line for line in Oven.said() if "egg" in line]
    assert eggs == [f"begun egg {number}" for number in range(0, 20, 2)]


def test_what_waits_beyond_its_deadline_is_not_begun(oven: Oven) -> None:
    held = Oven.fry.submit("onions", most=0.4)
    assert isinstance(Oven.fry.with_options(timeout=0.1).submit("late").exception(), pyzmp.CallTimeout)
    held.result()
    assert "begun late" not in Oven.said()


def test_the_calls_of_a_caller_that_is_killed_are_cancelled(oven: Oven, eventually: Any) -> None:
    if oven.kind == "process":
        program = ("import pyzmp, sys\npyzmp.discover('bake', timeout=5).submit('tart')\n"
                   "pyzmp.discover('grill').submit('fish')\nsys.stdin.read()")
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as caller:
            eventually(said("begun tart", "begun fish"))
            caller.kill()
        eventually(said("cancelled tart", "cancelled fish"))


def test_other_calls_of_the_session_keep_their_replies(oven: Oven) -> None:
    async def storm() -> None:
        async def one(number: int) -> list[str] | None:
            try:
                return await asyncio.wait_for(Oven.said.acall(), 0.0005 if number % 2 else 10)
            except (asyncio.TimeoutError, TimeoutError):
                return None
        answers = await asyncio.gather(*(one(number) for number in range(2_000)))
        assert all(answers[number] == [] for number in range(0, 2_000, 2))
    asyncio.run(storm())
    assert threading.active_count() < 30


class Kitchen(pyzmp.Node):
    """Where each call does one thing only."""

    def on_start(self) -> None:
        self.log: list[str] = []

    @pyzmp.service
    def hold(self, seconds: float, sign: str = "") -> None:
        if sign:
            Path(sign).touch()
        time.sleep(seconds)

    @pyzmp.service
    def note(self, what: str) -> None:
        self.log.append(what)

    @pyzmp.service
    async def tidy(self) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            self.log.append("tidied")

    @pyzmp.service
    async def elsewhere(self) -> bool:
        def look() -> bool:
            return any(pyzmp.current_call().cancelled for _ in range(200))
        return await asyncio.to_thread(look)

    @pyzmp.service
    async def said(self) -> list[str]:
        return self.log


@pytest.fixture(params=["process", "thread", "entity"])
def kitchen(request: Any) -> Iterator[Kitchen]:
    with Kitchen("kitchen", kind=request.param) as node:
        yield node


def test_a_loop_looks_again_before_each_call_that_follows_a_long_one(kitchen: Kitchen) -> None:
    Kitchen.hold.submit(0.2 * SCALE)
    held = Kitchen.hold.submit(0.3 * SCALE)
    unwanted, last = Kitchen.note.submit("unwanted"), Kitchen.note.submit("last")
    threading.Timer(0.35 * SCALE, unwanted.cancel).start()  # while the second one runs, long after both were read
    held.result()
    last.result()
    assert Kitchen.said() == ["last"]


def test_those_who_wait_for_one_of_several_futures_hear_of_a_cancelled_one(kitchen: Kitchen) -> None:
    future = Kitchen.tidy.submit()
    assert future.cancel()
    assert future.cancel()
    assert wait([future], timeout=5).done == {future}
    assert list(as_completed([future], timeout=5)) == [future]


def test_a_service_that_cleans_up_is_cancelled_once(kitchen: Kitchen, eventually: Any) -> None:
    async def impatient() -> None:
        with pytest.raises(pyzmp.CallTimeout):
            await Kitchen.tidy.with_options(timeout=0.1).acall()
    asyncio.run(impatient())  # the deadline, and then the end of the session
    eventually(lambda: Kitchen.said() == ["tidied"])


def test_threads_that_a_service_uses_do_not_touch_its_loops_sockets(kitchen: Kitchen) -> None:
    calls = [Kitchen.elsewhere.submit() for _ in range(20)] + [Kitchen.said.submit() for _ in range(200)]
    assert [call.result() for call in calls] == [False] * 20 + [[]] * 200


def test_what_waits_when_the_node_stops_is_refused(kitchen: Kitchen, tmp_path: Path, eventually: Any) -> None:
    held = Kitchen.hold.submit(0.5 * SCALE, str(tmp_path / "begun"))
    waiting = [Kitchen.note.submit(str(number)) for number in range(500)]
    eventually((tmp_path / "begun").exists)
    kitchen.shutdown()
    assert held.exception() is None
    outcomes = [future.exception() for future in waiting]
    assert all(error is None or (isinstance(error, Refused) and error.executed is False) for error in outcomes)


def test_a_stop_in_short_time_cancels_and_does_not_kill() -> None:
    with Kitchen("kitchen") as node:
        future = Kitchen.tidy.submit()
        assert Kitchen.said() == []
        node.shutdown(timeout=3)
        assert node.exitcode == -signal.SIGTERM  # asked, then hurried by the signal
        error = future.exception()
        assert isinstance(error, pyzmp.NodeDied)
        assert error.executed is True


# -- what became of it ---------------------------------------------------------------------------------------------


class Mill(pyzmp.Node):
    @pyzmp.service
    async def awaits(self) -> None:
        await asyncio.sleep(60)

    @pyzmp.service
    async def stubborn(self) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"
        return ""

    @pyzmp.service
    def deaf(self, seconds: float, sign: str) -> None:
        Path(sign).touch()
        time.sleep(seconds)

    @pyzmp.service(worker=True)
    def deafly(self, seconds: float, sign: str) -> None:
        Path(sign).touch()
        time.sleep(seconds)

    @pyzmp.service(worker=True)
    def asks(self, sign: str) -> None:
        Path(sign).touch()
        while True:
            pyzmp.current_call().check()
            time.sleep(0.01)

    @pyzmp.service(worker=True)
    def hurries(self, sign: str) -> int:
        """Ends with what it has."""
        Path(sign).touch()
        while not pyzmp.current_call().cancelled:
            time.sleep(0.01)
        return 1

    @pyzmp.service
    async def beats(self) -> int:
        return 1


def report(future: Any, eventually: Any) -> tuple[Any, Any]:
    """What the node says of a cancelled call, once it does."""
    assert future.cancel()
    eventually(lambda: future.executed is not None)
    return future.executed, future.stopped


@pytest.fixture
def mill(home: Any) -> None:
    home.start(Mill("mill"))


def test_what_was_cancelled_before_its_turn_did_not_run(mill: None, tmp_path: Path, eventually: Any) -> None:
    held = Mill.deaf.submit(0.3 * SCALE, str(tmp_path / "held"))
    future = Mill.deaf.submit(0.0, str(tmp_path / "unwanted"))
    eventually((tmp_path / "held").exists)
    assert (future.executed, future.stopped) == (None, None)
    assert report(future, eventually) == (False, True)
    assert held.result(5) is None
    assert (held.executed, held.stopped) == (True, None)  # type: ignore[attr-defined]
    assert not (tmp_path / "unwanted").exists()


def test_an_async_service_was_stopped(mill: None, eventually: Any) -> None:
    future = Mill.awaits.submit()
    assert Mill.beats.submit().result(5) == 1
    assert report(future, eventually) == (True, True)


def test_one_that_does_not_ask_went_on(mill: None, tmp_path: Path, eventually: Any) -> None:
    for service in (Mill.deaf, Mill.deafly):
        sign = tmp_path / service.name
        future = service.submit(0.2 * SCALE, str(sign))
        eventually(sign.exists)
        assert report(future, eventually) == (True, False)


def test_one_that_asks_was_stopped(mill: None, tmp_path: Path, eventually: Any) -> None:
    future = Mill.asks.submit(str(tmp_path / "asks"))
    eventually((tmp_path / "asks").exists)
    assert report(future, eventually) == (True, True)


def test_one_that_ends_with_what_it_has_was_not_stopped(mill: None, tmp_path: Path, eventually: Any) -> None:
    future = Mill.hurries.submit(str(tmp_path / "hurries"))
    eventually((tmp_path / "hurries").exists)
    assert report(future, eventually) == (True, False)
    stubborn = Mill.stubborn.submit()
    assert Mill.beats.submit().result(5) == 1
    assert report(stubborn, eventually) == (True, False)


def test_a_future_that_was_not_cancelled_tells_whether_it_ran(mill: None, eventually: Any) -> None:
    done = Mill.beats.submit()
    assert done.result(5) == 1
    assert (done.executed, done.stopped) == (True, None)  # type: ignore[attr-defined]
    late = Mill.awaits.with_options(timeout=0.1).submit()
    assert isinstance(late.exception(5), pyzmp.CallTimeout)
    assert (late.executed, late.stopped) == (None, None)  # type: ignore[attr-defined]


def test_of_a_node_that_is_killed_nobody_ever_says(eventually: Any) -> None:
    with Mill("mill") as node:
        future = Mill.awaits.submit()
        assert Mill.beats.submit().result(5) == 1
        os.kill(node.ident, signal.SIGKILL)  # type: ignore[arg-type]
        future.cancel()
        node.join()
        assert (future.executed, future.stopped) == (None, None)  # type: ignore[attr-defined]
