"""Values between threads and loops: none is lost, whoever waits and however the wait ends."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest

from pyzmp.channels import arrivals as arrivals_module
from pyzmp.channels.arrivals import Arrivals
from tests.campaigns.history import SCALE


def test_what_is_there_is_taken_at_once_and_in_order() -> None:
    arrivals: Arrivals[int] = Arrivals()
    for number in range(3):
        arrivals.put(number)
    assert len(arrivals) == 3
    assert arrivals.take(0) == 0
    assert asyncio.run(arrivals.atake(0)) == 1
    assert arrivals.take(float("inf")) == 2
    assert len(arrivals) == 0


def test_a_wait_ends_in_time() -> None:
    arrivals: Arrivals[int] = Arrivals()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        arrivals.take(0.05)
    with pytest.raises(TimeoutError):
        asyncio.run(arrivals.atake(0.05))
    assert 0.1 <= time.monotonic() - began < 0.5 * SCALE
    arrivals.put(1)  # nobody waits any more, and the loop is closed
    assert arrivals.take(0) == 1


def test_a_thread_that_blocks_is_woken() -> None:
    arrivals: Arrivals[int] = Arrivals()
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(arrivals.take(5) for _ in range(1000)))
    thread.start()
    for number in range(1000):
        arrivals.put(number)
    thread.join()
    assert got == list(range(1000))


def test_a_loop_is_woken_by_any_thread() -> None:
    arrivals: Arrivals[int] = Arrivals()

    async def run() -> list[int]:
        return [await arrivals.atake(5) for _ in range(1000)]

    def put() -> None:
        for number in range(1000):
            arrivals.put(number)
    thread = threading.Thread(target=put)
    thread.start()
    assert asyncio.run(run()) == list(range(1000))
    thread.join()


def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    arrivals: Arrivals[int] = Arrivals()
    put = 2000

    def give() -> None:
        for number in range(put):
            arrivals.put(number)
            if number % 7 == 0:
                time.sleep(0)

    async def run() -> list[int]:
        got: list[int] = []
        cancelled = 0
        while len(got) < put:
            task = asyncio.ensure_future(arrivals.atake(5))
            await asyncio.sleep(0)
            task.cancel()
            try:
                got.append(await task)
            except asyncio.CancelledError:
                cancelled += 1
        assert cancelled
        return got
    thread = threading.Thread(target=give)
    threading.Timer(0.05, thread.start).start()
    assert asyncio.run(run()) == list(range(put))
    thread.join()


def test_a_cancelled_wait_does_not_wake_the_next_one_in_vain() -> None:
    arrivals: Arrivals[int] = Arrivals()

    async def run() -> Any:
        first = asyncio.ensure_future(arrivals.atake(5))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.ensure_future(arrivals.atake(5))
        await asyncio.sleep(0)
        arrivals.put(1)
        return await second
    assert asyncio.run(run()) == 1


def test_whatever_is_interrupted_others_can_put() -> None:
    arrivals: Arrivals[int] = Arrivals()
    put: list[int] = []

    def interrupt(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename == arrivals_module.__file__:
            put.append(len(put))
            other = threading.Thread(target=arrivals.put, args=(put[-1],))  # what a handler here may wait for
            other.start()
            other.join(5)
            assert not other.is_alive()
            return interrupt
        return None

    async def take() -> int:
        return await arrivals.atake(5)
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        got = [arrivals.take(5), arrivals.take(5), asyncio.run(take())]
        arrivals.put(-1)
    finally:
        sys.settrace(before)
    while len(arrivals):
        got.append(arrivals.take(0))
    assert got == sorted(got[:got.index(-1)]) + got[got.index(-1):]
    assert sorted(got) == [-1, *put]
    assert len(put) > 10


def test_two_who_wait_are_woken_one_after_the_other() -> None:
    async def main() -> None:
        arrivals: Arrivals[int] = Arrivals()

        async def take() -> None:
            arrivals.put(await arrivals.atake(1000))
        both = [asyncio.create_task(take()) for _ in range(2)]
        await asyncio.sleep(0)
        arrivals.put(1)
        await asyncio.wait_for(asyncio.gather(*both), 5 * SCALE)
        assert len(arrivals) == 1
    asyncio.run(main())
