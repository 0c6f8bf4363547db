"""A topic at its publisher: numbers, what waits for whom, what is dropped when too much does, and who knows of it.

A `Feed` is a topic at its publisher, and an `Outlet` one subscription there; where it is taken it is an
`pyzmp.protocol.inlet.Inlet`.  Messages are numbered from 0 for as long as the feed lives.  A subscriber grants
room, in messages and bytes; what there is no room for waits at the publisher, by the subscription's own rule.  So
all that is ever dropped is dropped in one place, which tells of it in the order of the messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.envelope import Buffer, size_of
from pyzmp.protocol.runs import Bodies

AROUND = 64  # bytes that a message counts for besides its own, so that many small ones are bounded too
BATCH = 2048  # messages that travel together, at most
FEW = 64  # that may be published before anybody looks at the room of those who block
BATCH_SIZE = 256 << 10  # and their bytes, unless one alone has more
WINDOW = 1 << 20  # bytes that may be on their way to a subscriber, or wait with him to be taken
SIZE = 8 << 20  # bytes that wait for one subscriber at the publisher, where nothing else is said
YOUNG = 1.0  # seconds after everybody can know of it in which a feed is young
MANY = 1 << 20  # messages: as good as no limit
MAX = 1 << 40  # bytes and messages that any number may claim


class Full:
    """What a full queue does."""

    DROP_OLDEST = 0
    DROP_NEWEST = 1
    BLOCK = 2


class Bounds(msgspec.Struct, frozen=True):
    """How much a subscription holds: messages and bytes on their way or with the subscriber, and at the publisher.

    Without a ``window`` a message is sent only once the subscriber waits for it.
    """

    window: int
    window_size: int
    queue: int
    queue_size: int

    @classmethod
    def of(cls, length: int, size: int) -> Bounds:
        """Those of a subscription that holds *length* messages (any number for 0) and *size* bytes at the publisher."""
        if not length:
            return cls(MANY, WINDOW, MANY, size)
        return cls(length // 2, WINDOW, length - length // 2, size)


class Run:
    """Messages with numbers that follow each other, in one piece, as it waits and as it is sent.

    ``size`` are their bytes, as bounds count them.
    """

    __slots__ = ("_parts", "bodies", "buffers", "number", "size", "tails", "times")

    def __init__(self, number: int, times: Sequence[float], bodies: Sequence[bytes],
                 buffers: Sequence[Buffer] = ()) -> None:
        self.number, self.times, self.bodies, self.buffers = number, times, bodies, buffers
        own = bodies.size if type(bodies) is Bodies else sum(map(len, bodies))
        self.size = own + AROUND * len(bodies) + (size_of(b"", buffers) if buffers else 0)
        self._parts: Sequence[Run] = ()
        self.tails: dict[bool, bytes] = {}  # what every subscriber is sent of it, for whoever sends it

    def parts(self) -> Sequence[Run]:
        """Its messages one by one."""
        if not self._parts:
            self._parts = (self,) if len(self.bodies) == 1 else [
                Run(number, (time,), (body,))
                for number, (time, body) in enumerate(zip(self.times, self.bodies, strict=True), self.number)]
        return self._parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self._key() == other._key()

    __hash__ = None  # type: ignore[assignment]

    def _key(self) -> tuple[object, ...]:
        return self.number, [*self.times], [*self.bodies], [*self.buffers]

    def __repr__(self) -> str:
        return f"<Run of {len(self.bodies)} from {self.number} on>"


class Skip(msgspec.Struct, frozen=True):
    """Messages that a full queue has dropped, to be told of."""

    number: int
    count: int


class Account(msgspec.Struct, frozen=True):
    """What became of the messages that were offered to a subscription, as its publisher knows it.

    ``taken + dropped + lost + waiting == offered``.  ``lost`` is what a subscription that has ended had not
    acknowledged; ``waiting`` what one that lives has not yet.
    """

    offered: int
    taken: int
    dropped: int
    waiting: int
    lost: int


class Outlet:
    """One subscription at its publisher: what waits for it, and what became of the rest."""

    __slots__ = ("_bounds", "_count", "_items", "_queue", "_queued", "_size", "_start", "_told", "dropped", "ended",
                 "full", "offered", "sent", "taken")

    def __init__(self, full: int, bounds: Bounds, start: int) -> None:
        self.full, self._bounds = full, bounds
        self._start = self._told = start  # the first number that was offered; the next one to tell of
        self.offered = start  # the next number to be offered
        self._queue: deque[Run] = deque()
        self._count = self._queued = 0  # messages and bytes in it
        self._items = self._size = 0  # what the subscriber has room for
        self.sent = self.taken = self.dropped = 0
        self.ended = False

    @property
    def start(self) -> int:
        """The number of the first message that was offered."""
        return self._start

    @property
    def idle(self) -> bool:
        """Whether nothing waits at the publisher."""
        return not self._queue

    @property
    def account(self) -> Account:
        """What became of what was offered."""
        offered = self.offered - self._start
        left = offered - self.taken - self.dropped
        return Account(offered, self.taken, self.dropped, 0 if self.ended else left, left if self.ended else 0)

    def grant(self, taken: int, items: int, size: int) -> list[Run | Skip]:
        """The subscriber has taken so many messages in all, and has room for more; what is to be sent now.

        Raises MalformedMessage where that cannot be.
        """
        if not (self.taken <= taken <= self.sent and 0 <= items <= MAX and 0 <= size <= MAX):
            raise MalformedMessage(f"{taken} messages are said to be taken, where {self.sent} were sent and "
                                   f"{self.taken} known to be taken; with room for {items} messages and {size} bytes")
        self.taken = taken
        self._items = min(self._items + items, MAX)
        self._size = min(self._size + size, MAX)
        return list(self._leave())

    @property
    def is_clear(self) -> bool:
        """Whether `FEW` messages more would leave at once."""
        return not self._queue and self._items >= FEW and self._size > 0

    def has_room(self, size: int) -> bool:
        """Whether a message more, of *size* bytes, would wait or leave, and neither be dropped nor drop another."""
        return (not self._queue and self._items > 0 and self._size > 0) or not self._is_full(size)

    def offer(self, run: Run) -> list[Run | Skip]:
        """Offer messages, as a whole or one by one; what is to be sent now."""
        count = len(run.bodies)
        if not self._queue and self._items >= count and self._size > 0 and self._told == run.number:
            self.offered += count
            return [self._gone(run)]
        if self._bounds.window and self._fits(run, count):
            self._append(run)
            return list(self._leave())
        sent: list[Run | Skip] = []
        for part in run.parts():
            if self._bounds.window and self._is_full(part.size):
                sent.extend(self._leave())  # before anything is dropped; whoever wants the latest wants nothing older
            self._wait(part)
        return [*sent, *self._leave()]

    def _fits(self, run: Run, count: int) -> bool:
        """Whether all of it may wait."""
        bounds = self._bounds
        return self._count + count <= bounds.queue and self._queued + run.size <= bounds.queue_size

    def _is_full(self, size: int) -> bool:
        return self._count >= self._bounds.queue or (
            bool(self._queue) and self._queued + size > self._bounds.queue_size)

    def _wait(self, part: Run) -> None:
        if self.full == Full.DROP_OLDEST:
            while self._queue and self._is_full(part.size):
                self._first(1)
                self.dropped += 1
        elif self.full == Full.DROP_NEWEST and self._is_full(part.size):
            self.dropped += 1
            self.offered = part.number + 1
            return
        self._append(part)

    def _append(self, run: Run) -> None:
        count = len(run.bodies)
        self._queue.append(run)
        self._count += count
        self._queued += run.size
        self.offered = run.number + count

    def _first(self, most: int, size: int = 0) -> Run:
        """Take what is the first in the queue: at most so many messages and bytes, or one.

        What was packed together is not told apart for the sake of some bytes: that would take longer than all else.
        """
        head = self._queue[0]
        if (count := len(head.bodies)) > most or (count > 1 and head.size > size and type(head.bodies) is not Bodies):
            self._queue.extendleft(reversed(self._queue.popleft().parts()))
        run = self._queue.popleft()
        self._count -= len(run.bodies)
        self._queued -= run.size
        return run

    def keep(self, runs: Iterable[Run]) -> None:
        """Have what was published before wait for the subscriber first, however much it is."""
        for run in runs:
            self._append(run)

    def _leave(self) -> Iterator[Run | Skip]:
        """What there is room for, and what was dropped before it."""
        while self._queue and self._items > 0 and self._size > 0:
            yield from self._skip(self._queue[0].number)
            yield self._take_run()
        if not self._queue:
            yield from self._skip(self.offered)

    def _skip(self, number: int) -> Iterator[Skip]:
        if self._told < number:
            yield Skip(self._told, number - self._told)
            self._told = number

    def _take_run(self) -> Run:
        """The messages at the head of the queue that may travel together."""
        first = self._gone(self._first(self._items, self._size))
        if len(first.bodies) > 1 or first.buffers:
            return first
        parts, size = [first], first.size
        while self._queue and self._items > 0 and self._size > 0 and len(parts) < BATCH:
            head = self._queue[0]
            if len(head.bodies) > 1 or head.buffers or head.number != self._told or size + head.size > BATCH_SIZE:
                break
            parts.append(self._gone(self._first(1)))
            size += head.size
        return Run(first.number, [part.times[0] for part in parts], [part.bodies[0] for part in parts])

    def _gone(self, run: Run) -> Run:
        """Count *run* as sent."""
        count = len(run.bodies)
        self._items -= count
        self._size -= run.size
        self._told += count
        self.sent += count
        return run


class Feed:
    """A topic at its publisher.  The last *keep* messages are kept for those who join later.

    ``life`` tells it from any other feed, such as that of the same node before it was started anew.  As long as it
    is *young* it keeps everything, up to `SIZE` bytes, for those who were there before it and have yet to join.
    """

    __slots__ = ("_bodies", "_buffers", "_count", "_gathered", "_keep", "_kept", "_size", "_times", "_young",
                 "blocking", "life", "number", "outlets")

    def __init__(self, life: bytes, keep: int = 0, *, young: bool = False) -> None:
        self.life = life
        self._keep, self._young = keep, young
        self.number = 0  # of the next message that leaves the gathering
        self.outlets: list[Outlet] = []
        self.blocking: list[Outlet] = []  # those among them that the publisher waits for
        self._kept: deque[Run] = deque()
        self._count = self._size = 0  # messages and bytes in it
        self._times: list[float] = []
        self._bodies: list[bytes] = []
        self._buffers: Sequence[Buffer] = ()
        self._gathered = 0

    def keep(self, count: int) -> None:
        """Keep the last *count* messages from now on, unless more of them are kept already."""
        self._keep = max(self._keep, count)

    @property
    def next(self) -> int:
        """The number of the next message that is published."""
        return self.number + len(self._bodies)

    @property
    def gathers(self) -> bool:
        """Whether something was published that no subscription was offered yet."""
        return bool(self._bodies)

    def has_room(self, size: int) -> bool:
        """Whether all who block the publisher have room for a message more, of *size* bytes."""
        return all(outlet.has_room(size) for outlet in self.blocking)

    @property
    def is_clear(self) -> bool:
        """Whether all who block the publisher have room for `FEW` messages more, which would leave at once."""
        return all(outlet.is_clear for outlet in self.blocking)

    def publish(self, time: float, body: bytes, buffers: Sequence[Buffer] = ()) -> bool:
        """Take a message; True where it is time to `flush`, at the latest.

        One with *buffers* travels alone: raises ValueError where what was gathered before it was not flushed.
        """
        if buffers and self._bodies:
            raise ValueError("a message with buffers travels alone; flush what was gathered before it first")
        self._times.append(time)
        self._bodies.append(body)
        self._gathered += size_of(body, buffers)
        if buffers:
            self._buffers = buffers
            return True
        return len(self._bodies) >= BATCH or self._gathered >= BATCH_SIZE

    def flush(self) -> list[tuple[Outlet, list[Run | Skip]]]:
        """Offer what was gathered to all; what is to be sent to whom now."""
        times, bodies, buffers = self._times, self._bodies, self._buffers
        self._times, self._bodies, self._buffers, self._gathered = [], [], (), 0
        return self.offer(times, bodies, buffers) if bodies else []

    def offer(self, times: Sequence[float], bodies: Sequence[bytes],
              buffers: Sequence[Buffer] = ()) -> list[tuple[Outlet, list[Run | Skip]]]:
        """Offer messages that may travel together to all; what is to be sent to whom now.

        What was gathered is to be flushed first.
        """
        run = Run(self.number, times, bodies, buffers)
        self.number += len(bodies)
        if self._keep or self._young:
            self._kept.append(run)
            self._count += len(bodies)
            self._size += run.size
            self._forget()
        return [(outlet, outlet.offer(run)) for outlet in self.outlets]

    def grow(self) -> None:
        """Be young no more: keep only what late joiners may ask for."""
        self._young = False
        self._forget()

    def _forget(self) -> None:
        """Forget what came together and is not to be kept any more."""
        while self._kept and self._count - (count := len(self._kept[0].bodies)) >= self._keep and (
                not self._young or self._size - self._kept[0].size >= SIZE):
            self._count -= count
            self._size -= self._kept.popleft().size

    def subscribe(self, full: int, bounds: Bounds, history: int = 0, since: tuple[bytes, int] = (b"", 0), *,
                  early: bool = False) -> Outlet:
        """A new subscription: from the next message on, or the last *history* ones that are kept for that.

        One that had messages of this very feed before goes on *since* the number it expects, and one that was there
        *early*, before the feed, begins with the first: as far as is kept, and it has room or blocks.  What was
        gathered is to be flushed first.
        """
        if since[0] == self.life and since[1] <= self.number:
            kept = [part for part in self._last(self._count) if part.number >= since[1]]
        else:
            most = min(history, self._keep)
            if early:
                most = max(most, MANY if full == Full.BLOCK else min(MANY, bounds.window + bounds.queue))
            kept = self._last(most)
        outlet = Outlet(full, bounds, kept[0].number if kept else self.number)
        outlet.keep(kept)
        self.outlets.append(outlet)
        if full == Full.BLOCK:
            self.blocking.append(outlet)
        return outlet

    def _last(self, most: int) -> list[Run]:
        """The last messages that are kept, one by one."""
        parts, size = deque[Run](), 0
        for part in (part for run in reversed(self._kept) for part in reversed(run.parts())):
            size += part.size
            if len(parts) >= most or (len(parts) >= self._keep and not (self._young and size <= SIZE)):
                break
            parts.appendleft(part)
        return list(parts)

    def end(self, outlet: Outlet) -> Account:
        """The subscription is over: what it has not acknowledged is lost."""
        outlet.ended = True
        self.outlets.remove(outlet)
        if outlet in self.blocking:
            self.blocking.remove(outlet)
        return outlet.account
