"""Which calls a node takes, and in which order they begin."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyzmp.protocol.admission import (
    ENDS,
    LIMITS,
    LONG,
    MARGIN,
    SOONEST,
    SPAN,
    UNKNOWN,
    Admission,
    Begun,
    Limits,
    Refused,
)
from pyzmp.protocol.deadline import Deadline

SMALL = Limits(calls=6, size=30)
CALLERS, NODES, LANES = st.sampled_from("abcd"), st.sampled_from(["m", "n"]), st.sampled_from(["", "n"])
FAR = Deadline(1e12)


class Sent(NamedTuple):
    """A call, which is its own item."""

    caller: str
    call: int
    node: str
    size: int
    lane: str


class Group:
    """Calls that came together; *broken* ones are all answered when they are to be told apart."""

    lane = ""

    def __init__(self, first: Sent, count: int, *, broken: bool) -> None:
        self.caller, self.call, self.node, self.each, self.lane = first
        self.count, self.broken, self.begun = count, broken, 0

    @property
    def left(self) -> int:
        return self.count - self.begun

    @property
    def size(self) -> int:
        return self.each * self.left

    def parts(self) -> list[Sent]:
        return [Sent(self.caller, call, self.node, self.each, self.lane)
                for call in range(self.call + self.begun, self.call + self.count)]

    def apart(self) -> list[tuple[int, Sent, int]]:
        found = [] if self.broken else [(part.call, part, part.size) for part in self.parts()]
        self.begun = self.count
        return found


def apart(item: Sent | Group) -> list[tuple[int, Sent, int]]:
    return item.apart() if isinstance(item, Group) else []


def calls_of(items: Iterable[Sent | Group]) -> int:
    return sum(item.left if isinstance(item, Group) else 1 for item in items)


class Line(RuleBasedStateMachine):
    """An `Admission` beside lists of what waits, in the order in which it came, and of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.admission: Admission[str, Sent | Group] = Admission(apart)
        self.waiting: list[Sent | Group] = []
        self.running: list[Sent] = []
        self.passed: dict[tuple[str, str], Counter[str]] = {}  # by lane and caller: turns of others since it waits
        self.count = 0
        self.now = 0.0

    def at(self, node: str, caller: str | None = None) -> list[Sent | Group]:
        return [call for call in self.waiting if call.node == node and caller in {None, call.caller}]

    def occupied(self, node: str) -> tuple[int, int]:
        there = [call for call in [*self.waiting, *self.running] if call.node == node]
        return calls_of(there), sum(call.size for call in there)

    def out(self, gone: Sequence[Sent | Group]) -> None:
        self.waiting = [call for call in self.waiting if call not in gone]
        still = {(call.lane, call.caller) for call in self.waiting}
        self.passed = {place: turns for place, turns in self.passed.items() if place in still}

    @rule(caller=CALLERS, node=NODES, lane=LANES, size=st.integers(0, 40))
    def come(self, caller: str, node: str, lane: str, size: int) -> None:
        self.count += 1
        new = Sent(caller, self.count, node, size, lane)
        if not self.fits(new, []):
            self.spread(node)
        refused = self.admission.admit(caller, self.count, new, node=node, size=size, deadline=FAR, now=self.now,
                                       lane=lane, limits=SMALL)
        assert all((one.caller, one.call) == (one.item.caller, one.item.call) and one.retry_after >= SOONEST
                   for one in refused)
        gone = [one.item for one in refused]
        if gone == [new]:
            self.was_refused(new)
            return
        self.was_displaced(new, gone)
        self.out(gone)
        self.waiting.append(new)
        self.passed.setdefault((lane, caller), Counter())

    @rule(caller=CALLERS, node=NODES, each=st.integers(0, 6), count=st.integers(2, 7), broken=st.booleans())
    def come_together(self, caller: str, node: str, each: int, count: int, broken: bool) -> None:
        calls, size = self.occupied(node)
        takes = self.admission.takes(caller, node=node, count=count, size=each * count, left=1e12, limits=SMALL)
        assert takes is (calls + count <= SMALL.calls and size + each * count <= SMALL.size)
        if not takes:
            for _ in range(count):
                self.come(caller, node, "", each)
            return
        new = Group(Sent(caller, self.count + 1, node, each, ""), count, broken=broken)
        assert not self.admission.admit(caller, new.call, new, node=node, size=new.size, deadline=FAR, now=self.now,
                                        limits=SMALL, count=count)
        self.count += count
        self.waiting.append(new)
        self.passed.setdefault(("", caller), Counter())

    def spread(self, node: str) -> None:
        """What came together for *node* waits one by one, where it stood."""
        self.waiting = [part for item in self.waiting for part in (
            ([] if item.broken else item.parts()) if isinstance(item, Group) and item.node == node else [item])]
        self.out([])

    def fits(self, new: Sent, gone: Sequence[Sent | Group]) -> bool:
        calls, size = self.occupied(new.node)
        return not calls or (calls - len(gone) < SMALL.calls
                             and size + new.size - sum(call.size for call in gone) <= SMALL.size)

    def victims(self, new: Sent) -> list[list[Sent | Group]]:
        """The calls that may go for *new*, newest first, of each of those callers that have most."""
        counts = Counter(call.caller for call in self.at(new.node))
        most = [caller for caller, count in counts.items() if count == max(counts.values())]
        return [self.at(new.node, caller)[:counts[new.caller]:-1] for caller in most if caller != new.caller] \
            if new.caller not in most else []

    def was_refused(self, new: Sent) -> None:
        assert not self.fits(new, [])
        victims = self.victims(new)
        assert not victims or not all(self.fits(new, gone) for gone in victims)

    def was_displaced(self, new: Sent, gone: Sequence[Sent | Group]) -> None:
        assert self.fits(new, gone)
        if gone:
            assert not self.fits(new, gone[:-1]), "no more than must be"
            assert any(gone == victims[:len(gone)] for victims in self.victims(new))
            assert len(self.at(new.node, gone[0].caller)) - len(gone) > len(self.at(new.node, new.caller))

    @rule(lane=LANES, calls=st.integers(1, 7), going_on=st.integers(0, 7), took=st.floats(0, 0.5),
          meanwhile=st.sampled_from([None, None, None, "spread", "leave", "come"]))
    def begin(self, lane: str, calls: int, going_on: int, took: float, meanwhile: str | None) -> None:
        found = self.admission.next(lane)
        line = [call for call in self.waiting if call.lane == lane]
        if found is None:
            assert not line
            return
        call = found.item
        assert (found.caller, found.call, found.node, found.size, found.lane) == (
            call.caller, call.call, call.node, call.size, call.lane)
        assert found.deadline is FAR
        assert call == next(other for other in line if other.caller == call.caller), "each caller's keep their order"
        for (where, other), turns in self.passed.items():
            if where == lane and other != call.caller:
                turns[call.caller] += 1
                assert turns[call.caller] < 2, "nobody has two turns while another waits for one"
        self.passed[lane, call.caller].clear()
        if isinstance(call, Sent):
            self.out([call])
            self.running.append(call)
        else:
            self.took(found, call, min(calls, call.left), going_on, took, meanwhile)

    def took(self, found: Begun[str, Sent | Group], group: Group, calls: int, going_on: int, took: float,
             meanwhile: str | None) -> None:
        """So many calls of a group run now, and *meanwhile* something has come that concerns the rest of it."""
        ran = group.parts()[:calls]
        group.begun += calls
        self.now += took
        if meanwhile == "spread":
            self.spread(group.node)
            self.admission.spread(group.node)
        elif meanwhile == "leave":
            self.leave(group.caller, None)
        elif meanwhile == "come":
            self.count += 1
            new = Sent("d", self.count, "o", 1, "")
            assert not self.admission.admit("d", self.count, new, node="o", size=1, deadline=FAR, now=self.now)
            self.waiting.append(new)
            self.passed.setdefault(("", "d"), Counter())
        on = ran[:min(going_on, calls)]
        counted = self.admission.took(found, calls, self.now, going_on=len(on))
        assert counted is (meanwhile not in {"spread", "leave"})
        self.running += on if counted else []
        if not group.left:
            self.out([group])

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100), took=st.floats(0, 2), ran=st.booleans())
    def end(self, which: int, took: float, ran: bool) -> None:
        self.now += took
        call = self.running.pop(which % len(self.running))
        self.admission.end(call.node, call.size, self.now, ran=ran)

    @rule(caller=CALLERS, back=st.integers(0, 20))
    def cancel(self, caller: str, back: int) -> None:
        gone = [call for call in self.waiting if (call.caller, call.call) == (caller, self.count - back)]
        assert self.admission.cancel(caller, self.count - back) == (gone[0] if gone else None)
        self.out(gone)

    @rule(caller=CALLERS, kept=st.sampled_from([None, 0, 1]))
    def leave(self, caller: str, kept: int | None) -> None:
        gone = [call for call in self.waiting if call.caller == caller and call.call % 2 != kept]
        left = (self.admission.leave(caller) if kept is None
                else self.admission.leave(caller, lambda call: call.call % 2 == kept))
        assert sorted(left, key=number) == sorted(gone, key=number)
        self.out(gone)

    @rule(odd=st.booleans())
    def withdraw(self, odd: bool) -> None:
        gone = [call for call in self.waiting if call.call % 2 == odd]
        found = self.admission.withdraw(lambda call: call.call % 2 == odd)
        assert all(caller == call.caller for caller, call in found)
        assert sorted((call for _, call in found), key=number) == sorted(gone, key=number)
        self.out(gone)

    @rule(node=NODES)
    def forget(self, node: str) -> None:
        self.admission.forget(node)
        assert self.admission.pace(node) is None

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        assert len(self.admission) == calls_of(self.waiting)
        for lane in ("", "n"):
            assert self.admission.waiting(lane) == sum(call.lane == lane for call in self.waiting)
        for node in ("m", "n", "o"):
            assert self.admission.occupied(node) == self.occupied(node)

    @invariant()
    def the_limits_hold(self) -> None:
        for node in ("m", "n"):
            calls, size = self.admission.occupied(node)
            assert calls <= SMALL.calls
            assert size <= SMALL.size or calls == 1

    def teardown(self) -> None:
        for lane in ("", "n"):
            while self.admission.waiting(lane):
                self.begin(lane, 2, 1, 0.0, None)
        while self.running:
            self.end(0, 0.0, ran=True)
        for node in ("m", "n", "o"):
            assert self.admission.occupied(node) == (0, 0)
            self.admission.forget(node)
        assert not [*self.admission._lanes, *self.admission._places]  # and nothing is kept of any of it


def number(call: Sent | Group) -> int:
    return call.call


TestLine = Line.TestCase


def admit(admission: Admission[str, int], caller: str, call: int, *, size: int = 1, left: float = 1e9, now: float = 0.0,
          limits: Limits = LIMITS) -> list[Refused[str, int]]:
    return admission.admit(caller, call, call, node="n", size=size, deadline=Deadline(now + left), now=now,
                           limits=limits)


def filled(count: int, caller: str = "a", limits: Limits = LIMITS) -> Admission[str, int]:
    admission: Admission[str, int] = Admission()
    for call in range(count):
        assert not admit(admission, caller, call, limits=limits)
    return admission


def paced(count: int, pace: float) -> Admission[str, int]:
    """With so many calls of "a" waiting and none running, and a pace that was measured."""
    admission = filled(count)
    admission._places["n"].pace = pace
    return admission


# -- the limits of a node ------------------------------------------------------------------------------------------

def test_a_call_alone_in_its_node_fits_whatever_its_size() -> None:
    admission: Admission[str, int] = Admission()
    assert not admit(admission, "a", 1, size=1 << 40)
    [refused] = admit(admission, "b", 2)
    assert (refused.caller, refused.call) == ("b", 2)
    admission.next()
    assert admit(admission, "b", 3), "while it runs, too"
    admission.end("n", 1 << 40, 0.0)
    assert not admit(admission, "b", 4)


def test_what_runs_occupies_its_node_and_no_other() -> None:
    limits = Limits(calls=2)
    admission = filled(2, limits=limits)
    assert admission.next()
    assert admission.next()
    assert admit(admission, "b", 1, limits=limits)
    assert not admission.admit("b", 1, 1, node="m", size=1, deadline=FAR, now=0.0, limits=limits)
    admission.end("n", 1, 0.0)
    assert not admit(admission, "b", 2, limits=limits)


def test_the_greediest_caller_makes_room_for_others_with_its_newest_calls() -> None:
    limits = Limits(calls=6)
    admission = filled(6, limits=limits)
    refused = [admit(admission, "b", call, limits=limits) for call in range(4)]
    assert [[(one.caller, one.call) for one in ones] for ones in refused] == [
        [("a", 5)], [("a", 4)], [("a", 3)], [("b", 3)]], "until both have as many"
    assert [(begun.caller, begun.call) for _ in range(6) if (begun := admission.next())] == [
        ("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_large_call_displaces_as_many_as_it_needs_or_none() -> None:
    limits = Limits(size=10)
    admission = filled(10, limits=limits)
    assert [one.call for one in admit(admission, "b", 1, size=3, limits=limits)] == [9, 8, 7]
    assert [one.caller for one in admit(admission, "c", 1, size=8, limits=limits)] == ["c"]
    assert admission.occupied("n") == (8, 10)


def test_a_limit_that_was_lowered_holds_for_who_comes_next() -> None:
    admission = filled(6)
    assert [one.call for one in admit(admission, "b", 1, limits=Limits(calls=4))] == [5, 4, 3]
    assert admission.occupied("n") == (4, 4)


def test_a_caller_never_displaces_its_own_calls() -> None:
    limits = Limits(calls=3)
    admission = filled(3, limits=limits)
    assert [one.call for one in admit(admission, "a", 3, limits=limits)] == [3]


def test_calls_of_another_lane_count_for_the_same_node() -> None:
    admission, limits = filled(3), Limits(calls=3)
    refused = admission.admit("b", 0, 0, node="n", size=1, deadline=FAR, now=0.0, lane="workers of n", limits=limits)
    assert [(one.caller, one.call) for one in refused] == [("a", 2)]
    assert (admission.waiting(), admission.waiting("workers of n"), len(admission)) == (2, 1, 3)
    begun = admission.next("workers of n")
    assert begun is not None
    assert begun.caller == "b"
    assert admission.next("workers of n") is None
    assert admission.cancel("a", 1) == 1


def test_calls_of_a_caller_that_is_gone_stay_where_they_must() -> None:
    admission = filled(4)
    assert admission.leave("a", lambda item: item in {0, 3}) == [1, 2]
    assert admission.leave("nobody") == []
    assert [begun.item for _ in range(2) if (begun := admission.next())] == [0, 3]


@pytest.mark.parametrize("begun", [False, True])
def test_the_end_of_a_call_that_was_not_begun_is_an_error(begun: bool) -> None:
    admission = filled(1)
    if begun:
        admission.next()
        admission.end("n", 1, 0.0)
    with pytest.raises(ValueError, match="a call of 'n' ended, but none was begun"):
        admission.end("n", 1, 0.0)
    with pytest.raises(ValueError, match="a call of 'unknown' ended, but none was begun"):
        admission.end("unknown", 1, 0.0)


# -- the pace of a node --------------------------------------------------------------------------------------------

def ends(admission: Admission[str, int], count: int, pace: float, begin: float) -> float:
    """Have calls of "n" end, one at *begin* and *count* after it; when the last one did."""
    for number in range(count + 1):
        admission.next()
        admission.end("n", 1, begin + number * pace)
    return begin + count * pace


def test_the_pace_is_the_mean_of_the_time_between_ends_in_the_quickest_of_the_latest_spans() -> None:
    admission = filled(1000)
    now, known = 0.0, []
    for pace in (0.02, 0.03, 0.04, 0.05, 0.06, 0.07):
        now = ends(admission, max(ENDS, math.ceil(SPAN / pace)), pace, now + 1.0)
        known.append(admission.pace("n"))
    assert known == [None, *map(pytest.approx, (0.02, 0.02, 0.02, 0.03, 0.04))]


def test_few_ends_tell_a_pace_when_they_have_taken_long() -> None:
    admission = filled(100)
    now = ends(admission, 3, 4 * SPAN / 3, 0.0)
    now = ends(admission, ENDS - 1, 2 * SPAN / (ENDS - 1), now + 1.0)
    assert admission.pace("n") is None, "few have ended, in a short time"
    admission.next()
    admission.end("n", 1, now + 2 * SPAN)
    assert admission.pace("n") == pytest.approx(2 * SPAN / (ENDS - 1))


@pytest.mark.parametrize("stall", [0.01, 0.3, 5.0])
def test_a_stall_among_many_ends_is_no_pace(stall: float) -> None:
    admission = filled(6000)
    for number in range(5000):
        admission.next()
        admission.end("n", 1, number / 10_000 + (stall if number > 1200 else 0.0))
    assert admission.pace("n") == pytest.approx(0.0001)


def test_once_nothing_waits_the_pace_is_forgotten() -> None:
    admission = filled(7)
    ends(admission, 2, 2.0, 0.0)
    ends(admission, 2, 2.0, 10.0)
    assert admission.pace("n") == 2.0
    admission.next()
    assert admission.pace("n") is None
    for call in range(10, 20):
        admit(admission, "a", call)
    admission.end("n", 1, 100.0)
    ends(admission, 1, 3.0, 103.0)
    assert admission.pace("n") is None
    ends(admission, 2, 3.0, 1000.0)
    assert admission.pace("n") == 3.0


def test_a_call_whose_turn_came_too_late_measures_nothing() -> None:
    admission = filled(12)
    for now, ran in ((1.0, True), (1.0, False), (1.0, False), (3.0, True), (5.0, True)) * 2:
        admission.next()
        admission.end("n", 1, now, ran=ran)
    assert admission.pace("n") == 2.0
    assert admission.occupied("n") == (2, 2)


def test_a_call_that_would_be_answered_too_late_is_known_by_the_pace() -> None:
    admission = filled(3)
    assert not admission.late("n", 0.001), "no pace is known"
    assert admission.late("n", 0.0)
    admission = paced(3, 0.1)
    assert admission.late("n", 0.1 + MARGIN / 2)
    assert not admission.late("n", 0.1 + 2 * MARGIN)
    assert not admission.late("unknown", 0.001)


def test_a_node_that_is_gone_is_forgotten_once_its_last_call_ended() -> None:
    admission = paced(1, 2.0)
    assert admission.next()
    admission.forget("n")
    admission.forget("unknown")
    assert admission.occupied("n") == (1, 1)
    admission.end("n", 1, 0.0)
    assert (admission.occupied("n"), admission.pace("n")) == ((0, 0), None)
    assert not admission._places


def test_a_node_that_is_gone_is_forgotten_also_where_the_last_calls_are_answered_as_they_come_apart() -> None:
    group = Group(Sent("a", 1, "n", 1, ""), 3, broken=True)
    admission: Admission[str, Sent | Group] = Admission(apart)
    assert not admission.admit("a", 1, group, node="n", size=3, deadline=FAR, now=0.0, count=3)
    admission.forget("n")
    admission.spread("n")
    assert not [*admission._lanes, *admission._places]


def test_a_node_that_is_back_while_calls_of_its_earlier_life_run_is_not_forgotten() -> None:
    admission = paced(1, 2.0)
    admission.next()
    admission.forget("n")
    assert not admit(admission, "a", 9)
    for call in (10, 11):
        admit(admission, "a", call)
    for now in (0.0, 5.0):
        admission.end("n", 1, now)
        admission.next()
    assert admission.leave("a") == [11]
    admission.end("n", 1, 6.0)
    assert (admission.occupied("n"), admission.pace("n")) == ((0, 0), None)
    assert admission._places


# -- calls that would wait too long --------------------------------------------------------------------------------

def test_a_call_that_would_wait_longer_than_half_of_its_time_is_refused() -> None:
    admission = paced(20, 0.1)
    [refused] = admit(admission, "a", 99, left=4.0)
    assert refused.retry_after == pytest.approx(21 * 0.1 - 2.0)
    assert not admit(admission, "a", 99, left=4.3)


def test_a_caller_with_fewer_calls_waits_for_its_turns_only() -> None:
    admission = paced(20, 0.1)
    [refused] = admit(admission, "b", 99, left=0.3)
    assert refused.retry_after == pytest.approx(1 * 2 * 0.1 - 0.15)
    assert not admit(admission, "b", 99, left=0.5)


def test_a_caller_that_waits_no_more_takes_no_turns() -> None:
    admission = paced(20, 0.1)
    assert not admit(admission, "b", 98)
    assert admission.cancel("b", 98) == 98
    [refused] = admit(admission, "a", 99, left=4.0)
    assert refused.retry_after == pytest.approx(21 * 0.1 - 2.0)


def test_a_short_queue_is_never_too_long() -> None:
    admission = paced(LONG - 1, 100.0)
    assert not admit(admission, "a", 98, left=1.0)
    [refused] = admit(admission, "a", 99, left=1.0)
    assert refused.retry_after == pytest.approx(100.0), "there is room when one has ended"


def test_without_a_pace_no_wait_is_too_long() -> None:
    assert not admit(filled(100), "a", 100, left=0.001)


# -- when to come again --------------------------------------------------------------------------------------------

def test_who_is_refused_without_a_known_pace_comes_again_soon() -> None:
    [refused] = admit(filled(4), "a", 9, limits=Limits(calls=4))
    assert refused.retry_after == UNKNOWN


def test_who_is_refused_comes_again_when_there_may_be_room() -> None:
    admission = paced(10, 0.1)
    [refused] = admit(admission, "a", 99, limits=Limits(calls=10))
    assert refused.retry_after == pytest.approx(0.1), "one call must end"
    [refused] = admit(admission, "b", 99, limits=Limits(calls=10))
    assert refused.caller == "a"
    assert refused.retry_after == pytest.approx(2 * 0.1), "and two callers want its place"
    [refused] = admit(admission, "a", 99, size=5, limits=Limits(size=10))
    assert refused.retry_after == pytest.approx(5 * 2 * 0.1), "or five calls, by their mean size"
    [refused] = admit(admission, "a", 99, size=5000, limits=Limits(size=10))
    assert refused.retry_after == pytest.approx(10 * 2 * 0.1), "or all"
    [refused] = admit(paced(10, 1e-9), "a", 99, limits=Limits(calls=10))
    assert refused.retry_after == SOONEST
