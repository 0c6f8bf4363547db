"""A loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator

import pytest

from pyzmp.loopthread import LoopThread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("looping")
    yield thread
    thread.close()


async def where() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_a_coroutine_runs_there_and_its_result_comes_back(thread: LoopThread) -> None:
    assert thread.run(where()) == "looping"


def test_so_does_its_error(thread: LoopThread) -> None:
    async def fail() -> None:
        raise KeyError("here")
    with pytest.raises(KeyError, match="here"):
        thread.run(fail())


def test_what_takes_too_long_is_cancelled(thread: LoopThread) -> None:
    ended = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
    with pytest.raises(concurrent.futures.TimeoutError):
        thread.run(wait(), timeout=0.05)
    assert ended.wait(5)


def test_closed_it_is_gone_and_may_be_closed_again() -> None:
    thread = LoopThread("closing")
    thread.close()
    assert thread.loop.is_closed()
    assert "closing" not in {other.name for other in threading.enumerate()}
    thread.close()


def test_a_busy_one_is_not_waited_for_longer_than_was_said(eventually: Callable[..., None]) -> None:
    thread, free = LoopThread("busy"), threading.Event()
    thread.loop.call_soon_threadsafe(free.wait)
    thread.close(0.02)
    assert not thread.loop.is_closed()
    free.set()
    eventually(thread.loop.is_closed)
