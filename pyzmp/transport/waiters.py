"""Outcomes on their way to whoever waits for them: a thread that blocks, or the futures of a loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pyzmp.protocol.outcomes import Ask, Event, Outcome, timed_out

SLACK = 0.1  # seconds after its deadline in which a call over a shared session has its outcome
_FOREVER = threading.TIMEOUT_MAX / 2


class Deliveries:
    """Outcomes on their way from the runtime's thread to the futures of one loop, woken once for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Future[Any], Event]] = deque()
        self._asked = False

    def put(self, future: asyncio.Future[Any], outcome: Event) -> None:
        """Have *future* get its outcome on its loop; called in the runtime's thread."""
        self._waiting.append((future, outcome))
        if not self._asked:
            self._asked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._asked = False  # first: what is put from now on asks again
        while self._waiting:
            future, outcome = self._waiting.popleft()
            if not future.done():
                future.set_result(outcome)


class Waiter:
    """One outcome, for a thread that blocks."""

    __slots__ = ("_lock", "_outcome")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def settle(self, outcome: Any) -> None:
        """Give the outcome; any thread may, once."""
        self._outcome: Outcome = outcome
        self._lock.release()

    def outcome(self, ask: Ask) -> Outcome:
        """The outcome of *ask*; should the runtime's thread not give it in time, that it did not."""
        left = ask.deadline.remaining(time.monotonic()) + SLACK
        return self._outcome if self._lock.acquire(timeout=min(left, _FOREVER)) else timed_out(ask, sent=True)


class Changes:
    """Waiting for changes of a state: for threads that block, and for coroutines.  Used in the state's *lock*."""

    def __init__(self, lock: threading.RLock) -> None:
        self._condition = threading.Condition(lock)
        self._futures: set[asyncio.Future[Any]] = set()

    def wait(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Block until *predicate*, without the lock; what it says at last, after *timeout* seconds at most."""
        return self._condition.wait_for(predicate, min(timeout, _FOREVER))

    def next(self) -> asyncio.Future[Any]:
        """The next change, for the running loop to wait for with `came`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        return future

    async def came(self, change: asyncio.Future[Any], over: float) -> bool:
        """Wait for the *change*, outside of the lock, until the monotonic time *over*; whether it came."""
        try:
            return bool((await asyncio.wait([change], timeout=max(0.0, over - time.monotonic())))[0])
        finally:
            self._futures.discard(change)

    def tell(self) -> None:
        """Wake all who wait."""
        self._condition.notify_all()
        futures, self._futures = self._futures, set()
        for future in futures:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                future.get_loop().call_soon_threadsafe(settle, future, None)


def settle(future: asyncio.Future[Any], outcome: Event | None) -> None:
    """Give *future* its outcome as a value, unless whoever waited has gone."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(outcome)
