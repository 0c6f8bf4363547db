"""What all links of a process share: ZeroMQ's context, the listeners in memory, and what a fork must close."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any

import zmq

from pyzmp.transport.address import Address

if TYPE_CHECKING:
    from pyzmp.transport.memory import MemoryListener

SPARE = 64  # descriptors left to the user's own files
LINGER = 500  # milliseconds in which what was sent may still leave, once a socket is closed


class Context:
    """The links of one process.  Made when first needed, closed with the runtime, rebuilt after a fork.

    Safe to use from any thread; each socket that it makes belongs to the thread that uses it.
    """

    def __init__(self) -> None:
        self.memory: dict[str, MemoryListener] = {}
        self._zmq: zmq.Context[zmq.Socket[bytes]] | None = None
        self._count = itertools.count()
        self._names: Counter[Any] = Counter()
        self._listening: set[Address] = set()

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """A new socket with the options that all of ours share."""
        if self._zmq is None:
            self._zmq = zmq.Context()
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            # Each session takes about five descriptors: two sockets of ours, their mailboxes and the connection.
            self._zmq.set(zmq.MAX_SOCKETS, max(256, min(limit - SPARE, 65000)))
        made = self._zmq.socket(kind)
        made.set(zmq.LINGER, LINGER)
        return made

    def monitor(self, watched: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
        """A socket that receives what happens to the connections of *watched*."""
        # Numbered by us: names made from a descriptor's number meet each other once it is used again.
        name = f"inproc://pyzmp-monitor-{next(self._count)}"
        watched.monitor(name, events)
        end = self.socket(zmq.PAIR)
        end.connect(name)
        return end

    def uses(self, address: Address, *, listens: bool = False) -> None:
        """Note that a link is connected to *address*, or *listens* there."""
        self._names[socket_name(address)] += 1
        if listens:
            self._listening.add(address)

    def leaves(self, address: Address, *, listens: bool = False) -> None:
        """Take one note of `uses` back."""
        self._names[socket_name(address)] -= 1
        self._names += Counter()  # forgets those that nobody uses any more
        if listens:
            self._listening.discard(address)

    def listens(self, address: Address) -> bool:
        """Whether a link over ZeroMQ of this process listens at *address*."""
        return address in self._listening

    def close(self) -> None:
        """Wait until all sockets are closed and what they sent has left, at most for their linger time."""
        if self._zmq is not None:
            self._zmq.term()
            self._zmq = None

    def close_inherited(self) -> None:
        """In a forked child: close every connection and listener of the parent's.

        A copy of a listening descriptor keeps the parent's port taken and its path answering after the
        parent is dead, and a copy of a connection hides its death from the peer.
        """
        for number in _descriptors():
            if self._is_ours(number):
                os.close(number)

    def _is_ours(self, number: int) -> bool:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                return False
            with socket.socket(fileno=os.dup(number)) as copy:
                return copy.getsockname() in self._names or copy.getpeername() in self._names
        except OSError:  # gone, or not connected and not bound
            return False


def socket_name(address: Address) -> Any:
    """What the system calls a socket at *address*: a path, or a host and a port."""
    if address.scheme != "tcp":
        return address.rest
    host, _, port = address.rest.rpartition(":")
    return (host.strip("[]"), int(port))


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/dev/fd")]
