"""Values on their way from one thread to whoever takes them, blocking or on a loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

_FOREVER = threading.TIMEOUT_MAX / 2


class Arrivals(Generic[T]):
    """A queue that any thread puts into, and one consumer at a time takes from, in ``for`` or in ``async for``.

    There is no lock: a signal's handler and a finaliser may put and take whatever they interrupt.
    """

    __slots__ = ("_items", "_waiters")

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._waiters: deque[asyncio.Future[None]] = deque()  # of those on a loop, whom nobody has woken yet

    def __len__(self) -> int:
        return self._items.qsize()

    def put(self, item: T) -> None:
        """Put something in, and wake whoever waits."""
        self._items.put(item)
        if self._waiters:
            with contextlib.suppress(IndexError, RuntimeError):  # he waits no more; his loop is closed
                waiter = self._waiters.popleft()
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    def take(self, timeout: float) -> T:
        """Take the next, and block for it at most *timeout* seconds; raises TimeoutError then."""
        try:
            return self._items.get(timeout=max(0.0, min(timeout, _FOREVER)))
        except queue.Empty:
            raise TimeoutError from None

    async def atake(self, timeout: float) -> T:
        """As `take`, on the running loop.  Cancelling it loses nothing."""
        over = time.monotonic() + min(timeout, _FOREVER)
        while not len(self):
            left = over - time.monotonic()
            if left <= 0:
                raise TimeoutError
            await self._change(left)
        return self._items.get_nowait()

    async def _change(self, timeout: float) -> None:
        """Wait until something was put in; perhaps it was taken already."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            if not len(self):  # looked at after the entry: `put` sees the one or this sees the other
                await asyncio.wait([waiter], timeout=timeout)
        finally:
            with contextlib.suppress(ValueError):  # whoever woke us took it out
                self._waiters.remove(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
