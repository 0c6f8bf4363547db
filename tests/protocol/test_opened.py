"""Calls that were asked together, at their caller: one message, and an outcome for each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyzmp.exceptions import CallError, CallTimeout, NodeDied, Refused
from pyzmp.protocol.calls import CALLS, Caller
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Calls, Failure, Parcel, Reply, Results
from pyzmp.protocol.opened import Ended
from pyzmp.protocol.outcomes import Ask, Part, Result


def asked(count: int, caller: Caller[str], at: float = 5.0) -> Calls:
    message = caller.open(Ask("node", "service", b"x" * count, (), Deadline(at), 5.0, count=count), "token", 0.0)
    assert isinstance(message, Calls)
    assert message.count == count
    return message


def told(caller: Caller[str], message: Any) -> Part | None:
    found = caller.receive(Parcel(message))
    assert found is None or (found[0] == "token" and isinstance(found[1], Part))
    return found[1] if found is not None else None  # type: ignore[return-value]


def test_each_has_one_outcome_whatever_comes_and_in_which_order() -> None:
    caller: Caller[str] = Caller()
    asked(1 + 1, caller)
    first = asked(5, caller).call
    assert first == 3
    assert told(caller, Results(first + 3, b"ab", 2)) == Part(3, 2, Result(b"ab"))
    assert told(caller, Reply(first + 1, b"c")) == Part(1, 1, Result(b"c"))
    for again in (Results(first + 3, b"ab", 2), Reply(first + 1, b"c"), Results(first, b"", 2), Results(first, b"", 1),
                  Results(first + 2, b"", 1 << 60), Results(first, b"", 0), Results(first, b"", -1)):
        assert told(caller, again) is None
    assert caller.stray == 7
    assert caller.used == 4
    failed = told(caller, Failure(first, 4, "refused", False))
    assert failed is not None
    assert failed.first == 0
    assert told(caller, Reply(first + 2, b"d")) == Part(2, 1, Result(b"d"))
    assert (caller.used, len(caller)) == (2, 1)


def test_at_its_deadline_each_that_is_left_ends_and_makes_room_once_it_is_answered() -> None:
    caller: Caller[str] = Caller()
    first = asked(4, caller, at=1.0).call
    told(caller, Reply(first + 2, b""))
    ended = caller.expire(1.0)
    assert [(each.call, each.tell) for each in ended] == [(first, True), (first + 1, True), (first + 3, True)]
    errors = [each.outcome.outcome for each in ended if isinstance(each.outcome, Part)]
    assert all(isinstance(error, CallTimeout) and error.executed is None for error in errors)
    assert len(set(map(id, errors))) == 3
    assert caller.used == 3
    assert told(caller, Results(first, b"", 2)) is None
    assert told(caller, Reply(first + 3, b"")) is None
    assert (caller.used, caller.fits(CALLS, 0)) == (0, True)


def test_with_the_session_each_that_is_left_ends() -> None:
    caller: Caller[str] = Caller()
    first = asked(3, caller).call
    told(caller, Reply(first, b""))
    ended = caller.end("gone", sent=True)
    assert [each.call for each in ended] == [first + 1, first + 2]
    assert all(isinstance(each.outcome, Part) and isinstance(each.outcome.outcome, NodeDied) for each in ended)
    assert told(caller, Reply(first + 1, b"")) is None
    assert caller.used == 0


def test_one_of_them_is_given_up_by_its_number_while_it_is_open() -> None:
    caller: Caller[str] = Caller()
    first = asked(3, caller).call
    assert [caller.cancel(call) for call in range(first - 1, first + 4)] == [False, True, True, True, False]


CALLS_HERE, SIZE_HERE = 8, 40


class Groups(RuleBasedStateMachine):
    """Calls alone and together over one session with a small window: an outcome for each, whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.caller: Caller[int] = Caller(CALLS_HERE, SIZE_HERE)
        self.now = 0.0
        self.groups: dict[int, int] = {}  # the first numbers of those that were asked together, and how many they are
        self.sizes: dict[int, int] = {}
        self.ends: dict[int, float] = {}
        self.unanswered: set[int] = set()  # calls that the node has not answered
        self.outcomes: Counter[int] = Counter()

    def first(self, call: int) -> int:
        return max(first for first in self.groups if first <= call)

    def note(self, token: int, outcome: Any) -> None:
        """What whoever waits gets; an error is told of a call that goes on, or has failed as it says."""
        part = outcome if isinstance(outcome, Part) else Part(0, 1, outcome)
        assert isinstance(outcome, Part) is (self.groups[token] > 1)
        assert 0 <= part.first < part.first + part.count <= self.groups[token]
        self.outcomes.update(range(token + part.first, token + part.first + part.count))
        assert not isinstance(part.outcome, CallError) or part.outcome.executed in {None, False}

    def told(self, message: Any) -> bool:
        found = self.caller.receive(Parcel(message))
        if found is not None:
            assert not isinstance(found[1], Parcel)
            self.note(*found)
        return found is not None

    @rule(count=st.integers(1, 5), size=st.integers(0, 20), timeout=st.sampled_from([0.5, 5.0]))
    def open(self, count: int, size: int, timeout: float) -> None:
        if not self.caller.fits(count, size):
            return
        assert len(self.unanswered) + count <= CALLS_HERE
        first = self.caller.last + 1
        request = self.caller.open(Ask("node", "service", b"x" * size, (), Deadline(self.now + timeout), timeout,
                                       count=count), first, self.now)
        assert isinstance(request, Calls) is (count > 1)
        assert request is not None
        assert request.call == first
        assert self.caller.last == first + count - 1
        self.groups[first], self.sizes[first], self.ends[first] = count, size, self.now + timeout
        self.unanswered.update(range(first, first + count))

    @precondition(lambda self: self.unanswered)
    @rule(which=st.integers(0, 9), many=st.integers(1, 5), kind=st.sampled_from([Reply, Failure, Results]))
    def answer(self, which: int, many: int, kind: Any) -> None:
        call = sorted(self.unanswered)[which % len(self.unanswered)]
        first = self.first(call)
        count = next(n for n in range(1, 10) if n == many or call + n not in self.unanswered
                     or call + n >= first + self.groups[first])
        if kind is Results and count == 1:
            kind = Reply
        message = Results(call, b"\x90", count) if kind is Results else Reply(call, b"r") if kind is Reply else Failure(
            call, 5, "refused", False)
        answered = range(call, call + (count if kind is Results else 1))
        late = any(self.outcomes[each] for each in answered)
        assert self.told(message) is not late, "late, their places are free all the same"
        self.unanswered.difference_update(answered)
        assert not self.told(message)

    @precondition(lambda self: self.groups)
    @rule(which=st.integers(0, 9), place=st.integers(0, 4), count=st.integers(-2, 6) | st.just(1 << 40))
    def answer_too_many(self, which: int, place: int, count: int) -> None:
        """Results of calls some of which were not asked together, or have ended."""
        first = sorted(self.groups)[which % len(self.groups)]
        call = first + place % self.groups[first]
        open_ones = {each for each in range(first, first + self.groups[first]) if not self.outcomes[each]}
        if open_ones and (count < 2 or not set(range(call, call + min(count, 99))) <= open_ones):
            assert not self.told(Results(call, b"\x90", count))

    @precondition(lambda self: self.groups)
    @rule(back=st.integers(-1, 9))
    def cancel(self, back: int) -> None:
        call = self.caller.last - back
        open_here = call in self.unanswered and not self.outcomes[call]
        told = self.caller.cancel(call)
        assert told is True or (told is False and not open_here), "it goes on until it is answered"

    def left(self) -> set[int]:
        return {call for call in self.unanswered if not self.outcomes[call]}

    def ended(self, due: set[int], ended: list[Ended[int]], kind: type[Exception]) -> None:
        assert sorted(each.call for each in ended) == sorted(due)
        for each in ended:
            assert each.token == self.first(each.call)
            outcome = each.outcome.outcome if isinstance(each.outcome, Part) else each.outcome
            assert isinstance(outcome, kind)
            assert not isinstance(each.outcome, Part) or each.outcome.first == each.call - each.token
            self.note(each.token, each.outcome)

    @rule(passed=st.sampled_from([0.1, 1.0, 6.0]), sent=st.sampled_from([True, True, True, False]))
    def expire(self, passed: float, sent: bool) -> None:
        self.now += passed
        due = {call for call in self.left() if self.ends[self.first(call)] <= self.now}
        self.ended(due, self.caller.expire(self.now, sent=sent), CallTimeout)
        if not sent:  # their places are free
            self.unanswered -= due

    @rule()
    def end(self) -> None:
        self.ended(self.left(), self.caller.end("killed", sent=True), NodeDied)
        self.unanswered = set()

    @invariant()
    def the_tables_hold_what_is_open_and_nothing_else(self) -> None:
        left = self.left()
        assert len(self.caller) == len(set(map(self.first, left)))
        assert self.caller.used == len(self.unanswered)
        assert 0 <= self.caller._used <= sum(self.sizes[first] for first in set(map(self.first, self.unanswered)))
        assert self.caller._used >= sum(self.sizes[first] for first in set(map(self.first, left)))
        assert self.caller.next_deadline() == min((self.ends[self.first(call)] for call in left), default=None)
        assert self.caller._groups == sorted({first for first in map(self.first, left) if self.groups[first] > 1})
        assert all(number == 1 for number in self.outcomes.values())

    def teardown(self) -> None:
        while self.unanswered:
            self.answer(0, 3, Results)
        assert (len(self.caller), self.caller.used, self.caller._used, self.caller._late) == (0, 0, 0, {})
        assert all(self.outcomes[call] == 1 for call in range(1, self.caller.last + 1))


Groups.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestGroups = Groups.TestCase


def test_a_failure_of_one_of_them_says_whether_it_ran() -> None:
    caller: Caller[str] = Caller()
    first = asked(2, caller).call
    part = told(caller, Failure(first + 1, 5, "shutting down", False))
    assert part is not None
    assert isinstance(part.outcome, Refused)
    assert part.outcome.executed is False
