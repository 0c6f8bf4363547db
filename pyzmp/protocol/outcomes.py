"""What a call asks, and how it may end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

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
from pyzmp.protocol.envelope import Buffer, Code, Failure, Lane, Parcel
from pyzmp.protocol.streams import Inflow

PAUSE = 0.05  # seconds after which a caller may try again, where nothing better is known

_ERRORS: Mapping[int, type[CallError]] = MappingProxyType({
    Code.UNKNOWN_SERVICE: UnknownService, Code.INVALID_CALL: InvalidCall, Code.OVERLOADED: Overloaded,
    Code.REFUSED: Refused, Code.DEADLOCK: DeadlockError, Code.CANCELLED: Cancelled,
    Code.DIED: NodeDied, Code.EXPIRED: CallTimeout,
})


class Result(msgspec.Struct, frozen=True, gc=False):
    """What a service returned, encoded; of a stream, that it has come to its end."""

    body: bytes
    buffers: Sequence[Buffer] = ()


class Value(Result, frozen=True, gc=False):
    """What a service returned, decoded, but not yet looked at as what it promises."""

    value: Any = None


Outcome = Result | Exception


class Part(msgspec.Struct, frozen=True, gc=False):
    """The outcomes of *count* calls that were asked together, those from number *first* on, counted from 0.

    The body of a result is an array of theirs where they are several; an error is that of each.
    """

    first: int
    count: int
    outcome: Outcome


Event = Outcome | Parcel | Part
"""What happens to a call: at last its outcome; before that, for a stream, `Opened`, `Item` and `Credit`.

To calls that were asked together there happen the parts.
"""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A call before it has a number: whom it is for, what it asks, and until when, on the caller's clock.

    With *wait* it waits for a place in the window of its session.  *incoming* is for the result of a
    stream, one for each attempt.  With a *count* it is so many calls, whose positional
    arguments are the body.  A *bare* one has only those, and nothing else that would keep it from being asked with
    others.
    """

    node: str
    service: str
    body: bytes
    buffers: Sequence[Buffer]
    deadline: Deadline
    timeout: float
    incarnation: tuple[int, int] = (0, 0)
    flags: int = 0
    chain: tuple[Lane, ...] = ()
    key: bytes = b""
    wait: bool = False
    incoming: Inflow | None = None
    count: int = 1
    bare: bool = False


def whole(ask: Ask, error: Exception) -> Event:
    """What happens to *ask*, all of it, where nothing has happened to it before."""
    return error if ask.count == 1 else Part(0, ask.count, error)


def timed_out(ask: Ask, *, sent: bool, placed: bool = True) -> CallTimeout:
    """What the caller of *ask* gets at its deadline.

    *sent* tells whether the call ever left, *placed* whether it had a place in the window of its session.
    """
    ran = ("whether it ran is unknown" if sent else
           "it was not sent: the connection did not open" if placed else
           "it was not sent: it waited for a place in the window of its session")
    return CallTimeout(f"{ask.service}() of {ask.node!r} gave no answer in {ask.timeout:g} s; {ran}",
                       service=ask.service, node=ask.node, executed=None if sent else False)


def died(ask: Ask, reason: str, *, executed: bool | None) -> NodeDied:
    """What the caller of *ask* gets when the session ends."""
    ran = "it had begun" if executed else "whether it ran is unknown" if executed is None else "it did not run"
    return NodeDied(f"{ask.node!r} is gone ({reason}) before {ask.service}() was answered; {ran}",
                    service=ask.service, node=ask.node, executed=executed)


def cancelled(ask: Ask) -> Cancelled:
    """What became of *ask* where it was given up before it was sent."""
    return Cancelled(f"{ask.service}() of {ask.node!r} was cancelled before it was sent", service=ask.service,
                     node=ask.node, executed=False)


def overloaded(ask: Ask, why: str, retry_after: float = PAUSE) -> Overloaded:
    """What the caller of *ask* gets where there is no room for it."""
    error = Overloaded(f"{ask.service}() of {ask.node!r} was not sent: {why}; try again in {retry_after:g} s, or call "
                       "it with_options(wait=True)", service=ask.service, node=ask.node, executed=False)
    error.retry_after = retry_after
    return error


def closes(chain: Sequence[Lane], loop: str) -> Sequence[Lane]:
    """The circle that a call to *loop* would close: the lanes of *chain* from that loop on, () where there is none."""
    at = next((number for number, lane in enumerate(chain) if lane.loop == loop), None)
    return () if at is None else chain[at:]


def failed(message: Failure, ask: Ask) -> Exception:
    """What the caller of *ask* gets for *message*."""
    if message.code == Code.RAISED:
        return failure.rebuild(message.body)
    kind = _ERRORS.get(message.code, CallError)
    error = kind(message.text, service=ask.service, node=ask.node, executed=message.executed)
    if isinstance(error, InvalidCall):
        error.argument = bytes(message.body).decode(errors="replace") or None
    elif isinstance(error, Overloaded):
        error.retry_after = message.retry_after
    return error


def refuse(call: int, code: int, text: str, *, argument: str | None = None,
           retry_after: float | None = None) -> Failure:
    """The answer to a call that is not begun; *argument* names the one that does not fit."""
    return Failure(call, code, text, False, (argument or "").encode(errors="replace"), retry_after)


def unknown(service: str, known: Collection[str], where: str) -> str:
    """The sentence that nobody provides *service*, with the nearest of the *known* names."""
    from difflib import get_close_matches  # needed once something is wrong, and costs to import

    near = get_close_matches(service, known, 1)
    return f"nobody provides {service!r} {where}" + (f"; did you mean {near[0]!r}?" if near else "")
