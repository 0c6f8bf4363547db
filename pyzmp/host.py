"""One loop's listeners, and the nodes that live on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterator

from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage, PyzmpError
from pyzmp.guest import WORKERS, Guest, either
from pyzmp.pending import Pending
from pyzmp.protocol.admission import Admission, Limits
from pyzmp.protocol.calls import CALLS, SIZE, Callee
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Cancel, Code, Credit, End, Failure, Flag, Item, Parcel, Request
from pyzmp.protocol.facts import NodeFact, Trait
from pyzmp.protocol.kept import Kept, Standing
from pyzmp.protocol.outcomes import refuse, unknown
from pyzmp.publishing import Publishing
from pyzmp.registry import reach
from pyzmp.runtime import Runtime
from pyzmp.serving import Serving
from pyzmp.transport.server import Peer, Server

TURN = 0.001  # seconds after which a loop looks again at what has come, before it begins more calls
KEY = 64  # bytes of the key of a call, at most
CANCEL = 0.5  # seconds that a cancelled call may take to end

log = logging.getLogger("pyzmp.node")


class Host:
    """What one asyncio loop shares among the nodes that live on it.  Used in the loop's own thread.

    All of them are reached through one server, but those that have an address of their own.
    """

    def __init__(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        self.runtime = runtime
        self.loop = loop
        self.name = runtime.register(loop)
        self.server = self._serve()
        self.guests: dict[str, Guest] = {}
        self.own: dict[Guest, Server] = {}  # until it is gone: a successor may have its name
        self.publishing = Publishing(self.server, lambda: [self.server, *self.own.values()],
                                     lambda node, caller: node in self.guests and caller == runtime.member.id)
        self._waiting: Admission[Peer, Pending] = Admission()
        self._lanes: set[str] = set()  # the nodes with calls that wait for a worker thread
        self._next: Pending | None = None  # an inline call that waits for them
        self._ahead = 0  # calls that take their first step later in this turn of the loop
        self._held: str | None = None  # the loop that a call waits for which holds up this one
        self._crossing: str | None = None  # a call that has come from there meanwhile
        self.users = 0
        self._shared: list[str] = []
        self._widening: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> Host:
        """The host of *loop*, which is the running one; made now where it has none.  Each use ends with `release`."""
        host: Host | None = runtime.hosts.get(loop)
        if host is None:
            host = runtime.hosts[loop] = cls(runtime, loop)
        host.users += 1
        return host

    def release(self) -> None:
        """End one use; with the last one the loop listens no more."""
        self.users -= 1
        if not self.users:
            self.close()

    def _serve(self) -> Server:
        return Server(self.runtime.context, self.loop, self.name, on_parcel=self._arrived, on_open=self._greeted,
                      on_end=self._parted, on_read=self._begin_calls, window=(CALLS, SIZE))

    def add(self, guest: Guest) -> None:
        """Let a node live here; it serves from now on."""
        self.guests[guest.name] = guest

    def bind(self, guest: Guest, address: str | None, *, shared: bool, insecure: bool) -> list[str]:
        """Make *guest* reachable: at *address*, or where all are; the addresses in full.

        A node that has the loop for itself gives the loop its address.
        """
        if address is not None:
            server = self.own[guest] = self._serve()
            return reach.spread(server.bind(address, insecure=insecure), self.runtime.interfaces())
        if not self._shared:
            places = self.runtime.places(self.name, "" if shared else guest.name)
            self._shared = [self.server.bind(place, secure=True) for place in places]
        return self._shared

    def widen(self) -> None:
        """Listen for other hosts too, where the registry has come to serve several, and have the graph say so."""
        before = len(self._shared)
        try:
            for host in reach.missing(self.runtime.interfaces(), self._shared) if self._shared else ():
                self._shared = [*self._shared, self.server.bind(reach.at(host, "*"), secure=True)]
        except PyzmpError as error:
            log.warning("%s: other hosts cannot reach it: %s", self.name, error)
        known = [self.runtime.replica.view.facts.node(name) for name, guest in self.guests.items()
                 if guest not in self.own]
        wider = [replace(node, addresses=tuple(self._shared)) for node in known
                 if node is not None and len(self._shared) > before]
        if wider:
            self._widening = self.loop.create_task(self._widened(wider))

    async def _widened(self, nodes: list[NodeFact]) -> None:
        try:
            await self.runtime.announce(nodes)
        except PyzmpError as error:
            log.warning("%s: other hosts do not hear of it: %s", self.name, error)

    async def remove(self, guest: Guest, drain: float) -> None:
        """Take a node away: new calls are refused, those that run may end within *drain* seconds or until its hurry."""
        guest.leaving = True
        for _, pending in self._waiting.withdraw(lambda pending: pending.request.node == guest.name):
            pending.refuse(Code.REFUSED, f"{guest.name!r} is shutting down")
        try:
            if guest.running:
                await either(guest.idle.wait(), guest.hurry.wait(), timeout=drain)
        finally:
            guest.gone = True
            await self._cancel(guest)
            self._drop(guest)

    @staticmethod
    async def _cancel(guest: Guest) -> None:
        """Cancel the calls that still run, so that they are answered before the node is gone."""
        if guest.running:
            log.warning("%s: %d calls were still running when it stopped", guest.name, len(guest.running))
        stopping = list(guest.running)
        for serving in stopping:
            serving.cancel()
        if stopping:
            await either(guest.idle.wait(), timeout=CANCEL)
            await asyncio.sleep(0)  # for their answers
        for serving in list(guest.running):
            serving.abandon()

    def _drop(self, guest: Guest) -> None:
        if guest.workers is not None:
            guest.workers.close()
        if self.guests.get(guest.name) is guest:
            del self.guests[guest.name]
            self._waiting.forget(guest.name)

    def leave(self, guest: Guest) -> None:
        """Listen no more where that node alone was reached."""
        if guest in self.own:
            self.own.pop(guest).close()

    def close_inherited(self) -> None:
        """In a forked child: what is published here is the parent's."""
        self.publishing.forget()

    def close(self) -> None:
        """Stop listening, and leave the loop."""
        self.server.close()
        self.runtime.unregister(self.name)
        if self.runtime.hosts.get(self.loop) is self:
            del self.runtime.hosts[self.loop]

    # Calls.

    def _greeted(self, peer: Peer) -> None:
        peer.state = Callee()

    def _arrived(self, peer: Peer, parcel: Parcel) -> None:
        try:
            if not self.publishing.arrived(peer, parcel):
                self._called(peer, parcel)
        except MalformedMessage as error:
            self.server.blame((str(peer.listener.address), peer.key), str(error))

    def _called(self, peer: Peer, parcel: Parcel) -> None:
        message, callee = parcel.message, peer.state
        assert isinstance(callee, Callee)
        if type(message) is Request:
            if callee.fresh(message):
                self._admit(Pending(peer, callee, message, parcel.buffers))
        elif isinstance(message, Cancel):
            self._cancel_call(peer, callee, message.call)
        elif isinstance(message, (Item, End, Credit)):
            callee.hand(message.call, parcel)
        else:
            raise MalformedMessage(f"a {type(message).__name__}, which is not for a node")

    def _admit(self, pending: Pending) -> None:
        """Let a call wait for its turn, which comes once all that has arrived is read."""
        request, peer = pending.request, pending.peer
        if self._held and any(lane.loop == self._held for lane in request.chain):
            self._crossing = f"{request.service}() of {request.node!r}"
        if not pending.callee.take(request.call, pending.size):
            pending.refuse(Code.OVERLOADED, "more calls came over this session than its window has places for")
            return
        guest = self.guests.get(request.node)
        refusal = self._refusal(request, guest)
        if refusal is not None or guest is None:
            pending.reply(refusal or refuse(request.call, Code.REFUSED, ""))
            return
        now = time.monotonic()
        pending.deadline = Deadline.after(request.remaining, now)
        pending.guest, provided = guest, guest.services[request.service]
        if provided.worker:
            self._lanes.add(guest.name)
        if 0 < len(request.key) <= KEY and provided.traits & Trait.DEDUPLICATE and not self._first(guest, pending, now):
            return
        refused = self._waiting.admit(peer, request.call, pending, node=guest.name, size=pending.size,
                                      deadline=pending.deadline, now=now, lane=guest.name if provided.worker else "",
                                      limits=guest.limits)
        for each in refused:
            text = _full(each.item.request, guest.limits, each.retry_after)
            each.item.refuse(Code.OVERLOADED, text, retry_after=each.retry_after)

    @staticmethod
    def _first(guest: Guest, pending: Pending, now: float) -> bool:
        """Whether a call was not asked before; else it has the answer of that, or waits for it."""
        if guest.kept is None:
            guest.kept = Kept()
        pending.kept = guest.kept
        known = guest.kept.begin(pending.key, pending, now)
        if known is Standing.FRESH:
            return True
        if known is Standing.RUNNING:
            pending.lighten()
        elif known is Standing.CROWDED:
            pending.reply(refuse(pending.request.call, Code.OVERLOADED, "too many wait for the reply of this call"))
        elif known is Standing.FORGOTTEN:
            pending.reply(Failure(pending.request.call, Code.DIED, f"{pending.request.service}() of {guest.name!r} has "
                                  "run, but its reply is not kept any more", True))
        else:
            pending.reply(*known)
        return False

    def _cancel_call(self, peer: Peer, callee: Callee, call: int) -> None:
        """The caller does not want a call any more: it is not begun, or told to stop."""
        waiting = self._waiting.cancel(peer, call)
        if waiting is not None:
            waiting.refuse(Code.CANCELLED, f"{waiting.request.service}() was cancelled before its turn")
        elif call in callee.running:
            callee.running.pop(call)()  # once: a service that is cancelled may need time to clean up

    def _parted(self, peer: Peer) -> None:
        """A caller is gone, and with it the wish for what it asked, but not for what it wants no answer to."""
        self.publishing.parted(peer)
        self._waiting.leave(peer, keep=lambda pending: pending.one_way or pending.kept is not None)
        if isinstance(peer.state, Callee):
            for cancel in peer.state.leave():
                cancel()

    def _begin_calls(self) -> bool:
        """Begin the calls that wait, for a millisecond at most; whether there were any."""
        over, begun = time.monotonic() + TURN, bool(self._lanes) and self._begin_work()
        while self._next is None and (found := self._waiting.next()) is not None:
            begun = True
            if self._still_wanted(found.item):
                self._begin_in_order(found.item)
            if time.monotonic() > over:
                break
        return begun

    def _begin_work(self) -> bool:
        """Begin the calls that wait for a worker thread and have one; whether there were any."""
        begun = False
        for lane in list(self._lanes):
            guest = self.guests.get(lane)
            if not self._waiting.waiting(lane):
                self._lanes.discard(lane)
            while (guest is None or guest.working < WORKERS) and (found := self._waiting.next(lane)) is not None:
                begun = True
                if self._still_wanted(found.item):
                    self._begin(found.item)
        return begun

    def _still_wanted(self, pending: Pending) -> bool:
        """Whether a call whose turn has come is not cancelled, as far as its caller has said by now."""
        if pending.peer.is_read:
            return True
        self._hear_of_cancel(pending)
        pending.peer.look()
        return self._is_wanted(pending)

    def _hear_of_cancel(self, pending: Pending) -> None:
        """Have a call end where it is cancelled before it begins, though its turn has come."""
        def cancel() -> None:
            self._ended(pending, ran=False)
            pending.refuse(Code.CANCELLED, f"{pending.request.service}() was cancelled before its turn")
        pending.placed = True
        pending.heed(cancel)

    @staticmethod
    def _is_wanted(pending: Pending) -> bool:
        """Whether a call was not cancelled since `_hear_of_cancel`."""
        return pending.callee.running.pop(pending.request.call, None) is not None

    def _begin_in_order(self, pending: Pending) -> None:
        """Begin a call whose turn has come; an inline one once those before it have taken their first step."""
        if not self._ahead or not pending.inline:
            self._begin(pending)
            return
        self._next = pending
        self._hear_of_cancel(pending)
        self.loop.call_soon(self._begin_next, pending)  # behind those steps

    def _begin_next(self, pending: Pending) -> None:
        """Begin the inline call that others had to step before, and go on with those behind it."""
        self._next = None
        pending.peer.look()
        if self._is_wanted(pending):
            self._begin(pending)

    def _took_step(self) -> None:
        self._ahead -= 1

    def _begin(self, pending: Pending) -> None:
        """Begin a call.  An error of ours is its answer, and the calls behind it go on."""
        request = pending.request
        pending.placed = True
        try:
            guest = self.guests.get(request.node)
            refusal = self._refusal(request, guest)
            if refusal is None and self._waiting.late(request.node, pending.deadline.remaining(time.monotonic())):
                refusal = refuse(request.call, Code.EXPIRED, f"{request.service}() of {request.node!r} waited for its "
                                 "turn until it was too late for an answer in time, and was not begun")
            if refusal is not None or guest is None:
                self._ended(pending, ran=False)
                pending.answer(refusal or refuse(request.call, Code.REFUSED, ""))
                return
            if guest.turned is not None:
                guest.turned()
            if Serving(self.loop, guest, pending, self._served).begin():
                self._ahead += 1
                self.loop.call_soon(self._took_step)
        except Exception as error:
            log.exception("%s() of %s could not be served", request.service, request.node)
            self._ended(pending, ran=False)
            pending.raised(error)

    def _served(self, serving: Serving) -> None:
        """A call has ended."""
        self._ended(serving.pending, ran=serving.pending.begun)
        if serving.provided.worker and self._waiting.waiting(serving.guest.name):
            self.loop.call_soon(self._begin_work)

    def _ended(self, pending: Pending, *, ran: bool) -> None:
        if not pending.placed:
            return
        pending.placed = False
        self._waiting.end(pending.request.node, pending.size, time.monotonic(), ran=ran)

    # What holds up the loop.

    @contextlib.contextmanager
    def held_up(self, loop: str) -> Iterator[None]:
        """The loop is held up by a call that waits for *loop*."""
        before, self._held, self._crossing = self._held, loop, None
        try:
            yield
        finally:
            self._held = before

    def crossing(self) -> str | None:
        """What the loop that is waited for asks of a node here, and waits for itself, as far as has come."""
        for server in (self.server, *self.own.values()):
            for address in server.addresses:
                server.read(address)
        return self._crossing

    def _refusal(self, request: Request, guest: Guest | None) -> Failure | None:
        """Why a call is not begun, or None."""
        if guest is None:
            return refuse(request.call, Code.REFUSED, f"there is no node {request.node!r} here any more")
        if request.incarnation not in ((0, 0), guest.incarnation):
            return refuse(request.call, Code.REFUSED, f"{guest.name!r} was started again since; ask it anew")
        if guest.refuses(request.service):
            return refuse(request.call, Code.REFUSED, f"{guest.name!r} is shutting down")
        if request.service not in guest.services:
            return refuse(request.call, Code.UNKNOWN_SERVICE,
                          unknown(request.service, guest.services, f"in node {guest.name!r}"))
        if request.flags & Flag.ONE_WAY and request.flags & (Flag.STREAM | Flag.UPSTREAM):
            return refuse(request.call, Code.INVALID_CALL, f"a one-way call of {request.service}() has no streams")
        if not 0 < request.remaining < math.inf:
            return refuse(request.call, Code.EXPIRED, f"{request.service}() of {guest.name!r} came with "
                          f"{request.remaining} s left, so it was not begun")
        return None


def _full(request: Request, limits: Limits, retry_after: float) -> str:
    return (f"{request.node!r} has no room for {request.service}() now, which did not run: it takes {limits.calls} "
            f"calls and {limits.size} bytes at once, and none that would wait too long for its turn; try again in "
            f"{retry_after:.2g} s, or call it with_options(wait=True)")
