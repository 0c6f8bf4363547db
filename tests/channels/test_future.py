"""The futures of calls, settled here by hand."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

import pytest

from pyzmp.channels.future import CallFuture
from pyzmp.exceptions import CallTimeout, DeadlockError
from pyzmp.protocol.calls import Result


def decode(outcome: Any) -> Any:
    if outcome.body == b"bad":
        raise ValueError("undecodable")
    return outcome.body


def test_a_future_gives_the_decoded_result_once_it_is_there() -> None:
    future = CallFuture(decode)
    assert not future.done()
    future.settle(Result(b"good"))
    assert future.result(0) == future.result(0) == b"good"
    assert future.exception(0) is None


def test_a_future_raises_the_error_that_came() -> None:
    future = CallFuture(decode)
    future.settle(CallTimeout("late"))
    with pytest.raises(CallTimeout, match="late"):
        future.result(0)
    assert isinstance(future.exception(0), CallTimeout)


def test_a_result_that_cannot_be_decoded_is_the_futures_error() -> None:
    future = CallFuture(decode)
    future.settle(Result(b"bad"))
    with pytest.raises(ValueError, match="undecodable"):
        future.result(0)
    assert str(future.exception(0)) == "undecodable"


def test_a_cancelled_future_takes_no_outcome() -> None:
    future = CallFuture(decode)
    assert future.cancel()
    future.settle(Result(b"good"))
    with pytest.raises(CancelledError):
        future.result(0)


def test_a_callback_that_exits_ends_neither_the_thread_nor_the_other_callbacks(
        caplog: pytest.LogCaptureFixture) -> None:
    future, seen = CallFuture(decode), []
    future.add_done_callback(lambda _: sys.exit(3))
    future.add_done_callback(lambda done: seen.append(done.result()))

    def settle() -> None:
        future.settle(Result(b"good"))
        seen.append("went on")
    thread = threading.Thread(target=settle)
    thread.start()
    thread.join()
    assert seen == [b"good", "went on"]
    assert "of a call's future raised" in caplog.text


def test_in_the_main_thread_a_callback_may_exit() -> None:
    future = CallFuture(decode)
    future.add_done_callback(lambda _: sys.exit(3))
    with pytest.raises(SystemExit):
        future.cancel()


def test_to_wait_for_ones_own_loop_is_a_deadlock_at_once() -> None:
    future = CallFuture(decode, lambda: True)
    for wait in (future.result, future.exception):
        with pytest.raises(DeadlockError, match="blocks the very loop that is to answer") as caught:
            wait(60)
        assert caught.value.executed is None
        with pytest.raises(NotInTime):
            wait(0)
    future.settle(Result(b"good"))
    assert future.result() == b"good"


def test_a_loop_can_await_what_it_answers_itself() -> None:
    async def run() -> None:
        future = CallFuture(decode, lambda: True)
        asyncio.get_running_loop().call_soon(future.settle, Result(b"good"))
        assert await asyncio.wrap_future(future) == b"good"
    asyncio.run(run())


def test_the_node_is_told_also_where_the_call_was_cancelled_before_it_was_made() -> None:
    told: list[str] = []
    early, late = CallFuture(decode), CallFuture(decode)
    early.cancel()
    for future in (early, late):
        future.gives_up(lambda: told.append("told"))
        assert len(told) == 1
    late.cancel()
    assert len(told) == 2
