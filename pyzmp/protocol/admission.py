"""Which calls a node takes, and in which order they begin.

A loop reads all that has come before it begins the next call, so that it knows what was cancelled
meanwhile and whom it owes an answer.  What waits for a node and runs there is bounded, callers take
turns, however many calls each of them has sent, and a call that would wait too long is refused at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import replace

from pyzmp.protocol.deadline import Deadline

Caller = TypeVar("Caller", bound=Hashable)
Item = TypeVar("Item")

LONG = 16  # calls that wait for a node, from which on it matters how long they will
SPAN = 0.25  # seconds over which a pace is measured, at least
ENDS = 16  # and the calls that end in them, unless it takes four times as long
SPANS = 4  # of the latest ones the quickest tells the pace, once there are two
MARGIN = 0.005  # seconds that an answer may take to its caller
SOONEST = 0.01  # seconds after which to come again, at the earliest
UNKNOWN = 0.05  # the same, where no pace is known


class Limits(msgspec.Struct, frozen=True):
    """What may occupy a node, waiting and running: so many calls, and so many bytes of them."""

    calls: int = 16384
    size: int = 256 << 20


LIMITS = Limits()


class Begun(msgspec.Struct, Generic[Caller, Item], frozen=True):
    """A call whose turn has come, as it was admitted."""

    caller: Caller
    call: int
    item: Item
    node: str
    size: int
    deadline: Deadline
    lane: str
    count: int = 0  # of calls that came together, where they did


class Refused(msgspec.Struct, Generic[Caller, Item], frozen=True):
    """A call that finds no room, or lost its own; its caller may come again after ``retry_after`` seconds."""

    caller: Caller
    call: int
    item: Item
    retry_after: float


class _Place(Generic[Caller, Item]):
    """What occupies one node, and how fast it gets on."""

    __slots__ = ("callers", "calls", "counts", "ended",
                 "gone", "last", "longest", "pace", "paces", "since", "size", "waiting")

    def __init__(self) -> None:
        self.calls = self.size = self.waiting = 0
        self.callers: dict[Caller, dict[int, Begun[Caller, Item]]] = {}  # what waits, oldest first
        self.counts: dict[Caller, int] = {}  # and how many calls that are
        self.pace: float | None = None
        self.paces: deque[float] = deque(maxlen=SPANS)  # of the latest spans
        self.since: float | None = None  # when a call ended, where others have waited ever since
        self.ended = 0  # calls that did after it
        self.last = self.longest = 0.0  # when the last of them did, and the longest time between two
        self.gone = False

    def remove(self, begun: Begun[Caller, Item]) -> None:
        """Let a call wait no more."""
        mine = self.callers[begun.caller]
        del mine[begun.call]
        if not mine:
            del self.callers[begun.caller]
        self.count(begun.caller, -(begun.count or 1))

    def count(self, caller: Caller, calls: int) -> None:
        """Note that so many calls more of *caller* wait."""
        self.waiting += calls
        self.counts[caller] = self.counts.get(caller, 0) + calls
        if not self.counts[caller]:
            del self.counts[caller]
        if not self.waiting:
            self.pace = self.since = None
            self.paces.clear()

    def measure(self, now: float, calls: int = 1) -> None:
        """Note that so many calls have ended, one after the other, while others wait.

        The machine may be held up, and what a node can do is what it did when it was not: of each span the longest
        time between two ends does not count, and of several spans the quickest does.
        """
        if self.since is None:
            self.since, self.last, self.longest, self.ended = now, now, 0.0, 0
            return
        self.ended += calls
        self.longest = max(self.longest, (now - self.last) / calls)
        self.last = now
        passed = now - self.since
        if self.ended > 1 and passed >= (SPAN if self.ended >= ENDS else 4 * SPAN):
            self.paces.append((passed - self.longest) / (self.ended - 1))
            self.since = None
            if len(self.paces) > 1:
                self.pace = min(self.paces)

    def excess(self, caller: Caller, left: float, calls: int = 1) -> float:
        """The seconds by which the wait of the last of so many new calls is too long for what is left to it."""
        if self.pace is None:
            return 0.0
        estimate = (self.counts.get(caller, 0) + calls) * self.turns(caller) * self.pace
        return min(estimate - left / 2, (self.waiting - LONG + 1) * self.pace)

    def turns(self, caller: Caller) -> int:
        """How many callers take turns, with *caller* among them."""
        return len(self.callers) + (caller not in self.callers)

    def full(self, size: int, limits: Limits) -> bool:
        """Whether there is no room for a call of *size* bytes."""
        return self.calls > 0 and (self.calls >= limits.calls or self.size + size > limits.size)

    def displaced(self, caller: Caller, size: int, limits: Limits) -> list[Begun[Caller, Item]] | None:
        """The calls that must go for a new one of *caller*, or None where there is no room for it."""
        greediest: dict[int, Begun[Caller, Item]] = max(self.callers.values(), key=len, default={})
        more = len(greediest) - len(self.callers.get(caller, ())) - 1
        found, total = [], self.size + size
        for begun in islice(reversed(greediest.values()), max(0, more)):
            found.append(begun)
            total -= begun.size
            if total <= limits.size and self.calls - len(found) < limits.calls:
                return found
        return None

    def room(self, caller: Caller, size: int, limits: Limits) -> float:
        """The seconds until there is room for *size* bytes more of *caller*."""
        if self.pace is None:
            return UNKNOWN
        excess = (self.size + size - limits.size) / max(1, self.size)  # as a part of what is there
        return min(max(1.0, excess * self.calls), self.calls) * self.turns(caller) * self.pace


class Admission(Generic[Caller, Item]):
    """The calls that wait for their turn, and what occupies each node.

    A call is told by its caller and number, waits for a node, and stands in a lane: each lane has an
    order of turns of its own.  It is taken out once: begun, cancelled, displaced, withdrawn or with its caller.

    Calls that came together wait as one item, named by the first.  Where it takes to know them one by one, *apart*
    makes of that item those that have not begun: their numbers, what each of them is, and its size.
    """

    __slots__ = ("_apart", "_count", "_lanes", "_places")

    def __init__(self, apart: Callable[[Item], Iterable[tuple[int, Item, int]]] = lambda item: ()) -> None:
        self._apart = apart
        self._count = 0
        self._lanes: dict[str, OrderedDict[Caller, OrderedDict[int, Begun[Caller, Item]]]] = {}  # by turns
        self._places: dict[str, _Place[Caller, Item]] = {}

    def __len__(self) -> int:
        return self._count

    def waiting(self, lane: str = "") -> int:
        """How many items wait in *lane*."""
        return sum(map(len, self._lanes.get(lane, {}).values()))

    def occupied(self, node: str) -> tuple[int, int]:
        """How many calls wait for *node* or run there, and their bytes."""
        place = self._places.get(node)
        return (place.calls, place.size) if place is not None else (0, 0)

    def pace(self, node: str) -> float | None:
        """The mean of the seconds between two ends of calls of *node* lately, while others wait; None if not known."""
        place = self._places.get(node)
        return place.pace if place is not None else None

    def late(self, node: str, left: float) -> bool:
        """Whether a call of *node* whose turn has come would be answered too late, with so many seconds *left*.

        That is known of a node only that calls have waited for long enough to tell its pace.  Without this
        each call of a long queue would be begun just before its deadline, and all of the work be in vain.
        """
        pace = self.pace(node)
        return left <= 0 or (pace is not None and left < pace + MARGIN)

    def admit(self, caller: Caller, call: int, item: Item, *, node: str, size: int, deadline: Deadline, now: float,
              lane: str = "", limits: Limits = LIMITS, count: int = 0) -> list[Refused[Caller, Item]]:
        """Let a call of *size* bytes wait for its turn; who has no room because of it, itself alone or others.

        The first call of a node is always taken.  Where the limits would be exceeded, the newest waiting
        calls of the caller that has most of them waiting for the node go, as long as it has more than
        *caller* would have; where that makes no room, nothing goes and the new one is refused.

        It is also refused where at least `LONG` calls wait for the node and its own wait, estimated as
        (calls of this caller that wait for the node + 1) * (callers that do, with this one) * pace,
        is longer than half of what is left of its deadline.

        ``retry_after`` is at least `SOONEST`, and `UNKNOWN` where there is no pace.  In a full node it is
        (calls that must end to make room, by their mean size) * (callers) * pace; for a wait that is too
        long it is what it is too long by, or the time until fewer than `LONG` wait where that is sooner.

        With a *count* it is so many calls that came together; then `takes` has said that there is room.
        """
        place = self._places.get(node)
        if place is None:
            place = self._places[node] = _Place()
        place.gone = False
        gone: list[Begun[Caller, Item]] | None = []
        later = place.excess(caller, deadline.remaining(now)) if place.waiting >= LONG else 0.0
        if later > 0:
            return [Refused(caller, call, item, max(SOONEST, later))]
        if place.full(size, limits):
            self.spread(node)  # which may be the end of some
        if place.full(size, limits):
            later = max(SOONEST, place.room(caller, size, limits))
            gone = place.displaced(caller, size, limits)
            if gone is None:
                return [Refused(caller, call, item, later)]
            for begun in gone:
                self._take(begun)
        self._add(place, Begun(caller, call, item, node, size, deadline, lane, count))
        return [Refused(begun.caller, begun.call, begun.item, later) for begun in gone] if gone else []

    def takes(self, caller: Caller, *, node: str, count: int, size: int, left: float, limits: Limits = LIMITS) -> bool:
        """Whether so many calls of one caller with so many seconds *left* would be taken, each of them."""
        place = self._places.get(node)
        if place is None:
            return count <= limits.calls and size <= limits.size
        later = place.excess(caller, left, count) if place.waiting + count > LONG else 0.0
        return place.calls + count <= limits.calls and place.size + size <= limits.size and later <= 0

    def enter(self, node: str, size: int, limits: Limits) -> bool:
        """Let a call begin that nothing waits before, where there is room; it occupies its node until `end`."""
        place = self._places.get(node)
        if place is None:
            place = self._places[node] = _Place()
        elif place.waiting or (place.calls and (place.calls >= limits.calls or place.size + size > limits.size)):
            return False
        place.gone, place.calls, place.size = False, place.calls + 1, place.size + size
        return True

    def next(self, lane: str = "") -> Begun[Caller, Item] | None:
        """The call of *lane* whose turn it is, or None: the first of the caller that has waited longest for a turn.

        It occupies its node until `end`.  Those that came together stay where they are until they were `took`.
        """
        callers = self._lanes.get(lane)
        if callers is None:
            return None
        caller = next(iter(callers))
        calls = callers[caller]
        begun = next(iter(calls.values()))
        if begun.count:
            callers.move_to_end(caller)
            return begun
        del calls[begun.call]
        if calls:
            callers.move_to_end(caller)
        else:
            self._clear(lane, caller)
        self._places[begun.node].remove(begun)
        self._count -= 1
        return begun

    def took(self, begun: Begun[Caller, Item], calls: int, now: float, *, going_on: int = 0) -> bool:
        """Note that so many of the calls that came together have had their turn; some may be *going_on*.

        Each of those occupies its node until `end`, but where this is False: they were taken out meanwhile, or apart.
        """
        place, callers = self._places.get(begun.node), self._lanes.get(begun.lane)
        waiting = callers.get(begun.caller) if callers is not None else None
        if place is None or waiting is None or waiting.get(begun.call) is not begun:
            return False
        size, ended = begun.size * calls // begun.count, calls - going_on
        if calls < begun.count:
            rest = replace(begun, count=begun.count - calls, size=begun.size - size)
            waiting[begun.call] = place.callers[begun.caller][begun.call] = rest
            place.count(begun.caller, -calls)
        else:
            del waiting[begun.call]
            if not waiting:
                self._clear(begun.lane, begun.caller)
            place.remove(begun)
        self._count -= calls
        if place.waiting and ended:
            place.measure(now, ended)
        self._free(begun.node, place, size * ended // max(1, calls), ended)
        return True

    def spread(self, node: str) -> None:
        """Have the calls wait for *node* one by one that came together."""
        place = self._places[node]
        apart = {(begun.caller, begun.call): [replace(begun, call=call, item=item, size=size, count=0)
                                              for call, item, size in self._apart(begun.item)]
                 for mine in place.callers.values() for begun in mine.values() if begun.count}
        for (caller, call), parts in apart.items():
            begun = place.callers[caller][call]
            place.size += sum(part.size for part in parts) - begun.size
            place.calls += len(parts) - begun.count
            self._count += len(parts) - begun.count
            for calls in (self._lanes[begun.lane][caller], place.callers[caller]):
                before = list(calls.values())
                calls.clear()
                calls.update({part.call: part for each in before for part in (parts if each is begun else (each,))})
            if not self._lanes[begun.lane][caller]:
                self._clear(begun.lane, caller)
            if not place.callers[caller]:
                del place.callers[caller]
            place.count(caller, len(parts) - begun.count)
        self._free(node, place, 0, 0)

    def end(self, node: str, size: int, now: float, *, ran: bool = True) -> None:
        """Note that a call that was begun has ended; ValueError where none was.

        The pace of the node is measured by it, unless it never *ran* because its turn came too late.
        """
        place = self._places.get(node)
        if place is None or place.calls <= place.waiting:
            raise ValueError(f"a call of {node!r} ended, but none was begun")
        if ran and place.waiting:
            place.measure(now)
        self._free(node, place, size)

    def forget(self, node: str) -> None:
        """Note that *node* is gone for good: its pace is forgotten, and the rest once its last call has ended."""
        place = self._places.get(node)
        if place is not None:
            place.gone, place.pace = True, None
            if not place.calls:
                del self._places[node]

    def cancel(self, caller: Caller, call: int) -> Item | None:
        """Take out a call that its caller does not want any more; None where it does not wait here."""
        for callers in self._lanes.values():
            if caller in callers and call in callers[caller]:
                begun = callers[caller][call]
                self._take(begun)
                return begun.item
        return None

    def withdraw(self, unwanted: Callable[[Item], bool]) -> list[tuple[Caller, Item]]:
        """Take out all calls that are *unwanted*, with their callers."""
        found = [begun for callers in self._lanes.values() for calls in callers.values()
                 for begun in calls.values() if unwanted(begun.item)]
        for begun in found:
            self._take(begun)
        return [(begun.caller, begun.item) for begun in found]

    def leave(self, caller: Caller, keep: Callable[[Item], bool] = lambda item: False) -> list[Item]:
        """Take out all calls of a caller that is gone, but those to *keep*."""
        found = [begun for callers in self._lanes.values() if caller in callers
                 for begun in callers[caller].values() if not keep(begun.item)]
        for begun in found:
            self._take(begun)
        return [begun.item for begun in found]

    def _add(self, place: _Place[Caller, Item], begun: Begun[Caller, Item]) -> None:
        callers = self._lanes.setdefault(begun.lane, OrderedDict())
        callers.setdefault(begun.caller, OrderedDict())[begun.call] = begun
        place.callers.setdefault(begun.caller, {})[begun.call] = begun
        place.count(begun.caller, begun.count or 1)
        place.calls += begun.count or 1
        place.size += begun.size
        self._count += begun.count or 1

    def _take(self, begun: Begun[Caller, Item]) -> None:
        """Take out a call that waits, and what it occupies."""
        calls = self._lanes[begun.lane][begun.caller]
        del calls[begun.call]
        if not calls:
            self._clear(begun.lane, begun.caller)
        place = self._places[begun.node]
        place.remove(begun)
        self._count -= begun.count or 1
        self._free(begun.node, place, begun.size, begun.count or 1)

    def _clear(self, lane: str, caller: Caller) -> None:
        """Forget a caller that has nothing in *lane* any more."""
        callers = self._lanes[lane]
        del callers[caller]
        if not callers:
            del self._lanes[lane]

    def _free(self, node: str, place: _Place[Caller, Item], size: int, calls: int = 1) -> None:
        place.calls -= calls
        place.size -= size
        if place.gone and not place.calls:
            del self._places[node]
