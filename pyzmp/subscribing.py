"""The subscribing end of sessions: what comes to one loop from the publishers of topics, and what is granted them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.batch import Batch
from pyzmp.protocol.envelope import (
    Buffer,
    Cancel,
    Ended,
    Failure,
    Hello,
    Packed,
    Parcel,
    Published,
    Skipped,
    Subscribe,
    Subscribed,
    Taken,
)
from pyzmp.protocol.feed import AROUND
from pyzmp.protocol.inlet import Gap, Inlet
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.outbox import guarded

PAUSES = 0.1, 1.0  # seconds before a publisher is tried again: the first, doubled up to the last
QUIET = 10.0  # seconds between two lines about the gaps of one publisher
FORMER = 4  # windows of what came that may wait untaken where a session is begun anew
ACKNOWLEDGE = 0.1  # seconds after which a publisher knows what was taken, where nothing tells him before

log = logging.getLogger("pyzmp.topic")


class Intake:
    """The sessions by which the subscriptions of one loop come, one for each loop that publishes.

    Used in the loop's own thread.  `of` gives that of a loop; it is forgotten with its last session.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop, caller: str,
                 forget: Callable[[], object]) -> None:
        self._context, self._loop, self._caller, self._forget = context, loop, caller, forget
        self._lines: dict[tuple[str, str], _Line] = {}

    @classmethod
    def of(cls, intakes: MutableMapping[asyncio.AbstractEventLoop, Intake], context: Context,
           loop: asyncio.AbstractEventLoop, caller: str) -> Intake:
        """The one of *loop*, which is the running one, among *intakes*; made now where there is none."""
        found = intakes.get(loop)
        if found is None:
            for other in [known for known in list(intakes) if known.is_closed()]:
                intakes.pop(other).close()
            found = intakes[loop] = cls(context, loop, caller, lambda: intakes.pop(loop, None))
        return found

    def open(self, address: str, loop: str, subscribe: Subscribe, receiver: Receiver) -> Opened:
        """Subscribe at the loop *loop*, which is reached at *address*; *receiver* gets what comes of it.

        Raises ConnectionError where it cannot be reached, and InvalidAddress.
        """
        if not address:
            raise ConnectionError("it listens nowhere where it can be reached from here")
        line = self._lines.get((address, loop))
        if line is None or line.session.ended is not None:
            line = self._lines[address, loop] = _Line(self, (address, loop))
            line.session = Session(self._context, address, Hello(session_id(), self._caller, loop),
                                   on_parcel=line.arrived, on_end=line.over)
            line.session.attach(self._loop)
        if line.session.ended is not None:
            raise ConnectionError(line.session.ended)
        return line.open(subscribe, receiver)

    def drop(self, line: _Line) -> None:
        """A session is not needed any more."""
        if self._lines.get(line.place) is line:
            del self._lines[line.place]
        if not self._lines:
            self._forget()
        line.session.close()

    def close(self) -> None:
        """End all sessions."""
        for line in list(self._lines.values()):
            line.settle()
            self.drop(line)


class Receiver(Protocol):
    """Who gets what comes of a `Subscribe`, in the loop's thread."""

    def settle(self) -> None:
        """Tell the publisher what he is still to know: the session is about to be closed."""

    def arrived(self, parcel: Parcel) -> None:
        """Something has come."""

    def cut(self, reason: str) -> None:
        """The session has ended, and with it the subscription."""


class _Line:
    """One session, and who gets what comes over it."""

    session: Session

    def __init__(self, intake: Intake, place: tuple[str, str]) -> None:
        self.place = place
        self._intake = intake
        self._receivers: dict[int, Receiver] = {}
        self._last = 0

    def open(self, subscribe: Subscribe, receiver: Receiver) -> Opened:
        self._last += 1
        self.session.send(replace(subscribe, call=self._last))
        self._receivers[self._last] = receiver  # nothing comes before the loop turns
        return Opened(self, self._last)

    def arrived(self, parcel: Parcel) -> None:
        receiver = self._receivers.get(getattr(parcel.message, "call", 0))
        if receiver is not None:
            receiver.arrived(parcel)

    def settle(self) -> None:
        for receiver in list(self._receivers.values()):
            guarded(receiver.settle)

    def over(self, reason: str) -> None:
        receivers, self._receivers = self._receivers, {}
        self._intake.drop(self)
        for receiver in receivers.values():
            guarded(receiver.cut, reason)

    def end(self, call: int, *, tell: bool) -> None:
        """A subscription is over; the last one ends the session."""
        if self._receivers.pop(call, None) is None:
            return
        if tell:
            self.session.send(Cancel(call))
        if not self._receivers:
            self._intake.drop(self)


class Opened:
    """One subscription of one session."""

    __slots__ = ("_call", "_line")

    def __init__(self, line: _Line, call: int) -> None:
        self._line, self._call = line, call

    def grant(self, taken: tuple[int, int, int]) -> None:
        """Tell the publisher what was taken, and what there is room for."""
        self._line.session.send(Taken(self._call, *taken))

    def end(self, *, tell: bool = True) -> None:
        """Have nothing come any more; the publisher is told, unless he knows."""
        self._line.end(self._call, tell=tell)


class Sink(Protocol):
    """Who takes what comes to a subscription."""

    hungry: bool  # he waits, and has nothing to take
    asked: bool  # he is to say, by `Sources.acknowledge`, when he has taken something

    def put(self, item: Any) -> None:
        """Give him a `Batch`, or something that happened."""


class Listener(Protocol):
    """Who hears of what becomes of a source."""

    def came(self) -> None:
        """Something is about to be given to the sink."""

    def confirmed(self, source: Source) -> None:
        """The publisher has confirmed."""

    def missed(self, source: Source, gap: Gap) -> None:
        """Messages did not come."""

    def refused(self, source: Source, failure: Failure) -> None:
        """The publisher has refused."""

    def ended(self, source: Source, reason: str, *, stood: bool, died: bool) -> None:
        """It is over: the publisher has ended it, or (``died``) the session is over, perhaps before it ``stood``."""


class Reach:
    """How a publisher is reached, for whoever decides when to try it again."""

    __slots__ = ("at", "due", "heard", "nowhere", "pause", "refused", "shown", "unshown")

    def __init__(self) -> None:
        self.at: tuple[str, tuple[int, int]] | None = None  # the loop and the incarnation that were tried last
        self.heard = False  # whether it has ever said yes or no
        self.nowhere = False  # whether it listens nowhere where it can be reached from here
        self.refused = ""  # why it is not tried again
        self.due, self.pause = 0.0, PAUSES[0]  # when it may be, and how long after that
        self.shown, self.unshown = float("-inf"), [0, 0]  # when gaps were logged; dropped and lost since

    def again(self, now: float) -> float:
        """Try it again after a pause, which is returned."""
        pause, self.pause = self.pause, min(2 * self.pause, PAUSES[1])
        self.due = now + pause
        return pause

    def gap(self, gap: Gap, now: float) -> tuple[int, int]:
        """Count a gap; what to log now, dropped and lost: the first at once, then what has come in ten seconds."""
        self.unshown[not gap.dropped] += gap.count
        if now < self.shown + QUIET:
            return 0, 0
        self.shown = now
        return self.rest()

    def rest(self) -> tuple[int, int]:
        """What was not logged yet, dropped and lost."""
        dropped, lost = self.unshown
        self.unshown = [0, 0]
        return dropped, lost


class Source:
    """What comes to a subscription from one publisher, over any number of sessions.  Belongs to the loop's thread."""

    def __init__(self, node: str, topic: str, inlet: Inlet, sink: Sink, listener: Listener) -> None:
        self.node, self.topic, self.inlet = node, topic, inlet
        self.stands = False
        self.early = False  # whether the subscription was there before the publisher, at the last `connect`
        self.malformed = 0  # messages of the protocol that cannot be
        self.shape = b""  # what is published, once that stood
        self.reach = Reach()
        self._sink, self._listener = sink, listener
        self._opened: Opened | None = None
        self._batches: deque[Batch] = deque()  # of this session, not taken to the end
        self._former: list[Batch] = []  # of sessions before, of which nobody is told any more

    @property
    def tries(self) -> bool:
        """Whether there is a session, though perhaps without an answer yet."""
        return self._opened is not None

    @property
    def crowded(self) -> bool:
        """Whether so much waits untaken of former sessions that there is to be none anew: four windows and more."""
        waiting, bounds = [*self._former, *self._batches], self.inlet.bounds
        count = sum(batch.left for batch in waiting)
        size = AROUND * count + sum(batch.size * batch.left // len(batch.bodies) for batch in waiting)
        return count >= FORMER * max(1, bounds.window) or size >= FORMER * bounds.window_size

    def connect(self, intake: Intake, address: str, loop: str, subscribe: Subscribe, *, early: bool = False) -> None:
        """Begin a session, where there is none.  Raises as `Intake.open` does."""
        self._former = [batch for batch in (*self._former, *self._batches) if batch.left]
        self._batches, self.early = deque(), early
        wanted = replace(subscribe, node=self.node, topic=self.topic, since=self.inlet.since, early=early, packed=True)
        self._opened = intake.open(address, loop, wanted, self)

    def arrived(self, parcel: Parcel) -> None:
        """Something has come."""
        message = parcel.message
        try:
            if type(message) is Packed or type(message) is Published:
                self._published(message, parcel.buffers)
            elif type(message) is Skipped:
                for gap in self.inlet.skipped(message.number, message.count):
                    self._listener.missed(self, gap)
            elif type(message) is Subscribed:
                self._stands(message)
            elif type(message) is Ended:
                self._ended(message)
            elif type(message) is Failure:
                self._forget()
                self._listener.refused(self, message)
        except MalformedMessage as error:
            self.malformed += 1
            if self.malformed == 1:
                log.warning("%s of %r has sent what cannot be, dropped: %s", self.topic, self.node, error)

    def _published(self, message: Published | Packed, buffers: Sequence[Buffer]) -> None:
        batch = Batch(self, message, buffers)
        count = len(batch.bodies)
        if not self.stands or not count or count != len(batch.times):
            raise MalformedMessage(f"{count} messages with {len(batch.times)} times")
        gap = self.inlet.published(batch.number, count)
        if gap is not None:
            self._listener.missed(self, gap)
        self._batches.append(batch)
        self._listener.came()
        self._sink.put(batch)

    def _stands(self, message: Subscribed) -> None:
        gap = self.inlet.subscribed(message.life, message.number, early=self.early)
        self.stands, self.shape = True, message.shape
        self._listener.confirmed(self)
        if gap is not None:
            self._listener.missed(self, gap)
        if self._sink.hungry:
            self.wants()

    def _ended(self, message: Ended) -> None:
        gap = self.inlet.over(message.number)
        if gap is not None:
            self._listener.missed(self, gap)
        stood = self.stands
        self._forget()
        self._listener.ended(self, message.reason, stood=stood, died=False)

    def _forget(self) -> None:
        opened, self._opened, self.stands = self._opened, None, False
        if opened is not None:
            opened.end(tell=False)

    def settle(self) -> None:
        """Tell the publisher all that was taken."""
        self.acknowledge(now=True)

    def cut(self, reason: str) -> None:
        """The session has ended."""
        stood, self.stands, self._opened = self.stands, False, None
        self._listener.ended(self, reason, stood=stood, died=True)

    def acknowledge(self, *, now: bool = False) -> int:
        """Tell the publisher what was taken: in lumps, or all *now*.  How much was taken that was not counted yet."""
        count = size = 0
        while self._batches:
            batch = self._batches[0]
            taken, taken_size = batch.count()
            count, size = count + taken, size + taken_size
            if not batch.over:
                break
            self._batches.popleft()
        grant = self.inlet.take(size, count) if count else None
        if grant is None and now:
            grant = self.inlet.settle()
        if grant is not None and self._opened is not None:
            self._opened.grant(grant)
        return count

    @property
    def open(self) -> bool:
        """Whether something was not taken yet, or the publisher is to be told that it was."""
        return self._opened is not None and (bool(self._batches) or not self.inlet.settled)

    @property
    def begun(self) -> bool:
        """Whether what came together is being taken, of which nobody tells before its end."""
        return self.open and bool(self._batches) and self._batches[0].begun

    def wants(self) -> None:
        """Whoever takes waits for the next one."""
        grant = self.inlet.wants() if self.stands else None
        if grant is not None and self._opened is not None:
            self._opened.grant(grant)

    def close(self) -> None:
        """Want nothing more; what was taken is told first."""
        self.settle()
        opened, self._opened, self.stands = self._opened, None, False
        if opened is not None:
            opened.end()
