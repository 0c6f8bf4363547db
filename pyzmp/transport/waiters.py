"""Outcomes on their way to whoever waits for them: a thread that blocks, or the futures of a loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
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
            settle(future, outcome)


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


def settle(future: asyncio.Future[Any], outcome: Event) -> None:
    """Give *future* its outcome as a value, unless whoever waited has gone."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(outcome)
