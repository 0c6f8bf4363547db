"""Both ends of calls: what is open, and how each call ends.

`Caller` is the caller's table for one session, `Callee` the node's for the same session.  Neither
knows of sockets or clocks: messages come in, messages and outcomes go out, and time is an argument.
A call that is opened in a `Caller` gets exactly one outcome.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

import msgspec

from pyzmp.exceptions import (
    CallError,
    CallTimeout,
    Cancelled,
    DeadlockError,
    InvalidCall,
    NodeDied,
    Overloaded,
    Refused,
    UnknownService,
)
from pyzmp.protocol import failure
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Buffer, Code, Failure, Parcel, Reply, Request

Token = TypeVar("Token")

SLACK = 64  # entries of ended calls that a table of open ones may hold beside its own number

_ERRORS: Mapping[int, type[CallError]] = MappingProxyType({
    Code.UNKNOWN_SERVICE: UnknownService, Code.INVALID_CALL: InvalidCall, Code.OVERLOADED: Overloaded,
    Code.REFUSED: Refused, Code.DEADLOCK: DeadlockError, Code.CANCELLED: Cancelled,
})


class Result(msgspec.Struct, frozen=True):
    """What a service returned, encoded."""

    body: bytes
    buffers: Sequence[Buffer] = ()


Outcome = Result | Exception


class Ask(msgspec.Struct, frozen=True):
    """A call before it has a number: whom it is for, what it asks, and until when, on the caller's clock."""

    node: str
    service: str
    body: bytes
    buffers: Sequence[Buffer]
    deadline: Deadline
    timeout: float
    incarnation: tuple[int, int] = (0, 0)
    flags: int = 0
    chain: tuple[str, ...] = ()


class Caller(Generic[Token]):
    """The open calls of one session.

    A *token* stands for whoever waits for a call, and comes back with its outcome.  Replies for
    nobody, twice, or for a call that has ended are counted in ``stray`` and dropped.
    """

    __slots__ = ("_count", "_open", "_order", "stray")

    def __init__(self) -> None:
        self.stray = 0
        self._count = 0
        self._open: dict[int, tuple[Token, Ask]] = {}
        self._order: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._open)

    def open(self, ask: Ask, token: Token, now: float) -> Request:
        """Open a call; the message that asks for it."""
        self._count = call = self._count + 1
        self._open[call] = token, ask
        heapq.heappush(self._order, (ask.deadline.at, call))
        if len(self._order) > 2 * len(self._open) + SLACK:  # ended calls, behind one that stays open for long
            self._order = [entry for entry in self._order if entry[1] in self._open]
            heapq.heapify(self._order)
        return Request(call, ask.node, ask.service, ask.deadline.remaining(now), ask.body, len(ask.buffers),
                       ask.incarnation, ask.flags, ask.chain)

    def receive(self, parcel: Parcel) -> tuple[Token, Outcome] | None:
        """The outcome that *parcel* brings, or None where it belongs to no open call."""
        message = parcel.message
        if not isinstance(message, (Reply, Failure)) or message.call not in self._open:
            self.stray += 1
            return None
        token, ask = self._open.pop(message.call)
        if isinstance(message, Reply):
            return token, Result(message.body, parcel.buffers)
        return token, _error(message, ask)

    def forget(self, call: int) -> bool:
        """Drop a call whose caller does not wait any more; False where it has ended already."""
        return self._open.pop(call, None) is not None

    def next_deadline(self) -> float | None:
        """When the next open call ends at the latest; None where none is open."""
        while self._order and self._order[0][1] not in self._open:
            heapq.heappop(self._order)
        return self._order[0][0] if self._order else None

    def due(self, now: float) -> list[int]:
        """The numbers of the calls that `expire` ends."""
        return [call for at, call in self._order if at <= now and call in self._open]

    def expire(self, now: float, *, sent: bool = True) -> list[tuple[Token, Outcome]]:
        """End the calls whose deadline has come; *sent* tells whether they ever left."""
        ended: list[tuple[Token, Outcome]] = []
        while (at := self.next_deadline()) is not None and at <= now:
            token, ask = self._open.pop(heapq.heappop(self._order)[1])
            ended.append((token, timed_out(ask, sent=sent)))
        return ended

    def end(self, reason: str, *, sent: bool) -> list[tuple[Token, Outcome]]:
        """End all calls, because the session has; *sent* tells whether they ever left."""
        calls, self._open, self._order = list(self._open.values()), {}, []
        return [(token, died(ask, reason, sent=sent)) for token, ask in calls]


def timed_out(ask: Ask, *, sent: bool) -> CallTimeout:
    """What the caller of *ask* gets at its deadline; *sent* tells whether the call ever left."""
    ran = "whether it ran is unknown" if sent else "it was not sent: the connection did not open"
    return CallTimeout(f"{ask.service}() of {ask.node!r} gave no answer in {ask.timeout:g} s; {ran}",
                       service=ask.service, node=ask.node, executed=None if sent else False)


def died(ask: Ask, reason: str, *, sent: bool) -> NodeDied:
    """What the caller of *ask* gets when the session ends; *sent* tells whether the call ever left."""
    ran = "whether it ran is unknown" if sent else "it did not run"
    return NodeDied(f"{ask.node!r} is gone ({reason}) before {ask.service}() was answered; {ran}",
                    service=ask.service, node=ask.node, executed=None if sent else False)


def _error(message: Failure, ask: Ask) -> Exception:
    if message.code == Code.RAISED:
        return failure.rebuild(message.body)
    kind = _ERRORS.get(message.code, CallError)
    error = kind(message.text, service=ask.service, node=ask.node, executed=message.executed)
    if isinstance(error, InvalidCall):
        error.argument = bytes(message.body).decode(errors="replace") or None
    return error


class Callee:
    """The calls of one session as its node sees them: which run, and which may start.

    Each call starts at most once: numbers of calls only grow within a session.
    """

    __slots__ = ("_last", "repeated", "running")

    def __init__(self) -> None:
        self.repeated = 0
        self.running: dict[int, Callable[[], object]] = {}  # what stops each of the calls that run
        self._last = 0

    def fresh(self, request: Request) -> bool:
        """Whether *request* is a call that was not seen before; others are counted in ``repeated``."""
        if request.call <= self._last:
            self.repeated += 1
            return False
        self._last = request.call
        return True


def refuse(call: int, code: int, text: str, *, argument: str | None = None) -> Failure:
    """The answer to a call that is not begun; *argument* names the one that does not fit."""
    return Failure(call, code, text, False, (argument or "").encode(errors="replace"))


def unknown(service: str, known: Collection[str], where: str) -> str:
    """The sentence that nobody provides *service*, with the nearest of the *known* names."""
    from difflib import get_close_matches  # needed once something is wrong, and costs to import

    near = get_close_matches(service, known, 1)
    return f"nobody provides {service!r} {where}" + (f"; did you mean {near[0]!r}?" if near else "")
