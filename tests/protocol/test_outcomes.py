"""What a call asks, and how it may end."""

from __future__ import annotations

import pytest

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
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Code, Failure, Lane
from pyzmp.protocol.outcomes import (
    PAUSE,
    Ask,
    cancelled,
    closes,
    died,
    failed,
    overloaded,
    refuse,
    timed_out,
    unknown,
)

ASK = Ask("kitchen", "celsius", b"body", (), Deadline(10.0), 5.0)
CHAIN = (Lane("l1", "a() of 'A'"), Lane("l2", "b() of 'B'"), Lane("l3", "c() of 'C'"))


@pytest.mark.parametrize(("sent", "placed", "executed", "text"), [
    (True, True, None, "gave no answer in 5 s; whether it ran is unknown"),
    (False, True, False, "it was not sent: the connection did not open"),
    (False, False, False, "it was not sent: it waited for a place in the window")])
def test_a_timeout_says_whether_the_call_may_have_run(sent: bool, placed: bool, executed: bool | None,
                                                      text: str) -> None:
    error = timed_out(ASK, sent=sent, placed=placed)
    assert type(error) is CallTimeout
    assert (error.executed, error.service, error.node) == (executed, "celsius", "kitchen")
    assert text in str(error)


@pytest.mark.parametrize(("executed", "text"), [
    (True, "it had begun"), (None, "whether it ran is unknown"), (False, "it did not run")])
def test_the_end_of_a_session_says_why_and_whether_the_call_ran(executed: bool | None, text: str) -> None:
    error = died(ASK, "killed", executed=executed)
    assert type(error) is NodeDied
    assert (error.executed, error.service, error.node) == (executed, "celsius", "kitchen")
    assert str(error) == f"'kitchen' is gone (killed) before celsius() was answered; {text}"


def test_what_was_not_sent_did_not_run() -> None:
    full = overloaded(ASK, "3 calls are under way")
    for error, kind in ((cancelled(ASK), Cancelled), (full, Overloaded)):
        assert type(error) is kind
        assert (error.executed, error.service, error.node) == (False, "celsius", "kitchen")
    assert full.retry_after == PAUSE
    assert "3 calls are under way; try again in 0.05 s, or call it with_options(wait=True)" in str(full)
    assert overloaded(ASK, "full", 2.0).retry_after == 2.0


@pytest.mark.parametrize(("loop", "circle"), [("l1", CHAIN), ("l2", CHAIN[1:]), ("l3", CHAIN[2:]), ("l4", ())])
def test_a_circle_is_the_chain_from_the_loop_that_is_called(loop: str, circle: tuple[Lane, ...]) -> None:
    assert closes(CHAIN, loop) == circle
    assert closes((), loop) == ()


@pytest.mark.parametrize(("code", "kind"), [
    (Code.UNKNOWN_SERVICE, UnknownService), (Code.INVALID_CALL, InvalidCall), (Code.OVERLOADED, Overloaded),
    (Code.REFUSED, Refused), (Code.DEADLOCK, DeadlockError), (Code.CANCELLED, Cancelled), (99, CallError)])
def test_each_code_has_its_error(code: int, kind: type[CallError]) -> None:
    error = failed(refuse(1, code, "because"), ASK)
    assert type(error) is kind
    assert isinstance(error, CallError)
    assert (str(error), error.executed, error.service, error.node) == ("because", False, "celsius", "kitchen")


@pytest.mark.parametrize("executed", [True, None, False])
def test_whether_it_ran_is_what_the_node_says(executed: bool | None) -> None:
    error = failed(Failure(1, Code.CANCELLED, "stopped", executed), ASK)
    assert isinstance(error, Cancelled)
    assert error.executed is executed


@pytest.mark.parametrize("argument", [None, "n", "größe"])
def test_the_argument_that_does_not_fit_is_named(argument: str | None) -> None:
    error = failed(refuse(1, Code.INVALID_CALL, "because", argument=argument), ASK)
    assert isinstance(error, InvalidCall)
    assert error.argument == argument


def test_when_to_come_again_is_what_the_node_says() -> None:
    error = failed(refuse(1, Code.OVERLOADED, "full", retry_after=0.25), ASK)
    assert isinstance(error, Overloaded)
    assert error.retry_after == 0.25


def test_what_the_service_raised_is_rebuilt() -> None:
    body = failure.describe(KeyError("key"), node="kitchen", service="celsius")
    error = failed(Failure(1, Code.RAISED, executed=True, body=body), ASK)
    assert repr(error) == "KeyError('key')"


def test_the_nearest_name_is_offered() -> None:
    assert unknown("celsus", ["celsius", "log"], "here") == "nobody provides 'celsus' here; did you mean 'celsius'?"
    assert unknown("zzz", ["celsius"], "here") == "nobody provides 'zzz' here"
