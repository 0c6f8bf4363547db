"""Whether a call is tried again, when, and what its caller is told in the end."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyzmp.exceptions import (
    CallError,
    CallTimeout,
    Cancelled,
    CannotTravel,
    DeadlockError,
    InvalidCall,
    NodeDied,
    Overloaded,
    Refused,
    RemoteError,
    UnknownService,
)
from pyzmp.protocol.retry import ATTEMPTS, Attempts, Budget, Policy

MIDDLE = 0.5  # the chance of no jitter


class OfAUser(Refused):
    """What a service may raise: a subclass of ours."""


def lost() -> NodeDied:
    return NodeDied("'a' is gone", executed=None)


def unreached() -> NodeDied:
    return NodeDied("'a' was not there", executed=False)


def full(retry_after: float | None = None) -> Overloaded:
    error = Overloaded("'a' is full")
    error.retry_after = retry_after
    return error


FLEETING = [unreached, full, lambda: Refused("leaves"), lambda: UnknownService("withdrawn")]
LASTING: list[Any] = [
    lambda: InvalidCall("no"), lambda: DeadlockError("circle"), lambda: CannotTravel("lock", "arguments[0]"),
    lambda: Cancelled("given up", executed=False), lambda: CallTimeout("late", executed=False),
    lambda: CallTimeout("late", executed=None), lambda: RemoteError("ValueError", "no"), lambda: ValueError("no"),
    lambda: OfAUser("no"), lambda: ConnectionError("no"),
    lambda: Overloaded("or not", executed=None), lambda: CallError("something", executed=False),
]


def attempts(budget: Budget | None = None, **policy: Any) -> Attempts:
    made = Attempts(Policy(**policy), Budget() if budget is None else budget)
    made.begin("a")
    return made


def spent() -> Budget:
    budget = Budget()
    while budget.spend():
        pass
    return budget


# -- what is tried again -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error", FLEETING)
def test_what_did_not_run_is_tried_at_another_provider_at_once(error: Any) -> None:
    call = attempts()
    assert call.after(error(), True, 5.0, MIDDLE) == 0.0
    assert not call.same
    assert call.tried == {"a"}


@pytest.mark.parametrize("error", FLEETING)
def test_what_did_not_run_is_not_tried_twice_at_the_same_provider_unless_that_was_asked_for(error: Any) -> None:
    assert attempts().after(error(), False, 5.0, MIDDLE) is None
    assert attempts(attempts=2).after(error(), False, 5.0, MIDDLE) == 0.05
    assert attempts(idempotent=True).after(error(), False, 5.0, MIDDLE) == 0.05
    assert attempts(deduplicates=True).after(error(), False, 5.0, MIDDLE) == 0.05


@pytest.mark.parametrize("error", LASTING)
@pytest.mark.parametrize("policy", [{"attempts": 9}, {"idempotent": True}, {"deduplicates": True}, {"wait": True}])
def test_other_errors_are_final(error: Any, policy: Any) -> None:
    assert attempts(**policy).after(error(), True, 5.0, MIDDLE) is None


def test_what_may_have_run_is_tried_again_only_where_it_may_run_twice() -> None:
    assert attempts(attempts=9).after(lost(), True, 5.0, MIDDLE) is None
    begun = NodeDied("its node has ended", executed=True)
    assert attempts(attempts=9).after(begun, True, 5.0, MIDDLE) is None
    assert attempts(idempotent=True).after(begun, True, 5.0, MIDDLE) == 0.0
    call = attempts(idempotent=True)
    assert call.after(lost(), True, 5.0, MIDDLE) == 0.0
    assert not call.same


def test_a_service_that_knows_its_duplicates_is_asked_again_at_the_same_node() -> None:
    call = attempts(deduplicates=True, attempts=9)
    assert call.after(lost(), True, 5.0, MIDDLE) == 0.05
    assert call.same
    assert call.after(full(), True, 5.0, MIDDLE) == 0.1, "it may have run there before"
    assert call.same
    assert call.after(unreached(), True, 5.0, MIDDLE) == 0.2
    assert call.same
    assert call.after(Refused("started again since"), True, 5.0, MIDDLE) is None


def test_a_waiting_call_that_may_have_run_stays_at_its_node() -> None:
    call = attempts(deduplicates=True, wait=True)
    assert call.after(lost(), True, 5.0, MIDDLE) == 0.05
    assert call.after(full(), True, 5.0, MIDDLE) == 0.1
    assert call.same


def test_an_idempotent_service_may_be_asked_anywhere_even_if_it_knows_its_duplicates() -> None:
    call = attempts(deduplicates=True, idempotent=True)
    assert call.after(lost(), True, 5.0, MIDDLE) == 0.0
    assert not call.same


# -- how often, and after which pauses -----------------------------------------------------------------------------

@pytest.mark.parametrize(("given", "made"), [(None, ATTEMPTS), (1, 1), (2, 2), (5, 5)])
def test_there_are_so_many_attempts_in_all(given: int | None, made: int) -> None:
    call = attempts(attempts=given)
    assert [call.after(unreached(), True, 5.0, MIDDLE) for _ in range(made)] == [*[0.0] * (made - 1), None]


def test_pauses_double_up_to_a_second() -> None:
    call = attempts(attempts=100)
    pauses = [call.after(unreached(), False, 5.0, MIDDLE) for _ in range(5)]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8]
    waiting = attempts(wait=True)
    assert [waiting.after(full(), False, 5.0, MIDDLE) for _ in range(2000)][5:] == [1.0] * 1995


def test_a_turn_at_another_provider_makes_no_pause_longer() -> None:
    call = attempts(attempts=9)
    assert [call.after(full(), others, 5.0, MIDDLE) for others in (True, True, False)] == [0.0, 0.0, 0.05]


@given(chance=st.floats(0, 1, exclude_max=True))
def test_jitter_is_a_fifth_either_way(chance: float) -> None:
    pause = attempts(attempts=2).after(unreached(), False, 5.0, chance)
    assert pause == pytest.approx(0.05 * (0.8 + 0.4 * chance))


def test_a_node_without_room_is_given_the_time_that_it_asks_for() -> None:
    assert attempts(attempts=2).after(full(0.7), False, 5.0, MIDDLE) == 0.7
    assert attempts(attempts=2).after(full(0.01), False, 5.0, MIDDLE) == 0.05
    assert attempts(attempts=2).after(full(math.nan), False, 5.0, MIDDLE) == 0.05


@pytest.mark.parametrize("left", [0.0, 0.04, 0.05])
def test_a_pause_that_leaves_no_time_is_not_made(left: float) -> None:
    budget = Budget()
    assert attempts(budget, attempts=2).after(unreached(), False, left, MIDDLE) is None
    assert attempts(budget, attempts=2, wait=True).after(full(), False, left, MIDDLE) is None
    assert [budget.spend() for _ in range(6)] == [True] * 5 + [False], "and costs nothing"
    assert attempts(attempts=2).after(full(math.inf), False, 5.0, MIDDLE) is None


@pytest.mark.parametrize("wait", [False, True])
def test_nothing_is_tried_after_the_deadline(wait: bool) -> None:
    assert attempts(wait=wait).after(full(), True, 0.0, MIDDLE) is None


# -- waiting for a place -------------------------------------------------------------------------------------------

def test_waiting_for_a_place_is_no_attempt_and_costs_nothing() -> None:
    call = attempts(spent(), wait=True)
    assert [call.after(full(0.3), False, 5.0, MIDDLE) for _ in range(4)] == [0.3, 0.3, 0.3, 0.4]
    assert call.after(full(), True, 5.0, MIDDLE) == 0.0, "another provider may have room at once"
    error = full()
    assert call.final(error) is error
    assert str(error) == "'a' is full", "there was one attempt only"


def test_a_single_attempt_waits_nonetheless() -> None:
    call = attempts(attempts=1, wait=True)
    assert call.after(full(), True, 5.0, 0.0) == 0.05
    assert call.after(unreached(), True, 5.0, MIDDLE) is None


def test_who_waits_for_a_place_uses_the_time_until_the_deadline() -> None:
    call, left, asked = attempts(wait=True), 5.0, 0
    while (pause := call.after(full(0.001), False, left, MIDDLE)) is not None:
        assert 0.05 <= pause < left
        left -= pause
        asked += 1
    assert left <= 0.05
    assert asked < 15


# -- the budget ----------------------------------------------------------------------------------------------------

def test_a_budget_allows_a_burst_and_then_a_tenth() -> None:
    budget = Budget()
    assert [budget.spend() for _ in range(7)] == [True] * 5 + [False] * 2
    budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]
    for _ in range(10):
        assert not budget.spend()
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]


@given(st.lists(st.booleans(), max_size=400))
def test_a_budget_lets_no_more_pass_than_a_tenth_of_the_results_beside_the_first(spends: list[bool]) -> None:
    budget, results, retries = Budget(), 0, 0
    for spend in spends:
        if spend:
            retries += budget.spend()
        else:
            budget.earn()
            results += 1
        assert retries <= 5 + math.ceil(results / 10)


def test_results_fill_a_budget_no_further_than_it_was_at_first() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(6)] == [True] * 5 + [False]


@pytest.mark.parametrize("others", [True, False])
def test_without_a_budget_an_error_is_final(others: bool) -> None:
    assert attempts(spent(), attempts=9).after(unreached(), others, 5.0, MIDDLE) is None
    budget = Budget()
    assert attempts(budget, attempts=9).after(unreached(), others, 5.0, MIDDLE) is not None
    assert [budget.spend() for _ in range(5)] == [True] * 4 + [False]


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "3"])
def test_a_number_of_attempts_that_cannot_be_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=r"attempts: expected a whole number from 1, got "):
        Policy(attempts=number)


# -- the error in the end ------------------------------------------------------------------------------------------

def test_the_only_attempt_ends_with_its_error_as_it_is() -> None:
    call, error = attempts(), unreached()
    assert call.after(error, False, 5.0, MIDDLE) is None
    assert call.final(error) is error
    assert (str(error), error.executed, error.__cause__) == ("'a' was not there", False, None)


def test_the_last_error_tells_of_the_attempts_before() -> None:
    call, first, second, last = attempts(), unreached(), Refused("leaves"), full()
    call.after(first, True, 5.0, MIDDLE)
    call.begin("b")
    call.after(second, True, 5.0, MIDDLE)
    call.begin("c")
    assert call.tried == {"a", "b", "c"}
    assert call.after(last, True, 5.0, MIDDLE) is None
    assert call.final(last) is last
    assert str(last) == "'a' is full (this was attempt 3; attempt 2 ended with Refused: leaves)"
    assert last.executed is False
    assert last.__cause__ is second
    assert second.__cause__ is first


def test_a_call_whose_earlier_attempt_may_have_run_never_says_that_it_did_not() -> None:
    call, last = attempts(idempotent=True), UnknownService("withdrawn")
    call.after(lost(), True, 5.0, MIDDLE)
    call.after(unreached(), True, 5.0, MIDDLE)
    assert call.final(last) is last
    assert last.executed is None
    assert str(last) == ("withdrawn (this was attempt 3; attempt 2 ended with NodeDied: 'a' was not there); "
                         "an earlier attempt may have run")


def test_nor_does_one_that_found_nobody_to_try_again_at() -> None:
    call, last = attempts(idempotent=True), unreached()
    call.after(lost(), False, 5.0, MIDDLE)
    call.after(last, False, 5.0, MIDDLE)
    assert call.final(last) is last
    assert last.executed is None
    assert str(last) == "'a' was not there; an earlier attempt may have run"


@pytest.mark.parametrize("error", [CallTimeout("late", executed=False), Cancelled("given up", executed=False)])
def test_a_call_that_ends_in_a_pause_is_no_less_unsure(error: CallError) -> None:
    call = attempts(idempotent=True)
    call.after(lost(), False, 5.0, MIDDLE)
    call.final(error)
    assert error.executed is None


def test_what_the_service_raised_stays_as_it_is() -> None:
    for error in (RemoteError("ValueError", "no"), ValueError("no")):
        call, text, first = attempts(), str(error), full()
        call.after(first, True, 5.0, MIDDLE)
        assert call.final(error) is error
        assert str(error) == text
        assert error.__cause__ is first


def test_a_cause_that_is_known_is_kept() -> None:
    call, last, cause = attempts(), full(), OSError("no descriptors")
    last.__cause__ = cause
    call.after(unreached(), True, 5.0, MIDDLE)
    assert call.final(last).__cause__ is cause
    call, same = attempts(), full()
    call.after(same, True, 5.0, MIDDLE)
    assert call.final(same).__cause__ is None, "no error is its own cause"


# -- in general ----------------------------------------------------------------------------------------------------

POLICIES = st.builds(Policy, st.none() | st.integers(1, 5), st.booleans(), st.booleans(), st.booleans())
ERRORS = st.sampled_from([*FLEETING, lost, *LASTING]).map(lambda make: make())


@given(POLICIES, st.lists(st.tuples(ERRORS, st.booleans(), st.floats(0, 5), st.floats(0, 1, exclude_max=True))))
def test_no_call_is_made_where_it_must_not_be(policy: Policy, ends: list[tuple[Any, bool, float, float]]) -> None:
    assume(ends)
    call, made, maybe = Attempts(policy, Budget()), 0, False
    for count, (error, others, left, chance) in enumerate(ends):
        call.begin(str(count))
        waits = policy.wait and isinstance(error, Overloaded)
        made += not waits
        pause = call.after(error, others, left, chance)
        if pause is None:
            break
        assert 0 <= pause < left
        assert made < (policy.attempts or ATTEMPTS) or waits
        assert pause == 0 or pause >= 0.04
        maybe = maybe or error.executed is None
        assert not maybe or policy.idempotent or policy.deduplicates
        assert call.same == (maybe and not policy.idempotent)
        assert pause > 0 or (others and not call.same)
        assert pause == 0 or waits or policy != Policy(wait=policy.wait), "nobody is asked again by default"
    last = call.final(error)
    assert last is error
    assert not maybe or getattr(last, "executed", None) is not False
