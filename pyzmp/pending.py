"""A call at its node, from its arrival to its one answer, and the streams that belong to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.call import Call
from pyzmp.channels.stream import Stream
from pyzmp.exceptions import Cancelled, CannotTravel, MalformedMessage
from pyzmp.guest import Guest, Provided
from pyzmp.protocol import codec, failure
from pyzmp.protocol.calls import Callee
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import (
    AROUND,
    Buffer,
    Code,
    Credit,
    End,
    Failure,
    Flag,
    Item,
    Opened,
    Parcel,
    Reply,
    Request,
    fitting,
    size_of,
)
from pyzmp.protocol.kept import Kept, Standing
from pyzmp.protocol.outcomes import refuse
from pyzmp.protocol.streams import Inflow, Outflow
from pyzmp.transport.server import Peer

log = logging.getLogger("pyzmp.node")

TURN = 0.001  # seconds for which a stream may go on before others have their turn

Answer = Reply | Failure | End
Sent = tuple[Answer, Sequence[Buffer]]


class Pending:
    """A call that has come to a node.  Belongs to the node's loop.

    It is answered once, to its caller and to whoever asked the same again with the same key.
    """

    __slots__ = ("begun", "buffers", "callee", "deadline", "guest", "kept", "peer", "placed", "request", "size")

    def __init__(self, peer: Peer, callee: Callee, request: Request, buffers: Sequence[Buffer]) -> None:
        self.peer, self.callee, self.request, self.buffers = peer, callee, request, buffers
        self.deadline = Deadline(0.0)  # on this loop's clock, once it is admitted
        self.size = size_of(request.body, buffers)
        self.guest: Guest | None = None  # whom it is for, once it is admitted
        self.begun = False
        self.placed = False  # whether it occupies its node, and runs or is about to
        self.kept: Kept[Pending, Sent] | None = None

    @property
    def key(self) -> tuple[str, bytes]:
        """What names the call over all of its attempts."""
        return self.peer.hello.caller, self.request.key

    @property
    def one_way(self) -> bool:
        """Whether nobody waits for an answer."""
        return bool(self.request.flags & Flag.ONE_WAY)

    @property
    def inline(self) -> bool:
        """Whether it is run as soon as it is begun."""
        provided = self.guest.services.get(self.request.service) if self.guest is not None else None
        return provided is not None and provided.inline

    def heed(self, cancel: Callable[[], object]) -> None:
        """From now on have *cancel* called when the caller gives the call up, or is gone and was all who wanted it."""
        self.callee.running[self.request.call] = cancel
        if self.one_way or self.kept is not None:
            self.callee.lasting.add(self.request.call)

    def lighten(self) -> None:
        """Hold nothing of what was asked: another call is run for it."""
        self.request, self.buffers = replace(self.request, body=b""), ()

    def refuse(self, code: int, text: str, *, argument: str | None = None, retry_after: float | None = None) -> None:
        """Answer that it was not begun, and why; *argument* names the one that does not fit."""
        self.answer(refuse(self.request.call, code, text, argument=argument, retry_after=retry_after))

    def raised(self, error: BaseException) -> None:
        """Answer what the service raised."""
        body = failure.describe(error, node=self.request.node, service=self.request.service)
        self.answer(Failure(self.request.call, Code.RAISED, executed=True, body=body))

    def answer(self, message: Answer, buffers: Sequence[Buffer] = ()) -> None:
        """Answer, unless that was done."""
        if self.kept is None:
            self.reply(message, buffers)
            return
        if self.begun and not (type(message) is Failure and message.code == Code.CANCELLED):
            size = size_of(getattr(message, "body", b""), buffers)
            waiting = self.kept.end(self.key, (message, buffers), size, time.monotonic())
        else:
            waiting = self.kept.drop(self.key)
        for each in waiting:
            each.reply(message, buffers)
        self.callee.answer(self.request.call)  # where its own caller is gone

    def reply(self, message: Answer, buffers: Sequence[Buffer] = ()) -> None:
        """Send the answer of this call, or of another one with the same key."""
        call = self.request.call
        if not self.callee.answer(call):
            return
        if self.one_way:
            self._note(message)
            return
        try:
            self.peer.send(message if message.call == call else replace(message, call=call), buffers)
        except CannotTravel as error:
            body = failure.describe(error, node=self.request.node, service=self.request.service)
            self.peer.send(Failure(call, Code.RAISED, executed=True, body=body))

    def _note(self, message: Answer) -> None:
        """A one-way call has ended."""
        if type(message) is Failure:
            request = self.request
            if self.guest is not None:
                self.guest.failed_posts += 1
            what = failure.rebuild(message.body) if message.code == Code.RAISED else message.text
            log.error("the one-way call of %s() of %r by process %s failed: %s", request.service, request.node,
                      self.peer.hello.caller, what if isinstance(what, str) else f"{type(what).__name__}: {what}")
        self.peer.send(Credit(0, 1, self.size))


def first(guest: Guest, pending: Pending, now: float) -> bool:
    """Whether a call with a key was not asked before; else it has the answer of that, or waits for it."""
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


class Outgoing:
    """The items that a service gives, on their way to its caller, no faster than he takes them."""

    def __init__(self, pending: Pending, provided: Provided, call: Call) -> None:
        self._pending, self._provided, self._call = pending, provided, call
        self._flow = Outflow()
        self._turn = 0.0  # when the loop is to be left to others
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    def opened(self) -> None:
        """Tell the caller that the service has begun: from now on no deadline ends it."""
        self._call.deadline = Deadline(float("inf"))
        self._pending.peer.send(Opened(self._pending.request.call))

    def grant(self, credit: Credit) -> None:
        """The caller has room for more."""
        with self._changed:
            self._flow.grant(credit.items, credit.size)
        self.wake()

    def wake(self) -> None:
        """Have whoever waits for room look again."""
        with self._changed:
            self._changed.notify_all()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def put(self, value: Any) -> None:
        """Send an item, once there is room; on the loop.  Raises TypeError and CannotTravel for what may not travel."""
        body, buffers, size = self._encoded(value)
        if time.monotonic() > self._turn:  # others have their turn, however fast the items come
            await asyncio.sleep(0)
            self._turn = time.monotonic() + TURN
        while not self._flow.room:
            if self._call.given_up:
                self._call.check()
            self._waiter = self._loop.create_future()
            await self._waiter
        self._send(self._item(body, buffers, size), buffers)

    def put_from_thread(self, value: Any) -> None:
        """As `put`, in a worker thread.  Raises Cancelled once nobody waits for the stream any more."""
        body, buffers, size = self._encoded(value)
        with self._changed:
            self._changed.wait_for(lambda: self._flow.room or self._call.given_up)
            if self._call.given_up:
                self._call.check()
            item = self._item(body, buffers, size)
        self._loop.call_soon_threadsafe(self._send, item, buffers)

    def _encoded(self, value: Any) -> tuple[bytes, Sequence[Buffer], int]:
        """What travels for *value*, and how many bytes that takes."""
        name = self._provided.name
        self._provided.signature.check_result(name, value)
        body, buffers = codec.encode(value, f"an item of {name}()")
        return body, buffers, fitting(body, buffers, f"an item of {name}()", AROUND)

    def _item(self, body: bytes, buffers: Sequence[Buffer], size: int) -> Item:
        return Item(self._pending.request.call, self._flow.take(size), body, len(buffers))

    def _send(self, item: Item, buffers: Sequence[Buffer]) -> None:
        if self._pending.request.call in self._pending.callee.open:
            self._pending.peer.send(item, buffers)


class Incoming(Stream[Any]):
    """The stream that a service takes: iterated in ``for`` in a worker thread, in ``async for`` on the loop."""

    def __init__(self, pending: Pending, provided: Provided) -> None:
        self._pending, self._provided = pending, provided
        self._flow = Inflow()
        self._items: Arrivals[tuple[Any, int] | BaseException | None] = Arrivals()
        self._ended = self._over = False  # for the one who sends, and the one who takes
        self._loop = asyncio.get_running_loop()
        self._send(self._flow.window)

    def arrived(self, parcel: Parcel) -> None:
        """Take in what the caller has sent, until its end; on the loop."""
        message = parcel.message
        if self._ended:
            return
        if isinstance(message, End):
            self._ended = True
            self._items.put(None)
        elif isinstance(message, Item):
            size = size_of(message.body, parcel.buffers)
            try:
                if self._flow.arrived(message.number, size):
                    value = codec.decode(message.body, parcel.buffers)
                    self._items.put((self._provided.signature.convert_item(self._provided.name, value), size))
            except Exception as error:
                self._ended = True
                self._items.put(error)

    def given_up(self) -> None:
        """The caller is gone, or wants nothing any more."""
        self._items.put(Cancelled(f"the caller of {self._provided.name}() has given the call up, and sends no more",
                                  service=self._provided.name, node=self._pending.request.node, executed=True))

    def __next__(self) -> Any:
        if asyncio._get_running_loop() is self._loop:
            raise RuntimeError(f"{self._provided.name}() runs on the loop that the items of its stream arrive on; "
                               "iterate them with async for")
        if not self._over:
            found = self._taken(self._items.take(float("inf")))
            if found is not None:
                return found[0]
        raise StopIteration

    async def __anext__(self) -> Any:
        if not self._over:
            found = self._taken(await self._items.atake(float("inf")))
            if found is not None:
                return found[0]
        raise StopAsyncIteration

    def close(self) -> None:
        """Take no more; the caller sends no more than what is on its way."""
        self._over = True

    def _taken(self, found: tuple[Any, int] | BaseException | None) -> tuple[Any] | None:
        if isinstance(found, tuple):
            credit = self._flow.consumed(found[1])
            if credit is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._send, credit)
            return (found[0],)
        self._over = True
        if found is not None:
            raise found
        return None

    def _send(self, credit: tuple[int, int]) -> None:
        if self._pending.request.call in self._pending.callee.open:
            self._pending.peer.send(Credit(self._pending.request.call, *credit))


def taken(parcel: Parcel, outgoing: Outgoing | None, incoming: Incoming | None) -> None:
    """Hand what has come for the streams of a call to the one that it is for."""
    if isinstance(parcel.message, Credit):
        if outgoing is not None:
            outgoing.grant(parcel.message)
    elif incoming is not None:
        incoming.arrived(parcel)


def arguments(request: Request, buffers: Sequence[Buffer]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a request.  Raises MalformedMessage."""
    value = codec.decode(request.body, buffers)
    if (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and isinstance(value[1], dict)
            and all(isinstance(name, str) for name in value[1])):
        return value[0], value[1]
    raise MalformedMessage("the arguments of a call are a list and a map of names")
