"""What ``pyzmp bench`` measures does what it says; the command's test shows it at work."""

from __future__ import annotations

import pytest

from pyzmp import bench
from pyzmp.exceptions import PyzmpError


def test_a_work_that_gives_the_right_result_is_timed() -> None:
    calls: list[int] = []
    assert bench._timed(4, lambda: calls.append(1) or 14)() > 0
    assert calls == [1]


@pytest.mark.parametrize(("expected", "result"), [(None, 13), (4, 3)])
def test_a_wrong_result_is_no_figure(expected: int | None, result: int) -> None:
    with pytest.raises(PyzmpError, match=f"expected {14 if expected is None else expected}, got {result}"):
        bench._timed(4, lambda: result, expected)()


def test_services_of_the_other_process_run_as_plain_methods() -> None:
    assert bench.Other().add(2, 3) == 5
