"""Outcomes for a thread that blocks, and for the futures of a loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from pyzmp.exceptions import CallTimeout
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.outcomes import Ask, Result
from pyzmp.transport.waiters import Deliveries, Waiter
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
