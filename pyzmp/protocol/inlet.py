"""A subscription where it is taken: what has come from one publisher, what is missing, and what is granted.

The other end is `pyzmp.protocol.feed`.
"""

from __future__ import annotations

import msgspec

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.feed import AROUND, Bounds

FAR = 1 << 62  # no topic ever has so many messages, and what expects one of these numbers can still be told
LIFE = 64  # bytes by which a feed is named, at most


class Gap(msgspec.Struct, frozen=True):
    """Messages that did not come: so many from ``number`` on; ``dropped`` by a full queue, or lost."""

    number: int
    count: int
    dropped: bool


class Inlet:
    """One subscription where it is taken, to the feed of one publisher.

    ``received + dropped + lost`` are the messages before the next one that is to come, less those that came and
    were not taken yet.
    """

    __slots__ = ("_acknowledged", "_grants", "_life", "_next", "_taken", "_used", "_used_size", "bounds", "came",
                 "dropped", "lost", "received")

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._life = b""
        self._next = 0
        self._taken = self._acknowledged = 0  # in this session
        self._used = self._used_size = 0  # taken, and not granted anew yet
        self._grants = 0  # messages that were granted one by one, where there is no window
        self.came = 0  # in this session
        self.received = self.dropped = self.lost = 0

    @property
    def since(self) -> tuple[bytes, int]:
        """What a new session of it begins with: the feed, and the number that is expected."""
        return self._life, self._next

    def subscribed(self, life: bytes, number: int, *, early: bool = False) -> Gap | None:
        """A session begins, with message *number* as the next; what was lost since the one before, if that is known.

        To one that was there *early*, before the feed, all before that number is lost.
        What is granted first is ``bounds.window`` and its bytes.  Raises MalformedMessage for what cannot be.
        """
        if not (0 <= number <= FAR and len(life) <= LIFE):
            raise MalformedMessage(f"a topic named by {len(life)} bytes, with message {number} as the next")
        gap = None
        if early and life != self._life:
            self._life, self._next = life, 0
        if life == self._life and number > self._next:
            gap = self._gap(number, dropped=False)
        self._life, self._next = life, number
        self._taken = self._acknowledged = self._used = self._used_size = self.came = 0
        self._grants = 0
        return gap

    def published(self, number: int, count: int) -> Gap | None:
        """Messages have come; what is missing before them.  Raises MalformedMessage where they came already."""
        if not self._next <= number <= FAR:
            raise MalformedMessage(f"message {number} of a topic, where {self._next} is the next")
        gap = self._gap(number, dropped=False) if number > self._next else None
        self._next = number + count
        self.came += count
        return gap

    def skipped(self, number: int, count: int) -> tuple[Gap, ...]:
        """Messages were dropped; what is missing with that.  Raises MalformedMessage where they came already."""
        if not (self._next <= number and 0 < count <= FAR - number):
            raise MalformedMessage(f"{count} messages of a topic from {number} on are said to be dropped, where "
                                   f"{self._next} is the next")
        lost = (self._gap(number, dropped=False),) if number > self._next else ()
        return (*lost, self._gap(number + count, dropped=True))

    def over(self, number: int) -> Gap | None:
        """The feed has ended before message *number*; what is missing with that."""
        if number > FAR:
            raise MalformedMessage(f"a topic that has ended before message {number}, where {self._next} is the next")
        return self._gap(number, dropped=False) if number > self._next else None

    def _gap(self, number: int, *, dropped: bool) -> Gap:
        gap = Gap(self._next, number - self._next, dropped)
        if dropped:
            self.dropped += gap.count
        else:
            self.lost += gap.count
        self._next = number
        return gap

    @property
    def settled(self) -> bool:
        """Whether the publisher knows of all that was taken."""
        return self._taken == self._acknowledged

    def take(self, size: int, count: int = 1) -> tuple[int, int, int] | None:
        """Messages were taken, of *size* bytes in all; what to tell the publisher now: all that were, and the room.

        It is told in lumps of half a window.
        """
        self.received += count
        self._taken += count
        self._used += count
        self._used_size += size + AROUND * count
        bounds = self.bounds
        if bounds.window and (2 * self._used >= bounds.window or 2 * self._used_size >= bounds.window_size):
            return self.settle()
        return None

    def settle(self) -> tuple[int, int, int] | None:
        """What to tell the publisher where nothing more comes for the moment; None where it knows all."""
        if self._taken == self._acknowledged:
            return None
        self._acknowledged = self._taken
        if not self.bounds.window:
            return self._taken, 0, 0
        used, size, self._used, self._used_size = self._used, self._used_size, 0, 0
        return self._taken, used, size

    def wants(self) -> tuple[int, int, int] | None:
        """What to tell where the subscriber waits, and nothing is there to be taken: room, where it has no window."""
        if self.bounds.window or self._grants > self.came or self.came > self._taken:
            return None
        self._grants += 1
        self._acknowledged = self._taken
        size, self._used_size = self._used_size or 1, 0  # what was taken, so that there is room for a byte each time
        return self._taken, 1, size
