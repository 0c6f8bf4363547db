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


class Standing(enum.Enum):
    """How it stands with a call that has no answer yet."""

    FRESH = enum.auto()  # it must be run now
    RUNNING = enum.auto()  # it runs already, and the waiter gets its answer too


class Kept(Generic[Waiter, Answer]):
    """The calls that run and the answers of those that have ended, by key.

    An answer is kept for *seconds*; at most so many *entries* and bytes (*size*) are, and the oldest
    goes first.  Calls that run are never forgotten: their number is bounded by who admits them.
    """

    __slots__ = ("_bounds", "_ended", "_running", "_seconds", "_size")

    def __init__(self, entries: int = ENTRIES, size: int = SIZE, seconds: float = SECONDS) -> None:
        self._bounds = entries, size
        self._seconds = seconds
        self._size = 0
        self._running: dict[Key, list[Waiter]] = {}
        self._ended: OrderedDict[Key, tuple[Answer, int, float]] = OrderedDict()  # with size and end, oldest first

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
        standing = Standing.RUNNING if key in self._running else Standing.FRESH
        self._running.setdefault(key, []).append(waiter)
        return standing

    def end(self, key: Key, answer: Answer, size: int, now: float) -> list[Waiter]:
        """Keep the answer, which has *size* bytes, of a call that ran; everybody who waits for it, the first first."""
        if key in self._running and size <= self._bounds[1]:
            self._ended[key] = answer, size, now + self._seconds
            self._size += size
        self._forget(now)
        return self.drop(key)

    def drop(self, key: Key) -> list[Waiter]:
        """Keep no answer: the call was not begun after all, or its end is nobody else's; those who wait, as of `end`.

        The next one with this key is fresh.
        """
        return self._running.pop(key, [])

    def _forget(self, now: float) -> None:
        """Forget the oldest answers, as long as they are too old or all of them too many."""
        entries, size = self._bounds
        while self._ended:
            _, took, until = next(iter(self._ended.values()))
            if until > now and len(self._ended) <= entries and self._size <= size:
                break
            self._ended.popitem(last=False)
            self._size -= took
