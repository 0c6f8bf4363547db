"""Bare ZeroMQ, for ``pyzmp bench``: what one would write by hand, with one message for each call and each value.

No names, no checks, no deadlines, and nothing that notices a death: it is the limit that pyzmp is measured against.
"""

from __future__ import annotations

from typing import Any

import msgpack
import zmq

END = b""  # the request that ends a server
WAIT = 10_000  # milliseconds until a caller gives up
LINGER = 2000  # milliseconds in which the last request may leave


def serve(address: str) -> None:
    """Answer the caller at *address*, until it ends this.

    Of two numbers it sends back the sum; bytes it publishes, at ``address-topic``, as often as the number behind them
    says.
    """
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, context.socket(zmq.XPUB) as publisher:
        for socket, place in ((server, address), (publisher, f"{address}-topic")):
            socket.set_hwm(0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(place)
        subscribed = False
        while True:
            caller, request = server.recv_multipart()
            if request == END:
                return
            number, first, second = msgpack.unpackb(request)
            if isinstance(first, bytes):
                subscribed = subscribed or bool(publisher.recv())  # it is not there before it tells
                for _ in range(second):
                    publisher.send(msgpack.packb(first))
            else:
                server.send_multipart([caller, msgpack.packb([number, first + second])])


class Caller:
    """The other end of `serve`, in one thread.  Raises TimeoutError where nothing comes within `WAIT`."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer, self._subscriber = self._context.socket(zmq.DEALER), self._context.socket(zmq.SUB)
        for socket, place in ((self._dealer, address), (self._subscriber, f"{address}-topic")):
            socket.set_hwm(0)
            socket.setsockopt(zmq.RCVTIMEO, WAIT)
            socket.setsockopt(zmq.LINGER, LINGER)
            socket.connect(place)
        self._subscriber.subscribe(b"")
        self._number = 0

    def add(self, a: int, b: int) -> int:
        """A blocking call."""
        self._ask(a, b)
        answer, total = _received(self._dealer)
        if answer != self._number:
            raise ValueError(f"expected the answer to call {self._number}, got {answer}")
        return int(total)

    def add_many(self, count: int, window: int) -> int:
        """The sum of all sums of the numbers below *count* and 2; so many calls, *window* of them under way at once."""
        total = 0
        for number in range(-window, count):
            if number + window < count:
                self._ask(number + window, 2)
            if number >= 0:
                total += _received(self._dealer)[1]
        return total

    def take(self, data: bytes, count: int) -> int:
        """How many of *count* messages came as *data*, which the server is asked to publish."""
        self._ask(data, count)
        return sum(_received(self._subscriber) == data for _ in range(count))

    def _ask(self, first: int | bytes, second: int) -> None:
        self._number += 1
        self._dealer.send(msgpack.packb([self._number, first, second]))

    def close(self) -> None:
        """End the server, too."""
        self._dealer.send(END)
        self._context.destroy()


def _received(socket: zmq.Socket[bytes]) -> Any:
    try:
        return msgpack.unpackb(socket.recv())
    except zmq.Again:
        raise TimeoutError(f"raw ZeroMQ: nothing came within {WAIT / 1000:g} s") from None
