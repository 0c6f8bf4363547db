"""Values on their way from one thread to whoever takes them, blocking or on a loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

_FOREVER = threading.TIMEOUT_MAX / 2


class Arrivals(Generic[T]):
    """A queue that any thread puts into, and one consumer at a time takes from, in ``for`` or in ``async for``."""

    __slots__ = ("_changed", "_items", "_waiter")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Put something in, and wake whoever waits."""
        with self._changed:
            self._items.append(item)
            waiter, self._waiter = self._waiter, None
            self._changed.notify()
        if waiter is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    def take(self, timeout: float) -> T:
        """Take the next, and block for it at most *timeout* seconds; raises TimeoutError then."""
        if not self._items:
            with self._changed:
                if not self._changed.wait_for(lambda: self._items, min(timeout, _FOREVER)):
                    raise TimeoutError
        return self._items.popleft()

    async def atake(self, timeout: float) -> T:
        """As `take`, on the running loop.  Cancelling it loses nothing."""
        waiter: asyncio.Future[None] | None = None
        with self._changed:
            if not self._items:
                waiter = self._waiter = asyncio.get_running_loop().create_future()
        if waiter is not None:
            await asyncio.wait([waiter], timeout=min(timeout, _FOREVER))
            if not self._items:
                raise TimeoutError
        return self._items.popleft()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
