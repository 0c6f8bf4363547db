"""Links inside one process: the twin of `pyzmp.transport.link`, without sockets.

The two ends are two queues.  Each end is used by one thread at a time; the ends may be in different
threads.  Buffers are copied, so that the two sides share no memory that either can change.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from pyzmp.exceptions import AddressInUse
from pyzmp.protocol.envelope import FRAMES, SIZE, Buffer
from pyzmp.transport.address import Address
from pyzmp.transport.context import Context
from pyzmp.transport.link import PATIENCE, Frames


class _Waker:
    """Wakes whoever waits for an end: a loop that it is attached to, or a thread that blocks."""

    def __init__(self) -> None:
        self._asleep = threading.Lock()  # taken until somebody wakes us; not a count, so that nothing adds up
        self._asleep.acquire()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._callback: Callable[[], object] = lambda: None
        self._woken: list[None] = []  # not empty once the loop was woken; another one for each of its turns

    def attach(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self._callback, self._loop = callback, loop
        loop.call_soon(callback)

    def wake(self) -> bool:
        """Wake the end; False where its loop is closed, and nobody will ever look again."""
        loop = self._loop
        if loop is None:
            with contextlib.suppress(RuntimeError):  # awake already
                self._asleep.release()
        elif not self._woken:
            woken = self._woken
            try:
                loop.call_soon_threadsafe(self._turn)
            except RuntimeError:
                return False
            woken.append(None)  # only now: what a signal handler sends meanwhile wakes for itself
        return True

    def _turn(self) -> None:
        self._woken = []  # before the callback looks: what comes after its look wakes again
        self._callback()

    def wait(self, timeout: float) -> None:
        self._asleep.acquire(timeout=min(max(0.0, timeout), PATIENCE))


class MemoryConnection:
    """The caller's end, as `pyzmp.transport.link.Connection`.

    With a *reason* it stands for a connection that could not be made.
    """

    def __init__(self, context: Context, address: Address, reason: str = "nobody listens there") -> None:
        self.address = address
        self.inbox: deque[Frames] = deque()
        self.waker = _Waker()
        self._listener = context.memory.get(str(address))
        self.ended: str | None = None if self._listener else reason
        self.opened = self._listener is not None
        self._key = self._listener.accept(self) if self._listener else b""

    def attach(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        self.waker.attach(loop, wake)

    def wait(self, timeout: float) -> None:
        if not self.inbox and self.ended is None:
            self.waker.wait(timeout)

    def update(self) -> None:
        """Nothing to do: ``opened`` and ``ended`` are always up to date."""

    def send(self, frames: Sequence[Buffer]) -> bool:
        if self.ended is not None or self._listener is None:
            return False
        self._listener.inbox.append((self._key, _copied(frames)))
        return self._listener.waker.wake()

    def receive(self) -> Frames | None:
        return self.inbox.popleft() if self.inbox else None

    def pending(self) -> bool:
        return bool(self.inbox) or self.ended is not None

    def close(self) -> None:
        if self.ended is None and self._listener is not None:
            self.ended = "the connection was closed here"
            self._listener.leave(self._key)


class MemoryListener:
    """The listening end, as `pyzmp.transport.link.Listener`."""

    def __init__(self, context: Context, address: Address) -> None:
        self.address = address
        self.inbox: deque[tuple[bytes, Frames]] = deque()
        self.waker = _Waker()
        self._context = context
        self._peers: dict[bytes, MemoryConnection] = {}
        self._left: deque[bytes] = deque()
        self._count = itertools.count(1)
        self._closed = False
        if context.memory.setdefault(str(address), self) is not self:
            raise AddressInUse(errno.EADDRINUSE, f"{address} cannot be bound: somebody listens there")

    def accept(self, peer: MemoryConnection) -> bytes:
        """Take a new connection in, called by the caller's thread; its key."""
        key = next(self._count).to_bytes(5, "big")
        self._peers[key] = peer
        if self._closed:  # looked at after the entry: `close` sees the one or this sees the other
            peer.ended = "the connection ended"
        return key

    def leave(self, key: bytes) -> None:
        """The connection *key* ended, called by the caller's thread."""
        if self._peers.pop(key, None) is not None:
            self._left.append(key)
            self.waker.wake()

    def attach(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        self.waker.attach(loop, wake)

    def receive(self) -> tuple[bytes, Frames] | None:
        return self.inbox.popleft() if self.inbox else None

    def wait(self, timeout: float) -> None:
        """Wait *timeout* seconds: whoever sends wakes the loop, and no thread."""
        if not self.pending():
            time.sleep(timeout)

    def knows(self, key: bytes, source: int) -> None:
        """Nothing to do: an end that leaves says so by its key."""

    def left(self) -> Iterator[bytes]:
        while self._left:
            yield self._left.popleft()

    def pending(self) -> bool:
        return bool(self.inbox or self._left)

    def send(self, key: bytes, frames: Sequence[Buffer]) -> bool:
        peer = self._peers.get(key)
        if peer is None:
            return False
        peer.inbox.append(_copied(frames))
        peer.waker.wake()
        return True

    def close(self) -> None:
        if self._context.memory.get(str(self.address)) is self:
            del self._context.memory[str(self.address)]
        self._closed = True
        while self._peers:
            with contextlib.suppress(KeyError):  # it leaves at this very moment
                _, peer = self._peers.popitem()
                peer.ended = "the connection ended"
                peer.waker.wake()


def _copied(frames: Sequence[Buffer]) -> Frames:
    """The frames as the other end gets them: none where they go beyond the limits, as over ZeroMQ."""
    over = len(frames) > FRAMES or sum(memoryview(frame).nbytes for frame in frames) > SIZE
    return Frames() if over else Frames(frame if isinstance(frame, bytes) else bytes(frame) for frame in frames)
