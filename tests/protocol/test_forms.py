"""The rules for single values."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest

from pyzmp.protocol.forms import SCALARS, Mismatch, part, shown


class Size(IntEnum):
    BIG = 3


class Word(str, Enum):
    YES = "yes"


@pytest.mark.parametrize(("kind", "value", "becomes"), [
    (int, Size.BIG, 3), (str, Word.YES, "yes"), (float, 2, 2.0), (complex, 2.5, 2.5 + 0j), (int, np.uint8(4), 4),
    (float, np.float16(0.5), 0.5), (float, np.int64(2), 2.0),
])
def test_a_near_relative_becomes_the_type_itself(kind: type, value: Any, becomes: Any) -> None:
    made = SCALARS[kind].convert(value)
    assert (type(made), made) == (kind, becomes)


@pytest.mark.parametrize(("kind", "value"), [
    (int, True), (int, 1.0), (int, np.float64(1)), (int, np.bool_(True)), (float, True), (float, "1"), (bool, 0),
    (bool, np.bool_(True)), (None, 0), (str, b""), (bytes, ""), (complex, True), (bytearray, [1])])
def test_nothing_else_does(kind: Any, value: Any) -> None:
    with pytest.raises(Mismatch):
        SCALARS[kind].convert(value)


def test_large_buffers_are_not_copied_to_look_at_them() -> None:
    data = bytearray(100)
    assert SCALARS[bytes].convert(data) is data
    assert SCALARS[bytearray].convert(data) is data


def test_the_path_grows_from_the_inside() -> None:
    with pytest.raises(Mismatch) as raised:
        part(SCALARS[int], "x", "[0]")
    raised.value.parts.append(".points")
    assert raised.value.path == ".points[0]"


def test_what_is_shown_runs_nothing_of_the_value() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise ZeroDivisionError
    assert [shown(value) for value in (Loud(), 10**5000, "a" * 99, None)] == ["Loud", "int", "'" + "a" * 39, "None"]
