"""Calls over one session, in the hands of a loop or of a thread that blocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from pyzmp.exceptions import CannotTravel, InvalidCall
from pyzmp.protocol.calls import Ask, Caller, Outcome, died, timed_out
from pyzmp.protocol.envelope import Cancel, Hello, Parcel
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.outbox import guarded

Done = Callable[[Outcome], object]


class Line:
    """The calls of one session to one loop.  Used by one thread at a time; once ``ended`` a new one is needed."""

    def __init__(self, context: Context, address: str, loop: str, caller: str) -> None:
        self._calls: Caller[Done] = Caller()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed = 0.0
        self._sending = False
        self.busy = False  # with a thread's call: what a signal handler or a finaliser calls meanwhile goes elsewhere
        self._session = Session(context, address, Hello(session_id(), caller, loop), on_parcel=self._arrived,
                                on_end=self._over)

    @property
    def ended(self) -> bool:
        """Whether the session is over."""
        return self._session.ended is not None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let *loop*, which is the running one, drive this line: replies, and deadlines."""
        self._loop = loop
        self._session.attach(loop)

    def start(self, ask: Ask, done: Done) -> int:
        """Begin a call; *done* gets its one outcome, in the thread that drives this line."""
        if self._session.ended is not None:
            done(died(ask, self._session.ended, sent=False))
            return 0
        request = self._calls.open(ask, done, time.monotonic())
        try:
            self._session.send(request, ask.buffers)
        except CannotTravel as error:
            self._calls.forget(request.call)
            done(InvalidCall(f"the arguments of {ask.service}() cannot travel: {error.reason}", service=ask.service,
                             node=ask.node))
            return 0
        self._arm()
        return request.call

    def ask(self, ask: Ask) -> Outcome:
        """Make a call and block until its one outcome is there."""
        outcomes: list[Outcome] = []
        session = self._session
        self.busy = True
        try:
            if not session.sent:
                session.pump()  # it may be open already, and not say so again
            self._sending = True
            call = self.start(ask, outcomes.append)
            self._sending = False
            while not outcomes:
                left = ask.deadline.remaining(time.monotonic())
                session.wait(left)
                session.pump()
                if not left and self.cancel(call):
                    return timed_out(ask, sent=session.sent)
        except BaseException:  # a Ctrl-C, perhaps between the frames of a message
            self.close()
            raise
        finally:
            self.busy = False
        return outcomes[0]

    def cancel(self, call: int) -> bool:
        """Give a call up: it has no outcome any more, and its node is told.  False where it has ended already."""
        open_still = self._calls.forget(call)
        if open_still:
            self._session.send(Cancel(call))
        return open_still

    def usable(self) -> bool:
        """Whether a thread that has left the line alone for a while can use it still."""
        self.busy = True
        try:
            self._session.catch_up()
        finally:
            self.busy = False
        return not self.ended

    def close(self) -> None:
        """End the session; open calls end with it."""
        self._session.close()

    def _arrived(self, parcel: Parcel) -> None:
        ended = self._calls.receive(parcel)
        if ended is not None:
            ended[0](ended[1])

    def _over(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Without a loop a message leaves where it is sent, or not at all, and there is but one call.
        _tell(self._calls.end(reason, sent=self._session.sent and not self._sending))

    def _arm(self) -> None:
        """Have the loop look again when the next open call ends at the latest."""
        at = self._calls.next_deadline()
        if self._loop is None or at is None or (self._timer is not None and self._timed <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timed = at
        self._timer = self._loop.call_later(at - time.monotonic(), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for call in self._calls.due(now):
            self._session.send(Cancel(call))
        _tell(self._calls.expire(now, sent=self._session.sent))
        self._arm()


def _tell(ended: Iterable[tuple[Done, Outcome]]) -> None:
    for done, outcome in ended:
        guarded(done, outcome)
