"""Topics of many publishers and many subscribers: nothing is lost, and who goes leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from tests.campaigns.history import SCALE

FULL = pytest.mark.slow


class Fountain(pyzmp.Node):
    drop = pyzmp.Topic(int)

    def on_start(self) -> None:
        self.count = 0

    @pyzmp.service(timeout=300)
    async def pour(self, count: int, burst: int, pause: float) -> float:
        """Publish so many, a burst every *pause* seconds; how long it took."""
        begun = time.monotonic()
        for first in range(0, count, burst):
            for number in range(first, min(count, first + burst)):
                self.drop.publish(number)
            due = begun + (first / burst + 1) * pause
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        return time.monotonic() - begun

    @pyzmp.service
    async def open(self) -> None:
        """Publish a few, again and again, until it is shut."""
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            for _ in range(5):
                self.drop.publish(self.count)
                self.count += 1
            await asyncio.sleep(0.005)

    @pyzmp.service
    async def shut(self) -> int:
        """How many there were."""
        self.running.cancel()
        return self.count

    @pyzmp.service
    async def gather(self, count: int) -> None:
        await self.drop.await_for_subscribers(count, timeout=60 * SCALE)

    @pyzmp.service
    def listeners(self) -> int:
        return self.drop.subscribers

    @pyzmp.service
    def held(self) -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()


class Bucket(pyzmp.Node):
    """Counts what it gets of each publisher, and whether it is in order and without a gap."""

    def on_start(self) -> None:
        self.next: dict[str, int] = {}
        self.wrong = 0
        self.count = 0

    @pyzmp.subscribe(Fountain.drop)
    def take(self, drop: pyzmp.Message[int]) -> None:
        self.count += 1
        self.wrong += drop.value != self.next.get(drop.node, 0)
        self.next[drop.node] = drop.value + 1

    @pyzmp.service
    def taken(self) -> tuple[int, int]:
        return self.count, self.wrong


@pytest.mark.parametrize(("buckets", "count", "burst"), [(6, 500, 20), pytest.param(50, 100_000, 100, marks=FULL)])
@pytest.mark.timeout(300)
def test_one_publisher_feeds_many_processes_without_loss(
        buckets: int, count: int, burst: int, domain: Path, eventually: Callable[..., None]) -> None:
    names = [f"bucket-{number}" for number in range(buckets)]
    with Fountain("fountain"), pyzmp.Group("buckets", [Bucket(name) for name in names]):
        Fountain.gather.with_options(timeout=60 * SCALE)(buckets)
        took = Fountain.pour(count, burst, 0.01)
        for name in names:
            eventually(lambda name=name: Bucket.at(name).taken()[0] == count, 60)  # type: ignore[misc]
            assert Bucket.at(name).taken() == (count, 0)
    print(f"{buckets} processes took {count} messages each, {buckets * count / took:,.0f} deliveries/s")


@pytest.mark.parametrize(("fountains", "count", "burst"), [(6, 100, 10), pytest.param(50, 40_000, 100, marks=FULL)])
@pytest.mark.timeout(300)
def test_many_publishers_feed_one_process_without_loss(
        fountains: int, count: int, burst: int, domain: Path, eventually: Callable[..., None]) -> None:
    names = [f"fountain-{number}" for number in range(fountains)]
    with pyzmp.Group("fountains", [Fountain(name) for name in names]), Bucket("bucket"):
        for name in names:
            Fountain.at(name).gather(1)
        pouring = [Fountain.at(name).pour.submit(count, burst, 0.05) for name in names]
        took = max(future.result(timeout=200) for future in pouring)
        eventually(lambda: Bucket.taken()[0] == fountains * count, 60)
        assert Bucket.taken() == (fountains * count, 0)
    print(f"{fountains} processes gave {count} messages each, {fountains * count / took:,.0f} deliveries/s")


@pytest.mark.parametrize("times", [60, pytest.param(1_000, marks=FULL)])
@pytest.mark.timeout(300)
def test_who_comes_and_goes_under_load_leaves_nothing_behind(
        times: int, domain: Path, eventually: Callable[..., None]) -> None:
    with Fountain("fountain"), Bucket("steady"):
        Fountain.gather(1)
        Fountain.open()
        _come_and_go(4)  # what is made once is made
        Fountain.shut()
        eventually(lambda: Fountain.listeners() == 1)
        here, there = _held(), Fountain.held()
        Fountain.open()
        begun = time.monotonic()
        _come_and_go(times)
        took = time.monotonic() - begun
        count = Fountain.shut()
        eventually(lambda: Fountain.listeners() == 1)
        eventually(lambda: Fountain.held() == there)
        eventually(lambda: _held() == here)
        eventually(lambda: Bucket.taken()[0] == count, 60)
        assert Bucket.taken() == (count, 0)
        assert count >= times  # else there was no load
    print(f"{times} subscriptions came and went, each in {took / times * 1e3:.1f} ms, "
          f"beside {count / took:,.0f} messages/s")


def _come_and_go(times: int) -> None:
    """Subscribe and leave so often; every second one takes what comes, in order."""
    for turn in range(times):
        with Fountain.drop.subscribe(timeout=10 * SCALE, full=("drop_oldest", "drop_newest", "latest")[turn % 3],
                                     history=turn % 2) as subscription:
            if turn % 2:
                first, second = next(subscription), next(subscription)
                assert first < second


def _held() -> Any:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()
