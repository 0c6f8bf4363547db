"""Publishing to one process and to many, and a lone message there and back, beside raw PUB/SUB with msgpack."""

from __future__ import annotations

import argparse
import asyncio
import functools
import multiprocessing
import os
import tempfile
import time
from multiprocessing.queues import SimpleQueue
from typing import Any

import msgpack
import zmq
from harness import compare

import pyzmp

DATA = bytes(100)
SIZE = 1 << 30  # bytes that may wait: nothing is to be dropped, on either side
TURNS = 1000  # lone messages there and back


class Source(pyzmp.Node):
    """Publishes."""

    data = pyzmp.Topic(bytes)
    ping = pyzmp.Topic(int)

    @pyzmp.service(timeout=300)
    def pour(self, count: int) -> None:
        """Publish as fast as it goes."""
        publish = self.data.publish
        for _ in range(count):
            publish(DATA)

    @pyzmp.service(timeout=300)
    async def turns(self, count: int) -> float:
        """Seconds in which so many lone messages go there and back."""
        self.left, self.done = count, asyncio.Event()
        began = time.perf_counter()
        self.ping.publish(count)
        await self.done.wait()
        return time.perf_counter() - began

    def on_start(self) -> None:
        """Hear what comes back."""
        Sink.pong.subscribe(self.back)

    def back(self, number: int) -> None:
        """Publish the next one."""
        if number:
            self.ping.publish(number - 1)
        else:
            self.done.set()


class Sink(pyzmp.Node):
    """Counts what it gets."""

    pong = pyzmp.Topic(int)

    def on_start(self) -> None:
        """Begin with nothing."""
        self.count = 0
        self.wanted = 0
        self.there = asyncio.Event()

    @pyzmp.subscribe(Source.data, size=SIZE)
    def take(self, data: bytes) -> None:
        """Count a message."""
        self.count += 1
        if self.count == self.wanted:
            self.there.set()

    @pyzmp.subscribe(Source.ping)
    def turn(self, number: int) -> None:
        """Send a lone message back."""
        self.pong.publish(number)

    @pyzmp.service(timeout=300)
    async def until(self, count: int) -> None:
        """Wait until so many more have come since the last time."""
        self.wanted += count
        if self.count < self.wanted:
            self.there.clear()
            await self.there.wait()


def raw_source(address: str, subscribers: int, orders: SimpleQueue[int]) -> None:
    """The raw publisher: one message for each publish."""
    context = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.set(zmq.SNDHWM, 0)
    publisher.set(zmq.XPUB_VERBOSE, 1)  # tell of each subscriber
    publisher.bind(address)
    for _ in range(subscribers):
        publisher.recv()
    while count := orders.get():
        for _ in range(count):
            publisher.send(msgpack.packb(DATA))
    publisher.close(1000)


def raw_sink(address: str, done: SimpleQueue[int], count: int) -> None:
    """The raw subscriber."""
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.set(zmq.RCVHWM, 0)
    subscriber.subscribe(b"")
    subscriber.connect(address)
    while True:
        for _ in range(count):
            msgpack.unpackb(subscriber.recv())
        done.put(count)


def raw_back(here: str, there: str) -> None:
    """The raw other end of lone messages."""
    context = zmq.Context()
    publisher, subscriber = context.socket(zmq.PUB), context.socket(zmq.SUB)
    publisher.bind(there)
    subscriber.subscribe(b"")
    subscriber.connect(here)
    poller = zmq.Poller()
    poller.register(subscriber, zmq.POLLIN)
    while True:
        poller.poll()
        publisher.send(msgpack.packb(msgpack.unpackb(subscriber.recv())))


class RawTurns:
    """Lone raw messages there and back."""

    def __init__(self, folder: str, spawn: Any) -> None:
        context = zmq.Context.instance()
        self.publisher, self.subscriber = context.socket(zmq.PUB), context.socket(zmq.SUB)
        here, there = f"ipc://{folder}/here", f"ipc://{folder}/there"
        self.publisher.bind(here)
        self.subscriber.subscribe(b"")
        self.subscriber.connect(there)
        self.other = spawn.Process(target=raw_back, args=(here, there), daemon=True)
        self.other.start()
        self.poller = zmq.Poller()
        self.poller.register(self.subscriber, zmq.POLLIN)
        while not self.poller.poll(50):  # until both have subscribed
            self.publisher.send(msgpack.packb(0))
        while self.poller.poll(200):
            self.subscriber.recv()

    def __call__(self) -> float:
        """Microseconds of one."""
        began = time.perf_counter()
        for number in range(TURNS):
            self.publisher.send(msgpack.packb(number))
            self.poller.poll()
            if msgpack.unpackb(self.subscriber.recv()) != number:
                raise ValueError(number)
        return (time.perf_counter() - began) / TURNS * 1e6

    def close(self) -> None:
        """End it."""
        self.other.terminate()
        self.other.join()
        self.publisher.close(0)
        self.subscriber.close(0)


def raw(subscribers: int, count: int, folder: str, spawn: Any) -> tuple[Any, list[Any]]:
    """What measures microseconds of one raw delivery, and the processes that it needs."""
    address, orders, done = f"ipc://{folder}/raw-{subscribers}", spawn.SimpleQueue(), spawn.SimpleQueue()
    processes = [spawn.Process(target=raw_source, args=(address, subscribers, orders), daemon=True),
                 *(spawn.Process(target=raw_sink, args=(address, done, count), daemon=True)
                   for _ in range(subscribers))]
    for process in processes:
        process.start()

    def measure() -> float:
        began = time.perf_counter()
        orders.put(count)
        for _ in range(subscribers):
            done.get()
        return (time.perf_counter() - began) / count / subscribers * 1e6
    return measure, processes


def ours(names: list[str], count: int) -> float:
    """Microseconds of one delivery of a node's topic to others."""
    waiting = [Sink.at(name).until.submit(count) for name in names]
    began = time.perf_counter()
    Source.pour.submit(count)
    for future in waiting:
        future.result(300)
    return (time.perf_counter() - began) / count / len(names) * 1e6


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--subscribers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        os.environ["PYZMP_DIR"] = folder
        spawn = multiprocessing.get_context("spawn")
        for subscribers in (1, options.subscribers):
            count = options.messages // (1 if subscribers == 1 else 10)
            measure, processes = raw(subscribers, count, folder, spawn)
            names = [f"sink-{number}" for number in range(subscribers)]
            with Source("source"), pyzmp.Group("sinks", [Sink(name) for name in names]):
                title = f"a message of 100 bytes delivered to each of {subscribers} process{'es' * (subscribers > 1)}"
                compare(title, "µs a delivery", {"raw PUB/SUB and msgpack": measure,
                                                 "pyzmp": functools.partial(ours, names, count)}, rounds=options.rounds)
                if subscribers == 1:
                    turns = RawTurns(folder, spawn)
                    compare("a lone message there and back", "µs", {
                        "raw PUB/SUB and msgpack": turns, "pyzmp": lambda: Source.turns(TURNS) / TURNS * 1e6})
                    turns.close()
            for process in processes:
                process.terminate()
                process.join()


if __name__ == "__main__":
    main()
