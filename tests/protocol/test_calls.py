"""Each call gets exactly one outcome, whatever comes in whatever order, and nothing is left in the table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyzmp.exceptions import (
    CallError,
    CallTimeout,
    Cancelled,
    DeadlockError,
    InvalidCall,
    NodeDied,
    Overloaded,
    Refused,
    UnknownService,
)
from pyzmp.protocol import failure
from pyzmp.protocol.calls import SLACK, Ask, Callee, Caller, Outcome, Result, refuse, unknown
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Code, End, Failure, Parcel, Reply, Request


def ask(at: float = 10.0) -> Ask:
    return Ask("kitchen", "celsius", b"body", (), Deadline(at), 5.0)


class Calls(RuleBasedStateMachine):
    """One session: calls are opened, answered, repeated, given up, expire, and the session ends."""

    def __init__(self) -> None:
        super().__init__()
        self.caller: Caller[int] = Caller()
        self.now = 0.0
        self.sent = False
        self.tokens = 0
        self.numbers: dict[int, int] = {}  # of a call, its token
        self.deadlines: dict[int, float] = {}
        self.given_up: set[int] = set()
        self.outcomes: Counter[int] = Counter()

    def note(self, token: int, outcome: Outcome, *, answered: bool = False) -> None:
        self.outcomes[token] += 1
        assert isinstance(outcome, (Result, Exception))
        if isinstance(outcome, CallError) and outcome.executed is False and not answered:
            assert not self.sent

    def due(self) -> set[int]:
        return {token for token in self.deadlines if self.outcomes[token] == 0 and token not in self.given_up}

    @rule(timeout=st.sampled_from([0.5, 1.0, 5.0, 60.0]))
    def open(self, timeout: float) -> None:
        self.tokens += 1
        request = self.caller.open(ask(self.now + timeout), self.tokens, self.now)
        assert request.call not in self.numbers
        assert request.remaining == pytest.approx(timeout)
        self.numbers[request.call] = self.tokens
        self.deadlines[self.tokens] = self.now + timeout

    @rule()
    def leave(self) -> None:
        self.sent = True

    @precondition(lambda self: self.numbers)
    @rule(data=st.data(), code=st.sampled_from([0, *range(1, 9)]))
    def answer(self, data: st.DataObject, code: int) -> None:
        """Answer a call: open, ended or given up."""
        call = data.draw(st.sampled_from(sorted(self.numbers)))
        token = self.numbers[call]
        message = Failure(call, code, "no", False) if code else Reply(call, b"r")
        answer = self.caller.receive(Parcel(message))
        if token in self.due():
            assert answer is not None
            assert answer[0] == token
            self.note(*answer, answered=True)
        else:
            assert answer is None

    @rule(call=st.integers(-5, 2 ** 40).filter(lambda call: not 1 <= call <= 10_000))
    def answer_for_nobody(self, call: int) -> None:
        stray = self.caller.stray
        assert self.caller.receive(Parcel(Reply(call, b""))) is None
        assert self.caller.receive(Parcel(End(call))) is None
        assert self.caller.stray == stray + 2

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.numbers)))
        token = self.numbers[call]
        assert self.caller.forget(call) == (token in self.due())
        if self.outcomes[token] == 0:
            self.given_up.add(token)

    @rule(passed=st.sampled_from([0.1, 1.0, 30.0]))
    def expire(self, passed: float) -> None:
        self.now += passed
        over = {token for token in self.due() if self.deadlines[token] <= self.now}
        ended = self.caller.expire(self.now, sent=self.sent)
        assert {token for token, _ in ended} == over
        assert all(isinstance(outcome, CallTimeout) for _, outcome in ended)
        for token, outcome in ended:
            self.note(token, outcome)

    @rule()
    def end(self) -> None:
        over = self.due()
        ended = self.caller.end("killed", sent=self.sent)
        assert {token for token, _ in ended} == over
        for token, outcome in ended:
            assert isinstance(outcome, NodeDied)
            self.note(token, outcome)

    @invariant()
    def nobody_is_told_twice(self) -> None:
        assert all(count == 1 for count in self.outcomes.values())
        assert not self.given_up & set(self.outcomes)

    @invariant()
    def the_table_holds_what_is_open_and_nothing_else(self) -> None:
        due = self.due()
        assert len(self.caller) == len(due)
        assert self.caller.next_deadline() == min((self.deadlines[token] for token in due), default=None)

    def teardown(self) -> None:
        self.end()
        assert len(self.caller) == 0
        assert self.caller.next_deadline() is None
        assert all(self.outcomes[token] == 1 or token in self.given_up for token in range(1, self.tokens + 1))


Calls.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestCalls = Calls.TestCase


def test_answered_calls_behind_one_that_stays_open_leave_the_table() -> None:
    caller: Caller[str] = Caller()
    caller.open(ask(1.0), "slow", 0.0)
    for _ in range(10 * SLACK):
        request = caller.open(ask(10.0), "fast", 0.0)
        assert caller.receive(Parcel(Reply(request.call, b""))) is not None
    assert len(caller._order) <= SLACK + 3
    assert [token for token, _ in caller.expire(1.0)] == ["slow"]


@pytest.mark.parametrize(("sent", "executed"), [(True, None), (False, False)])
def test_a_lost_call_says_whether_it_may_have_run(sent: bool, executed: bool | None) -> None:
    caller: Caller[str] = Caller()
    caller.open(ask(1.0), "late", 0.0)
    caller.open(ask(9.0), "dead", 0.0)
    outcomes: list[Any] = [outcome for _, outcome in [*caller.expire(1.0, sent=sent), *caller.end("killed", sent=sent)]]
    assert [type(outcome) for outcome in outcomes] == [CallTimeout, NodeDied]
    assert [outcome.executed for outcome in outcomes] == [executed, executed]
    assert all((outcome.service, outcome.node) == ("celsius", "kitchen") for outcome in outcomes)


@pytest.mark.parametrize(("code", "kind"), [
    (Code.UNKNOWN_SERVICE, UnknownService), (Code.INVALID_CALL, InvalidCall), (Code.OVERLOADED, Overloaded),
    (Code.REFUSED, Refused), (Code.DEADLOCK, DeadlockError), (Code.CANCELLED, Cancelled), (99, CallError)])
def test_each_code_has_its_error(code: int, kind: type[CallError]) -> None:
    caller: Caller[str] = Caller()
    request = caller.open(ask(), "token", 0.0)
    answer = caller.receive(Parcel(refuse(request.call, code, "because")))
    assert answer is not None
    error = answer[1]
    assert type(error) is kind
    assert str(error) == "because"
    assert isinstance(error, CallError)
    assert error.executed is False


@pytest.mark.parametrize("argument", [None, "n", "größe"])
def test_the_argument_that_does_not_fit_is_named_at_the_caller(argument: str | None) -> None:
    caller: Caller[str] = Caller()
    request = caller.open(ask(), "token", 0.0)
    answer = caller.receive(Parcel(refuse(request.call, Code.INVALID_CALL, "because", argument=argument)))
    assert answer is not None
    error = answer[1]
    assert isinstance(error, InvalidCall)
    assert error.argument == argument


def test_what_the_service_raised_is_rebuilt() -> None:
    caller: Caller[str] = Caller()
    request = caller.open(ask(), "token", 0.0)
    body = failure.describe(KeyError("key"), node="kitchen", service="celsius")
    answer = caller.receive(Parcel(Failure(request.call, Code.RAISED, executed=True, body=body)))
    assert answer is not None
    assert repr(answer[1]) == "KeyError('key')"


@given(st.lists(st.integers(-3, 10), max_size=30))
def test_no_call_starts_twice(calls: list[int]) -> None:
    callee = Callee()
    started = [call for call in calls if callee.fresh(Request(call, "n", "s", 1.0, b""))]
    assert len(set(started)) == len(started)
    assert started == sorted(started)
    assert callee.repeated == len(calls) - len(started)


def test_the_nearest_name_is_offered() -> None:
    assert unknown("celsus", ["celsius", "log"], "here") == "nobody provides 'celsus' here; did you mean 'celsius'?"
    assert unknown("zzz", ["celsius"], "here") == "nobody provides 'zzz' here"
