"""A call that is open at its caller, or several that were asked together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from typing_extensions import NamedTuple

from pyzmp.protocol.outcomes import Ask, Outcome, Part

Token = TypeVar("Token")


class Ended(NamedTuple, Generic[Token]):
    """A call that has ended at the caller; *tell* says whether its node should hear that nobody waits.

    Where nothing has left yet, its request is to be taken back instead.
    """

    call: int
    token: Token
    outcome: Outcome | Part
    tell: bool = False


class Open(Generic[Token]):
    """A call, or several that were asked together: *call* is the first one's number."""

    __slots__ = ("ask", "call", "ended", "left", "opened", "sent", "size", "token")

    def __init__(self, call: int, ask: Ask, token: Token, size: int) -> None:
        self.call, self.ask, self.token, self.size = call, ask, token, size
        self.sent = self.opened = False
        self.left = ask.count
        self.ended = bytearray(ask.count) if ask.count > 1 else None  # which of several have ended

    def ends(self, first: int, count: int) -> bool:
        """Note that so many of several end now; False where one of them is none of these, or has ended before."""
        assert self.ended is not None
        if first < 0 or count < 1 or count > self.left or any(self.ended[first:first + count]):
            return False
        if first + count > len(self.ended):
            return False
        self.ended[first:first + count] = b"\1" * count
        self.left -= count
        return True

    def each(self, outcome: Callable[[], Exception]) -> Iterator[tuple[int, Exception | Part]]:
        """The numbers of the calls that have not ended, each with an outcome of its own."""
        if self.ended is None:
            yield self.call, outcome()
            return
        for place, ended in enumerate(self.ended):
            if not ended:
                yield self.call + place, Part(place, 1, outcome())
