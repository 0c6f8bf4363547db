"""More calls than a node, or the way to it, has room for."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import CallTimeout, Overloaded
from pyzmp.protocol.calls import CALLS
from tests.campaigns.history import SCALE


class Desk(pyzmp.Node):
    """Has room for few."""

    max_calls = 8
    max_bytes = 3_000_000

    def on_start(self) -> None:
        self.ran = 0
        self.gate = asyncio.Event()

    @pyzmp.service
    async def wait(self) -> str:
        self.ran += 1
        await self.gate.wait()
        return self.name

    @pyzmp.service
    async def keep(self, data: bytes) -> int:
        await self.gate.wait()
        return len(data)

    @pyzmp.service
    async def open(self) -> None:
        self.gate.set()

    @pyzmp.service
    async def count(self) -> int:
        return self.ran


    @pyzmp.service(worker=True)
    def stay(self, sign: str, until: str) -> None:
        self.ran += 1
        Path(sign).touch()
        while not os.path.exists(until):
            time.sleep(0.005)


class Wide(Desk):
    max_calls = 16384


def full(eventually: Any, node: str = "desk") -> list[Future[str]]:
    """Fill the node *node* with calls that run: one that waits for its turn may have to go for a newcomer."""
    waiting = [Desk.at(node).wait.submit() for _ in range(7)]
    eventually(lambda: Desk.at(node).count.submit().result(5) == 7)
    waiting.append(Desk.at(node).wait.submit())

    def no_room() -> bool:
        return isinstance(Desk.at(node).count.submit().exception(5), Overloaded)
    eventually(no_room)
    return waiting


def opened(desk: pyzmp.Node, waiting: list[Future[str]]) -> None:
    """Let those who wait go on: the first leaves, which makes room for the word to the others."""
    waiting[0].cancel()
    assert Desk.at(desk.name).open.with_options(wait=True)() is None
    assert [future.result(5) for future in waiting[1:]] == [desk.name] * 7


def test_a_full_node_says_so_at_once(place: Any, eventually: Any) -> None:
    desk = place.start(Desk("desk"))
    waiting = full(eventually)
    calls = [Desk.wait, lambda: Desk.wait.submit().result(5), lambda: asyncio.run(Desk.wait.acall())]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(Overloaded, match=r"'desk' has no room for wait\(\) now, which did not run") as caught:
            call()
        assert time.monotonic() - began < 0.5 * SCALE
        assert caught.value.executed is False
        assert (caught.value.service, caught.value.node) == ("wait", "desk")
        assert 0 < caught.value.retry_after < 5  # type: ignore[operator]
    opened(desk, waiting)
    assert Desk.count() == 8


def test_who_waits_gets_his_place_or_hears_at_his_deadline_that_he_had_none(home: Any, eventually: Any) -> None:
    desk = home.start(Desk("desk"))
    waiting = full(eventually)
    patient = Desk.count.with_options(wait=True, timeout=0.3)

    async def acall() -> int:
        return await patient.acall()
    for call in (patient, lambda: patient.submit().result(5), lambda: asyncio.run(acall())):
        executed = None
        while executed is None:  # the last attempt may be on its way just then
            began = time.monotonic()
            with pytest.raises((CallTimeout, Overloaded)) as caught:
                call()
            assert time.monotonic() - began < 1.0 * SCALE
            executed = caught.value.executed
        assert executed is False
    later = [patient.with_options(timeout=10).submit() for _ in range(3)]
    with ThreadPoolExecutor(2) as pool:
        blocked = [pool.submit(patient.with_options(timeout=10)) for _ in range(2)]
        opened(desk, waiting)
        assert [future.result(10) for future in later + blocked] == [8] * 5


def test_a_node_has_room_for_so_many_bytes_and_for_one_call_of_any_size(home: Any, eventually: Any) -> None:
    home.start(Desk("desk"))
    first = Desk.keep.submit(bytes(2_000_000))
    assert Desk.count() == 0
    second = Desk.keep.submit(bytes(2_000_000)).exception(5)
    assert isinstance(second, Overloaded)
    assert second.executed is False
    third = Desk.keep.submit(bytes(500_000))
    assert Desk.count() == 0
    Desk.open()
    assert (first.result(5), third.result(5)) == (2_000_000, 500_000)
    assert Desk.keep(bytes(5_000_000)) == 5_000_000  # larger than the limit, and alone


def test_the_window_of_a_session_has_places_for_so_many_calls(home: Any, eventually: Any) -> None:
    home.start(Wide("wide"))
    assert Wide.count() == Wide.count() == 0  # from now on this thread has a session of its own
    waiting = [Wide.wait.submit() for _ in range(CALLS)]
    refused = Wide.wait.submit().exception(5)
    assert isinstance(refused, Overloaded)
    assert refused.executed is False
    assert refused.retry_after
    assert "fills its window" in str(refused)
    late = Wide.wait.with_options(wait=True, timeout=0.2).submit().exception(5)
    assert isinstance(late, CallTimeout)
    assert late.executed is False
    patient = Wide.count.with_options(wait=True).submit()
    Wide.open()
    assert patient.result(5) == CALLS
    assert [future.result(10) for future in waiting] == ["wide"] * CALLS


def test_a_call_that_is_given_up_keeps_its_place_until_the_node_has_answered(
        home: Any, eventually: Any, tmp_path: Path) -> None:
    home.start(Desk("desk"))
    signs, end = [tmp_path / str(number) for number in range(8)], tmp_path / "end"
    held = [Desk.stay.submit(str(sign), str(end)) for sign in signs]
    eventually(lambda: all(sign.exists() for sign in signs))  # one that has not begun gives its place back at once
    for future in held:
        future.cancel()
    assert isinstance(Desk.count.submit().exception(5), Overloaded)
    end.touch()
    begun = Desk.count.with_options(wait=True)()
    eventually(lambda: all(future.executed is not None for future in held))
    assert begun == sum(bool(future.executed) for future in held)


def test_a_full_provider_is_passed_over_for_one_with_room(home: Any, eventually: Any) -> None:
    home.start(Desk("desk"), Wide("wide"))
    desk = Desk.at("desk")
    waiting = full(eventually)
    both = pyzmp.discover("count")
    assert both is not None
    assert len(both.providers) == 2
    for _ in range(4):
        assert isinstance(both.submit().result(5), int)
        assert isinstance(asyncio.run(both.acall()), int)
    never_again = both.with_options(attempts=1)
    outcomes = [never_again.submit().exception(5) for _ in range(4)]
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "NoneType", "Overloaded",
                                                                     "Overloaded"]
    waiting[0].cancel()
    desk.open.with_options(wait=True)()
    assert {future.result(5) for future in waiting[1:]} == {"desk"}


class Counter(pyzmp.Node):
    max_calls = 40

    def on_start(self) -> None:
        self.served: dict[str, int] = {}

    @pyzmp.service
    def serve(self, who: str) -> None:
        time.sleep(0.005)
        self.served[who] = self.served.get(who, 0) + 1

    @pyzmp.service
    async def shares(self) -> dict[str, int]:
        return self.served


def test_a_modest_caller_has_its_turns_beside_a_greedy_one(script: Any, eventually: Any) -> None:
    with Counter("counter"):
        program = script.folder / "greedy.py"
        program.write_text("import pyzmp, time\nserve = pyzmp.discover('serve', timeout=5)\nover = time.time() + 60\n"
                           "while time.time() < over:\n"
                           "    calls = [serve.submit('greedy') for _ in range(100)]\n"
                           "    [call.exception() for call in calls]\n")
        greedy = script.start("greedy.py")
        try:
            eventually(lambda: Counter.shares.with_options(wait=True)().get("greedy", 0) > 20, 10)
            before = Counter.shares.with_options(wait=True)()["greedy"]
            refused = 0
            for _ in range(30):
                try:
                    Counter.serve("modest")
                except Overloaded:
                    refused += 1
            after = Counter.shares.with_options(wait=True)()
        finally:
            greedy.kill()
            greedy.wait()
    assert refused == 0, "a caller with one call at a time always has a place"
    assert after["modest"] == 30
    assert after["greedy"] - before < 120  # in turns: about one of the greedy one's for each of ours
