"""Annotations are read into forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import msgspec
import pytest

from pyzmp.exceptions import InvalidAnnotation
from pyzmp.protocol.annotations import Reader, Unresolved, hints_of
from pyzmp.protocol.schema import Type


class Struct(msgspec.Struct):
    a: int
    b: str = "b"


class Needs(TypedDict):
    a: int


@dataclass(frozen=True)
class Frozen:
    a: int
    seen: list[int] = field(default_factory=list)
    twice: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.a)


def test_structs_travel_as_dataclasses_do() -> None:
    form = Reader("it").read(Struct)
    assert form.convert({"a": 1}) == Struct(1)
    assert form.convert(Struct(2)) == Struct(2)
    with pytest.raises(Exception, match="Struct"):
        form.convert({"b": "x"})


def test_a_frozen_dataclass_with_its_own_defaults_is_made() -> None:
    made = Reader("it").read(Frozen).convert({"a": 2})
    assert made == Frozen(2)
    assert made.twice == 4
    assert Reader("it").read(Frozen).convert({"a": 2}).seen is not made.seen


def test_the_required_keys_of_a_typed_dict_are_required() -> None:
    form = Reader("it").read(Needs)
    assert form.convert({"a": 1, "b": 2}) == {"a": 1}
    with pytest.raises(Exception, match="Needs"):
        form.convert({})


def test_where_it_stands_is_in_the_error() -> None:
    @dataclass
    class Outer:
        inner: Any
    Outer.__annotations__["inner"] = "complex | Thing"
    with pytest.raises(Unresolved, match="it: name 'Thing' is not defined"):
        Reader("it").read(Outer)
    assert Reader("it", {"Thing": int}).read(Outer).schema == "record Outer(inner: complex | int)"


def test_annotations_that_are_no_python_are_refused() -> None:
    def wrong(a): ...  # type: ignore[no-untyped-def]
    wrong.__annotations__ = {"a": "1 +"}
    with pytest.raises(InvalidAnnotation, match="it: its annotations cannot be read"):
        hints_of(wrong, "it")


@pytest.mark.parametrize("annotation", [set, frozenset, set[Any], set[tuple[Any, ...]], set[bytearray]])
def test_what_has_no_hash_is_no_member_of_a_set(annotation: Any) -> None:
    given = [b"a"] if annotation == set[bytearray] else [([1],)]
    with pytest.raises(TypeError, match="an item without a hash"):
        Type.of(annotation).convert(given)
