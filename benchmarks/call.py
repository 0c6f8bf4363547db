"""A blocking call, checked against its annotations, beside raw DEALER/ROUTER with msgpack on both sides.

Over ipc, over tcp, and over tcp with CURVE on both sides.  Callers run on one core, and who answers on another.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgpack
import zmq
from harness import apart, compare, count, world

import pyzmp
from pyzmp import runtime
from pyzmp.registry import keys
from pyzmp.registry.domain import Domain

CALLS = count(2000)


class Adder(pyzmp.Node):
    """What is called."""

    @pyzmp.service
    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b

    @pyzmp.service
    def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()

    @pyzmp.service
    def thread(self) -> int:
        """The thread that it runs in, as the system numbers it."""
        return threading.get_native_id()


def serve(address: str, secret: bytes = b"") -> None:
    """The raw server: a poller, and msgpack."""
    server = zmq.Context().socket(zmq.ROUTER)
    if secret:
        server.curve_server, server.curve_secretkey = True, secret
    server.bind(address)
    poller = zmq.Poller()
    poller.register(server, zmq.POLLIN)
    while True:
        poller.poll()
        caller, request = server.recv_multipart()
        number, (a, b) = msgpack.unpackb(request)
        server.send_multipart([caller, msgpack.packb([number, a + b])])


@contextmanager
def raw(address: str, curve: bool = False) -> Iterator[tuple[Callable[[int, int], int], int]]:
    """A raw server in a process of its own: what calls it, with a poller again and msgpack; and its pid."""
    public, secret = zmq.curve_keypair() if curve else (b"", b"")
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(address, secret), daemon=True)
    server.start()
    caller: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    if curve:
        caller.curve_publickey, caller.curve_secretkey = zmq.curve_keypair()
        caller.curve_serverkey = public
    caller.connect(address)
    poller = zmq.Poller()
    poller.register(caller, zmq.POLLIN)
    number = 0

    def add(a: int, b: int) -> int:
        nonlocal number
        number += 1
        caller.send(msgpack.packb([number, [a, b]]))
        if not poller.poll(20000):
            raise TimeoutError
        answer, total = msgpack.unpackb(caller.recv())
        if answer != number:
            raise ValueError(answer)
        return int(total)
    try:
        yield add, server.pid or 0
    finally:
        caller.close(0)
        server.terminate()
        server.join()


def timed(add: Callable[[int, int], int], calls: int = CALLS) -> float:
    """Microseconds of one call."""
    for number in range(calls // 20):
        add(number, 2)
    began = time.perf_counter()
    for number in range(calls):
        if add(number, 2) != number + 2:
            raise ValueError(number)
    return (time.perf_counter() - began) / calls * 1e6


def main() -> None:
    """Print the comparisons."""
    with world() as folder:
        key = keys.export(Domain.named(runtime.settings().domain))
        port = free()
        for way, address, bind in (
                ("ipc", f"ipc://{folder}/raw", None),
                ("tcp", f"tcp://127.0.0.1:{port}", "tcp://127.0.0.1:*"),
                ("tcp with CURVE", f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:*#{key}")):
            with raw(address, way.endswith("CURVE")) as (bare, pid), Adder("adder", bind):
                apart(pid, Adder.pid())
                compare(f"a blocking call of add(a: int, b: int) -> int over {way}", "µs a call",
                        {"raw DEALER/ROUTER and msgpack": functools.partial(timed, bare),
                         "pyzmp": functools.partial(timed, Adder.add)}, rounds=15, target={"pyzmp": 1.1})


def free() -> int:
    """A port that nobody listens at."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


if __name__ == "__main__":
    main()
