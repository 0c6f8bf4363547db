"""Streams that a service takes: how their items travel, at the caller.

Items are asked of the caller's own iterable where the call was made: in the thread that blocks, on
the loop that awaits, or for a future in a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.calling import Calling
from pyzmp.channels.future import CallFuture
from pyzmp.exceptions import InvalidCall
from pyzmp.protocol import codec
from pyzmp.protocol.envelope import AROUND, Credit, End, Item, Parcel, fitting
from pyzmp.protocol.outcomes import Ask, Event, Outcome, Part, cancelled, timed_out
from pyzmp.protocol.schema import Signature
from pyzmp.protocol.streams import Outflow
from pyzmp.sessions import Begun, Target
from pyzmp.transport.waiters import SLACK

_OVER = object()


class Upload:
    """The stream that one call takes.  *events* are what comes for it, the last one the outcome of the call.

    *failed* is told of an error of the caller's own iterable, before the call is given up for it.
    """

    def __init__(self, calling: Calling, begun: Begun, events: Arrivals[Event | None],
                 failed: Callable[[BaseException], object] | None = None) -> None:
        self._calling, self._begun, self._events, self._failed = calling, begun, events, failed
        self._sessions = calling.here.sessions
        self._flow = Outflow()
        self._more = True
        self._number = 0  # of the next item
        self._room = asyncio.Event()  # for `arun`
        self._broken: BaseException | None = None

    @property
    def _due(self) -> bool:
        """Whether the next item is to be sent before anything else is looked at."""
        return self._more and self._flow.room and not len(self._events)

    def run(self, ask: Ask, patience: float = SLACK) -> Outcome:
        """Send items as there is room, until the call has ended: *patience* seconds after its deadline at the latest.

        What the caller's iterable raises gives the call up, and comes out here.
        """
        try:
            source = iter(self._calling.source)
            while True:
                if self._due:
                    self._send(next(source, _OVER))
                    continue
                try:
                    event = self._events.take(self._calling.left + patience)
                except TimeoutError:
                    return timed_out(ask, sent=True)
                outcome = self._handled(event)
                if outcome is not None:
                    return outcome
        except BaseException as error:
            self._give_up(error)
            raise

    async def arun(self, ask: Ask, patience: float = SLACK) -> Outcome:
        """As `run`, on the running loop, where a stream that stalls does not hold up the end of the call."""
        sending = asyncio.get_running_loop().create_task(self._send_all())
        try:
            while True:
                try:
                    event = await self._events.atake(self._calling.left + patience)
                except TimeoutError:
                    return timed_out(ask, sent=True)
                outcome = self._handled(event)
                if outcome is not None:
                    return outcome
        except BaseException as error:
            self._give_up(error)
            raise
        finally:
            self._more = False
            sending.cancel()

    async def _send_all(self) -> None:
        """Send items as there is room; an error ends `arun`."""
        try:
            source = self._calling.source
            items: Any = aiter(source) if hasattr(source, "__aiter__") else iter(source)
            while self._more:
                while not self._flow.room:
                    self._room.clear()
                    await self._room.wait()
                item = await anext(items, _OVER) if isinstance(items, AsyncIterator) else next(items, _OVER)
                if self._more:
                    self._send(item)
        except BaseException as error:
            self._broken = error
            self._events.put(None)

    def _give_up(self, error: BaseException) -> None:
        if self._failed is not None:
            self._failed(error)
        self._sessions.give_up(self._begun)

    def _handled(self, event: Event | None) -> Outcome | None:
        if event is None:
            assert self._broken is not None
            raise self._broken
        if not isinstance(event, Parcel):
            assert not isinstance(event, Part)
            return event
        if isinstance(event.message, Credit):
            self._flow.grant(event.message.items, event.message.size)
            self._room.set()
        return None

    def _send(self, item: Any) -> None:
        if item is _OVER:
            self._more = False
            self._sessions.tell(self._begun, End(0))
            return
        channel = self._calling.channel
        if channel.signature is not None:
            self._check(channel.signature, item)
        what = f"an item for {channel.name}()"
        body, buffers = codec.encode(item, what)
        size = fitting(body, buffers, what, AROUND)
        self._sessions.tell(self._begun, Item(0, self._flow.take(size), body, len(buffers)), buffers)
        self._number += 1

    def _check(self, signature: Signature, item: Any) -> None:
        try:
            signature.check_item(self._calling.channel.name, item, self._number)
        except InvalidCall as error:
            error.executed = None  # the service may have begun
            raise


def feed(calling: Calling, target: Target, ask: Ask, future: CallFuture[Any] | None = None) -> Outcome:
    """Make a call that takes a stream, and block until its outcome is there; *future* may give it up."""
    if not hasattr(calling.source, "__iter__"):
        raise InvalidCall(f"{calling.channel.name}(): an async iterable can be sent by a coroutine only; "
                          "write await ….acall(…)", service=calling.channel.name, node=target.node)
    events: Arrivals[Event | None] = Arrivals()
    sessions = calling.here.sessions

    def arrived(event: Event) -> None:
        if future is not None and not isinstance(event, Parcel):
            future.settle(event)  # at once: the caller's iterable may stall
        events.put(event)
    if future is not None and future.cancelled():
        return cancelled(ask)
    begun = sessions.submit(target, ask, arrived)
    if future is not None:
        future.gives_up(lambda: sessions.give_up(begun))
    return Upload(calling, begun, events, future.fail if future is not None else None).run(ask)


async def afeed(calling: Calling, target: Target, ask: Ask) -> Outcome:
    """As `feed`, on the running loop."""
    events: Arrivals[Event | None] = Arrivals()
    begun = calling.here.sessions.submit(target, ask, events.put)
    return await Upload(calling, begun, events).arun(ask)
