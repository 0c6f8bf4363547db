"""What cannot travel is found, named, and placed."""

from __future__ import annotations

from typing import Any

import pytest

from pyzmp.exceptions import CannotTravel
from pyzmp.protocol.blame import blame


def refuses_functions(value: Any) -> Any:
    if callable(value):
        raise TypeError("")
    return value


@pytest.mark.parametrize(("value", "path"), [
    ([1, {"a": (2, len)}], "arguments[1]['a'][1]"),
    ({len: 1}, "arguments key of type builtin_function_or_method"),
    ({3: [len]}, "arguments[3][0]"),
    (({1, len},), "arguments[0] item of type builtin_function_or_method"),
])
def test_the_first_part_that_cannot_travel_is_named(value: Any, path: str) -> None:
    with pytest.raises(CannotTravel) as raised:
        blame(value, "arguments", TypeError(), refuses_functions)
    assert (raised.value.path, raised.value.type_name) == (path, "builtin_function_or_method")
    assert str(raised.value).endswith("send plain data, a dataclass or a numpy array instead")


def test_where_no_part_is_at_fault_the_whole_is() -> None:
    with pytest.raises(CannotTravel, match="arguments: a value of type list cannot travel between nodes: too long"):
        blame([1], "arguments", ValueError("too long"), refuses_functions)


def test_a_value_in_itself_ends_the_search() -> None:
    value: list[Any] = []
    value += [value, value]
    with pytest.raises(CannotTravel, match="nested deeper than 64 levels, or in itself"):
        blame(value, "arguments", RecursionError(), refuses_functions)
