"""Following a state: what is the same whatever is followed."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels.watch import Watch


class State:
    """A number that is changed by hand, and tells so as the graph does."""

    def __init__(self) -> None:
        self.number = 0

    def look(self, here: runtime.Runtime, seen: Any) -> tuple[int, Callable[[], int]] | None:
        number = self.number
        return None if number == seen else (number, lambda: self.value(number))

    @staticmethod
    def value(number: int) -> int:
        if number < 0:
            raise ValueError(f"no {number}")
        return number

    def change(self, number: int) -> None:
        self.number = number
        replica = runtime.current().replica
        replica._loop.call_soon_threadsafe(replica._changed)

    def watch(self, timeout: float | None = None) -> Watch[int]:
        return Watch("the state", self.look, timeout)


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


@pytest.fixture
def state() -> State:
    return State()


def followed() -> bool:
    """Whether anybody attends to the graph."""
    return bool(runtime.current().replica._waiting)


def test_it_begins_with_the_present_and_then_gives_the_latest(state: State) -> None:
    with state.watch() as watch:
        assert next(watch) == 0
        for number in range(1, 1000):
            state.change(number)
        assert next(watch) == 999
        assert len(watch._signal) <= 1


def test_it_is_iterated_in_a_coroutine_too(state: State) -> None:
    async def main() -> list[int]:
        found = []
        async for number in state.watch():
            found.append(number)
            if number == 3:
                break
            state.change(number + 1)
        return found
    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_it_wakes_up_on_the_change(state: State) -> None:
    watch, found = state.watch(), []
    assert next(watch) == 0
    thread = threading.Thread(target=lambda: found.append(next(watch)))
    thread.start()
    state.change(7)
    thread.join(10)
    assert found == [7]


def test_nothing_new_in_time_is_a_timeout_and_it_can_be_asked_again(state: State) -> None:
    watch = state.watch(timeout=0.02)
    assert next(watch) == 0
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"the state has not changed for 0.02 s"):
            next(watch)
    with pytest.raises(TimeoutError, match=r"the state has not changed"):
        asyncio.run(anext(watch))  # type: ignore[arg-type]
    state.change(1)
    assert next(watch) == 1


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_a_timeout_is_a_positive_number(state: State, wrong: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        state.watch(timeout=wrong)


def test_closing_ends_whoever_waits(state: State) -> None:
    watch, found = state.watch(), []
    thread = threading.Thread(target=lambda: found.extend(watch))
    thread.start()
    watch.close()
    thread.join(10)
    assert not thread.is_alive()
    assert found in ([], [0])
    assert list(watch) == []
    assert not followed()
    assert repr(watch) == "<Watch of the state, closed>"


def test_closing_ends_a_coroutine_that_waits(state: State) -> None:
    async def main() -> list[int]:
        watch, found = state.watch(), []
        async for number in watch:
            found.append(number)
            asyncio.get_running_loop().call_later(0.01, watch.close)
        return found
    assert asyncio.run(main()) == [0]


def test_leaving_it_or_letting_go_of_it_ends_it(state: State) -> None:
    with state.watch() as watch:
        assert next(watch) == 0
        assert followed()
    assert not followed()
    for number in state.watch():
        assert number == 0
        break
    gc.collect()
    assert not followed()


def test_cancelling_who_waits_loses_nothing(state: State) -> None:
    async def main() -> int:
        watch = state.watch()
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        state.change(1)
        return await anext(watch)
    assert asyncio.run(main()) == 1


def test_a_value_that_cannot_be_had_is_raised_once(state: State) -> None:
    watch = state.watch(timeout=0.02)
    state.change(-1)
    with pytest.raises(ValueError, match="no -1"):
        next(watch)
    with pytest.raises(TimeoutError):
        next(watch)
    state.change(2)
    assert next(watch) == 2


def test_a_callback_is_called_with_each_state_and_may_fail(
        state: State, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    found: list[int] = []
    threads: set[str] = set()

    def callback(number: int) -> None:
        found.append(number)
        threads.add(threading.current_thread().name)
        if number == 0:
            raise KeyError("zero")
        if number == 1:
            raise StopIteration
        if number == 2:
            raise SystemExit
    with caplog.at_level(logging.CRITICAL, "pyzmp.watch"), state.watch().call(callback) as watch:
        for number in range(4):
            state.change(number)
            eventually(lambda number=number: found[-1:] == [number])
        watch.close()
        state.change(9)
    assert found == [0, 1, 2, 3]
    assert threads == {"pyzmp-watch"}


def test_what_a_callback_raises_is_logged(
        state: State, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    def callback(number: int) -> None:
        raise KeyError(f"number {number}")
    with state.watch().call(callback):
        eventually(lambda: "number 0" in caplog.text)
    assert "of a watch of the state raised" in caplog.text


def test_a_callback_has_no_timeout(state: State) -> None:
    with pytest.raises(TypeError, match="a timeout is for iterating"):
        state.watch(timeout=1).call(print)


# -- how one with a callback ends ----------------------------------------------------------------------------------


def watching() -> bool:
    return any(thread.name == "pyzmp-watch" for thread in threading.enumerate())


def test_closing_waits_for_the_callback_that_runs_but_inside_of_it(
        state: State, eventually: Callable[..., None]) -> None:
    began, go, order = threading.Event(), threading.Event(), []

    def callback(number: int) -> None:
        began.set()
        go.wait(10)
        watch.close()
        order.append("called")

    def close() -> None:
        watch.close()
        order.append("closed")
    watch = state.watch().call(callback)
    assert began.wait(10)
    closing = threading.Thread(target=close)
    closing.start()
    eventually(lambda: watch._closed)
    go.set()
    closing.join(10)
    assert order == ["called", "closed"]
    assert not watching()


def test_in_a_coroutine_it_is_closed_without_holding_up_the_loop(state: State) -> None:
    async def main() -> list[str]:
        loop, order, began = asyncio.get_running_loop(), list[str](), asyncio.Event()

        def callback(number: int) -> None:
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)  # the loop goes on
            order.append("called")
        async with state.watch().call(callback) as watch:
            await began.wait()
            watch.close()
        order.append("closed")
        await watch.aclose()
        async with state.watch() as other:
            assert await anext(other) == 0
        assert await anext(other, None) is None
        return order
    assert asyncio.run(main()) == ["called", "closed"]


def test_all_end_with_the_runtime_and_make_no_other(state: State, eventually: Callable[..., None]) -> None:
    found: list[int] = []
    watch, iterated, blocked = state.watch().call(found.append), state.watch(), list[int]()
    eventually(lambda: found)
    assert next(iterated) == 0
    thread = threading.Thread(target=lambda: blocked.extend(iterated))
    thread.start()
    runtime.reset()
    thread.join(10)
    eventually(lambda: not watching())
    state.number = 5  # a look after the end would find it
    assert next(iterated, None) is None
    watch.close()
    assert (found, blocked) == ([0], [])
    assert not runtime.in_use()


PROGRAM = """
import pyzmp, threading
from multiprocessing.util import Finalize
from pyzmp import runtime

def last():
    left = [thread for thread in threading.enumerate() if thread.name == "pyzmp-watch"]
    for thread in left:
        thread.join(2)
    print([thread for thread in left if thread.is_alive()], runtime.in_use())

Finalize(None, last, exitpriority=1)
node = pyzmp.Node("n", kind="thread")
node.start()
watches = [pyzmp.graph.watch(lambda graph: None if graph.epoch else print(graph)) for _ in range(3)]
"""


def test_the_interpreter_ends_with_callbacks_alive(script: Any) -> None:
    result = script(PROGRAM)
    assert (result.code, result.out, result.err) == (0, "[] False\n", "")


def test_what_cannot_be_followed_is_told_at_once(
        state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
        eventually: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match="expected a function to call, got 3"):
        state.watch().call(3)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "pyzmp.watch"):
        watch = Watch("nothing", lambda here, seen: 1 // 0).call(print)
        eventually(lambda: not watching())
        watch.close()
    assert caplog.messages == ["a watch of nothing for a callback raised"]
    caplog.clear()
    runtime.reset()
    monkeypatch.setenv("PYZMP_TIMEOUT", "nonsense")
    with pytest.raises(ValueError, match="PYZMP_TIMEOUT: expected a positive number of seconds, got 'nonsense'"):
        state.watch().call(print)
    assert not watching()


def test_a_state_that_cannot_be_had_keeps_a_callback_from_none_later(
        state: State, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    def look(here: runtime.Runtime, seen: Any) -> tuple[int, Callable[[], int]] | None:
        found = state.look(here, seen)
        return None if found is None else (found[0], lambda: had(found[0]))

    def had(number: int) -> int:
        if number == 1:
            raise pyzmp.RemoteError("MalformedMessage", "no value")
        return number
    found: list[int] = []
    with caplog.at_level(logging.ERROR, "pyzmp.watch"), Watch("the state", look).call(found.append):
        eventually(lambda: found)
        state.change(1)
        eventually(lambda: caplog.messages)
        state.change(2)
        eventually(lambda: found == [0, 2])
    caplog.clear()


class Watching(pyzmp.Node):
    kind = "entity"

    def on_start(self) -> None:
        self.graphs = list[Any]()
        self.watch = pyzmp.graph.watch(self.graphs.append)


def test_one_that_a_node_makes_ends_with_it(eventually: Callable[..., None]) -> None:
    with Watching("watching"):
        assert watching()
    eventually(lambda: not watching())
