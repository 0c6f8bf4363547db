"""Calls that are made again: what did not run, and what may run twice."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.exceptions import CallTimeout, NodeDied, Refused
from tests.campaigns.history import SCALE


class Clerk(pyzmp.Node):
    """Notes each start in a file, which outlives it, and dies where it is told to."""

    def __init__(self, name: str, book: Path, **options: Any) -> None:
        super().__init__(name, **options)
        self.book = book

    def begun(self) -> int:
        """Note a start; the number of them, over all clerks."""
        with self.book.open("a") as file:
            file.write(self.name + "\n")
        return len(self.book.read_text().split())

    def _dies(self, deaths: int) -> str:
        if self.begun() <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.name

    @pyzmp.service
    def plain(self, deaths: int = 0) -> str:
        return self._dies(deaths)

    @pyzmp.service(idempotent=True)
    def harmless(self, deaths: int = 0) -> str:
        return self._dies(deaths)

    @pyzmp.service(deduplicate=True)
    def once(self, deaths: int = 0) -> str:
        return self._dies(deaths)

    @pyzmp.service(idempotent=True)
    def failing(self) -> None:
        self.begun()
        raise ValueError("on purpose")

    @pyzmp.service(idempotent=True)
    def slow(self, seconds: float) -> str:
        self.begun()
        time.sleep(seconds)
        return self.name

    @pyzmp.service(deduplicate=True)
    async def slowly(self, seconds: float) -> int:
        number = self.begun()
        await asyncio.sleep(seconds)
        return number


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book").touch()
    return tmp_path / "book"


def starts(book: Path) -> int:
    return len(book.read_text().split())


WAYS = ["blocking", "future", "awaited"]


def called(how: str, service: Any, *args: Any) -> Any:
    async def acall() -> Any:
        return await service.acall(*args)
    return {"blocking": lambda: service(*args), "future": lambda: service.submit(*args).result(10),
            "awaited": lambda: asyncio.run(acall())}[how]()


def still_known(service: Any, **options: Any) -> Any:
    """A handle as of one who has not heard of what happens from now on."""
    known = service.with_options(**options)
    targets = service.found()
    known.found = known.seen = lambda: targets
    return known


# -- what did not run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
def test_a_provider_that_is_gone_is_passed_over_while_it_is_still_known(book: Path, how: str) -> None:
    with Clerk("gone", book) as gone, Clerk("there", book):
        plain = still_known(Clerk.plain)
        assert len(plain.found()) == 2
        os.kill(gone.ident, signal.SIGKILL)  # type: ignore[arg-type]
        gone.join()
        assert [called(how, plain) for _ in range(4)] == ["there"] * 4
        assert starts(book) == 4


@pytest.mark.parametrize("how", WAYS)
def test_one_that_shuts_down_is_passed_over_too(home: Any, book: Path, how: str, eventually: Any) -> None:
    leaving, _ = Clerk("leaving", book), home.start(Clerk("there", book))
    home.settle(leaving).start()
    running = Clerk.at("leaving").slowly.submit(0.4 * SCALE)
    eventually(lambda: starts(book) == 1)
    plain = still_known(Clerk.plain)
    assert len(plain.found()) == 2
    alone = still_known(Clerk.at("leaving").plain)
    leaving.shutdown(join=False)
    if home.kind != "entity":
        eventually(lambda: pyzmp.discover("leaving/plain") is None)
    eventually(lambda: alone.submit().exception(5) is not None)
    assert {called(how, plain) for _ in range(4)} == {"there"}
    error = alone.submit().exception(5)
    assert isinstance(error, (Refused, NodeDied))
    assert error.executed is False
    assert running.result(5) == 1
    leaving.shutdown()


def test_attempts_is_one_where_the_caller_wants_no_retry(book: Path) -> None:
    with Clerk("gone", book) as gone, Clerk("there", book):
        plain = still_known(Clerk.plain, attempts=1)
        os.kill(gone.ident, signal.SIGKILL)  # type: ignore[arg-type]
        gone.join()
        outcomes = []
        for _ in range(2):
            try:
                outcomes.append(plain())
            except NodeDied as error:
                assert error.executed is False
                outcomes.append("failed")
        assert sorted(outcomes) == ["failed", "there"]


def test_the_last_error_tells_of_the_attempts_before(book: Path) -> None:
    with Clerk("one", book) as one, Clerk("two", book) as two:
        plain, other = still_known(Clerk.plain), still_known(Clerk.harmless, attempts=4)
        for node in (one, two):
            os.kill(node.ident, signal.SIGKILL)  # type: ignore[arg-type]
            node.join()
        for how in WAYS:
            with pytest.raises(NodeDied, match=r"this was attempt 2; attempt 1 ended with NodeDied: '(one|two)' is gone"
                               ) as caught:
                called(how, plain)
            assert caught.value.executed is False
            assert isinstance(caught.value.__cause__, NodeDied)
            assert {caught.value.node, caught.value.__cause__.node} == {"one", "two"}
        began = time.monotonic()
        with pytest.raises(NodeDied, match="this was attempt 4"):
            other()  # each service has a budget of its own
        assert time.monotonic() - began >= 0.05  # with pauses, where nobody else is left


# -- what may run twice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
def test_an_idempotent_service_is_called_again_when_its_node_died_under_it(book: Path, how: str) -> None:
    with Clerk("one", book), Clerk("two", book):
        assert called(how, Clerk.harmless, 1) in {"one", "two"}
        assert starts(book) == 2
        assert len(set(book.read_text().split())) == 2


@pytest.mark.parametrize("how", WAYS)
def test_a_plain_service_is_not(book: Path, how: str) -> None:
    with Clerk("one", book), Clerk("two", book):
        with pytest.raises(NodeDied) as caught:
            called(how, Clerk.plain, 1)
        assert caught.value.executed is None
        assert starts(book) == 1


def test_where_an_earlier_attempt_may_have_run_the_last_error_says_so(book: Path) -> None:
    with Clerk("one", book) as one, Clerk("two", book) as two:
        harmless = still_known(Clerk.harmless)
        with pytest.raises(NodeDied, match="this was attempt 3") as caught:
            harmless(2)
        assert caught.value.executed is None
        assert starts(book) == 2
        assert not one.is_alive()
        assert not two.is_alive()


def test_an_error_of_the_service_is_an_answer_and_is_not_tried_again(home: Any, book: Path) -> None:
    home.start(Clerk("one", book), Clerk("two", book))
    with pytest.raises(ValueError, match="on purpose"):
        Clerk.failing()
    assert starts(book) == 1


@pytest.mark.parametrize("how", WAYS)
def test_all_attempts_are_inside_of_one_deadline(home: Any, book: Path, how: str) -> None:
    home.start(Clerk("one", book), Clerk("two", book))
    began = time.monotonic()
    with pytest.raises(CallTimeout) as caught:
        called(how, Clerk.slow.with_options(timeout=0.3, attempts=5), 0.5 * SCALE)
    assert 0.3 <= time.monotonic() - began < 0.45 * SCALE
    assert caught.value.executed is None
    assert starts(book) == 1


# -- what is answered again ----------------------------------------------------------------------------------------


def cut() -> None:
    """Cut every session of this process."""
    here = runtime.current().sessions

    def end() -> None:
        for line in [*here._shared.values()]:
            line._session._end("cut")
    here._loop.call_soon_threadsafe(end)


@pytest.mark.parametrize("transport", ["ipc", "tcp", "memory"])
def test_a_cut_session_does_not_run_a_deduplicated_call_twice(book: Path, domain: Path, transport: str,
                                                             eventually: Any) -> None:
    address = {"ipc": f"ipc://{domain}/own", "tcp": "tcp://127.0.0.1:*", "memory": None}[transport]
    if transport == "memory":
        pyzmp.configure(registry="memory")
    with Clerk("clerk", book, socket_bind=address, kind="thread" if transport == "memory" else "process"):
        future = Clerk.slowly.submit(0.4 * SCALE)
        eventually(lambda: starts(book) == 1)
        cut()
        assert future.result(5) == 1  # it has joined the one that runs
        assert starts(book) == 1
        assert Clerk.slowly(0.0) == 2  # another call is another call


def test_an_answer_that_was_given_meanwhile_is_given_again(book: Path, eventually: Any) -> None:
    with Clerk("clerk", book):
        here = runtime.current().sessions
        future = Clerk.slowly.submit(0.1)
        eventually(lambda: starts(book) == 1)
        held, asleep = threading.Event(), threading.Event()

        def sleep() -> None:  # the answer comes, and nobody reads it before the session is cut
            asleep.set()
            held.wait(5)
            for line in [*here._shared.values()]:
                line._session._end("cut")
        here._loop.call_soon_threadsafe(sleep)
        asleep.wait()
        time.sleep(0.3)  # for what is sent by another process, and cannot be looked at from here
        held.set()
        assert future.result(5) == 1
        assert starts(book) == 1


def test_a_deduplicated_call_is_not_made_at_another_node_when_it_may_have_run(book: Path) -> None:
    with Clerk("one", book), Clerk("two", book):
        with pytest.raises((NodeDied, pyzmp.UnknownService)) as caught:
            Clerk.once.with_options(timeout=1)(1)
        assert caught.value.executed is None
        assert starts(book) == 1


# -- waiting, and the budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
def test_with_wait_a_call_waits_for_a_provider(home: Any, book: Path, how: str) -> None:
    waits = Clerk.plain.with_options(wait=True, timeout=10)
    if how == "future":  # which would have to wait before there is one
        home.start(Clerk("there", book))
        assert waits.submit().result(5) == "there"
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(called, how, waits)
        home.start(Clerk("there", book))
        assert waiting.result(10) == "there"


def test_the_retries_of_a_service_have_a_budget(book: Path) -> None:
    with Clerk("gone", book) as gone, Clerk("there", book):
        plain = still_known(Clerk.plain)
        os.kill(gone.ident, signal.SIGKILL)  # type: ignore[arg-type]
        gone.join()
        outcomes = [plain.submit() for _ in range(40)]
        failed = [future for future in outcomes if future.exception(5) is not None]
        assert 40 - len(failed) >= 20  # those that began at the other one
        assert len(failed) >= 10  # and of the others so many as there are tokens for
        assert all(future.exception().executed is False for future in failed)


def test_other_errors_are_never_tried_again(home: Any, book: Path) -> None:
    home.start(Clerk("one", book), Clerk("two", book))
    by_name = pyzmp.discover("harmless")
    assert by_name is not None
    with pytest.raises(pyzmp.InvalidCall) as caught:
        by_name.with_options(attempts=5)("none")
    assert "attempt" not in str(caught.value)
    assert starts(book) == 0
