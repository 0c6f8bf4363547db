"""What all links of a process share: ZeroMQ's context, the listeners in memory, and what a fork must close."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import stat
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import zmq

from pyzmp.transport.address import Address
from pyzmp.transport.security import Handler, Security

if TYPE_CHECKING:
    from pyzmp.transport.memory import MemoryListener

SPARE = 64  # descriptors left to the user's own files
MOST = 65000  # sockets that ZeroMQ takes care of
ANY = ""  # stands for a host that is not known by number
LINGER = 500  # milliseconds in which what was sent may still leave, once a socket is closed
Watched = tuple[zmq.Socket[bytes], zmq.Socket[bytes], "weakref.finalize[..., object]"]


class Context:
    """The links of one process.  Made when first needed, closed with the runtime, rebuilt after a fork.

    Safe to use from any thread; each socket that it makes belongs to the thread that uses it.  *security* gives
    the keys of this process, and whom it lets in; it is called once, when they are first needed.
    """

    def __init__(self, security: Callable[[], Security] | None = None) -> None:
        self.memory: dict[str, MemoryListener] = {}
        self.waiting: list[None] = []  # one for each thread that waits for a socket
        self._zmq: zmq.Context[zmq.Socket[bytes]] | None = None
        self._count = itertools.count()
        self._lock = threading.RLock()  # a signal handler or a finaliser may need it too
        self._names: Counter[Any] = Counter()
        self._listening: dict[Address, int] = {}
        self._made: weakref.WeakSet[zmq.Socket[bytes]] = weakref.WeakSet()
        self._make_security = security
        self._security: Security | None = None
        self._security_lock = threading.Lock()  # of its own: reading keys takes its time
        self._handler: Handler | None = None

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """A new socket with the options that all of ours share."""
        with self._lock:
            made = self._context().socket(kind)
            self._made.add(made)
        made.set(zmq.LINGER, LINGER)
        return made

    def _context(self) -> zmq.Context[zmq.Socket[bytes]]:
        if self._zmq is None:
            self._zmq = zmq.Context()
            self._zmq.set(zmq.MAX_SOCKETS, _most_sockets())
        return self._zmq

    def security(self) -> Security | None:
        """The keys of this process and whom it lets in, or None where it has no keys; raises what getting them does."""
        with self._security_lock:
            if self._security is None and self._make_security is not None:
                self._security = self._make_security()
            return self._security

    def public_key(self) -> str:
        """The public key of this process; empty where it has none."""
        security = self.security()
        return security.keys.public if security is not None else ""

    def security_for(self, address: Address, *, listens: bool = False) -> Security | None:
        """What a link at *address* needs, or None where it speaks no CURVE.

        For one that *listens*, ZeroMQ has somebody to ask from now on.  Raises ConnectionError where it needs
        keys and this process has none, or has no room for ZeroMQ's sockets.
        """
        if not address.key:
            return None
        security = self.security()
        if security is None:
            raise ConnectionError(f"{address.endpoint} speaks CURVE, and this process has no keys")
        if listens:
            with self._lock:
                try:
                    self._handler = self._handler or Handler(self._context())
                except zmq.ZMQError as error:
                    raise ConnectionError(f"ZeroMQ makes no more sockets: {error.strerror}") from error
                self._handler.serve(security.access)
        return security

    def watched(self, owner: object, kind: int, options: Iterable[tuple[int, int]], events: int) -> Watched:
        """A new socket, one that tells of its connections, and what closes both where *owner* is lost.

        That is what becomes of an owner that a Ctrl-C interrupted.  Raises ZMQError where there is no room.
        """
        made: zmq.Socket[bytes] | None = None
        try:
            made = self.socket(kind)
            for option, value in options:
                made.set(option, value)
            monitor = self.monitor(made, events)
            lost = weakref.finalize(owner, _release, made, monitor, os.getpid())
            lost.atexit = False
            return made, monitor, lost
        except BaseException:
            if made is not None:
                _release(made, made, os.getpid())
            raise

    def monitor(self, watched: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
        """A socket that receives what happens to the connections of *watched*."""
        # Numbered by us: names made from a descriptor's number meet each other once it is used again.
        name = f"inproc://pyzmp-monitor-{next(self._count)}"
        watched.monitor(name, events)
        end = self.socket(zmq.PAIR)
        end.set(zmq.RCVHWM, 0)  # ZeroMQ's thread would wait for one that is full, and a loop may be busy
        end.connect(name)
        return end

    def uses(self, address: Address, *, listens: bool = False) -> None:
        """Note that a link is connected to *address*, or *listens* there."""
        with self._lock:
            self._names[socket_name(address)] += 1
            if listens:
                self._listening[address] = next(self._count)

    def leaves(self, address: Address, *, listens: bool = False) -> None:
        """Take one note of `uses` back."""
        name = socket_name(address)
        with self._lock:
            self._names[name] -= 1
            if self._names[name] <= 0:
                del self._names[name]
            if listens:
                self._listening.pop(address, None)

    def listener(self, address: Address) -> int | None:
        """A number for the link of this process that listens at *address* over ZeroMQ now, or None."""
        return self._listening.get(address)

    def close(self) -> None:
        """Wait until what was sent has left, at most for the linger time of sockets.

        Where another thread still has a session open, ZeroMQ would wait for ever; it is left to end with that.
        Nothing stays at the addresses where another thread still listens, which may be too busy to end.
        """
        with self._lock:
            closed, self._zmq = self._zmq, None
            handler, self._handler = self._handler, None
            idle = all(made.closed for made in self._made)
            paths = [address.rest for address in self._listening if address.scheme == "ipc"]
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if handler is not None:
            handler.close()
        if closed is not None and idle:
            closed.term()

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
                return self._knows(copy.getsockname()) or self._knows(copy.getpeername())
        except OSError:  # gone, or not connected and not bound
            return False

    def _knows(self, name: Any) -> bool:
        if not isinstance(name, tuple):
            return name in self._names
        host, port = name[:2]
        return (host, port) in self._names or (ANY, port) in self._names


def socket_name(address: Address) -> Any:
    """What the system calls a socket at *address*: a path, or a host and a port."""
    if address.scheme != "tcp":
        return address.rest
    import ipaddress  # seldom needed, and costs to import

    host, _, port = address.rest.rpartition(":")
    try:
        number = ipaddress.ip_address(host.strip("[]"))
    except ValueError:  # a name, of a host or an interface
        return ANY, int(port)
    return ANY if number.is_unspecified else str(number), int(port)


def _release(watched: zmq.Socket[bytes], monitor: zmq.Socket[bytes], pid: int) -> None:
    """Close both ends in the one order that does not stop ZeroMQ's thread: it would wait for a monitor that is gone.

    Not in a forked child, whose copies are the parent's.
    """
    if pid == os.getpid():
        with contextlib.suppress(zmq.ZMQError):  # it is closed already
            watched.disable_monitor()
        monitor.close(0)
        watched.close()


def _most_sockets() -> int:
    """Each session takes about five descriptors: two sockets of ours, their mailboxes and the connection."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if limit == resource.RLIM_INFINITY else max(256, min(limit - SPARE, MOST))


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/dev/fd")]
