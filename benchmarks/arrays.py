"""Large numpy arrays by call, there and back, and by topic, beside raw pyzmq without copies; and what memory they take.

A process answers each array with itself, or takes each that is published.  Memory is counted in arrays: what Python
allocates at its peak (tracemalloc), and by how much the peak of a process grows, at either end.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
import tracemalloc
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue

import numpy as np
import numpy.typing as npt
import zmq
from harness import compare, count, world

import pyzmp

Array = npt.NDArray[np.uint8]
SIZES = {"1 MB": (1_000_000, count(100, 3)), "100 MB": (100_000_000, count(4, 1))}  # bytes, and how many in a round


def peak() -> float:
    """Bytes that this process had at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


class Memory:
    """What is taken from `begin` on."""

    def begin(self) -> None:
        """Begin to count."""
        tracemalloc.start()
        self.before = peak()

    def end(self) -> list[float]:
        """Bytes that Python has allocated at its peak, and by which the process's peak has grown."""
        allocated = float(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        return [allocated, peak() - self.before]


class Camera(pyzmp.Node):
    """Publishes arrays."""

    frames = pyzmp.Topic(np.ndarray)

    def on_start(self) -> None:
        """Begin with nothing."""
        self.memory = Memory()

    @pyzmp.service(timeout=60)
    def make(self, size: int) -> None:
        """Make what is published."""
        self.array = np.ones(size, np.uint8)

    @pyzmp.service(timeout=60)
    def publish(self, number: int) -> None:
        """Publish it so often."""
        for _ in range(number):
            self.frames.publish(self.array, timeout=30)

    @pyzmp.service
    def begin(self) -> None:
        """Begin to count memory."""
        self.memory.begin()

    @pyzmp.service
    def end(self) -> list[float]:
        """What was taken."""
        return self.memory.end()


class Echo(pyzmp.Node):
    """Takes arrays."""

    def on_start(self) -> None:
        """Begin with nothing."""
        self.memory = Memory()
        self.left = 0
        self.done = asyncio.Event()

    @pyzmp.service(timeout=60)
    def echo(self, array: np.ndarray) -> np.ndarray:
        """The same."""
        return np.asarray(array)

    @pyzmp.subscribe(Camera.frames, size=1 << 30)  # nothing is to be dropped, as with raw
    def take(self, array: np.ndarray) -> None:
        """Count one."""
        self.left -= isinstance(array, np.ndarray)
        if not self.left:
            self.done.set()

    @pyzmp.service
    def expect(self, number: int) -> None:
        """Wait for so many from now on."""
        self.left = number
        self.done.clear()

    @pyzmp.service(timeout=60)
    async def taken(self) -> None:
        """Wait until they were taken."""
        await self.done.wait()

    @pyzmp.service
    def begin(self) -> None:
        """Begin to count memory."""
        self.memory.begin()

    @pyzmp.service
    def end(self) -> list[float]:
        """What was taken."""
        return self.memory.end()


def raw_echo(address: str) -> None:
    """The raw end that answers."""
    server = zmq.Context().socket(zmq.ROUTER)
    server.bind(address)
    while True:
        caller, frame = server.recv_multipart(copy=False)
        array = np.frombuffer(frame.buffer, np.uint8)
        server.send_multipart([caller, array], copy=False)


def raw_taker(address: str, done: SimpleQueue[int], number: int) -> None:
    """The raw subscriber, which says when it has so many."""
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.set(zmq.RCVHWM, 0)
    subscriber.subscribe(b"")
    subscriber.connect(address)
    while True:
        for _ in range(number):
            np.frombuffer(subscriber.recv(copy=False).buffer, np.uint8)
        done.put(number)


def raw_camera(address: str, orders: SimpleQueue[int], size: int) -> None:
    """The raw publisher."""
    publisher = zmq.Context().socket(zmq.XPUB)
    publisher.set(zmq.SNDHWM, 0)
    publisher.bind(address)
    publisher.recv()
    array = np.ones(size, np.uint8)
    while number := orders.get():
        for _ in range(number):
            publisher.send(array, copy=False)


class Raw:
    """Raw ends in processes of their own."""

    def __init__(self, folder: str, size: int, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        here, there = f"ipc://{folder}/raw-echo-{size}", f"ipc://{folder}/raw-camera-{size}"
        self.array, self.number = np.ones(size, np.uint8), number
        self.orders, self.done = spawn.SimpleQueue(), spawn.SimpleQueue()
        self.processes = [spawn.Process(target=raw_echo, args=(here,), daemon=True),
                          spawn.Process(target=raw_camera, args=(there, self.orders, size), daemon=True),
                          spawn.Process(target=raw_taker, args=(there, self.done, number), daemon=True)]
        for process in self.processes:
            process.start()
        self.caller = zmq.Context.instance().socket(zmq.DEALER)
        self.caller.connect(here)

    def call(self) -> Array:
        """One there and back."""
        self.caller.send(self.array, copy=False)
        return np.frombuffer(self.caller.recv(copy=False).buffer, np.uint8)

    def publish(self) -> None:
        """Some by topic."""
        self.orders.put(self.number)
        self.done.get()

    def close(self) -> None:
        """End it."""
        for process in self.processes:
            process.terminate()
            process.join()
        self.caller.close(0)


def rate(size: int, number: int, some: Callable[[], object]) -> Callable[[], float]:
    """What measures megabytes in a second, where *some* moves so many arrays."""
    def measure() -> float:
        began = time.perf_counter()
        some()
        return size * number / (time.perf_counter() - began) / 1e6
    return measure


def each(number: int, call: Callable[[], object]) -> Callable[[], None]:
    """*call* so often."""
    def some() -> None:
        for _ in range(number):
            call()
    return some


def publish(number: int) -> None:
    """Publish some, and wait until they were taken."""
    Echo.expect(number)
    Camera.publish(number)
    Echo.taken()


def shown(title: str, size: int, figures: dict[str, list[float]]) -> None:
    """Print what memory was taken."""
    for who, (allocated, grown) in figures.items():
        print(f"  {title}, {who}: {allocated / size:.2f} arrays more at the peak in Python, {grown / size:.2f} in all")


def main() -> None:
    """Print the comparisons."""
    with world() as folder, Camera("camera"), Echo("echo"):
        for name, (size, number) in SIZES.items():
            array, raw, here = np.ones(size, np.uint8), Raw(folder, size, number), Memory()
            Camera.make(size)
            Echo.echo(array)  # once before: what is imported then is not of the arrays
            publish(1)
            here.begin()
            Echo.begin()
            for _ in range(3):
                Echo.echo(array)
            shown(f"{name} by call", size, {"caller": here.end(), "node": Echo.end()})
            compare(f"an array of {name} by call, there and back", "MB/s", {
                "raw DEALER/ROUTER, no copies": rate(2 * size, number, each(number, raw.call)),
                "pyzmp": rate(2 * size, number, each(number, lambda array=array: Echo.echo(array))),
            }, rounds=5, better="more", target={"pyzmp": 0.9})
            Camera.begin()
            Echo.begin()
            publish(3)
            shown(f"{name} by topic", size, {"publisher": Camera.end(), "subscriber": Echo.end()})
            compare(f"arrays of {name} by topic", "MB/s", {
                "raw PUB/SUB, no copies": rate(size, number, raw.publish),
                "pyzmp": rate(size, number, lambda number=number: publish(number)),
            }, rounds=5, better="more", target={"pyzmp": 0.9})
            raw.close()


if __name__ == "__main__":
    main()
