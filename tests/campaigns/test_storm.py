"""Awaited calls of which half are cancelled, by the thousand."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from tests.campaigns.history import judge, share

AT_ONCE = 1_000


class Echo(pyzmp.Node):
    """Answers with what it is given, in either way; and tells what it has open."""

    @pyzmp.service
    async def later(self, number: int) -> int:
        await asyncio.sleep(0)
        return number

    @pyzmp.service
    def inline(self, number: int) -> int:
        return number

    @pyzmp.service
    async def open(self) -> dict[str, int]:
        """What waits or runs here, but for this call; and the tasks of the loop."""
        (host,) = runtime.current().hosts.values()
        running = sum(len(peer.state.running) for peer in host.server.peers if peer.state is not None)
        return {"waiting": len(host._waiting), "running": running - 1, "tasks": len(asyncio.all_tasks())}


def open_here() -> dict[str, int]:
    """What the calls of this process have open."""
    sessions = runtime.current().sessions
    return {"asked": len(sessions._asked), "futures": len(sessions.futures),
            "calls": sum(len(line._calls) for line in sessions._shared.values())}


class Storm:
    """So many calls, a thousand at once; each second one is cancelled at a random moment of its first millisecond."""

    def __init__(self, count: int, chance: random.Random) -> None:
        self.count, self.chance = count, chance
        self.faults: list[str] = []
        self.seconds: list[float] = []
        self.kinds: Counter[str] = Counter()

    async def blow(self) -> None:
        room, loop = asyncio.Semaphore(AT_ONCE), asyncio.get_running_loop()
        running: set[asyncio.Task[None]] = set()
        for number in range(self.count):
            await room.acquire()
            task = loop.create_task(self.one(number, doomed=number % 2 == 1))
            running.add(task)
            task.add_done_callback(running.discard)
            task.add_done_callback(lambda _: room.release())
        await asyncio.gather(*running, return_exceptions=True)

    async def one(self, number: int, *, doomed: bool) -> None:
        service: Any = Echo.inline if number % 4 < 2 else Echo.later
        if doomed:
            asyncio.get_running_loop().call_later(self.chance.random() / 1000, asyncio.current_task().cancel)  # type: ignore[union-attr]
        began = time.monotonic()
        try:
            value = await service.with_options(timeout=30).acall(number)
        except asyncio.CancelledError:
            self.kinds["cancelled"] += 1
            if not doomed:
                self.faults.append(f"call {number} was cancelled by nobody")
            raise
        except Exception as error:
            self.kinds[type(error).__name__] += 1
            self.faults.append(f"call {number} ended with {error!r}, {'' if doomed else 'not '}cancelled")
        else:
            self.kinds["answered"] += 1
            if value != number:
                self.faults.append(f"call {number} got the value of call {value}")
        if not doomed:
            self.seconds.append(time.monotonic() - began)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_calls_that_are_cancelled_take_no_reply_from_any_other(
        count: int, chance: random.Random, eventually: Callable[..., None]) -> None:
    with Echo("echo") as node:
        assert Echo.inline(0) == 0
        at_rest, here = Echo.open(), open_here()
        storm, began = Storm(count, chance), time.monotonic()
        asyncio.run(storm.blow())
        took = time.monotonic() - began
        print(f"\n{count} calls in {took:.1f} s: {dict(storm.kinds)}; those that were not cancelled took "
              f"{share(storm.seconds, .5) * 1e3:.1f} ms (median), {share(storm.seconds, .99) * 1e3:.1f} ms (99th "
              "percentile)")
        judge(storm.faults)
        assert sum(storm.kinds.values()) == count
        assert storm.kinds["cancelled"] > count / 10, "too few were cancelled: invalid"
        assert storm.kinds["answered"] >= count / 2
        eventually(lambda: open_here() == here, 10)
        eventually(lambda: Echo.open() == at_rest, 10)
        assert set(here.values()) == {0}
        assert [Echo.inline(number) for number in range(100)] == list(range(100))
        assert node.is_alive()
