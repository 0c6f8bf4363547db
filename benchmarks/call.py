"""A blocking call over ipc, checked against its annotations, beside raw DEALER/ROUTER with msgpack on both sides."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time

import msgpack
import zmq
from harness import compare

import pyzmp

CALLS = 3000


class Adder(pyzmp.Node):
    """What is called."""

    @pyzmp.service
    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b


def serve(address: str) -> None:
    """The raw server: a poller, and msgpack."""
    server = zmq.Context().socket(zmq.ROUTER)
    server.bind(address)
    poller = zmq.Poller()
    poller.register(server, zmq.POLLIN)
    while True:
        poller.poll()
        caller, request = server.recv_multipart()
        number, (a, b) = msgpack.unpackb(request)
        server.send_multipart([caller, msgpack.packb([number, a + b])])


def raw(address: str) -> float:
    """Microseconds of one raw call."""
    caller = zmq.Context.instance().socket(zmq.DEALER)
    caller.connect(address)
    poller = zmq.Poller()
    poller.register(caller, zmq.POLLIN)
    began = 0.0
    for number in range(CALLS + 100):
        if number == 100:
            began = time.perf_counter()
        caller.send(msgpack.packb([number, [number, 2]]))
        if not poller.poll(5000):
            raise TimeoutError
        answer, total = msgpack.unpackb(caller.recv())
        if (answer, total) != (number, number + 2):
            raise ValueError(total)
    spent = time.perf_counter() - began
    caller.close(0)
    return spent / CALLS * 1e6


def ours() -> float:
    """Microseconds of one call of a node."""
    add = Adder.add
    for number in range(100):
        add(number, 2)
    began = time.perf_counter()
    for number in range(CALLS):
        if add(number, 2) != number + 2:
            raise ValueError(number)
    return (time.perf_counter() - began) / CALLS * 1e6


def main() -> None:
    """Print the comparison."""
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        os.environ["PYZMP_DIR"] = folder
        address = f"ipc://{folder}/raw"
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(address,), daemon=True)
        server.start()
        with Adder("adder"):
            compare("a blocking call of add(a: int, b: int) -> int over ipc", "µs a call",
                    {"raw DEALER/ROUTER and msgpack": lambda: raw(address), "pyzmp": ours})
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
