"""One loop's listeners, and the nodes that live on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage, PyzmpError
from pyzmp.guest import WORKERS, Guest, either, full, too_late, why_not
from pyzmp.lone import Lone
from pyzmp.pending import Pending, first
from pyzmp.protocol.admission import Admission, Begun
from pyzmp.protocol.calls import CALLS, SIZE, Callee
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Calls, Cancel, Code, Credit, End, Item, Parcel, Request
from pyzmp.protocol.facts import NodeFact, Trait
from pyzmp.protocol.outcomes import refuse
from pyzmp.protocol.rows import MOST
from pyzmp.publishing import Publishing
from pyzmp.registry import reach
from pyzmp.runtime import Runtime
from pyzmp.serving import Serving
from pyzmp.several import Several, Together, apart
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
        self._waiting: Admission[Peer, Pending | Several] = Admission(apart)
        self._together = Together(self._waiting, lambda request: why_not(request, self.guests.get(request.node)),
                                  self._steps)
        self._lone: Lone | None = None  # a call that has come alone, as far as what has come is read
        self._beginning = False
        self._lanes: set[str] = set()  # the nodes with calls that wait for a worker thread
        self._next: Pending | Several | None = None  # an inline call that waits for them
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
        self._not_alone()
        for _, pending in self._waiting.withdraw(lambda pending: self.guests.get(pending.request.node) is guest):
            pending.refuse(Code.REFUSED, f"{guest.name!r} is shutting down")
        try:
            if guest.running:
                await either(guest.idle.wait(), guest.hurry.wait(), timeout=drain)
        finally:
            guest.gone = True
            await guest.cancel(CANCEL)
            self._drop(guest)

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
        self._not_alone()
        if type(message) is Request:
            busy = self._beginning or self._waiting or self._ahead or self._next or self._held or parcel.buffers
            fresh = callee.fresh(message)
            if fresh and (busy or not peer.is_read):
                self._admit(Pending(peer, callee, message, parcel.buffers))
            elif fresh:
                self._lone = Lone(peer, callee, message)
        elif type(message) is Calls:
            self._called_together(Several(peer, callee, message, self.loop, self._served))
        elif isinstance(message, Cancel):
            wanted = range(message.call, message.call + min(message.count, MOST))
            self._together.cancel(peer, wanted)
            for call in [call for call in min(wanted, callee.open, key=len) if call in wanted and call in callee.open]:
                self._cancel_call(peer, callee, call)
        elif isinstance(message, (Item, End, Credit)):
            callee.hand(message.call, parcel)
        else:
            raise MalformedMessage(f"a {type(message).__name__}, which is not for a node")

    def _not_alone(self) -> None:
        """Let a call wait for its turn that came alone: something else comes before it begins."""
        lone, self._lone = self._lone, None
        if lone is not None:
            self._admit(lone.pending())

    def _called_together(self, several: Several) -> None:
        """Let calls that came together wait for their turn; one by one where it is not the same for all of them."""
        request = several.request
        if several.callee.fresh(request, request.count) and (
                self._held or not self._together.admit(several, self.guests.get(request.node))):
            for _, pending, _ in several.apart():
                self._admit(pending)

    def _admit(self, pending: Pending) -> None:
        """Let a call wait for its turn, which comes once all that has arrived is read."""
        request, peer = pending.request, pending.peer
        if self._held and any(lane.loop == self._held for lane in request.chain):
            self._crossing = f"{request.service}() of {request.node!r}"
        if not pending.callee.take(request.call, pending.size):
            pending.refuse(Code.OVERLOADED, "more calls came over this session than its window has places for")
            return
        guest = self.guests.get(request.node)
        refusal = why_not(request, guest)
        if refusal is not None or guest is None:
            pending.reply(refusal or refuse(request.call, Code.REFUSED, ""))
            return
        now = time.monotonic()
        pending.deadline = Deadline.after(request.remaining, now)
        pending.guest, provided = guest, guest.services[request.service]
        if provided.worker:
            self._lanes.add(guest.name)
        if 0 < len(request.key) <= KEY and provided.traits & Trait.DEDUPLICATE and not first(guest, pending, now):
            return
        refused = self._waiting.admit(peer, request.call, pending, node=guest.name, size=pending.size,
                                      deadline=pending.deadline, now=now, lane=guest.name if provided.worker else "",
                                      limits=guest.limits)
        for each in refused:
            text = full(each.item.request, guest.limits, each.retry_after)
            each.item.refuse(Code.OVERLOADED, text, retry_after=each.retry_after)

    def _cancel_call(self, peer: Peer, callee: Callee, call: int) -> None:
        """The caller does not want a call any more: it is not begun, or told to stop."""
        waiting = self._waiting.cancel(peer, call)
        if waiting is not None:
            waiting.refuse(Code.CANCELLED, f"{waiting.request.service}() was cancelled before its turn")
        elif call in callee.running:
            callee.running.pop(call)()  # once: a service that is cancelled may need time to clean up

    def _parted(self, peer: Peer) -> None:
        """A caller is gone, and with it the wish for what it asked, but not for what it wants no answer to."""
        self._not_alone()
        self.publishing.parted(peer)
        self._waiting.leave(peer, keep=lambda pending: pending.one_way or pending.kept is not None)
        self._together.leave(peer)
        if isinstance(peer.state, Callee):
            for cancel in peer.state.leave():
                cancel()

    def _begin_calls(self) -> bool:
        """Begin what has come, for a millisecond at most; whether there was anything."""
        if self._lone is None and not self._waiting:
            return False
        self._beginning = True  # what comes from now on waits for its turn
        try:
            return self._begin_lone() or self._begin_waiting()
        finally:
            self._beginning = False

    def _begin_lone(self) -> bool:
        """Serve the call that came alone; False where there is none, or it is to wait for its turn as any other."""
        lone, self._lone = self._lone, None
        try:
            if lone is None or lone.begin(self.loop, self._waiting, self.guests, self._served, self._steps):
                return lone is not None
        except Exception:  # of ours: it is none of the call's, whose turn is still to come
            assert lone is not None
            log.exception("a call that came alone could not be served at once")
        self._admit(lone.pending())
        return False

    def _begin_waiting(self) -> bool:
        over, begun = time.monotonic() + TURN, self._begin_work()
        while self._next is None and (found := self._waiting.next()) is not None:
            begun = True
            if isinstance(found.item, Several):
                if self._ahead:  # as `_begin_in_order`
                    self._next = found.item
                    self.loop.call_soon(self._begin_together, found, found.item)
                else:
                    self._together.begin(found, found.item)
            elif self._still_wanted(found.item):
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
                assert isinstance(found.item, Pending)
                if self._still_wanted(found.item):
                    self._begin(found.item)
        return begun

    def _still_wanted(self, pending: Pending) -> bool:
        """Whether a call whose turn has come is not cancelled, as far as its caller has said by now."""
        if pending.peer.is_read:
            return True
        self._hear_of_cancel(pending)
        pending.peer.look()
        return pending.callee.running.pop(pending.request.call, None) is not None  # else it was cancelled since

    def _hear_of_cancel(self, pending: Pending) -> None:
        """Have a call end where it is cancelled before it begins, though its turn has come."""
        def cancel() -> None:
            self._ended(pending, ran=False)
            pending.refuse(Code.CANCELLED, f"{pending.request.service}() was cancelled before its turn")
        pending.placed = True
        pending.heed(cancel)

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
        if pending.callee.running.pop(pending.request.call, None) is not None:
            self._begin(pending)

    def _begin_together(self, found: Begun[Peer, Pending | Several], several: Several) -> None:
        """As `_begin_next`, of calls that came together."""
        self._next = None
        self._together.begin(found, several)

    def _steps(self, ahead: int = 1) -> None:
        """A call takes its first step later in this turn of the loop, or has done so."""
        self._ahead += ahead
        if ahead > 0:
            self.loop.call_soon(self._steps, -1)

    def _begin(self, pending: Pending) -> None:
        """Begin a call.  An error of ours is its answer, and the calls behind it go on."""
        request = pending.request
        pending.placed = True
        try:
            guest = self.guests.get(request.node)
            refusal = why_not(request, guest)
            if refusal is None and self._waiting.late(request.node, pending.deadline.remaining(time.monotonic())):
                refusal = too_late(request)
            if refusal is not None or guest is None:
                self._ended(pending, ran=False)
                pending.answer(refusal or refuse(request.call, Code.REFUSED, ""))
                return
            if guest.turned is not None:
                guest.turned()
            if Serving(self.loop, guest, pending, self._served).begin():
                self._steps()
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
