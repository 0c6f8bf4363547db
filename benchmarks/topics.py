"""Publishing to one process and to many, and a lone message there and back, beside raw PUB/SUB with msgpack and Zenoh.

Where there are two processes, they run on a core each.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.queues import SimpleQueue
from typing import Any

import msgpack
import zmq
from harness import apart, compare, count, peer, world

import pyzmp

DATA = bytes(100)
SIZE = 1 << 30  # bytes that may wait: nothing is to be dropped, on either side
MESSAGES = count(200_000, 2000)
TURNS = count(1000)  # lone messages there and back
SUBSCRIBERS = count(50, 3)
PORT = "tcp/127.0.0.1:17447"  # of Zenoh's


class Source(pyzmp.Node):
    """Publishes."""

    data = pyzmp.Topic(bytes)
    plain = pyzmp.Topic(bytes)
    ping = pyzmp.Topic(int)

    @pyzmp.service(timeout=300)
    def pour(self, number: int) -> None:
        """Publish as fast as it goes, for handlers."""
        publish = self.data.publish
        for _ in range(number):
            publish(DATA)

    @pyzmp.service(timeout=300)
    def pour_plain(self, number: int) -> None:
        """Publish as fast as it goes, for who iterates."""
        publish = self.plain.publish
        for _ in range(number):
            publish(DATA)

    @pyzmp.service(timeout=300)
    async def turns(self, number: int) -> float:
        """Seconds in which so many lone messages go there and back."""
        self.done = asyncio.Event()
        began = time.perf_counter()
        self.ping.publish(number)
        await self.done.wait()
        return time.perf_counter() - began

    @pyzmp.service
    def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()

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
    async def until(self, number: int) -> None:
        """Wait until so many more have come since the last time."""
        self.wanted += number
        if self.count < self.wanted:
            self.there.clear()
            await self.there.wait()

    @pyzmp.service
    def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()


def iterating(done: SimpleQueue[int], number: int) -> None:
    """A program that iterates over what the source publishes."""
    with Source.at("source").plain.subscribe(size=SIZE) as values:
        done.put(0)
        left = number
        for _ in values:
            left -= 1
            if not left:
                done.put(number)
                left = number


def raw_source(address: str, subscribers: int, orders: SimpleQueue[int]) -> None:
    """The raw publisher: one message for each publish."""
    context = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.set(zmq.SNDHWM, 0)
    publisher.set(zmq.XPUB_VERBOSE, 1)  # tell of each subscriber
    publisher.bind(address)
    for _ in range(subscribers):
        publisher.recv()
    while number := orders.get():
        for _ in range(number):
            publisher.send(msgpack.packb(DATA))


def raw_sink(address: str, done: SimpleQueue[int], number: int) -> None:
    """The raw subscriber."""
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.set(zmq.RCVHWM, 0)
    subscriber.subscribe(b"")
    subscriber.connect(address)
    done.put(0)
    while True:
        for _ in range(number):
            msgpack.unpackb(subscriber.recv())
        done.put(number)


def zenoh_session(**endpoints: str) -> Any:
    """A peer of Zenoh's, at *listen* or *connect*."""
    import zenoh

    config = zenoh.Config()
    config.insert_json5("scouting/multicast/enabled", "false")
    for way, endpoint in endpoints.items():
        config.insert_json5(f"{way}/endpoints", f'["{endpoint}"]')
    return zenoh.open(config)


def zenoh_source(address: str, subscribers: int, orders: SimpleQueue[int]) -> None:
    """Zenoh's publisher, which waits rather than drop."""
    import zenoh

    session = zenoh_session(connect=address)
    publisher = session.declare_publisher("benchmark/data", congestion_control=zenoh.CongestionControl.BLOCK)
    while not publisher.matching_status.matching:
        time.sleep(0.01)
    put = publisher.put
    while number := orders.get():
        for _ in range(number):
            put(DATA)


def zenoh_sink(address: str, done: SimpleQueue[int], number: int) -> None:
    """Zenoh's subscriber, with a callback."""
    left = number

    def take(sample: Any) -> None:
        nonlocal left
        sample.payload.to_bytes()
        left -= 1
        if not left:
            done.put(number)
            left = number
    session = zenoh_session(listen=address)
    session.declare_subscriber("benchmark/data", take)
    done.put(0)
    time.sleep(3600)


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
        apart(self.other.pid)

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


class Poured:
    """A publisher and subscribers in processes of their own, without pyzmp's nodes."""

    def __init__(self, source: Any, sink: Any, address: str, subscribers: int, number: int, spawn: Any) -> None:
        self.subscribers, self.number = subscribers, number
        self.orders, self.done = spawn.SimpleQueue(), spawn.SimpleQueue()
        self.sinks = [spawn.Process(target=sink, args=(address, self.done, number), daemon=True)
                      for _ in range(subscribers)]
        self.source = spawn.Process(target=source, args=(address, subscribers, self.orders), daemon=True)
        for process in (*self.sinks, self.source):
            process.start()
        for _ in self.sinks:
            self.done.get()
        if subscribers == 1:
            self()  # until every thread of theirs is there
            on_two_cores(self.source.pid, self.sinks[0].pid)

    def __call__(self) -> float:
        """Deliveries in a second."""
        began = time.perf_counter()
        self.orders.put(self.number)
        for _ in range(self.subscribers):
            self.done.get()
        return self.number * self.subscribers / (time.perf_counter() - began)

    def close(self) -> None:
        """End it."""
        for process in (self.source, *self.sinks):
            process.terminate()
            process.join()


class Iterated(Poured):
    """A node that publishes, and a program that iterates over it."""

    def __init__(self, number: int, spawn: Any) -> None:
        self.number, self.done = number, spawn.SimpleQueue()
        self.sink = spawn.Process(target=iterating, args=(self.done, number), daemon=True)
        self.sink.start()
        self.done.get()
        on_two_cores(Source.pid(), self.sink.pid)

    def __call__(self) -> float:
        """Deliveries in a second."""
        began = time.perf_counter()
        Source.pour_plain.submit(self.number)
        self.done.get()
        return self.number / (time.perf_counter() - began)

    def close(self) -> None:
        """End it."""
        self.sink.terminate()
        self.sink.join()


def on_two_cores(source: int, sink: int) -> None:
    """Keep a publisher and a subscriber on a core each."""
    apart(sink)
    for thread in os.listdir(f"/proc/{source}/task"):
        os.sched_setaffinity(int(thread), os.sched_getaffinity(0))


def handled(names: list[str], number: int) -> Callable[[], float]:
    """What measures deliveries in a second, of a node's topic to the handlers of others."""
    def measure() -> float:
        waiting = [Sink.at(name).until.submit(number) for name in names]
        began = time.perf_counter()
        Source.pour.submit(number)
        for future in waiting:
            future.result(300)
        return number * len(names) / (time.perf_counter() - began)
    return measure


def to_one(folder: str, spawn: Any) -> None:
    """One subscriber, and lone messages."""
    with ExitStack() as ends:
        def poured(*args: Any) -> Poured:
            made = Poured(*args, 1, MESSAGES, spawn)
            ends.callback(made.close)
            return made
        ends.enter_context(Source("source"))
        ends.enter_context(Sink("sink"))
        on_two_cores(Source.pid(), Sink.pid())
        ours, iterated = handled(["sink"], MESSAGES), Iterated(MESSAGES, spawn)
        ends.callback(iterated.close)
        compare("messages of 100 bytes to one other process", "messages/s", {
            "raw PUB/SUB and msgpack": poured(raw_source, raw_sink, f"ipc://{folder}/raw"),
            "pyzmp, a handler": ours, "pyzmp, iterated": iterated,
        }, rounds=7, better="more", target={"pyzmp, a handler": 4, "pyzmp, iterated": 4})
        compare("messages of 100 bytes to one other process, beside Zenoh", "messages/s", {
            "Zenoh": poured(zenoh_source, zenoh_sink, PORT) if peer("zenoh") else None,
            "pyzmp, a handler": ours, "pyzmp, iterated": iterated,
        }, rounds=3, better="more", target={"pyzmp, a handler": 1.5, "pyzmp, iterated": 1.5})
        turns = RawTurns(folder, spawn)
        ends.callback(turns.close)
        compare("a lone message there and back", "µs", {
            "raw PUB/SUB and msgpack": turns, "pyzmp": lambda: Source.turns(TURNS) / TURNS * 1e6,
        }, target={"pyzmp": 1.2})


def to_many(folder: str, spawn: Any) -> None:
    """Many subscribers."""
    number = MESSAGES // 5
    raw = Poured(raw_source, raw_sink, f"ipc://{folder}/many", SUBSCRIBERS, number, spawn)
    names = [f"sink-{place}" for place in range(SUBSCRIBERS)]
    with Source("source"), pyzmp.Group("sinks", [Sink(name) for name in names]):
        compare(f"messages of 100 bytes to {SUBSCRIBERS} other processes", "deliveries/s", {
            "raw PUB/SUB and msgpack": raw, "pyzmp": handled(names, number),
        }, rounds=5, better="more", target={"pyzmp": 3})
    raw.close()


def main() -> None:
    """Print the comparisons."""
    spawn = multiprocessing.get_context("spawn")
    cores = os.sched_getaffinity(0)
    with world() as folder:
        to_one(folder, spawn)
        os.sched_setaffinity(0, cores)
        to_many(folder, spawn)


if __name__ == "__main__":
    main()
