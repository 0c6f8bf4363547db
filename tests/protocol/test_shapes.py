"""What types tell of themselves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.annotations import Reader
from pyzmp.protocol.schema import Type
from pyzmp.protocol.shapes import LONGEST, Items, Record, Scalar, Shape, read, shape_of


class Pair(NamedTuple):
    left: int
    right: str = ""


@dataclass
class Tree:
    value: float
    trees: list[Tree] = field(default_factory=list)


@pytest.mark.parametrize(("annotation", "text"), [
    (int, "int"), (Any, "Any"), (None, "None"), (list, "list[Any]"), (tuple[int, ...], "tuple[int, ...]"),
    (tuple[()], "tuple[()]"), (Pair, "tuple[int, str]"), (dict[str, int | None], "dict[str, int | None]"),
    (Literal[1, "a"], "Literal[1, 'a']"), (Tree, "Tree"), (NDArray[np.uint8], "NDArray[uint8]"),
    (np.ndarray, "ndarray"), (np.float32, "numpy.float32"), (Annotated[int, "said only"], "int"),
    (Annotated[int, msgspec.Meta(lt=9, ge=1, description="few")], "int with ge=1 with lt=9"),
])
def test_a_shape_reads_like_its_type(annotation: Any, text: str) -> None:
    shape = read(Type.of(annotation).shape)
    assert shape.text(shape.root) == text


def test_a_record_is_told_once_though_it_is_in_itself() -> None:
    shape = read(shape_of(Reader("it").read(Tree)))
    assert shape.root == Record(0)
    (tree,) = shape.records
    assert [(each.name, each.form, each.required) for each in tree.fields] == [
        ("value", Scalar("float"), True), ("trees", Items("list", Record(0)), False)]


def test_a_shape_is_the_same_in_another_interpreter() -> None:
    program = ("from enum import Enum\nfrom typing import Literal\nfrom pyzmp.protocol.schema import Type\n"
               "class A(Enum):\n    B = 'b'\n    C = 2\n"
               "print(Type.of(dict[str, set[A | None] | tuple[Literal['x', 1], float]]).shape.hex())")
    said = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(said) == 1


def test_what_is_too_long_is_not_told() -> None:
    assert Type.of(Literal[tuple(range(10_000))]).shape == b""  # type: ignore[misc]
    assert Type.of(Literal["x" * LONGEST]).shape == b""
    assert Type.of(Literal[b"x" * LONGEST]).shape == b""


@pytest.mark.parametrize("data", [
    b"", b"\xc0", b"\x90", b"\x92\x92\xa1s\xa3int", msgspec.msgpack.encode([["z", "int"], []]),
    msgspec.msgpack.encode([["i", "deque", ["s", "int"]], []]), msgspec.msgpack.encode([["r", -1], []]),
    b"\x92" + b"\x93\xa1i\xa4list" * 2000, b"x" * (LONGEST + 1),
])
def test_what_is_no_shape_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read(data)


def test_a_record_that_is_not_there_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="names its record 0, and has 0"):
        Shape(Record(0), ()).text(Record(0))


def test_what_was_sent_is_shown_on_one_line() -> None:
    shape = Shape(Scalar("a\nb\x1b" + "c" * 100), ())
    assert shape.text(shape.root) == "a?b?" + "c" * 75 + "…"
