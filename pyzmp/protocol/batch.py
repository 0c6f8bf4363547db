"""Messages of a topic that have come together, in the hands of whoever takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import length_hint
from typing import Any, Protocol

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.envelope import Buffer, Packed, Published, size_of
from pyzmp.protocol.runs import Bodies, times_of


class Origin(Protocol):
    """Where messages come from: the topic of a node; ``shape`` is its type, as `pyzmp.protocol.fits` has it."""

    node: str
    topic: str
    shape: bytes


class Batch:
    """Messages that came together, on their way to whoever takes them.

    He begins them with what he has made of them, and takes what he is given.  Where it is *held*, the last one that
    he took is not counted as taken before he ends them.
    """

    __slots__ = ("_begun", "_held", "_told", "_told_size", "_values", "bodies", "buffers", "number", "shape", "size",
                 "source", "times")

    def __init__(self, source: Origin, message: Published | Packed, buffers: Sequence[Buffer]) -> None:
        self.source, self.shape = source, source.shape
        self.number, self.buffers = message.number, buffers
        self.times: Sequence[float]
        self.bodies: Sequence[bytes]
        if isinstance(message, Packed):
            self.times, self.buffers = times_of(message.clocks), ()
            self.bodies = bodies = Bodies(_one(buffers))
            self.size = bodies.size
        else:
            self.times, self.bodies = message.times, message.bodies
            self.size = size_of(b"".join(message.bodies), buffers)
        self._values: Iterator[Any] | None = None
        self._begun = self._held = self._told = self._told_size = 0

    def begin(self, values: list[Any], *, held: bool = False) -> Iterator[Any]:
        """The values one by one; they are taken with that."""
        self._held, self._begun = int(held), len(values)
        found = self._values = iter(values)
        return found

    def end(self) -> None:
        """All were taken."""
        self._held = 0

    @property
    def place(self) -> int:
        """Where among the values the one stands that was given last."""
        return self._begun - length_hint(self._values) - 1 if self._values is not None else -1

    @property
    def taken(self) -> int:
        """How many of the values were taken."""
        return max(0, self._begun - length_hint(self._values) - self._held) if self._values is not None else 0

    @property
    def left(self) -> int:
        """How many of the messages were not taken yet."""
        count = len(self.bodies)
        return count if self._values is None else min(count, length_hint(self._values) + self._held)

    def count(self) -> tuple[int, int]:
        """How many messages were taken that were not counted before, and their bytes.  For the loop's thread."""
        count = len(self.bodies)
        taken = max(0, count - self.left - self._told)
        self._told += taken
        size = self.size * self._told // count - self._told_size
        self._told_size += size
        return taken, size

    @property
    def begun(self) -> bool:
        """Whether it is being taken, one by one."""
        return self._values is not None

    @property
    def over(self) -> bool:
        """Whether all was counted."""
        return self._told == len(self.bodies)


def _one(buffers: Sequence[Buffer]) -> Buffer:
    if len(buffers) != 1:
        raise MalformedMessage(f"values of a topic in {len(buffers)} buffers")
    return buffers[0]
