"""A plain call that comes while nothing else waits: from its request to its reply in one go.

It goes the way of all others, without what is only there for some of them, which takes half of the time. Whatever is
special about it, or becomes so, is dealt with as for any other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyzmp.channels.call import Call, serving
from pyzmp.guest import Guest, why_not
from pyzmp.pending import Pending
from pyzmp.protocol import rows
from pyzmp.protocol.admission import Admission
from pyzmp.protocol.calls import Callee
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Reply, Request
from pyzmp.serving import Serving, pass_on
from pyzmp.transport.server import Peer

log = logging.getLogger("pyzmp.node")


class Lone:
    """Such a call at its node, which serves it once all that has come is read.  Belongs to the node's loop."""

    __slots__ = ("_callee", "_peer", "_request")

    def __init__(self, peer: Peer, callee: Callee, request: Request) -> None:
        self._peer, self._callee, self._request = peer, callee, request

    def pending(self) -> Pending:
        """The call as any other."""
        return Pending(self._peer, self._callee, self._request, ())

    def begin(self, loop: asyncio.AbstractEventLoop, waiting: Admission[Peer, Any], guests: Mapping[str, Guest],
              ended: Callable[[Serving], object], ahead: Callable[[], object]) -> bool:
        """Serve it; False where it is not plain, and nothing has been done about it.

        *ended* is as of a `Serving`, and *ahead* called where it takes its first step later, as a task.
        """
        request, callee, size = self._request, self._callee, len(self._request.body)
        guest = guests.get(request.node)
        if guest is None or request.flags or request.key or why_not(request, guest) is not None:
            return False
        provided = guest.services[request.service]
        args = provided.signature.rows.one(request.body) if provided.inline else None
        if args is None or not callee.fits(1, size) or not waiting.enter(guest.name, size, guest.limits):
            return False
        self._serve(loop, waiting, guest, args, ended, ahead)
        return True

    def _serve(self, loop: asyncio.AbstractEventLoop, waiting: Admission[Peer, Any], guest: Guest, args: Sequence[Any],
               ended: Callable[[Serving], object], ahead: Callable[[], object]) -> None:
        request, callee, size = self._request, self._callee, len(self._request.body)
        number, provided = request.call, guest.services[request.service]
        # What runs here is called by the loop, and no task of its.
        call = Call(guest.name, provided.name, self._peer.hello.caller,
                    Deadline(time.monotonic() + request.remaining), request.chain, (threading.get_ident(), None),
                    self._peer.look)
        callee.take(number, size)
        callee.running[number] = call.cancel
        odd: Pending | None = None
        try:
            if guest.turned is not None:
                guest.turned()
            context = guest.context.copy()
            try:
                value = context.run(_step, call, provided.function, args)
            except BaseException as error:
                odd = self._begun(guest, call)
                Serving(loop, guest, odd, ended, call, context).failed(error)
                pass_on(error)
                return
            body = rows.result(value, provided.signature.gives)
            if body is None:
                odd = self._begun(guest, call)
                if Serving(loop, guest, odd, ended, call, context).came(value):
                    ahead()
            else:
                call.ends()
                if callee.answer(number):
                    self._peer.send(Reply(number, body))
        except Exception as error:
            log.exception("%s() of %s could not be served", request.service, request.node)
            (odd or self.pending()).raised(error)
            if odd is not None and odd.placed:
                odd.placed, odd = False, None
        finally:
            if odd is None:  # what is answered first is on its way meanwhile
                waiting.end(guest.name, size, time.monotonic())

    def _begun(self, guest: Guest, call: Call) -> Pending:
        """It, begun as any other: it gives its place free when it has ended."""
        pending = self.pending()
        pending.guest, pending.deadline = guest, call.deadline
        pending.begun = pending.placed = True
        return pending


def _step(call: Call, function: Callable[..., Any], args: Sequence[Any]) -> Any:
    serving.set(call)
    return function(*args)
