"""A timeout becomes a deadline once, and nonsense is refused."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.protocol.deadline import Deadline, seconds


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, 10 ** 400, -(10 ** 400)])
def test_no_deadline_is_made_of_zero_negative_or_endless(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout: expected a positive, finite number of seconds"):
        Deadline.after(timeout, 0.0)


@pytest.mark.parametrize("timeout", [None, "1", b"1", True, False, 1j, Decimal(1), [1]])
def test_only_numbers_are_timeouts(timeout: object) -> None:
    with pytest.raises(TypeError, match="attempts: expected a number of seconds"):
        seconds(timeout, "attempts")


def test_an_integer_is_as_good_as_a_float() -> None:
    assert isinstance(seconds(3), float)
    assert Deadline.after(3, 10.0) == Deadline(13.0)


@given(st.floats(1e-6, 1e9), st.floats(0, 1e6), st.floats(0, 1e10))
def test_a_deadline_is_over_exactly_when_nothing_remains(timeout: float, now: float, later: float) -> None:
    deadline = Deadline.after(timeout, now)
    assert deadline.expired(later) == (deadline.remaining(later) == 0.0)
    assert 0.0 <= deadline.remaining(later) <= max(0.0, deadline.at)


def test_a_deadline_cannot_be_moved() -> None:
    with pytest.raises(AttributeError):
        Deadline(1.0).at = 2.0  # type: ignore[misc]
