"""The judge of the campaigns: each wrong history is found to be wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from tests.campaigns.history import History, judge, note, opened, share


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "book")


def started(history: History, *numbers: int) -> None:
    book = opened(history.book)
    for number in numbers:
        note(book, number)
    os.close(book)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise error
    return call


def test_a_right_history_has_no_faults(history: History) -> None:
    history.blocking(lambda number: number)
    for executed, _ in ((None, 1), (None, 0), (False, 0)):
        history.blocking(raising(pyzmp.NodeDied("gone", executed=executed)))
    started(history, 1, 2)
    assert history.faults() == []
    assert history.starts() == {1: [os.getpid()], 2: [os.getpid()]}
    assert history.kinds() == "3 NodeDied, 1 result"


@pytest.mark.parametrize(("outcomes", "starts", "text"), [
    ([], [1], "has not exactly one outcome"),
    ([7, 7], [1], "has not exactly one outcome"),
    ([7, pyzmp.NodeDied("gone")], [1], "has not exactly one outcome"),
    ([7], [1, 1], "was started more than once"),
    ([7], [], "did not start, and its outcome says that it did"),
    ([pyzmp.RemoteError("ValueError", "bad")], [], "did not start, and its outcome says that it did"),
    ([pyzmp.NodeDied("gone", executed=False)], [1], "started, and its error says that it did not"),
    ([ValueError("what")], [1], "no error of a call"),
    ([7], [1, 2], "call 2 was started and never made"),
])
def test_a_wrong_history_has_a_fault(outcomes: list[Any], starts: list[int], text: str, history: History) -> None:
    call = history.made("future")
    for outcome in outcomes:
        call.ended(outcome)
    started(history, *starts)
    (fault,) = history.faults()
    assert text in fault
    with pytest.raises(AssertionError, match="1 faults"):
        judge([fault])


def test_shares_are_values_that_were_seen() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [share(values, part) for part in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
