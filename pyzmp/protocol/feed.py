"""A topic at its publisher: numbers, what waits for whom, what is dropped when too much does, and who knows of it.

A `Feed` is a topic at its publisher, and an `Outlet` one subscription there; where it is taken it is an
`pyzmp.protocol.inlet.Inlet`.  Messages are numbered from 0 for as long as the feed lives.  A subscriber grants
room, in messages and bytes; what there is no room for waits at the publisher, by the subscription's own rule.  So
all that is ever dropped is dropped in one place, which tells of it in the order of the messages.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.envelope import Buffer, size_of

AROUND = 64  # bytes that a message counts for besides its own, so that many small ones are bounded too
BATCH = 64  # messages that travel together, at most
BATCH_SIZE = 64 << 10  # and their bytes, unless one alone has more
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


class Entry(NamedTuple):
    """A message as it waits."""

    number: int
    time: float
    body: bytes
    buffers: Sequence[Buffer]
    size: int


class Run(NamedTuple):
    """Messages with numbers that follow each other, to be sent in one piece."""

    number: int
    times: Sequence[float]
    bodies: Sequence[bytes]
    buffers: Sequence[Buffer] = ()


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

    __slots__ = ("_bounds", "_items", "_queue", "_queued", "_size", "_start", "_told", "dropped", "ended", "full",
                 "offered", "sent", "taken")

    def __init__(self, full: int, bounds: Bounds, start: int) -> None:
        self.full, self._bounds = full, bounds
        self._start = self._told = start  # the first number that was offered; the next one to tell of
        self.offered = start  # the next number to be offered
        self._queue: deque[Entry] = deque()
        self._queued = 0  # bytes in it
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
        """Whether `BATCH` messages more would leave at once."""
        return not self._queue and self._items >= BATCH and self._size > 0

    def has_room(self, size: int) -> bool:
        """Whether a message more, of *size* bytes, would wait or leave, and neither be dropped nor drop another."""
        return (not self._queue and self._items > 0 and self._size > 0) or not self._is_full(size)

    def offer(self, run: Run, size: int, entries: Callable[[], Sequence[Entry]]) -> list[Run | Skip]:
        """Offer messages, of *size* bytes in all, as a whole or one by one; what is to be sent now."""
        count = len(run.bodies)
        if not self._queue and self._items >= count and self._size > 0 and self._told == run.number:
            self._items -= count
            self._size -= size
            self._told += count
            self.offered += count
            self.sent += count
            return [run]
        sent: list[Run | Skip] = []
        for entry in entries():
            if self._bounds.window and self._is_full(entry.size):
                sent.extend(self._leave())  # before anything is dropped; whoever wants the latest wants nothing older
            self._wait(entry)
        return [*sent, *self._leave()]

    def _is_full(self, size: int) -> bool:
        return len(self._queue) >= self._bounds.queue or (
            bool(self._queue) and self._queued + size > self._bounds.queue_size)

    def _wait(self, entry: Entry) -> None:
        self.offered = entry.number + 1
        if self.full == Full.DROP_OLDEST:
            while self._queue and self._is_full(entry.size):
                self._queued -= self._queue.popleft().size
                self.dropped += 1
        elif self.full == Full.DROP_NEWEST and self._is_full(entry.size):
            self.dropped += 1
            return
        self._queue.append(entry)
        self._queued += entry.size

    def keep(self, entries: Iterable[Entry]) -> None:
        """Have what was published before wait for the subscriber first, however much it is."""
        for entry in entries:
            self._queue.append(entry)
            self._queued += entry.size
            self.offered = entry.number + 1

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
        entries: list[Entry] = []
        size = 0
        while self._queue and self._items > 0 and self._size > 0 and len(entries) < BATCH:
            entry = self._queue[0]
            if entries and (entry.number != self._told or entry.buffers or entries[0].buffers
                            or size + entry.size > BATCH_SIZE):
                break
            entries.append(self._queue.popleft())
            size += entry.size
            self._told += 1
            self._items -= 1
            self._size -= entry.size
            self._queued -= entry.size
        self.sent += len(entries)
        return _run(entries)


class Feed:
    """A topic at its publisher.  The last *keep* messages are kept for those who join later.

    ``life`` tells it from any other feed, such as that of the same node before it was started anew.  As long as it
    is *young* it keeps everything, up to `SIZE` bytes, for those who were there before it and have yet to join.
    """

    __slots__ = ("_bodies", "_buffers", "_gathered", "_keep", "_kept", "_size", "_times", "_young", "blocking", "life",
                 "number", "outlets")

    def __init__(self, life: bytes, keep: int = 0, *, young: bool = False) -> None:
        self.life = life
        self._keep, self._young = keep, young
        self.number = 0  # of the next message that leaves the gathering
        self.outlets: list[Outlet] = []
        self.blocking: list[Outlet] = []  # those among them that the publisher waits for
        self._kept: deque[Entry] = deque()
        self._size = 0  # bytes in it
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
        """Whether all who block the publisher have room for `BATCH` messages more, which would leave at once."""
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

    def extend(self, times: Sequence[float], bodies: Sequence[bytes]) -> None:
        """Take messages without buffers, no more than may travel together."""
        self._times.extend(times)
        self._bodies.extend(bodies)
        self._gathered += sum(map(len, bodies))

    def flush(self) -> list[tuple[Outlet, list[Run | Skip]]]:
        """Offer what was gathered to all; what is to be sent to whom now."""
        if not self._bodies:
            return []
        run = Run(self.number, self._times, self._bodies, self._buffers)
        size = self._gathered + AROUND * len(run.bodies)
        self._times, self._bodies, self._buffers, self._gathered = [], [], (), 0
        self.number += len(run.bodies)
        entries = functools.cache(functools.partial(_entries, run))  # made where they are needed only
        if self._keep or self._young:
            self._kept.extend(entries())
            self._size += size
            self._forget()
        return [(outlet, outlet.offer(run, size, entries)) for outlet in self.outlets]

    def grow(self) -> None:
        """Be young no more: keep only what late joiners may ask for."""
        self._young = False
        self._forget()

    def _forget(self) -> None:
        while len(self._kept) > self._keep and (not self._young or self._size > SIZE):
            self._size -= self._kept.popleft().size

    def subscribe(self, full: int, bounds: Bounds, history: int = 0, since: tuple[bytes, int] = (b"", 0), *,
                  early: bool = False) -> Outlet:
        """A new subscription: from the next message on, or the last *history* ones that are kept for that.

        One that had messages of this very feed before goes on *since* the number it expects, and one that was there
        *early*, before the feed, begins with the first: as far as is kept, and it has room or blocks.  What was
        gathered is to be flushed first.
        """
        if since[0] == self.life and since[1] <= self.number:
            kept = [entry for entry in self._kept if entry.number >= since[1]]
        else:
            most = min(history, self._keep)
            if early:
                most = max(most, MANY if full == Full.BLOCK else min(MANY, bounds.window + bounds.queue))
            kept = list(islice(self._kept, max(0, len(self._kept) - most), None))
        outlet = Outlet(full, bounds, kept[0].number if kept else self.number)
        outlet.keep(kept)
        self.outlets.append(outlet)
        if full == Full.BLOCK:
            self.blocking.append(outlet)
        return outlet

    def end(self, outlet: Outlet) -> Account:
        """The subscription is over: what it has not acknowledged is lost."""
        outlet.ended = True
        self.outlets.remove(outlet)
        if outlet in self.blocking:
            self.blocking.remove(outlet)
        return outlet.account


def _entries(run: Run) -> list[Entry]:
    """Messages one by one."""
    return [Entry(number, time, body, run.buffers, size_of(body, run.buffers) + AROUND)
            for number, (time, body) in enumerate(zip(run.times, run.bodies, strict=True), run.number)]


def _run(entries: Sequence[Entry]) -> Run:
    """Messages that follow each other, as they travel."""
    return Run(entries[0].number, [entry.time for entry in entries], [entry.body for entry in entries],
               entries[0].buffers)
