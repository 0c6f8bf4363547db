"""The sessions of a process: those that threads have for themselves, and those that all share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

import pyzmp
from pyzmp import runtime, sessions
from pyzmp.channels.calling import Calling
from pyzmp.exceptions import NodeDied
from pyzmp.protocol.calls import Ask, Outcome
from pyzmp.protocol.deadline import Deadline
from tests.campaigns.history import SCALE


class Lamp(pyzmp.Node):
    @pyzmp.service
    def add(self, n: int) -> int:
        return n + 1

    @pyzmp.service
    def fail(self) -> None:
        raise ValueError


def test_a_threads_session_ends_with_the_thread(eventually: Callable[..., None]) -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        here = runtime.current().sessions
        results: list[int] = []

        def ask() -> None:
            results.extend(Lamp.add(n) for n in range(5))
        for _ in range(3):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        assert results == [1, 2, 3, 4, 5] * 3
        eventually(lambda: not getattr(here, "own", 0))


def test_a_hundred_threads_get_their_answers() -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        barrier, results = threading.Barrier(100), []

        def ask() -> None:
            barrier.wait()
            results.append([Lamp.add(n) for n in range(3)])
        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [[1, 2, 3]] * 100


def test_a_loop_that_has_ended_takes_its_sessions_along() -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        for _ in range(5):
            assert asyncio.run(Lamp.add.acall(1)) == 2


def lines() -> dict[Any, Any]:
    """The sessions of this very thread."""
    return runtime.current().sessions._local.lines._lines


def ask(timeout: float) -> Ask:
    return Ask("lamp", "add", b"", (), Deadline.after(timeout, time.monotonic()), timeout)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:*", None])
def test_a_call_made_while_another_waits_takes_nothing_from_it(address: str | None,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    with Lamp("lamp", address, kind="thread"):
        for number in range(3):
            assert Lamp.add(number) == number + 1
        (line,) = lines().values()
        inner, wait = [], line._session.wait

        def interrupted(timeout: float) -> None:  # as by a signal's handler or a finaliser
            if not inner:
                inner.append(0)
                inner[0] = Lamp.add(7)
            wait(timeout)
        monkeypatch.setattr(line._session, "wait", interrupted)
        began = time.monotonic()
        assert Lamp.add(3) == 4
        assert inner == [8]
        assert time.monotonic() - began < 1 * SCALE
        assert list(lines().values()) == [line]
        assert not line.busy


def test_a_call_made_while_the_shared_session_is_being_woken_is_not_forgotten() -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        here = runtime.current().sessions
        Lamp.add(1)
        here._woken.append(None)  # as when another thread has woken it just now
        here._local.lines = sessions._OwnLines(here)
        assert Lamp.add.with_options(timeout=1)(1) == 2


def test_the_peers_of_ended_loops_are_gone(eventually: Callable[..., None]) -> None:
    with Lamp("lamp", kind="thread"):
        for _ in range(10):
            assert asyncio.run(Lamp.add.acall(1)) == 2
        (host,) = runtime.current().hosts.values()
        eventually(lambda: len(host.server.peers) == 1)


def test_a_call_that_a_loop_left_open_ends_quietly(caplog: pytest.LogCaptureFixture,
                                                   eventually: Callable[..., None]) -> None:
    async def leave() -> None:
        asyncio.ensure_future(Lamp.add.acall(1)).add_done_callback(print)
        await asyncio.sleep(0)
    with Lamp("lamp", kind="thread"):
        (host,) = runtime.current().hosts.values()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        left = asyncio.all_tasks(loop)
        loop.close()
        assert asyncio.run(Lamp.add.acall(1)) == 2
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        eventually(lambda: len(host.server.peers) == 1)
    assert not caplog.records


def test_the_least_recently_used_session_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OWN", 2)
    monkeypatch.setattr(sessions, "IDLE", 0.0)
    places = [Lamp(name, "tcp://127.0.0.1:*", kind="thread") for name in "abc"]
    with places[0], places[1], places[2], Lamp("near", kind="thread"):
        here = runtime.current().sessions
        at = {name: Lamp.at(name).add for name in ("a", "b", "c", "near")}

        def used(*names: str) -> set[str]:
            for name in names:
                assert [at[name](n) for n in range(2)] == [1, 2]
            loops = {at[name].found()[0].loop: name for name in at}
            assert len(here.own) <= 2
            return {loops[loop] for _, loop in lines()}
        assert used("near", "a", "b") == {"near", "a", "b"}
        assert used("a", "c") == {"near", "a", "c"}
        elsewhere = threading.Thread(target=lambda: [at["b"](n) for n in range(3)])
        elsewhere.start()
        elsewhere.join()
        assert used() == {"near", "a", "c"}
        assert used("b", "a") == {"near", "b", "a"}


def test_a_session_that_was_of_use_a_moment_ago_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OWN", 2)
    places = [Lamp(name, "tcp://127.0.0.1:*", kind="thread") for name in "abc"]
    with places[0], places[1], places[2]:
        for number in range(3):
            for name in "abc":
                assert Lamp.at(name).add(number) == number + 1
        assert [loop for _, loop in lines()] == [Lamp.at(name).add.found()[0].loop for name in "ab"]


def test_a_forked_child_hears_that_its_parents_calls_are_not_its_own(script: Any) -> None:
    result = script("""
import os, signal, threading, pyzmp

class Slow(pyzmp.Node):
    kind = "thread"
    gate = threading.Event()
    @pyzmp.service(worker=True)
    def wait(self) -> str:
        self.gate.wait()
        return "done"

with Slow("slow"):
    future = Slow.wait.submit()
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    pid = os.fork()
    if not pid:
        signal.alarm(5)
        print("child:", type(future.exception()).__name__, future.exception().executed, told.is_set(), flush=True)
        os._exit(0)
    print("status", os.waitpid(pid, 0)[1])
    Slow.gate.set()
    print("parent:", future.result(), told.wait(5))
""")
    assert result.out == "child: NodeDied None False\nstatus 0\nparent: done True\n", result.err


def test_a_future_is_forgotten_once_it_has_ended(eventually: Callable[..., None]) -> None:
    with Lamp("lamp", kind="thread"):
        future = Lamp.add.submit(1)
        known = runtime.current().sessions.futures
        assert future.result(5) == 2
        eventually(lambda: not known)


def test_each_call_has_an_outcome_whatever_is_wrong(eventually: Callable[..., None]) -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        here, outcomes = runtime.current().sessions, list[Outcome]()
        target = Lamp.add.found()[0]
        here.submit(replace(target, address="no:address"), ask(5), outcomes.append)
        eventually(lambda: outcomes)
    runtime.reset()
    for _ in range(2):
        here.submit(target, ask(5), outcomes.append)
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert isinstance(outcome, NodeDied)
        assert outcome.executed is False


class Turned:
    """The runtime's loop, where *before* is called instead of the first wake."""

    def __init__(self, loop: asyncio.AbstractEventLoop, before: Callable[[], object]) -> None:
        self._loop, self._before = loop, [before]

    def call_soon_threadsafe(self, *args: Any) -> Any:
        if self._before:
            self._before.pop()()
        return self._loop.call_soon_threadsafe(*args)


def test_a_call_interrupted_while_it_wakes_the_runtime_silences_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        here = runtime.current().sessions
        assert Lamp.add.submit(0).result(5) == 1
        monkeypatch.setattr(here, "_loop", Turned(here._loop, interrupt))
        with pytest.raises(KeyboardInterrupt):
            Lamp.add.submit(1)
        assert Lamp.add.submit(2).result(5) == 3


def test_a_signals_handler_may_wait_for_a_call_while_another_one_wakes_the_runtime(
        monkeypatch: pytest.MonkeyPatch) -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        here, inner = runtime.current().sessions, []
        assert Lamp.add.submit(0).result(5) == 1
        monkeypatch.setattr(here, "_loop", Turned(here._loop, lambda: inner.append(Lamp.add.submit(1).result(5))))
        assert Lamp.add.submit(2).result(5) == 3
        assert inner == [2]


def test_a_future_whose_call_was_to_be_made_again_ends_with_the_runtime(monkeypatch: pytest.MonkeyPatch,
                                                                        eventually: Callable[..., None]) -> None:
    monkeypatch.setattr(Calling, "again", lambda self, error: 60.0)
    with Lamp("lamp", kind="thread"):
        here = runtime.current().sessions
        future = Lamp.fail.submit()
        eventually(lambda: here._pauses)
        assert not future.done()
    late: list[str] = []
    runtime.reset()
    error = future.exception(0)
    assert isinstance(error, NodeDied)
    assert error.executed is False
    here.later(0, lambda: late.append("due"), lambda: late.append("ended"))
    assert late == ["ended"]


class Ledger(pyzmp.Node):
    @pyzmp.service(worker=True)
    def note(self, gate: int) -> None:
        GATES[gate].wait(5)


GATES = [threading.Event(), threading.Event()]


def test_the_end_waits_a_moment_for_what_becomes_of_one_way_calls() -> None:
    with Ledger("ledger", "tcp://127.0.0.1:*", kind="thread"):
        here = runtime.current()
        for gate, answered in ((0, True), (1, False)):
            GATES[gate].clear()
            Ledger.note.post(gate)
            timer = threading.Timer(0.05, GATES[gate].set if answered else lambda: None)
            timer.start()
            began = time.monotonic()
            here.run(here.sessions.close_shared())
            assert GATES[gate].is_set() is answered
            assert (time.monotonic() - began < 0.9 * sessions.ANSWER) is answered
            assert time.monotonic() - began < sessions.LINGER
            timer.join()
            here.sessions._closed = False
        GATES[1].set()
