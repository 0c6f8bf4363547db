"""Calls of the shared sessions on their way: each for whoever may give it up, and many of one service together."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from pyzmp.protocol import rows
from pyzmp.protocol.envelope import Buffer, Credit, End, Item
from pyzmp.protocol.outcomes import Ask, Event, Outcome, Part, Result, Value, cancelled, whole
from pyzmp.protocol.runs import Bodies, decode_all
from pyzmp.transport.line import Line
from pyzmp.transport.outbox import guarded

log = logging.getLogger("pyzmp.transport")

TOGETHER = 0.001  # seconds by which the deadlines of calls that leave together differ, at most

Done = Callable[[Event], object]


class Begun:
    """A call of the shared session, for whoever may give it up.  Belongs to the session's thread."""

    __slots__ = ("_count", "_line", "_number", "cancelled")

    def __init__(self) -> None:
        self.cancelled = False
        self._line: Line | None = None
        self._number, self._count = 0, 1

    def start(self, line: Line, ask: Ask, done: Callable[[Event], object]) -> None:
        """Begin it, unless it was given up before its turn."""
        if self.cancelled:
            done(whole(ask, cancelled(ask)))
        else:
            self.began(line, line.start(ask, done), ask.count)

    def began(self, line: Line, number: int, count: int = 1) -> None:
        """Note that it was begun, as that number of *line*; that is the first one's where they are several."""
        self._line, self._number, self._count = line, number, count

    def tell(self, message: Item | End | Credit, buffers: Sequence[Buffer]) -> None:
        """Send what belongs to its streams."""
        if self._line is not None:
            self._line.tell(replace(message, call=self._number), buffers)

    def cancel(self) -> None:
        """Give it up."""
        self.cancelled = True
        if self._line is not None:
            self._line.cancel(self._number, self._count)


Asked = tuple[Any, Ask, Done, Begun]
"""A call that was asked and has not begun, with the node that it is for."""


def joining(first: Asked, others: deque[Asked]) -> list[Asked]:
    """The calls that may leave together with *first*, taken from the head of *others*."""
    target, ask, _, _ = first
    found, size = [first], len(ask.body)
    earliest, latest = ask.deadline.at - TOGETHER, ask.deadline.at + TOGETHER
    while others and len(found) < rows.MOST and not ask.wait and ask.count == 1:
        node, other, _, begun = others[0]
        size += len(other.body)
        if (node is not target or other.wait or other.count > 1 or
                other.service != ask.service or not other.bare or size > rows.SIZE or begun.cancelled
                or other.chain != ask.chain or not earliest < other.deadline.at < latest):
            break
        found.append(others.popleft())
    return found


def start(line: Line, asked: Sequence[Asked]) -> None:
    """Begin calls on *line*: together, where all have a place there."""
    count, size = len(asked), sum(len(ask.body) for _, ask, _, _ in asked)
    if count == 1 or asked[0][3].cancelled or not line.takes(count, size):
        for _, ask, done, begun in asked:
            guarded(begun.start, line, ask, done)
        return
    body = rows.join([ask.body for _, ask, _, _ in asked])
    number = line.start(replace(asked[0][1], body=body, count=count), _Together([done for _, _, done, _ in asked]))
    for place, (_, _, _, begun) in enumerate(asked):
        begun.began(line, number + place)


class _Together:
    """Whoever waits for the calls that left together: each gets its own outcome."""

    __slots__ = ("_dones",)

    def __init__(self, dones: Sequence[Done]) -> None:
        self._dones = dones

    def __call__(self, event: Event) -> None:
        assert isinstance(event, Part)
        outcomes = each(event)
        for done, outcome in zip(self._dones[event.first:event.first + event.count], outcomes, strict=True):
            try:  # as `guarded`, without a call for each
                done(outcome)
            except Exception:
                log.exception("%r failed", done)


def each(part: Part) -> Sequence[Outcome]:
    """The outcome of each of several calls; a result is decoded where that is simple."""
    outcome, count = part.outcome, part.count
    if count == 1:
        return [outcome]
    if not isinstance(outcome, Result):
        return [copy.copy(outcome) for _ in range(count)]
    try:
        bodies = Bodies(outcome.body)
        values = decode_all(bodies)
        found: Sequence[Outcome] = ([Result(body) for body in bodies] if values is None else
                                    [Value(b"", (), value) for value in values])
    except Exception:  # the bytes are no results, which whoever looks at one is told
        found = ()
    return found if len(found) == count else [Result(b"\xc1")] * count
