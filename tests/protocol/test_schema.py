"""Signatures: what fits, what is said about what does not, and the type table of the documentation."""

from __future__ import annotations

import asyncio
import functools
import pathlib
import pickle
import re
import subprocess
import sys
import textwrap
import typing
from collections import OrderedDict  # noqa: F401 - cells of the table use it, and what else has this mark
from collections.abc import (  # noqa: F401
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone  # noqa: F401
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal, NamedTuple, Optional, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo  # noqa: F401

import numpy as np
import pytest
from numpy.typing import NDArray

from pyzmp.exceptions import InvalidAnnotation, InvalidCall, MalformedMessage
from pyzmp.protocol.codec import decode, encode
from pyzmp.protocol.schema import Signature, Type, Unresolved

ROOT = pathlib.Path(__file__).parents[2]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Point:
    x: float
    y: float = 0.0


class Mark(NamedTuple):
    at: int
    label: str = ""


class Options(TypedDict, total=False):
    size: int


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and bool(np.array_equal(left, right))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, Point):
        return repr(left) == repr(right)
    return repr(left) == repr(right) if isinstance(left, float | complex | Decimal) else bool(left == right)


def rows() -> list[Any]:
    text = (ROOT / "docs" / "types.md").read_text().partition("## Rules")[0]
    found = [[cell.strip().strip("`").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
             for line in text.splitlines() if line.startswith("| `")]
    return [pytest.param(*row, id=f"{row[0]} as {row[2]}") for row in found]


# --------------------------------------------------------------------------------- the type table of decision 1

@pytest.mark.parametrize(("sent", "bare", "annotation", "annotated"), rows())
def test_every_row_of_the_table_arrives_as_documented(sent: str, bare: str, annotation: str, annotated: str) -> None:
    value, expected, kind, converted = (eval(cell, globals()) for cell in (sent, bare, annotation, annotated))
    checked = Type.of(kind)
    arrived = decode(*encode(value))
    assert same(arrived, expected)
    assert same(checked.convert(arrived), converted)
    assert same(decode(*encode(Type.of(Any).convert(value))), expected)

    def service(argument: Any) -> Any: ...
    service.__annotations__ = {"argument": kind, "return": kind}
    signature = Signature.of(service)
    signature.check("service", [value], {})
    (bound,), _ = signature.bind("service", [arrived], {})
    assert same(bound, converted)
    signature.check_result("service", value)
    assert same(signature.convert_result("service", arrived), converted)


def test_the_table_names_every_type_that_was_promised() -> None:
    kinds = {type(eval(row.values[0], globals())).__name__ for row in rows()}
    assert kinds >= {"NoneType", "bool", "int", "float", "complex", "str", "bytes", "bytearray", "memoryview", "list",
                     "tuple", "set", "frozenset", "dict", "OrderedDict", "datetime", "date", "time", "timedelta",
                     "Decimal", "UUID", "Colour", "Level", "Point", "Mark", "ndarray", "float32", "float64", "int8"}


# ----------------------------------------------------------------------------------------------- what does not fit

class Other(NamedTuple):
    one: int


@dataclass
class Circle:
    middle: Point
    kind: Literal["circle"] = "circle"


@dataclass
class Square:
    middle: Point
    kind: Literal["square"] = "square"


@dataclass
class Tree:
    name: str
    children: list[Tree]
    parent: Tree | None = None


@dataclass
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("odd")


@pytest.mark.parametrize(("annotation", "value", "said"), [
    (int, "7", "value: expected int, got str"),
    (int, True, "value: expected int, got bool"),
    (int, 1.0, "value: expected int, got float"),
    (int, None, "value: expected int, got None"),
    (float, True, "value: expected float, got bool"),
    (float, "1", "value: expected float, got str"),
    (float, 10**400, "value: the number is too large for a float"),
    (bool, 1, "value: expected bool, got int"),
    (bytes, "aGk=", "value: expected bytes, got str"),
    (str, b"a", "value: expected str, got bytes"),
    (datetime, "2024-05-17", "value: expected datetime, got str"),
    (datetime, date(2024, 5, 17), "value: expected datetime, got date"),
    (date, datetime(2024, 5, 17, tzinfo=timezone.utc), "value: expected date, got datetime"),
    (UUID, "x" * 36, "value: expected UUID, got str"),
    (Decimal, "1", "value: expected Decimal, got str"),
    (Decimal, 1, "value: expected Decimal, got int"),
    (timedelta, 5, "value: expected timedelta, got int"),
    (list[int], [1, "a"], "value[1]: expected int, got str"),
    (list[int], "ab", "value: expected list[int], got str"),
    (list[list[int]], [[1], [2, None]], "value[1][1]: expected int, got None"),
    (list[float], [0.5] * 100 + ["x"], "value[100]: expected float, got str"),
    (Sequence[str], "ab", "value: expected list[str], got str"),
    (dict[str, int], {"a": 1.5}, "value['a']: expected int, got float"),
    (dict[str, int], {1: 1}, "value[1]: expected str, got int"),
    (tuple[int, str], (1,), "value: expected tuple[int, str], got 1 items"),
    (tuple[int, str], (1, 2), "value[1]: expected str, got int"),
    (tuple[()], (1,), "value: expected tuple[()], got 1 items"),
    (Colour, "green", "value: expected Colour, got 'green'"),
    (Level, True, "value: expected Level, got True"),
    (Level, 1.0, "value: expected Level, got 1.0"),
    (Literal[1, "a"], True, "value: expected Literal[1, 'a'], got True"),
    (int | None, "x", "value: expected int | None, got str"),
    (bytes | str, 1, "value: expected bytes | str, got int"),
    (complex | float, "1", "value: expected complex | float, got str"),
    (list[int] | None, ["a"], "value[0]: expected int, got str"),
    (Point, {"y": 1.0}, "value: expected Point, got a dict without 'x'"),
    (Point, {"x": "a"}, "value.x: expected float, got str"),
    (Point, Point("a"), "value.x: expected float, got str"),  # type: ignore[arg-type]
    (Point, [1.0, 2.0], "value: expected Point, got list"),
    (list[Point], [Point(1.0), Point(1.0, None)], "value[1].y: expected float, got None"),  # type: ignore[arg-type]
    (Circle | Square, {"kind": "square", "middle": {"x": 1, "y": "b"}}, "value.middle.y: expected float, got str"),
    (Tree, Tree("a", [Tree("b", [Tree(3, [])])]), "value.children[0].children[0].name: expected str, got int"),  # type: ignore[arg-type]
    (Even, {"number": 3}, "value: Even refuses its fields: odd"),
    (Mark, (1, 2), "value.label: expected str, got int"),
    (Options, {"size": "a"}, "value['size']: expected int, got str"),
    (typing.Annotated[int, __import__("msgspec").Meta(gt=5)], 5, "value: expected int >= 6"),
    (NDArray[np.float64], np.zeros(2, "f4"), "value: expected NDArray[float64], got an array of float32"),
    (NDArray[np.float64], [1.0], "value: expected NDArray[float64], got list"),
    (np.float32, 0.5, "value: expected numpy.float32, got float"),
    (float, np.bool_(True), f"value: expected float, got {np.bool_.__name__}"),
], ids=lambda value: re.sub(r"0x\w+", "", repr(value))[:40])
def test_what_does_not_fit_is_said_with_its_place(annotation: Any, value: Any, said: str) -> None:
    with pytest.raises(TypeError) as raised:
        Type.of(annotation).convert(value)
    assert str(raised.value) == said


def test_caller_and_node_agree_on_instances_and_maps() -> None:
    for value in (Point(1.0), Point("a"), Circle(Point(1.0)), Circle(Point(None)), Square(3)):  # type: ignore[arg-type]
        outcomes = []
        for seen in (value, decode(*encode(value))):
            try:
                Type.of(Point | Circle | Square).convert(seen)
                outcomes.append("")
            except TypeError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_two_dataclasses_arrive_as_what_they_were() -> None:
    either = Type.of(Circle | Square | Point | None)
    for value in (Circle(Point(1.0)), Square(Point(2.0)), Point(3.0), None):
        assert either.convert(decode(*encode(value))) == value
        assert either.convert(value) is value


def test_a_recursive_dataclass_is_checked_and_converted() -> None:
    tree = Tree("a", [Tree("b", []), Tree("c", [Tree("d", [])])], Tree("up", []))
    assert Type.of(Tree).convert(decode(*encode(tree))) == tree
    tree.parent = tree
    with pytest.raises(TypeError, match="nested too deep, or in itself"):
        Type.of(Tree).convert(tree)


@dataclass
class Left:
    next: Left | Right | list[Left] | None = None


@dataclass
class Right:
    next: Left | Right | list[Left] | None = None
    side: int = 0


def test_bytes_cannot_make_unions_of_records_take_exponential_time() -> None:
    value: Any = {"next": "wrong"}
    for level in range(60):
        value = {"next": value, "x": 1} if level % 3 else {"next": [value], "side": 1}
    with pytest.raises(TypeError):
        Type.of(Left | Right).convert(value)


def test_nothing_that_is_checked_is_changed() -> None:
    value = {"points": [Point(1, 2), {"x": 3}], "rest": (1, 2)}
    before = repr(value)
    Type.of(dict[str, list[Point] | tuple[float, ...]]).convert(value)
    assert repr(value) == before


def test_a_map_may_have_more_fields_than_its_class() -> None:
    assert Type.of(Point).convert({"x": 1.0, "colour": "red"}) == Point(1.0)


# ------------------------------------------------------------------------------------------ what is refused at once

X = typing.TypeVar("X")


@dataclass
class Holder:
    where: pathlib.Path


class Plain:
    pass


@pytest.mark.parametrize("annotation", [
    X, list[X], typing.Callable[[int], int], pathlib.Path, list[pathlib.Path], typing.Deque[int], Plain, range,  # noqa: UP006
    type, type[int], Holder, set[list[int]], dict[Point, int], set[Point], Generator[int, None, None],
    Iterator[Plain], AsyncIterator[list[Plain]], Iterator[int] | None, list[Iterator[int]], Iterator[Iterator[int]],
    bytes | bytearray, dict[str, float] | Point, Colour | str, Mark | tuple[int, str], Mark | Other, Point | Options
    | dict[str, int], NDArray[np.object_], np.str_, typing.ClassVar[int], 3, ..., np.matrix, list[Point] | list[Tree],
    typing.Annotated[Plain, 1], Exception,
], ids=repr)
def test_an_annotation_that_cannot_be_checked_is_refused(annotation: Any) -> None:
    def measure(self: Any, first: int, second: Any) -> None: ...
    measure.__annotations__["second"] = annotation
    with pytest.raises(InvalidAnnotation) as raised:
        Signature.of(measure, drop_first=True)
    assert str(raised.value).startswith("measure(): argument second")
    assert str(raised.value).endswith("use a dataclass, plain types, or Any")


def test_the_refusal_names_the_field_and_the_annotation() -> None:
    with pytest.raises(InvalidAnnotation, match=r"x\(\): argument a, field Holder.where: Path cannot be checked"):
        Signature.of(named("x", a=list[Holder]))


def named(name: str, **annotations: Any) -> Any:
    def service(a: Any) -> Any: ...
    service.__name__, service.__annotations__ = name, annotations
    return service


def test_a_name_that_is_not_defined_yet_is_unresolved() -> None:
    def later(a: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    with pytest.raises(Unresolved, match=r"later\(\): name 'Missing' is not defined"):
        Signature.of(later)
    assert Signature.of(later, names={"Missing": int}).text == "(a: int) -> None"


@pytest.mark.parametrize(("annotation", "text"), [
    (typing.List, "list"), (typing.Dict[str, int], "dict[str, int]"), (typing.Tuple, "tuple[Any, ...]"),  # noqa: UP006
    (tuple[int, ...], "tuple[int, ...]"), (typing.NewType("Id", int), "int"), (Optional[int], "int | None"),  # noqa: UP045
    (object, "Any"), (int | Any, "Any"), (typing.Annotated[int, []], "int"), (np.ndarray, "ndarray"),
    (NDArray[Any], "ndarray"), (NDArray[np.floating[Any]], "NDArray[floating]"), (np.integer[Any], "numpy.integer"),
    (NDArray[np.float32 | np.float64], "NDArray[float32 | float64]"), (list, "list"), (dict, "dict"),
    (list[int] | list[str], "list[int] | list[str]"), (Literal[Colour.RED], "Literal[Colour.RED]"),
], ids=repr)
def test_annotations_are_read(annotation: Any, text: str) -> None:
    assert Type.of(annotation).text == text


# ---------------------------------------------------------------------------------------------------- signatures

def average(n: int = 10) -> float: ...  # type: ignore[empty-body]
def add(a: int, b: int) -> int: ...  # type: ignore[empty-body]
def free(a, b=2, *args, **kwargs): ...  # type: ignore[no-untyped-def]
def strict(a: int, /, b: str = "x", *, c: float, d: Point | None = None) -> list[Point]: ...  # type: ignore[empty-body]
def many(first: int, *rest: int, **named: str) -> None: ...


@pytest.mark.parametrize(("function", "text"), [
    (average, "(n: int = 10) -> float"), (add, "(a: int, b: int) -> int"), (free, "(a, b=2, *args, **kwargs)"),
    (strict, "(a: int, /, b: str = 'x', *, c: float, d: Point | None = None) -> list[Point]"),
    (many, "(first: int, *rest: int, **named: str) -> None"), (max, "(...)"), (dict, "(...)"),
    (functools.partial(add, 1), "(b: int) -> int"), (lambda: 1, "()"),
])
def test_a_signature_reads_like_the_function(function: Any, text: str) -> None:
    assert Signature.of(function).text == text


@pytest.mark.parametrize(("function", "args", "kwargs", "said", "argument"), [
    (average, ["x"], {}, "average(): argument n: expected int, got str", "n"),
    (average, [], {"n": "x"}, "average(): argument n: expected int, got str", "n"),
    (average, [], {"m": 1}, "average(): unexpected argument 'm'; it takes (n: int = 10) -> float", "m"),
    (average, [1, 2], {}, "average(): at most 1 positional argument fit, got 2; it takes (n: int = 10) -> float", None),
    (average, [1], {"n": 2}, "average(): argument 'n' came twice, by place and by name", "n"),
    (add, [1], {}, "add(): missing argument 'b'", "b"),
    (add, [], {"b": 1}, "add(): missing argument 'a'", "a"),
    (strict, [1], {}, "strict(): missing argument 'c'", "c"),
    (strict, [], {"a": 1, "c": 1.0}, "strict(): unexpected argument 'a'; it takes " + Signature.of(strict).text, "a"),
    (strict, [1], {"c": 1.0, "d": {"x": None}}, "strict(): argument d.x: expected float, got None", "d"),
    (many, [1, 2, "x"], {}, "many(): argument rest[1]: expected int, got str", "rest"),
    (many, [1], {"z": 1}, "many(): argument z: expected str, got int", "named"),
    (many, [], {}, "many(): missing argument 'first'", "first"),
    (many, [1], {2: "x"}, None, "2"),
    (add, {1: 2, 3: 4}, {}, "add(): arguments come as a list and a dict", None),
    (add, [1, 2], [], "add(): arguments come as a list and a dict", None),
    (add, 5, {}, "add(): arguments come as a list and a dict", None),
])
def test_a_call_that_does_not_fit_is_refused_in_words(
        function: Any, args: Any, kwargs: Any, said: str | None, argument: str | None) -> None:
    for verb in (Signature.of(function).bind, Signature.of(function).check):
        with pytest.raises(InvalidCall) as raised:
            verb(function.__name__, args, kwargs)
        assert said in (None, str(raised.value))
        assert (raised.value.argument, raised.value.service) == (argument, function.__name__)
        assert raised.value.executed is False


def test_arguments_are_converted_and_defaults_left_out() -> None:
    signature = Signature.of(strict)
    assert signature.bind("s", [1], {"c": 2, "d": {"x": 1}}) == ([1], {"c": 2.0, "d": Point(1.0)})
    assert signature.bind("s", [1], {"c": 2, "d": None}) == ([1], {"c": 2.0, "d": None})
    assert Signature.of(many).bind("m", [1, 2, 3], {"a": "b"}) == ([1, 2, 3], {"a": "b"})
    assert Signature.of(average).bind("a", [], {}) == ([], {})
    for unchecked in (free, max):
        assert Signature.of(unchecked).bind("f", [1, "x", None], {"k": Plain}) == ([1, "x", None], {"k": Plain})


def test_self_is_dropped() -> None:
    class Thing:
        def method(self, a: int) -> None: ...
        def gather(*args: int) -> None: ...  # type: ignore[misc]

    assert Signature.of(Thing.method, drop_first=True).text == "(a: int) -> None"
    assert Signature.of(Thing().method).text == "(a: int) -> None"
    assert Signature.of(Thing.gather, drop_first=True).text == "(*args: int) -> None"


def test_streams_are_checked_item_by_item() -> None:
    def lines() -> Iterator[str]:
        yield ""

    async def later() -> AsyncIterator[Point]:
        yield Point(1.0)

    def bare():  # type: ignore[no-untyped-def]
        yield 1

    async def plain() -> int: ...  # type: ignore[empty-body]
    def hidden() -> Coroutine[Any, Any, int]: ...  # type: ignore[empty-body]
    def both() -> Generator[int, str, None]: ...  # type: ignore[empty-body]
    assert [Signature.of(f).streams for f in (lines, later, bare, both)] == [True] * 4
    assert [Signature.of(f).streams for f in (plain, hidden, add)] == [False] * 3
    assert [Signature.of(f).text for f in (lines, hidden, both)] == [
        "() -> Iterator[str]", "() -> int", "() -> Iterator[int]"]
    assert Signature.of(later).convert_result("later", {"x": 1}) == Point(1.0)
    Signature.of(bare).check_result("bare", object())
    with pytest.raises(TypeError, match=r"lines\(\) promises items of str and gave another item: expected str, got"):
        Signature.of(lines).check_result("lines", 1)
    with pytest.raises(TypeError, match=r"later\(\) promises items of Point and gave another item at \.x: expected"):
        Signature.of(later).check_result("later", Point("a"))  # type: ignore[arg-type]
    with pytest.raises(MalformedMessage, match=r"^an item of later\(\)\.x: expected float, got str$"):
        Signature.of(later).convert_result("later", {"x": "a"})


def test_every_kind_of_generator_is_a_stream_of_what_it_yields() -> None:
    def sync() -> Generator[int, str, bool]:
        yield 1
        return True

    async def asynchronous() -> AsyncGenerator[int, str]:
        yield 1

    def loose() -> Iterable[int]:
        yield 1

    def given() -> Iterator[int]:
        return iter([1])

    def whole() -> Iterable[int]:
        return [1]

    for function in (sync, asynchronous, loose, given):
        signature = Signature.of(function)
        assert (signature.streams, signature.text) == (True, "() -> Iterator[int]")
        signature.check_result("s", 1)
        with pytest.raises(TypeError, match="promises items of int"):
            signature.check_result("s", "1")
    assert len({Signature.of(function).fingerprint for function in (sync, asynchronous, loose, given, whole)}) == 2
    assert not Signature.of(whole).streams


# ------------------------------------------------------------------------------------------- streams as arguments

def upload(name: str, items: Iterator[int], *, last: bool = False) -> int: ...  # type: ignore[empty-body]
def points(*, where: AsyncIterable[Point]) -> None: ...
def loose(items: Iterable, /, **more: Any) -> None: ...  # type: ignore[type-arg]
async def gather(items: AsyncIterator[float]) -> float: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(("function", "takes", "takes_async", "text"), [
    (upload, "items", False, "(name: str, items: Iterator[int], *, last: bool = False) -> int"),
    (points, "where", True, "(*, where: AsyncIterable[Point]) -> None"),
    (loose, "items", False, "(items: Iterable, /, **more) -> None"),
    (gather, "items", True, "(items: AsyncIterator[float]) -> float"),
    (average, None, False, "(n: int = 10) -> float"),
    (max, None, False, "(...)"),
])
def test_an_argument_may_be_a_stream(function: Any, takes: str | None, takes_async: bool, text: str) -> None:
    signature = Signature.of(function)
    assert (signature.takes, signature.takes_async, signature.text) == (takes, takes_async, text)


def test_a_fingerprint_tells_streams_by_their_items_only() -> None:
    kinds = [Iterator[int], typing.Iterator[int], Iterable[int], AsyncIterator[int], typing.AsyncIterable[int]]
    assert len({Signature.of(named("x", a=kind)).fingerprint for kind in kinds}) == 1
    different = [Signature.of(named("x", a=kind)).fingerprint for kind in (Iterator[int], Iterator[str], list[int])]
    assert len(set(different)) == 3


@pytest.mark.parametrize(("function", "said"), [
    (lambda *items: None, "Iterator[int] is a stream, which is one argument, and not many; for what is sent whole, "),
    (lambda **items: None, "Iterator[int] is a stream, which is one argument, and not many; for what is sent whole, "),
    (lambda items=(): None, "Iterator[int] is a stream, which has no default; for what is sent whole, annotate list["),
    (lambda items=None: None, "Iterator[int] is a stream, which has no default; for what is sent whole, annotate lis"),
    (lambda items, more: None, "the arguments items and more are streams, and a service takes one; annotate the othe"),
])
def test_a_stream_is_one_argument_without_a_default(function: Any, said: str) -> None:
    function.__annotations__ = {"items": Iterator[int], "more": Iterable[int]}
    with pytest.raises(InvalidAnnotation) as raised:
        Signature.of(function)
    assert said in str(raised.value)


class Async:
    def __aiter__(self) -> Async: ...  # type: ignore[empty-body]


def untouched() -> Iterator[int]:
    raise AssertionError("an item was taken")
    yield 1


@pytest.mark.parametrize("given", [untouched(), range(3), iter("ab"), {"a": 1}.keys(), Async(), np.zeros(2)], ids=type)
def test_what_can_be_iterated_passes_for_a_stream_unseen(given: Any) -> None:
    for function, args, kwargs, at in ((upload, ("a", given), {}, 1), (upload, ["a"], {"items": given}, "items"),
                                       (points, (), {"where": given}, "where"), (loose, (given,), {}, 0)):
        signature = Signature.of(function)
        assert signature.stream_at(args, kwargs) == at
        signature.check("s", args, kwargs)


@pytest.mark.parametrize("given", ["text", b"bytes", bytearray(), memoryview(b""), {"a": 1}, None, 3, average],
                         ids=lambda value: type(value).__name__)
def test_what_is_a_value_does_not(given: Any) -> None:
    signature = Signature.of(upload)
    for verb in (signature.check, signature.bind):
        for args, kwargs in ((("a", given), {}), (("a",), {"items": given})):
            with pytest.raises(InvalidCall, match=r"argument items: expected Iterator\[int\], got") as raised:
                verb("upload", args, kwargs)
            assert raised.value.argument == "items"


def test_at_the_node_an_iterator_passes_through_and_other_arguments_are_checked() -> None:
    items = untouched()
    assert Signature.of(upload).bind("u", ["a", items], {}) == (["a", items], {})
    assert Signature.of(upload).bind("u", ["a"], {"items": items}) == (["a"], {"items": items})
    for verb in (Signature.of(upload).bind, Signature.of(upload).check):
        for args, kwargs, said in (([1, items], {}, "argument name: expected str"), (["a"], {}, "missing argument 'it"),
                                   (["a", items, 1], {}, "at most 2"), (["a", items], {"items": 1}, "came twice"),
                                   (["a", items], {"last": 1}, "argument last: expected bool")):
            with pytest.raises(InvalidCall, match=said):
                verb("u", args, kwargs)
    with pytest.raises(InvalidCall):
        Signature.of(upload).bind("u", ["a", range(3)], {})


def test_a_stream_stands_where_its_place_is_kept_free() -> None:
    assert Signature.of(upload).stream_at(["a", None], {}) == 1
    assert Signature.of(upload).stream_at(["a"], {"items": None}) == "items"
    assert Signature.of(upload).stream_at(["a"], {}) is None
    assert Signature.of(loose).stream_at([None], {"items": 3}) == 0
    assert Signature.of(loose).stream_at([], {"items": 3}) is None
    assert Signature.of(average).stream_at([iter([])], {}) is None


@pytest.mark.parametrize("given", [[1, 2], (1, 2)], ids=repr)
def test_a_list_for_a_stream_is_sent_whole_and_each_item_converted(given: Any) -> None:
    assert Signature.of(upload).stream_at(["a", given], {}) is None
    Signature.of(upload).check("u", ["a", given], {})
    (_, items), _ = Signature.of(upload).bind("u", ["a", given], {})
    assert (next(items), list(items)) == (1, [2])
    (items,), _ = Signature.of(named("x", a=Iterable[float])).bind("x", [given], {})
    assert same(items, [1.0, 2.0])

    async def taken() -> list[float]:
        (items,), _ = Signature.of(gather).bind("g", [given], {})
        return [item async for item in items]
    assert same(asyncio.run(taken()), [1.0, 2.0])
    for verb in (Signature.of(upload).bind, Signature.of(upload).check):
        with pytest.raises(InvalidCall, match=r"^u\(\): argument items\[2\]: expected int, got str$"):
            verb("u", ["a", [*given, "x"]], {})


def test_items_of_a_stream_are_checked_one_by_one_at_both_ends() -> None:
    signature = Signature.of(points)
    point = Point(1.0)
    signature.check_item("points", point)
    assert signature.convert_item("points", {"x": 1}) == point
    assert same(Signature.of(gather).convert_item("gather", 3), 3.0)
    assert Signature.of(loose).convert_item("loose", Plain) is Plain
    for verb in (signature.check_item, signature.convert_item):
        for number, said in ((None, "points(): an item of argument where.x: expected float, got str"),
                             (7, "points(): argument where[7].x: expected float, got str")):
            with pytest.raises(InvalidCall) as raised:
                verb("points", Point("a"), number)  # type: ignore[arg-type]
            assert (str(raised.value), raised.value.argument) == (said, "where")
    with pytest.raises(InvalidCall, match=r"average\(\): it takes no stream"):
        Signature.of(average).convert_item("average", 1)


def test_a_wrong_result_blames_the_service() -> None:
    with pytest.raises(TypeError, match=r"^average\(\) promises float and gave another result: expected float, got"):
        Signature.of(average).check_result("average", "x")
    with pytest.raises(TypeError, match=r"strict\(\) promises list\[Point\] .* at \[0\]\.x: expected float, got str"):
        Signature.of(strict).check_result("strict", [Point("a")])  # type: ignore[arg-type]
    with pytest.raises(MalformedMessage, match=r"the result of average\(\): expected float, got str"):
        Signature.of(average).convert_result("average", "x")


# ---------------------------------------------------------------------------------------------------- fingerprints

SOURCE = """
    from __future__ import annotations
    from dataclasses import dataclass
    from enum import Enum
    from pyzmp.protocol.schema import Signature
    class Colour(Enum):
        RED = "red"
        BLUE = "blue"
    @dataclass
    class Tree:
        name: str
        children: list[Tree]
        colour: Colour | None = None
    def grow(tree: Tree, by: float = 1.0, note: str = None) -> dict[str, Tree]: ...
    found = Signature.of(grow).fingerprint
"""


def test_a_fingerprint_is_the_same_in_a_script_and_in_a_module(tmp_path: pathlib.Path) -> None:
    (tmp_path / "grown.py").write_text(textwrap.dedent(SOURCE))
    commands = (["-c", textwrap.dedent(SOURCE) + "\nprint(found)"], ["-c", "import grown; print(grown.found)"])
    path = f"{ROOT}:{tmp_path}"
    found = {subprocess.run([sys.executable, *command], env={"PYTHONPATH": path, "PYTHONHASHSEED": seed},
                            capture_output=True, text=True, check=True).stdout
             for command in commands for seed in ("1", "2")}
    assert len(found) == 1
    assert re.fullmatch(r"[0-9a-f]{16}\n", found.pop())


def test_a_fingerprint_tells_schemas_apart() -> None:
    def renamed(n: int = 10) -> float: ...  # type: ignore[empty-body]
    def other(m: int = 10) -> float: ...  # type: ignore[empty-body]
    def required(n: int) -> float: ...  # type: ignore[empty-body]
    def wide(n: int | None = 10) -> float: ...  # type: ignore[empty-body]
    def narrow(n: int = 10) -> int: ...  # type: ignore[empty-body]
    def keyword(*, n: int = 10) -> float: ...  # type: ignore[empty-body]
    assert Signature.of(average).fingerprint == Signature.of(renamed).fingerprint
    different = [Signature.of(each).fingerprint for each in (average, other, required, wide, narrow, keyword, max)]
    assert len(set(different)) == len(different)


def test_a_signature_is_made_from_the_function_and_not_pickled() -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(Signature.of(average))
