"""Both ends of calls: what is open, what may be sent, and how each call ends.

`Caller` is the caller's table for one session, `Callee` the node's for the same session.  Neither
knows of sockets or clocks: messages come in, messages and outcomes go out, and time is an argument.
A call that is opened in a `Caller` gets exactly one outcome.
"""

from __future__ import annotations

import functools
import heapq
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, Generic

from pyzmp.exceptions import MalformedMessage, RemoteError
from pyzmp.protocol.envelope import (
    Calls,
    Credit,
    End,
    Failure,
    Flag,
    Item,
    Opened,
    Parcel,
    Reply,
    Request,
    Results,
    size_of,
)
from pyzmp.protocol.opened import Ended as Ended  # noqa: PLC0414 - it is part of what this module says
from pyzmp.protocol.opened import Open, Token
from pyzmp.protocol.outcomes import Ask, Event, Outcome, Part, Result, cancelled, died, failed, overloaded, timed_out
from pyzmp.protocol.streams import Outflow

CALLS = 4096  # calls that one session has open at once, at most
SIZE = 64 << 20  # bytes of their arguments, at most, unless one call alone has more
SLACK = 64  # entries of ended calls that a table of open ones may hold beside its own number


class Caller(Generic[Token]):
    """The calls of one session.

    A *token* stands for whoever waits for a call, and comes back with its outcome.  A call that is
    sent takes a place in the session's window until its node has answered it, also when its caller
    waits no more.  Messages for nobody, twice, out of order, of the wrong kind or for a call that has
    ended are counted in ``stray`` and dropped.
    """

    __slots__ = ("_calls", "_groups", "_late", "_open", "_order",
                 "_posted", "_posts", "_size", "_used", "_waiting", "last",
                 "stray", "used")

    def __init__(self, calls: int = CALLS, size: int = SIZE) -> None:
        self.stray = 0
        self.last = 0  # the number of the call that was opened last
        self._open: dict[int, Open[Token]] = {}  # by number; several that were asked together by that of the first
        self._groups: list[int] = []  # those numbers, which only grow
        self._order: list[tuple[float, int]] = []
        self._waiting: deque[int] = deque()  # for a place
        self._late: dict[int, int] = {}  # calls that nobody waits for and the node has not answered: their sizes
        self._posts: dict[int, int] = {}  # one-way calls that are under way, as many as are, with their sizes
        self._posted = 0  # bytes of those that are under way
        self._calls, self._size = calls, size
        self.used = 0  # places in the window
        self._used = 0  # and bytes

    def __len__(self) -> int:
        return len(self._open)

    @property
    def posted(self) -> int:
        """The one-way calls that are under way."""
        return len(self._posts)

    def window(self, calls: int, size: int) -> None:
        """Note what the node grants; nothing where it says 0."""
        self._calls, self._size = calls or self._calls, size or self._size

    # Beginning.

    def open(self, ask: Ask, token: Token, now: float) -> Request | Calls | None:
        """Open a call; the message that asks for it, or None where it waits for a place.

        Raises Overloaded where there is none, and the call does not want to wait.  Several that are asked
        together do not wait: whoever opens them knows that they have their places, by `fits`.
        """
        size = size_of(ask.body, ask.buffers)
        fits = not self._waiting and self.fits(ask.count, size)
        if not fits and not ask.wait:
            raise overloaded(ask, f"{self.used} calls of this session with {self._used} bytes are under way, which "
                             f"fills its window ({self._calls} calls, {self._size} bytes)")
        call = self.last + 1
        self.last += ask.count
        entry = self._open[call] = Open(call, ask, token, size)
        if ask.count > 1:
            self._groups.append(call)
        self._watch(call, ask)
        if fits:
            return self._send(call, entry, now)
        self._waiting.append(call)
        return None

    def fits(self, calls: int, size: int) -> bool:
        """Whether there is a place for so many calls more, of *size* bytes in all."""
        used = self.used + calls
        return used <= self._calls and (self._used + size <= self._size or used == 1)

    @property
    def waiting(self) -> int:
        """The calls that wait for a place."""
        return len(self._waiting)

    def sent(self, call: int) -> bool:
        """Whether a call is open, and was sent."""
        entry = self._open.get(call)
        return entry is not None and entry.sent

    def ready(self, now: float) -> list[tuple[Request | Calls, Ask, Token]]:
        """The calls that have waited for a place and have one now."""
        found = []
        while self._waiting:
            entry = self._open.get(self._waiting[0])
            if entry is not None and not self.fits(1, entry.size):
                break
            call = self._waiting.popleft()
            if entry is not None:
                found.append((self._send(call, entry, now), entry.ask, entry.token))
        return found

    def _send(self, call: int, entry: Open[Token], now: float) -> Request | Calls:
        ask = entry.ask
        entry.sent = True
        self.used += ask.count
        self._used += entry.size
        if ask.count > 1:
            return Calls(call, ask.node, ask.service, ask.deadline.remaining(now), ask.body, ask.count,
                         ask.incarnation, ask.chain)
        if ask.flags & Flag.ONE_WAY:
            del self._open[call]
            self._posts[call] = entry.size
            self._posted += entry.size
        return Request(call, ask.node, ask.service, ask.deadline.remaining(now), ask.body, len(ask.buffers),
                       ask.incarnation, ask.flags, ask.chain, ask.key)

    def _watch(self, call: int, ask: Ask) -> None:
        heapq.heappush(self._order, (ask.deadline.at, call))
        if len(self._order) > 2 * len(self._open) + SLACK:  # ended calls, behind one that stays open for long
            self._order = [entry for entry in self._order if self._timed(entry[1])]
            heapq.heapify(self._order)

    def _timed(self, call: int) -> bool:
        """Whether a deadline is still to end the call."""
        entry = self._open.get(call)
        return entry is not None and not entry.opened

    # What comes.

    def receive(self, parcel: Parcel) -> tuple[Token, Event] | None:
        """What *parcel* brings to a call, or None where it brings nothing."""
        message: Any = parcel.message
        kind = type(message)
        entry = self._entry(getattr(message, "call", 0))
        if entry is None or not entry.sent:
            self._astray(message)
            return None
        if entry.ended is not None:
            return self._part(message, parcel, entry)
        streams = bool(entry.ask.flags & Flag.STREAM)
        if kind is Failure or (kind is Reply and not streams) or (kind is End and streams):
            return self._ends(message, parcel, entry)
        if kind is Item and entry.ask.incoming is not None:
            return self._item(message, parcel, entry)
        if kind is Opened and streams and not entry.opened:
            entry.opened = True
            return entry.token, parcel
        if kind is Credit and entry.ask.flags & Flag.UPSTREAM:
            return entry.token, parcel
        self.stray += 1
        return None

    def _entry(self, call: int) -> Open[Token] | None:
        """The open call of that number, or those that were asked together with it."""
        entry = self._open.get(call)
        if entry is None and self._groups and self._groups[0] < call:
            entry = self._open[self._groups[bisect_right(self._groups, call) - 1]]
        return entry if entry is not None and call < entry.call + entry.ask.count else None

    def _part(self, message: Any, parcel: Parcel, entry: Open[Token]) -> tuple[Token, Event] | None:
        """What *parcel* brings to some of several calls."""
        kind, first, count = type(message), message.call - entry.call, getattr(message, "count", 1)
        if kind not in (Results, Reply, Failure) or (kind is Results and count < 2) or not entry.ends(first, count):
            self.stray += 1
            return None
        self.used -= count
        if not entry.left:
            self._close(entry)
            self._used -= entry.size
        outcome = failed(message, entry.ask) if kind is Failure else Result(message.body, parcel.buffers)
        return entry.token, Part(first, count, outcome)

    def _close(self, entry: Open[Token]) -> None:
        del self._open[entry.call]
        if entry.ended is not None:
            del self._groups[bisect_left(self._groups, entry.call)]

    def _astray(self, message: Any) -> None:
        """A message for no open call; it may still make room in the window."""
        if type(message) is Credit and message.call == 0 and 0 < message.items <= self.posted:
            self._credit(message.items, message.size)
            return
        self.stray += 1
        if isinstance(message, (Reply, Failure, End, Results)):
            for call in range(message.call, message.call + min(getattr(message, "count", 1), CALLS)):
                size = self._late.pop(call, None)
                if size is not None:
                    self._release(size)

    def _credit(self, items: int, size: int) -> None:
        """So many one-way calls have ended, whichever they are; with the last one all their bytes are free."""
        for _ in range(items):
            del self._posts[next(iter(self._posts))]
        size = min(max(0, size), self._posted) if self._posts else self._posted
        self._posted -= size
        self.used -= items
        self._used -= size

    def _ends(self, message: Reply | Failure | End, parcel: Parcel, entry: Open[Token]) -> tuple[Token, Outcome]:
        del self._open[message.call]
        self._release(entry.size)
        if type(message) is Failure:
            return entry.token, failed(message, entry.ask)
        return entry.token, Result(getattr(message, "body", b""), parcel.buffers)

    def _item(self, message: Item, parcel: Parcel, entry: Open[Token]) -> tuple[Token, Event] | None:
        assert entry.ask.incoming is not None
        try:
            if entry.ask.incoming.arrived(message.number, size_of(message.body, parcel.buffers)):
                entry.opened = True
                return entry.token, parcel
        except MalformedMessage as error:
            del self._open[message.call]
            self._late[message.call] = entry.size
            return entry.token, RemoteError("MalformedMessage", str(error), service=entry.ask.service)
        self.stray += 1
        return None

    def _release(self, size: int, calls: int = 1) -> None:
        self.used -= calls
        self._used -= size

    # Ending.

    def cancel(self, call: int) -> Ended[Token] | bool:
        """Give a call up.

        One that was sent goes on until its node says what became of it, which is its outcome: True,
        and the node is to be told.  One that still waits for a place has ended with this.  False
        where it has ended before.
        """
        entry = self._entry(call)
        if entry is None or entry.sent:
            return entry is not None
        del self._open[call]
        return Ended(call, entry.token, cancelled(entry.ask))

    def drop(self, call: int) -> None:
        """Forget a call whose request could not be sent at all."""
        entry, size = self._open.get(call), self._posts.pop(call, None)
        if size is not None:
            self._posted -= size
            self._release(size)
        elif entry is not None:
            self._close(entry)
            if entry.sent:
                self._release(entry.size, entry.left)

    def next_deadline(self) -> float | None:
        """When the next open call ends at the latest; None where none is open."""
        while self._order and not self._timed(self._order[0][1]):
            heapq.heappop(self._order)
        return self._order[0][0] if self._order else None

    def expire(self, now: float, *, sent: bool = True) -> list[Ended[Token]]:
        """End the calls whose deadline has come; *sent* tells whether anything of this session ever left.

        Where nothing did, their requests must not leave any more: they are said not to have run, and
        give their places back.
        """
        ended: list[Ended[Token]] = []
        while (at := self.next_deadline()) is not None and at <= now:
            entry = self._open[heapq.heappop(self._order)[1]]
            self._close(entry)
            left = [Ended(call, entry.token, outcome, entry.sent) for call, outcome in entry.each(
                functools.partial(timed_out, entry.ask, sent=sent and entry.sent, placed=entry.sent))]
            if entry.sent and sent:
                self._late.update(dict.fromkeys((each.call for each in left), 0))
                self._late[left[0].call] = entry.size
            elif entry.sent:
                self._release(entry.size, entry.left)
            ended += left
        return ended

    def end(self, reason: str, *, sent: bool) -> list[Ended[Token]]:
        """End all calls, because the session has; *sent* tells whether anything of it ever left."""
        calls, self._open = self._open, {}
        self._order, self._used, self.used = [], 0, 0
        self._late.clear()
        self._waiting.clear()
        self._posts.clear()
        self._posted = 0
        self._groups.clear()
        return [Ended(call, entry.token, outcome) for entry in calls.values() for call, outcome in entry.each(
            functools.partial(died, entry.ask, reason, executed=_executed(entry, sent)))]


def _executed(entry: Open[Any], sent: bool) -> bool | None:
    """Whether a call ran whose session has ended."""
    return True if entry.opened else None if sent and entry.sent else False


class Callee:
    """The calls of one session as its node sees them: which run, and which may start.

    Each call starts at most once, since the numbers of calls only grow within a session, and is
    answered once.
    """

    __slots__ = ("_credit", "_last", "_size", "_streams", "_together", "lasting", "open", "repeated", "running")

    def __init__(self) -> None:
        self.repeated = 0
        self.open: dict[int, int] = {}  # the sizes of the calls that are not answered yet
        self.running: dict[int, Callable[[], object]] = {}  # what stops each of the calls that run
        self.lasting: set[int] = set()  # those that go on when their caller is gone
        self._streams: dict[int, Callable[[Parcel], object]] = {}  # what takes each stream's items, end and credit
        self._credit: dict[int, Outflow] = {}  # for calls that have not begun
        self._last = 0
        self._size = 0
        self._together = 0  # calls that came together and are not answered yet

    def fresh(self, request: Request | Calls, count: int = 1) -> bool:
        """Whether *request* is a call that was not seen before, or so many; others are counted in ``repeated``."""
        if request.call <= self._last:
            self.repeated += 1
            return False
        self._last = request.call + count - 1
        return True

    def fits(self, count: int, size: int) -> bool:
        """Whether so many calls more, of *size* bytes in all, are within the window of the session."""
        return len(self.open) + self._together + count <= CALLS and self._size + size <= SIZE

    def together(self, count: int, size: int) -> None:
        """Note that so many calls that came together are to be answered; or no more, where it is below zero."""
        self._together += count
        self._size += size

    def take(self, call: int, size: int) -> bool:
        """Note that a call is to be answered; False where it goes beyond the window of the session."""
        fits = len(self.open) + self._together < CALLS and (self._size + size <= SIZE or not self.open)
        self.open[call] = size
        self._size += size
        return fits

    def hand(self, call: int, parcel: Parcel) -> None:
        """Hand on what belongs to a stream; what belongs to none, or to one that has ended, is dropped."""
        take = self._streams.get(call)
        if take is not None:
            take(parcel)
        elif call in self.open and type(parcel.message) is Credit:  # the call waits for its turn
            before = self._credit.get(call)
            if before is None:
                before = self._credit[call] = Outflow()
            before.grant(parcel.message.items, parcel.message.size)

    def listen(self, call: int, take: Callable[[Parcel], object]) -> None:
        """Have *take* get what belongs to the streams of a call, and the credit that has come for it."""
        self._streams[call] = take
        if call in self._credit:
            take(Parcel(Credit(call, *self._credit.pop(call).left)))

    def answer(self, call: int) -> bool:
        """Note that a call is answered; False where it has been."""
        size = self.open.pop(call, None)
        if size is None:
            return False
        self._size -= size
        self.running.pop(call, None)
        if self.lasting or self._streams or self._credit:
            self.lasting.discard(call)
            self._streams.pop(call, None)
            self._credit.pop(call, None)
        return True

    def leave(self) -> list[Callable[[], object]]:
        """The caller is gone: what stops each of the calls that run for him alone."""
        alone = [call for call in self.running if call not in self.lasting]
        return [self.running.pop(call) for call in alone]
