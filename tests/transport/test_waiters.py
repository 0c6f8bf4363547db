"""Outcomes for a thread that blocks, and for the futures of a loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from pyzmp.exceptions import CallTimeout
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.outcomes import Ask, Result
from pyzmp.transport.waiters import Changes, Deliveries, Waiter
from tests.campaigns.history import SCALE


def ask(timeout: float) -> Ask:
    return Ask("lamp", "add", b"", (), Deadline.after(timeout, time.monotonic()), timeout)


def test_a_blocked_thread_is_told_even_if_the_runtime_is_not_there() -> None:
    began = time.monotonic()
    assert isinstance(Waiter().outcome(ask(0.05)), CallTimeout)
    assert time.monotonic() - began < 0.5 * SCALE
    waiter = Waiter()
    waiter.settle(Result(b"there"))
    assert waiter.outcome(ask(1e12)) == Result(b"there")


def test_the_futures_of_a_loop_get_their_outcomes_in_order_and_one_that_is_gone_harms_nobody() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        deliveries, got = Deliveries(loop), list[Any]()
        futures = [loop.create_future() for _ in range(100)]
        for future in futures[1:]:
            future.add_done_callback(lambda done: got.append(done.result()))
        futures[0].cancel()
        outcomes = [Result(b"%d" % number) for number in range(100)]
        pairs = zip(futures, outcomes, strict=True)
        thread = threading.Thread(target=lambda: [deliveries.put(*pair) for pair in pairs])
        thread.start()
        await asyncio.gather(*futures[1:])
        thread.join()
        assert got == outcomes[1:]
    asyncio.run(run())


def test_changes_wake_threads_and_coroutines_and_a_wait_has_its_end() -> None:
    lock = threading.RLock()
    changes, state = Changes(lock), []  # type: ignore[var-annotated]

    def change() -> None:
        with lock:
            state.append(None)
            changes.tell()

    async def main() -> None:
        with lock:
            coming, late = changes.next(), changes.next()
        assert not await changes.came(late, time.monotonic())
        waiting = asyncio.create_task(asyncio.to_thread(blocks))
        await asyncio.to_thread(change)
        assert await changes.came(coming, time.monotonic() + 20)
        assert await waiting

    def blocks() -> bool:
        with lock:
            return changes.wait(lambda: bool(state), 20)

    with lock:
        assert not changes.wait(lambda: bool(state), 0.001)
    asyncio.run(main())
    asyncio.run(gone())


async def gone() -> None:
    """A loop that is closed is not woken, and does no harm."""
    lock = threading.RLock()
    changes = Changes(lock)

    async def next_change() -> None:
        changes.next()
    await asyncio.to_thread(asyncio.run, next_change())
    with lock:
        changes.tell()
