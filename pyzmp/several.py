"""Calls of one service that have come together, and run one after the other.

They are calls like others: what they have in common is looked at once for all of them, and what is special about one
of them is dealt with as if it had come alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from typing import Any

import msgspec

from pyzmp.channels.call import Call, here, serving
from pyzmp.exceptions import InvalidCall, MalformedMessage
from pyzmp.guest import Guest, too_late
from pyzmp.pending import Pending
from pyzmp.protocol import rows
from pyzmp.protocol.admission import Admission, Begun
from pyzmp.protocol.calls import Callee
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Calls, Code, Failure, Reply, Request, Results
from pyzmp.protocol.outcomes import refuse
from pyzmp.protocol.runs import SCALARS
from pyzmp.serving import Serving, pass_on
from pyzmp.transport.server import Peer

FAR = 1 << 63  # no session has so many calls, and some more than these can still be numbered
SHARE = 0.0005  # seconds for which calls that came together go on before another caller has its turn

log = logging.getLogger("pyzmp.node")

Single = tuple[int, Pending, int]  # the number of a call, that call, and its size


class Several:
    """Such calls at their node.  Belongs to the node's loop."""

    one_way = False
    kept = None

    def __init__(self, peer: Peer, callee: Callee, request: Calls, loop: asyncio.AbstractEventLoop,
                 ended: Callable[[Serving], object]) -> None:
        if not 1 < request.count <= rows.MOST:
            raise MalformedMessage(f"{request.count} calls together; the limit is {rows.MOST}")
        if request.call >= FAR:
            raise MalformedMessage(f"calls from number {request.call} on")
        self.peer, self.callee, self.request = peer, callee, request
        self._loop, self._ended = loop, ended
        self.share = len(request.body) // request.count  # the bytes that one of them is taken to have
        self.size = self.share * request.count
        self.deadline = Deadline(0.0)  # on this loop's clock, once they are admitted
        self.guest: Guest | None = None  # whom they are for, once they are admitted
        self.left = request.count  # those that were not begun
        self._cancelled: set[int] = set()  # those of these that are answered
        self._call: Call | None = None  # the one that runs
        self._rows: Sequence[Sequence[Any]] | None = None
        self._quick = False  # whether they fit as they are

    def admit(self, guest: Guest, deadline: Deadline) -> None:
        """Note that they are to be answered."""
        self.guest, self.deadline = guest, deadline
        self.callee.together(self.left, self.left * self.share)

    def refuse(self, code: int, text: str, *, argument: str | None = None, retry_after: float | None = None) -> None:
        """Answer each of those that were not begun that it is not, and why."""
        for number in self._waiting():
            self.peer.send(refuse(number, code, text, argument=argument, retry_after=retry_after))
        if self.guest is not None:
            self._answered(sum(1 for _ in self._waiting()))
        self.left = 0

    def fail(self, error: Exception) -> None:
        """Answer each of those that were not begun that an error of ours is why."""
        for call in list(self._waiting()):
            self._single(call).raised(error)
        self.left = 0

    def cancel(self, wanted: range) -> bool:
        """The caller wants these no more: they are not begun, or told to stop; whether none is left to be begun."""
        behind = self.request.call + self.request.count
        at, text = behind - self.left, f"{self.request.service}() was cancelled before its turn"
        for call in range(max(at, wanted.start), min(behind, wanted.stop)):
            if call not in self._cancelled:
                self._cancelled.add(call)
                self.peer.send(refuse(call, Code.CANCELLED, text))
                self._answered(1)
        if self._call is not None:
            if at - 1 in wanted:
                self._call.cancel()
            return False
        return 0 < self.left == len(self._cancelled)

    def leave(self) -> None:
        """The caller is gone: those that were not begun are not."""
        self.left = 0
        if self._call is not None:
            self._call.cancel()

    def apart(self) -> list[Single]:
        """Those that were not begun, as if each had come alone; this is none of them any more.

        None where the bytes are no arguments, which is the answer of each.
        """
        try:
            bodies = rows.split(self.request.body, self.request.count)
        except MalformedMessage as error:
            self.refuse(Code.INVALID_CALL, str(error))
            return []
        found = [(call, self._single(call, bodies[call - self.request.call]), self.share) for call in self._waiting()]
        self.left = 0
        return found

    def _single(self, call: int, body: bytes = b"") -> Pending:
        """One of them, as if it had come alone."""
        request = self.request
        pending = Pending(self.peer, self.callee, Request(
            call, request.node, request.service, request.remaining, body, 0, request.incarnation, 0, request.chain), ())
        if self.guest is not None:
            pending.guest, pending.deadline, pending.size = self.guest, self.deadline, self.share
            self._answered(1)
            self.callee.take(call, self.share)
        return pending

    def _waiting(self) -> Iterator[int]:
        behind = self.request.call + self.request.count
        return (call for call in range(behind - self.left, behind) if call not in self._cancelled)

    def _answered(self, calls: int) -> None:
        self.callee.together(-calls, -calls * self.share)

    # How they run.

    def run(self, over: float) -> list[Pending] | None:
        """Run one after the other until it is *over*, or one goes on, one at least: that one, if there is one.

        None where they are to be taken apart.  What there is to answer is sent in the end, also where a Ctrl-C is.
        """
        left = self.left
        rows_left = self._read()
        if rows_left is None or self.guest is None:
            return None
        # Each of the names here saves what a look into an object takes, for each of many calls.
        guest, request, deadline, look, place = self.guest, self.request, self.deadline, self.peer.look, here()
        node, name, caller, chain = guest.name, request.service, self.peer.hello.caller, request.chain
        function, gives = guest.services[name].function, guest.services[name].signature.gives
        copied, clock, behind = guest.context.copy, time.monotonic, request.call + request.count
        values, going_on, plain = list[Any](), list[Pending](), {kind for kind in SCALARS if kind in gives}
        try:
            for args in rows_left:
                self.left = left = left - 1
                if not self._quick or self._cancelled:
                    bound = self._bound(behind - left - 1, args)
                    if bound is None:
                        self._send(behind - left - 1, values)
                        continue
                    args = bound  # noqa: PLW2901
                self._call = call = Call(node, name, caller, deadline, chain, place, look)
                context = copied()
                try:
                    value = context.run(_step, call, function, args)
                except BaseException as error:
                    self._send(behind - left - 1, values)
                    self._serving(behind - left - 1, call, context).failed(error)
                    pass_on(error)
                else:
                    if type(value) in plain:
                        call.over = True  # what `Call.ends` does
                        values.append(value)
                    else:
                        going_on = self._other(behind - left - 1, call, context, value, values)
                if clock() > over or not self.left or going_on:
                    break
        finally:
            self._call = None
            self._send(behind - left, values)
            if self.left:
                self.peer.flush()  # so that the caller has work while the next ones run
        return going_on

    def _other(self, number: int, call: Call, context: Context, value: Any, values: list[Any]) -> list[Pending]:
        """One of them gave what is no scalar: it is packed before it changes, or answered alone; it, if it goes on."""
        assert self.guest is not None
        gives = self.guest.services[self.request.service].signature.gives
        raw = rows.raw(value) if type(value) in gives else None
        if raw is not None:
            call.over = True
            values.append(raw)
            return []
        self._send(number, values)
        serving = self._serving(number, call, context)
        return [serving.pending] if serving.came(value) else []

    def _read(self) -> Sequence[Sequence[Any]] | None:
        """The arguments of those that were not begun; None where they cannot be read together."""
        if self._rows is None and self.guest is not None:
            signature = self.guest.services[self.request.service].signature
            self._rows, self._quick = signature.rows.read(self.request.body, self.request.count)
        return None if self._rows is None else self._rows[-self.left:]

    def _bound(self, call: int, args: Sequence[Any]) -> Sequence[Any] | None:
        """The arguments of one of them; None where it is cancelled, or answered as they do not fit."""
        assert self.guest is not None
        if call in self._cancelled:
            self._cancelled.discard(call)
            return None
        try:
            return self.guest.services[self.request.service].signature.bind(self.request.service, args, {})[0]
        except InvalidCall as error:
            self._single(call).refuse(Code.INVALID_CALL, str(error), argument=error.argument)
            return None

    def _send(self, end: int, values: list[Any]) -> None:
        """Answer the calls before number *end* that had these results."""
        count = len(values)
        body = rows.pack_values(values) if count > 1 else None
        if body is not None:
            self.peer.send(Results(end - count, body, count))
            self._answered(count)
        else:
            for call, value in enumerate(values, end - count):
                if type(value) is msgspec.Raw:
                    self.peer.send(Reply(call, bytes(value)))
                    self._answered(1)
                    continue
                self._serving(call, Call(self.request.node, self.request.service, "", self.deadline), None).came(value)
        values.clear()

    def _serving(self, number: int, call: Call, context: Context | None) -> Serving:
        """One of them that is not like the others, and was begun."""
        assert self.guest is not None
        pending = self._single(number)
        pending.begun = True
        return Serving(self._loop, self.guest, pending, self._ended, call, context)


def _step(call: Call, function: Callable[..., Any], args: Sequence[Any]) -> Any:
    serving.set(call)
    return function(*args)


class Together:
    """The calls that have come together to one host, and wait for their turn among all that do.

    *refusal* says why calls are not begun, where that is so; *ahead* is called where one takes its first step later.
    """

    def __init__(self, waiting: Admission[Peer, Pending | Several], refusal: Callable[[Calls], Failure | None],
                 ahead: Callable[[], object]) -> None:
        self._waiting, self._refusal, self._ahead = waiting, refusal, ahead
        self._open: set[Several] = set()  # those that have not all begun

    def admit(self, several: Several, guest: Guest | None) -> bool:
        """Let them wait for their turn; False where that is not for all of them alike."""
        request, now = several.request, time.monotonic()
        if (guest is None or self._refusal(request) is not None or not guest.services[request.service].inline
                or not several.callee.fits(request.count, several.size)
                or not self._waiting.takes(several.peer, node=guest.name, count=request.count, size=several.size,
                                           left=request.remaining, limits=guest.limits)):
            return False
        several.admit(guest, Deadline.after(request.remaining, now))
        self._open = {each for each in self._open if each.left} | {several}
        self._waiting.admit(several.peer, request.call, several, node=guest.name, size=several.size,
                            deadline=several.deadline, now=now, limits=guest.limits, count=request.count)
        return True

    def cancel(self, peer: Peer, wanted: range) -> None:
        """The caller wants these calls no more."""
        for several in [each for each in self._open if each.peer is peer]:
            if several.cancel(wanted):
                self._waiting.cancel(peer, several.request.call)
                several.left = 0
                self._open.discard(several)

    def leave(self, peer: Peer) -> None:
        """A caller is gone."""
        for several in self._open:
            if several.peer is peer:
                several.leave()

    def begin(self, found: Begun[Peer, Pending | Several], several: Several) -> None:
        """Begin as many of them as have their turn now: one at least."""
        if not several.peer.is_read:
            several.peer.look()
        request, guest, now, left = several.request, several.guest, time.monotonic(), several.left
        if not left or guest is None:  # they were taken out meanwhile
            return
        going_on: list[Pending] = []
        try:
            refusal = self._refusal(request)
            if refusal is None and self._waiting.late(request.node, several.deadline.remaining(now)):
                refusal = too_late(request)
            if refusal is not None:
                several.refuse(refusal.code, refusal.text)
                return
            if guest.turned is not None:
                guest.turned()
            ran = several.run(now + SHARE)
            if ran is None:
                self._waiting.spread(guest.name)
            else:
                going_on = ran
        except Exception as error:
            log.exception("%s() of %s could not be served", request.service, request.node)
            several.fail(error)
        finally:
            counted = self._waiting.took(found, left - several.left, time.monotonic(), going_on=len(going_on))
            for pending in going_on:
                pending.placed = counted
                self._ahead()
            if not several.left:
                self._open.discard(several)


def apart(item: Pending | Several) -> list[Single]:
    """The calls that came together as *item*, one by one."""
    return item.apart() if isinstance(item, Several) else []
