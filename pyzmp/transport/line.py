"""Calls over one session, in the hands of a loop or of a thread that blocks."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from pyzmp.exceptions import CannotTravel, InvalidCall, Overloaded
from pyzmp.protocol import rows
from pyzmp.protocol.calls import Caller, Ended
from pyzmp.protocol.envelope import Buffer, Calls, Cancel, Credit, End, Hello, Item, Parcel, Request, Welcome
from pyzmp.protocol.outcomes import Ask, Event, Outcome, Part, died, whole
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.outbox import guarded

Done = Callable[[Event], object]

log = logging.getLogger("pyzmp.call")


class Line:
    """The calls of one session to one loop.  Used by one thread at a time; once ``ended`` a new one is needed."""

    def __init__(self, context: Context, address: str, loop: str, caller: str) -> None:
        self._calls: Caller[Done] = Caller()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed = 0.0
        self._sending = self._closing = False
        self._welcome: Welcome | None = None
        self.busy = False  # with a thread's call: what a signal handler or a finaliser calls meanwhile goes elsewhere
        self._session = Session(context, address, Hello(session_id(), caller, loop), on_parcel=self._arrived,
                                on_end=self._over)

    @property
    def holds(self) -> bool:
        """Whether one-way calls wait for the session to open."""
        return self.posted > 0 and not self._session.sent

    @property
    def posted(self) -> int:
        """The one-way calls that are under way."""
        return 0 if self.ended else self._calls.posted

    def fits(self, calls: int, size: int) -> bool:
        """Whether so many calls more, of *size* bytes in all, have a place; any thread may ask: so it was just now."""
        return self._calls.fits(calls, size)

    def takes(self, calls: int, size: int) -> bool:
        """Whether so many calls, asked together, would leave now."""
        return not self._calls.waiting and self._calls.fits(calls, size)

    @property
    def ended(self) -> bool:
        """Whether the session is over."""
        return self._session.ended is not None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let *loop*, which is the running one, drive this line: replies, and deadlines."""
        self._loop = loop
        self._session.attach(loop)

    def start(self, ask: Ask, done: Done) -> int:
        """Begin a call; its number, 0 where it has ended with this.

        *done* gets its one outcome, and before that what happens to a stream, in the thread that drives
        this line.  A one-way call has an outcome only where it cannot be sent.
        """
        if self._session.ended is not None:
            done(whole(ask, died(ask, self._session.ended, executed=False)))
            return 0
        welcome = self._session.welcome
        if welcome is not None and self._welcome is not welcome:
            self._welcome = welcome
            self._calls.window(welcome.calls, welcome.size)
        if ask.count > 1 and not self.takes(ask.count, len(ask.body)):
            return self._start_each(ask, done)
        try:
            request = self._calls.open(ask, done, time.monotonic())
        except Overloaded as error:
            done(error)
            return 0
        call = self._calls.last - ask.count + 1
        if request is not None and not self._send(request, ask, done):
            return 0
        if self._loop is not None:  # a thread waits no longer than until then
            self._arm()
        return call

    def _start_each(self, ask: Ask, done: Done) -> int:
        """Begin calls one by one that are asked together and do not all have a place; they wait for it."""
        first = self._calls.last + 1
        for place, body in enumerate(rows.split(ask.body, ask.count)):
            self.start(replace(ask, body=body, count=1, wait=True), functools.partial(_part, done, place))
        return first

    def _send(self, request: Request | Calls, ask: Ask, done: Done) -> bool:
        """Let a call leave; False where it cannot, which is its outcome."""
        try:
            self._session.send(request, ask.buffers)
        except CannotTravel as error:
            self._calls.drop(request.call)
            done(whole(ask, InvalidCall(f"the arguments of {ask.service}() cannot travel: {error.reason}",
                                        service=ask.service, node=ask.node)))
            return False
        if ask.incoming is not None:
            self._session.send(Credit(request.call, *ask.incoming.window))
        return True

    def _send_waiting(self) -> None:
        """Let the calls leave that have waited for a place and have one now."""
        while self._calls.waiting:
            ready = self._calls.ready(time.monotonic())
            for request, ask, done in ready:
                self._send(request, ask, done)
            if not ready:
                break

    def tell(self, message: Item | End | Credit, buffers: Sequence[Buffer] = ()) -> None:
        """Send what belongs to a stream: items, their end, or credit; dropped once its call has ended."""
        if self._calls.sent(message.call):
            self._session.send(message, buffers)

    def ask(self, ask: Ask) -> Outcome:
        """Make a call and block until its one outcome is there."""
        outcomes: list[Event] = []
        session = self._session
        self.busy = True
        try:
            if not session.sent:
                session.pump()  # it may be open already, and not say so again
            self._sending = True
            self.start(ask, outcomes.append)
            self._sending = False
            while not outcomes:
                left = max(0.0, ask.deadline.at - time.monotonic())
                session.wait(left)
                session.pump()
                if not left:
                    self._end_due()
        except BaseException:  # a Ctrl-C, perhaps between the frames of a message
            self.abandon()
            raise
        finally:
            self.busy = False
        assert not isinstance(outcomes[0], (Parcel, Part))
        return outcomes[0]

    def cancel(self, call: int, count: int = 1) -> None:
        """Give up so many calls from *call* on: their node is told, and what it says became of each is its outcome."""
        found = [self._calls.cancel(number) for number in range(call, call + count)]
        if True in found:
            self._session.send(Cancel(call, count))
        self._tell(each for each in found if isinstance(each, Ended))

    def usable(self) -> bool:
        """Whether a thread that has left the line alone for a while can use it still."""
        self.busy = True
        try:
            self._session.catch_up()
        except BaseException:
            self.abandon()
            raise
        finally:
            self.busy = False
        return not self.ended

    def close(self) -> None:
        """End the session; open calls end with it."""
        self._closing = True
        self._session.close()

    def abandon(self) -> None:
        """End the session where its connection may be between two frames: nothing is read, and nothing said."""
        self._closing = True
        self._session.abandon()

    def _arrived(self, parcel: Parcel) -> None:
        found = self._calls.receive(parcel)
        if found is not None:
            token, event = found
            if isinstance(event, Exception) and isinstance(parcel.message, Item):  # the stream is broken
                self._session.send(Cancel(parcel.message.call))
            token(event)
        if self._calls.waiting:
            self._send_waiting()

    def _over(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._calls.posted and not (self._closing and self._session.sent):
            log.warning("the session to %s ended (%s); %s of its last %d one-way calls", self._session.address, reason,
                        "it is unknown what became" if self._session.sent else "nothing was sent", self._calls.posted)
        # Without a loop a message leaves where it is sent, or not at all, and there is but one call.
        self._tell(self._calls.end(reason, sent=self._session.sent and not self._sending))

    def _arm(self) -> None:
        """Have the loop look again when the next open call ends at the latest."""
        at = self._calls.next_deadline()
        if at is None or self._loop is None or (self._timer is not None and self._timed <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timed = at
        self._timer = self._loop.call_later(at - time.monotonic(), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._end_due()
        self._arm()

    def _end_due(self) -> None:
        """End the calls whose deadline has come."""
        ended = self._calls.expire(time.monotonic(), sent=self._session.sent)
        if not self._session.sent:  # they are said not to have run
            self._session.take_back({each.call for each in ended})
        self._tell(ended)
        self._send_waiting()

    def _tell(self, ended: Iterable[Ended[Done]]) -> None:
        """Tell whoever waits for calls that have ended, and their node where it is to stop them."""
        for call, done, outcome, tell in ended:
            if tell and self._session.sent:
                self._session.send(Cancel(call))
            guarded(done, outcome)


def _part(done: Done, place: int, event: Event) -> None:
    """Something has happened to one of several calls."""
    assert not isinstance(event, (Parcel, Part))
    done(Part(place, 1, event))
