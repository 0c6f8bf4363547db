"""Many calls of one service that are made at once, for `map`: to each provider its share as one message."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import chain
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pyzmp.asking import Begun, each
from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.calling import Calling
from pyzmp.exceptions import DeadlockError, MalformedMessage, NodeDied
from pyzmp.protocol import rows
from pyzmp.protocol.outcomes import Event, Outcome, Part, Result
from pyzmp.protocol.runs import Bodies, decode_all
from pyzmp.sessions import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyzmp.channels.channel import Channel
    from pyzmp.protocol.outcomes import Ask

    Again = Callable[[Calling, Exception], Future[Any]]

_MISSING, _THERE, _ODD = 0, 1, 2


def begin(channel: Channel[Any, Any], arguments: Sequence[Sequence[Any]], first: Calling, targets: Sequence[Target],
          again: Again) -> Many | None:
    """Make a call for each of the *arguments*; None, and nothing is made, where they are to be made one by one.

    *first* is the first of them.  What becomes of one that fails is *again*'s to find out.
    """
    shares = min(len(targets), len(arguments))
    asked = [(first if share == 0 else Calling(channel, arguments[share], {}, waits=True)) for share in range(shares)]
    begun = [calling.attempt(targets, blocking=False) for calling in asked]
    bodies = [rows.pack(arguments[share::shares]) for share in range(shares)]
    if not (all(ask.bare for _, ask in begun) and all(bodies) and _fit(channel, arguments)):
        return None
    channel.turns(len(arguments) - shares)
    counts = [len(arguments[share::shares]) for share in range(shares)]
    return Many(arguments, asked, [
        (target, replace(ask, body=body, count=count) if body is not None and count > 1 else ask)
        for (target, ask), body, count in zip(begun, bodies, counts, strict=True)], again)


def _fit(channel: Channel[Any, Any], arguments: Sequence[Sequence[Any]]) -> bool:
    """Whether all arguments are what the service takes, as far as the caller can tell, and none of them is a stream."""
    signature = channel.signature
    if signature is None:
        return not any(hasattr(kind, "__next__") or hasattr(kind, "__anext__")
                       for kind in set(map(type, chain.from_iterable(arguments))))
    if signature.takes is None and not signature.rows.fit(arguments):
        for row in arguments:
            signature.check(channel.name, row, {})
    return signature.takes is None


class Many:
    """The results of such calls, for one who takes them in order.  They arrive from the runtime's thread."""

    def __init__(self, arguments: Sequence[Sequence[Any]], asked: Sequence[Calling],
                 begun: Sequence[tuple[Target, Ask]], again: Again) -> None:
        self._arguments, self._asked, self._again = arguments, asked, again
        self._targets = [target for target, _ in begun]
        self._here = asked[0].here
        self._values: list[Any] = [None] * len(arguments)
        self._state = bytearray(len(arguments))
        self._at = 0  # the first one that was not taken
        self._over = False
        self._events: Arrivals[tuple[int, Part | Sequence[Future[Any]], int]] = Arrivals()
        self._begun: list[Begun] = [
            self._here.sessions.submit(target, ask, functools.partial(self._came, share))
            for share, (target, ask) in enumerate(begun)]

    def __len__(self) -> int:
        return len(self._values) - self._at

    def _came(self, share: int, event: Event) -> None:
        """Take in what has come for one of the shares; in the runtime's thread."""
        part = event if isinstance(event, Part) else Part(0, 1, event)  # type: ignore[arg-type]
        if not isinstance(part.outcome, Exception):
            self._events.put((share, part, part.first))
            return
        step = len(self._asked)
        failed = []
        for place, outcome in enumerate(each(part), part.first):
            assert isinstance(outcome, Exception)
            if self._over:
                return
            calling = self._asked[share].another(self._arguments[share + place * step], self._targets[share])
            failed.append(self._again(calling, outcome))
        self._events.put((share, failed, part.first))
        if self._over:  # just now
            _cancel(failed)

    def take(self) -> Sequence[Any] | Future[Any]:
        """The next results, or the future of the next one that is none yet.  Blocks until there is one."""
        while not self._state[self._at]:
            if not len(self._events):
                self._check()
            self._put(*self._events.take(float("inf")))
        return self._taken()

    async def atake(self) -> Sequence[Any] | Future[Any]:
        """As `take`, in a coroutine."""
        while not self._state[self._at]:
            self._put(*await self._events.atake(float("inf")))
        return self._taken()

    def _taken(self) -> Sequence[Any] | Future[Any]:
        at = self._at
        if self._state[at] == _ODD:
            self._at += 1
            odd: Future[Any] = self._values[at]
            return odd
        ends = [end for end in (self._state.find(_MISSING, at), self._state.find(_ODD, at)) if end >= 0]
        self._at = min(ends, default=len(self._values))
        return self._values[at:self._at]

    def _put(self, share: int, part: Part | Sequence[Future[Any]], first: int) -> None:
        """Put what has come in its places."""
        found, state = self._decoded(self._asked[share], part) if isinstance(part, Part) else None, _THERE
        values: Sequence[Any] = found or ()
        if found is None:
            state = _ODD
            values = part if not isinstance(part, Part) else [
                _settled(self._asked[share], outcome) for outcome in each(part)]
        step = len(self._asked)
        start = share + first * step
        where = slice(start, start + len(values) * step, step)
        self._values[where], self._state[where] = values, bytes([state]) * len(values)

    def _decoded(self, calling: Calling, part: Part) -> list[Any] | None:
        """The results of several, where they are what the service promises at a glance."""
        assert isinstance(part.outcome, Result)
        if part.count == 1 or self._here.budgets:
            return None
        try:
            values, signature = decode_all(Bodies(part.outcome.body)), calling.channel.signature
        except MalformedMessage:  # which each is told
            return None
        fits = values is not None and len(values) == part.count and (
            signature is None or signature.gives.issuperset(map(type, values)))
        return values if fits else None

    def _check(self) -> None:
        """Raise where to wait for the next result would be in vain."""
        name = self._asked[0].channel.name
        if not self._here.is_ours():
            raise NodeDied(f"the process was forked while a map of {name}() was under way; what is left of it goes to "
                           "the parent", service=name, executed=None)
        if any(self._here.runs(target.loop) for target in self._targets):
            raise DeadlockError("to wait here for the result of a call blocks the very loop that is to answer it; "
                                "iterate in async for", service=name, executed=None)

    def cancel(self) -> None:
        """Give up what has not arrived, and try nothing again."""
        self._over = True
        if self._here.is_ours():
            for begun in self._begun:
                self._here.sessions.give_up(begun)
        while len(self._events):
            self._put(*self._events.take(0.0))
        _cancel([value for value, state in zip(self._values, self._state, strict=True) if state == _ODD])


def _cancel(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def _settled(calling: Calling, outcome: Outcome) -> Future[Any]:
    """The future of a result that is to be looked at more closely."""
    future: Future[Any] = Future()
    try:
        future.set_result(calling.finished(outcome))
    except Exception as error:
        future.set_exception(error)
    return future
