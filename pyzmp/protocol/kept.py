"""Answers kept for a while, so that a call that comes again is answered and not run again."""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")
Answer = TypeVar("Answer")

Key = tuple[str, bytes]  # the process that calls, and what it calls the call

ENTRIES = 10_000
SIZE = 64 << 20  # bytes
SECONDS = 30.0
KEYS = 50_000  # calls whose answers are forgotten and which are still known to have run, at most
WAITERS = 64  # for the answer of one call, at most


class Standing(enum.Enum):
    """How it stands with a call that has no answer yet."""

    FRESH = enum.auto()  # it must be run now
    RUNNING = enum.auto()  # it runs already, and the waiter gets its answer too
    CROWDED = enum.auto()  # it runs already, and no more can wait for its answer
    FORGOTTEN = enum.auto()  # it has run, and its answer is not kept any more


class Kept(Generic[Waiter, Answer]):
    """The calls that run and the answers of those that have ended, by key.

    An answer is kept for *seconds*; at most so many *entries* and bytes (*size*) are, and the oldest
    goes first.  That a call has run is remembered far longer, for the latest `KEYS` of them.  Calls that
    run are never forgotten: their number is bounded by who admits them.
    """

    __slots__ = ("_bounds", "_ended", "_forgotten", "_running", "_seconds", "_size")

    def __init__(self, entries: int = ENTRIES, size: int = SIZE, seconds: float = SECONDS) -> None:
        self._bounds = entries, size
        self._seconds = seconds
        self._size = 0
        self._running: dict[Key, list[Waiter]] = {}
        self._ended: OrderedDict[Key, tuple[Answer, int, float]] = OrderedDict()  # with size and end, oldest first

        self._forgotten: OrderedDict[Key, None] = OrderedDict()  # of these it is known only that they ran

    def __len__(self) -> int:
        """How many answers are kept."""
        return len(self._ended)

    @property
    def size(self) -> int:
        """How many bytes the answers that are kept have."""
        return self._size

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self._running)

    def begin(self, key: Key, waiter: Waiter, now: float) -> Answer | Standing:
        """The answer that is kept for *key*; else *waiter* waits for that of a run, which is to be made or goes on."""
        self._forget(now)
        if key in self._ended:
            return self._ended[key][0]
        if key in self._forgotten:
            return Standing.FORGOTTEN
        waiters = self._running.get(key)
        if waiters is None:
            self._running[key] = [waiter]
            return Standing.FRESH
        if len(waiters) >= WAITERS:
            return Standing.CROWDED
        waiters.append(waiter)
        return Standing.RUNNING

    def end(self, key: Key, answer: Answer, size: int, now: float) -> list[Waiter]:
        """Keep the answer, which has *size* bytes, of a call that ran; everybody who waits for it, the first first."""
        if key in self._running and size <= self._bounds[1]:
            self._ended[key] = answer, size, now + self._seconds
            self._size += size
        elif key in self._running:
            self._remember(key)
        self._forget(now)
        return self.drop(key)

    def drop(self, key: Key) -> list[Waiter]:
        """Keep no answer: the call was not begun after all, or its end is nobody else's; those who wait, as of `end`.

        The next one with this key is fresh.
        """
        return self._running.pop(key, [])

    def _forget(self, now: float) -> None:
        """Forget the oldest answers, as long as they are too old or all of them too many; not that the calls ran."""
        entries, size = self._bounds
        while self._ended:
            key, (_, took, until) = next(iter(self._ended.items()))
            if until > now and len(self._ended) <= entries and self._size <= size:
                break
            del self._ended[key]
            self._size -= took
            self._remember(key)

    def _remember(self, key: Key) -> None:
        """Keep in mind that a call ran whose answer is not kept."""
        self._forgotten[key] = None
        if len(self._forgotten) > KEYS:
            self._forgotten.popitem(last=False)
