"""Calls inside one process: of a thread node, of an entity from another thread, and of one on the caller's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import zmq
from call import Adder, timed
from harness import apart, compare, count, peer, world

CALLS = count(2000)


@contextlib.contextmanager
def raw() -> Iterator[tuple[Callable[[int, int], int], int]]:
    """A raw server in a thread, and what calls it: pollers, inproc and msgpack on both sides; and that thread."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server, caller = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    server.bind("inproc://raw")
    caller.connect("inproc://raw")
    poller, number = zmq.Poller(), 0
    poller.register(caller, zmq.POLLIN)

    def serve() -> None:
        poller = zmq.Poller()
        poller.register(server, zmq.POLLIN)
        while poller.poll():
            sender, request = server.recv_multipart()
            if not request:
                return
            number, (a, b) = msgpack.unpackb(request)
            server.send_multipart([sender, msgpack.packb([number, a + b])])

    def add(a: int, b: int) -> int:
        nonlocal number
        number += 1
        caller.send(msgpack.packb([number, [a, b]]))
        poller.poll()
        answer, total = msgpack.unpackb(caller.recv())
        if answer != number:
            raise ValueError(answer)
        return int(total)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield add, thread.native_id or 0
    finally:
        caller.send(b"")
        thread.join()
        context.destroy(linger=0)


@contextlib.contextmanager
def pykka() -> Iterator[tuple[dict[str, Callable[[int, int], Any] | None], list[int]]]:
    """An actor of Pykka's: asked with a message, and through a proxy, which is what one mostly writes; its thread."""
    module = peer("pykka")
    if module is None:
        yield {"Pykka ask": None, "Pykka proxy": None}, []
        return
    kind: Any = type("Actor", (module.ThreadingActor,), {
        "on_receive": lambda self, message: message[0] + message[1], "add": lambda self, a, b: a + b,
        "thread": lambda self: threading.get_native_id()})
    actor = kind.start()
    proxy = actor.proxy()
    try:
        yield ({"Pykka ask": lambda a, b: actor.ask((a, b)), "Pykka proxy": lambda a, b: proxy.add(a, b).get()},
               [proxy.thread().get()])
    finally:
        actor.stop()


def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


async def awaited() -> float:
    """Microseconds of an awaited call of an entity on the same loop."""
    async with Adder("cell", kind="entity"):
        call = Adder.at("cell").add
        began = time.perf_counter()
        for number in range(CALLS):
            if await call.acall(number, 2) != number + 2:
                raise ValueError(number)
        return (time.perf_counter() - began) / CALLS * 1e6


def main() -> None:
    """Print the comparisons."""
    with world():
        with raw() as (bare, thread), Adder("adder", kind="thread"):
            apart(thread, Adder.thread())
            compare("a blocking call of a node in another thread", "µs a call",
                    {"raw inproc DEALER/ROUTER and msgpack": functools.partial(timed, bare, CALLS),
                     "pyzmp": functools.partial(timed, Adder.add, CALLS)}, target={"pyzmp": 1.5})
        with pykka() as (actors, threads), ThreadPoolExecutor(1) as pool, Adder("adder", kind="entity"):
            apart(*threads, pool.submit(threading.get_native_id).result(), Adder.thread())
            candidates: dict[str, Callable[[int, int], Any] | None] = {
                **actors, "pyzmp": Adder.add,
                "ThreadPoolExecutor, for information": lambda a, b: pool.submit(add, a, b).result()}
            compare("a blocking call of an entity on another thread's loop", "µs a call",
                    {name: call and functools.partial(timed, call, CALLS) for name, call in candidates.items()},
                    target={"pyzmp": 1})
        with Adder("adder"):
            apart(Adder.pid())
            compare("an awaited call of an entity on the caller's own loop", "µs a call",
                    {"a blocking call of a node in another process": functools.partial(timed, Adder.add, CALLS),
                     "pyzmp": lambda: asyncio.run(awaited())}, target={"pyzmp": 0.2})


if __name__ == "__main__":
    main()
