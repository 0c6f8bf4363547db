"""How fast pyzmp is here: the same work by a node and by bare ZeroMQ, in turn, and the ratio of the two."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from statistics import median

from pyzmp.channels.declare import service
from pyzmp.channels.topic import Topic
from pyzmp.exceptions import PyzmpError
from pyzmp.node import Node
from pyzmp.selftest import world
from pyzmp.transport import raw

WINDOW = 1000  # calls that are under way at once
CALLS, MANY, MESSAGES = 1000, 10_000, 20_000  # in one round: one after the other, at once, and published
DATA = bytes(100)
ROOM = 1 << 30  # bytes of messages that may wait, so that none is dropped
LIMIT = 60.0  # seconds that one round may take

Work = Callable[[], float]


class Other(Node):
    """The other process, of pyzmp and of bare ZeroMQ."""

    data = Topic(bytes)

    @service
    def add(self, a: int, b: int) -> int:
        """What is called."""
        return a + b

    @service(timeout=LIMIT)
    def pour(self, count: int) -> None:
        """Publish so many messages."""
        for _ in range(count):
            self.data.publish(DATA)

    @service(worker=True)
    def serve(self, address: str) -> None:
        """Bare ZeroMQ's side, which does not wait for this node's loop."""
        raw.serve(address)


def run(echo: Callable[[str], object], rounds: int) -> None:
    """Measure each work in so many *rounds*, and tell *echo* a line for each as it is done.

    It has a directory and a domain of its own, and leaves nothing behind.
    """
    began = time.monotonic()
    with world("bench") as directory, Other("node"), Other("raw"):
        address = f"ipc://{directory}/raw"
        Other.at("raw").serve.post(address)
        with closing(raw.Caller(address)) as caller:
            echo(f"{'microseconds for one, the median of alternating rounds':54}  {'pyzmp':>8}  {'raw pyzmq':>9}")
            for name, bare, ours in _works(caller):
                figures = [(bare(), ours()) for _ in range(rounds + 1)][1:]  # the first one warms up
                limit, figure = (median(side) * 1e6 for side in zip(*figures, strict=True))
                echo(f"{name:54}  {figure:8.2f}  {limit:9.2f}  {limit / figure:6.2f} times as fast as raw pyzmq")
    echo(f"measured in {time.monotonic() - began:.1f} s")


def _works(caller: raw.Caller) -> Iterator[tuple[str, Work, Work]]:
    """What is measured: its name, and seconds of one by bare ZeroMQ and by pyzmp."""
    node = Other.at("node")
    yield ("a blocking call over ipc", _timed(CALLS, lambda: _sum(caller.add)), _timed(CALLS, lambda: _sum(node.add)))
    many = _timed(MANY, lambda: caller.add_many(MANY, WINDOW))
    yield (f"calls as futures, {WINDOW:,} in flight", many, _timed(MANY, lambda: _futures(node.add.submit)))
    yield "calls by map", many, _timed(MANY, lambda: sum(node.add.map(range(MANY), [2] * MANY)))
    with node.data.subscribe(timeout=LIMIT, size=ROOM) as messages:
        def take() -> int:
            pouring = node.pour.submit(MESSAGES)
            came = sum(next(messages) == DATA for _ in range(MESSAGES))
            pouring.result(LIMIT)
            return came
        yield ("a message of 100 bytes published to one subscriber",
               _timed(MESSAGES, lambda: caller.take(DATA, MESSAGES), MESSAGES), _timed(MESSAGES, take, MESSAGES))


def _timed(count: int, work: Callable[[], int], expected: int | None = None) -> Work:
    """Seconds of one of so many; raises where the work does not give what it should."""
    right = sum(range(count)) + 2 * count if expected is None else expected

    def timed() -> float:
        began = time.perf_counter()
        result = work()
        spent = time.perf_counter() - began
        if result != right:
            raise PyzmpError(f"the benchmark got a wrong result: expected {right}, got {result}")
        return spent / count
    return timed


def _sum(add: Callable[[int, int], int]) -> int:
    return sum(add(number, 2) for number in range(CALLS))


def _futures(submit: Callable[[int, int], Future[int]]) -> int:
    under_way = deque(submit(number, 2) for number in range(WINDOW))
    total = 0
    for number in range(WINDOW, MANY):
        total += under_way.popleft().result()
        under_way.append(submit(number, 2))
    return total + sum(future.result() for future in under_way)
