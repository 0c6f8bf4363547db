"""Whether what is published fits who listens, against what conversion really takes."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, Union

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyzmp.exceptions import InvalidAnnotation, MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.fits import fits
from pyzmp.protocol.schema import Type
from pyzmp.protocol.shapes import LONGEST, Definition, Field, Or, Record, Scalar, Shape

Positive = Annotated[int, msgspec.Meta(gt=0)]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Paint(enum.Enum):
    CRIMSON = "red"
    NAVY = "blue"
    LEAF = "green"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Loose(enum.Enum):
    ON = "on"

    @classmethod
    def _missing_(cls, value: object) -> Loose:
        return cls.ON


@dataclass
class Point:
    x: float
    y: int = 0


@dataclass
class Newer:
    x: int
    y: int = 0
    z: str = ""


@dataclass
class Stricter:
    x: float
    z: str


@dataclass
class Words:
    x: str


class Map(TypedDict, total=False):
    x: float


class Mark(NamedTuple):
    at: int
    text: str = ""


class Longer(NamedTuple):
    at: int
    text: str = ""
    more: float = 0.0


@dataclass
class Tree:
    value: int
    trees: list[Tree] = field(default_factory=list)


@dataclass
class Wood:
    value: float
    trees: tuple[Wood, ...] = ()
    name: str = ""


@dataclass
class Rotten:
    value: int
    trees: list[Rotten] = field(default_factory=list)
    worm: list[Words] = field(default_factory=list)


@dataclass
class Healthy:
    value: int
    trees: list[Healthy] = field(default_factory=list)
    worm: list[Point] = field(default_factory=list)


@dataclass
class Cat:
    kind: Literal["cat"]
    lives: int = 9


@dataclass
class Dog:
    kind: Literal["dog"]
    lives: int = 1


@dataclass
class Pet:
    kind: Literal["cat", "dog"]
    x: float


@dataclass
class Lion:
    kind: Literal["cat"]
    mane: str


FIT = [
    (int, int), (int, float), (int, complex), (float, complex), (int, Any), (Any, int), (list[Any], list[int]),
    (int, int | None), (int | str, float | str | None), (bytes, bytearray), (list[int], tuple[float, ...]),
    (list[int], set[int]), (set[int], list[int]), (set[int], set), (tuple[int, str], list[int | str]),
    (tuple[int, int], tuple[float, float]), (dict[str, int], dict[str, float]), (dict[str, int], dict),
    (Colour, Paint), (Colour, str), (Literal["red"], Colour), (Literal[1, 2], float), (Access, Access), (Access, int),
    (Loose, Loose), (Loose, str), (Positive, int), (Positive, Positive), (Positive, int | None),
    (Annotated[int, msgspec.Meta(lt=9, gt=0)], Positive), (Newer, Point), (Point, Map), (Point, dict[str, float]),
    (Mark, Longer), (Mark, tuple[int, str]), (Tree, Tree), (Tree, Wood), (Healthy, Tree), (Cat, Cat | Dog),
    (Cat | Dog, Dog | Cat), (Point, Point | None), (list[Point], list[Point] | None), (np.float64, float),
    (np.int8, int), (NDArray[np.uint8], NDArray[np.integer]), (NDArray[np.uint8], np.ndarray),
    (np.ndarray, NDArray[np.uint8]), (NDArray[np.float64], NDArray[np.float32] | NDArray[np.float64]),
    (list[Annotated[int, msgspec.Meta(title="a name says nothing")]], list[int]),
]
DIFFER = [
    (float, int, "published float, expected int"),
    (bool, int, "published bool, expected int"),
    (datetime, date, "published datetime, expected date"),
    (str, bytes, "published str, expected bytes"),
    (int | None, int, "published None, expected int"),
    (int, str | None, "published int, expected str | None"),
    (list[str], list[int], "item []: published str, expected int"),
    (dict[str, str], dict[str, int], "item []: published str, expected int"),
    (dict[int, str], dict[str, str], "item [key]: published int, expected str"),
    (tuple[int, str], list[int], "item [1]: published str, expected int"),
    (list[int], tuple[int, int], "published list[int], expected tuple[int, int]"),
    (tuple[int, int, int], tuple[int, int], "published tuple[int, int, int], expected tuple[int, int]"),
    (dict[bytes, int], dict[bytearray, int], "published dict[bytes, int], expected dict[bytearray, int]"),
    (tuple[Point, ...], Point | list[Point], "published tuple[Point, ...], expected Point"),
    (list[list[int]], set, "published list[list[int]], expected set[Any]"),
    (Paint, Colour, "published Literal['green'], expected Literal['red', 'blue']"),
    (str, Colour, "published str, expected Literal['red', 'blue']"),
    (Access, Literal[1, 2], "published int, expected Literal[1, 2]"),
    (Loose, Literal["on"], "published str, expected Literal['on']"),
    (int, Positive, "published int, expected int with gt=0"),
    (Annotated[int, msgspec.Meta(gt=1)], Positive, "published int, expected int with gt=0"),
    (Point, Newer, "field x: published float, expected int"),
    (Newer, Words, "field x: published int, expected str"),
    (Point, Stricter, "field z: not published, or not always, and expected without a default"),
    (Map, Point, "field x: not published, or not always, and expected without a default"),
    (dict, Point, "published dict[Any, Any], expected Point"),
    (list[Point], list[Words], "item [].x: published float, expected str"),
    (Point, dict[str, int], "field x: published float, expected int"),
    (Longer, Mark, "published tuple[int, str, float], expected tuple[int, str]"),
    (Wood, Tree, "field value: published float, expected int"),
    (Rotten, Healthy, "field worm[].x: published str, expected float"),
    (Point, Cat | Dog, "field kind: not published, or not always, and expected without a default"),
    (Cat | str, Tree | int, "field value: not published, or not always, and expected without a default"),
    (Cat | Dog, Cat, "field kind: published Literal['dog'], expected Literal['cat']"),
    (Words | None, Point | None, "field x: published str, expected float"),
    (Pet, Lion | Point, "published Pet, expected Lion | Point"),  # a cat would be taken for a lion
    (tuple[Point, ...], tuple[int, ...] | list[Point], "item []: published Point, expected int"),
    (tuple[int], tuple[int, int], "published tuple[int], expected tuple[int, int]"),
    (list[Annotated[list[Words], msgspec.Meta(max_length=3)]], list[list[Point] | int],
     "item [][].x: published str, expected float"),
    (NDArray[np.int8], NDArray[np.uint8], "published NDArray[int8], expected NDArray[uint8]"),
    (NDArray[np.integer], NDArray[np.uint8], "published NDArray[integer], expected NDArray[uint8]"),
    (np.float64, int, "published numpy.float64, expected int"),
    (float, np.float64, "published float, expected numpy.float64"),
]


def compared(published: Any, wanted: Any) -> str:
    return fits(Type.of(published).shape, Type.of(wanted).shape)


@pytest.mark.parametrize(("published", "wanted"), FIT, ids=str)
def test_what_conversion_takes_fits(published: Any, wanted: Any) -> None:
    assert compared(published, wanted) == ""


@pytest.mark.parametrize(("published", "wanted", "said"), DIFFER, ids=str)
def test_what_it_may_refuse_does_not_and_the_reason_says_where(published: Any, wanted: Any, said: str) -> None:
    assert compared(published, wanted) == said


def test_names_of_classes_count_for_nothing() -> None:
    def made(name: str) -> Any:
        return make_dataclass(name, [("x", float)])
    assert compared(made("Here"), made("There")) == ""


# -- against what conversion takes


Spec = tuple[Any, ...]
SCALARS: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-2**70, 2**70), float: st.floats(allow_nan=False) | st.integers(-9, 9), bool: st.booleans(),
    str: st.text(max_size=3), bytes: st.binary(max_size=3), type(None): st.none(),
    Decimal: st.decimals(allow_nan=False), complex: st.complex_numbers(allow_nan=False) | st.floats(allow_nan=False),
    Colour: st.sampled_from(Colour), Paint: st.sampled_from(Paint), Access: st.sampled_from([*Access, ~Access.READ]),
    np.float32: st.floats(width=32, allow_nan=False).map(np.float32), np.int16: st.integers(-9, 9).map(np.int16),
    bytearray: st.binary(max_size=3),
}
NEAR: dict[Any, list[Any]] = {
    int: [float, complex], float: [complex], Colour: [Paint, str], Paint: [Colour], Access: [int],
    np.int16: [int, float], np.float32: [float], bytes: [bytearray], bytearray: [bytes],
}
LITERALS = (1, 2, True, "a", "red", b"a", None)


def inner(children: st.SearchStrategy[Spec]) -> st.SearchStrategy[Spec]:
    fields = st.lists(st.tuples(st.sampled_from("abc"), children, st.booleans()), max_size=3,
                      unique_by=lambda each: each[0])
    return st.one_of(
        st.tuples(st.sampled_from(["list", "tuple", "set", "frozenset"]), children),
        st.tuples(st.just("dict"), children, children),
        st.tuples(st.just("fixed"), st.lists(children, max_size=3)),
        st.tuples(st.just("or"), st.lists(children, min_size=2, max_size=3)),
        st.tuples(st.sampled_from(["record", "struct", "map"]), fields.map(last)))


def last(fields: list[tuple[str, Spec, bool]]) -> list[tuple[str, Spec, bool]]:
    """Those with a default behind the others."""
    return sorted(fields, key=lambda each: each[2])


LEAVES: st.SearchStrategy[Spec] = st.one_of(
    st.tuples(st.just("scalar"), st.sampled_from(list(SCALARS))),
    st.tuples(st.just("literal"), st.lists(st.sampled_from(LITERALS), min_size=1, max_size=3)),
    st.just(("positive",)))
PLAIN = st.sampled_from([("scalar", int), ("scalar", str), ("literal", ["a"]), ("literal", ["a", "red"])])
RECORDS = st.tuples(st.sampled_from(["record", "record", "map"]), st.lists(st.tuples(
    st.sampled_from("ab"), PLAIN, st.booleans()), min_size=1, max_size=2, unique_by=lambda each: each[0]).map(last))
UNIONS = st.tuples(st.just("or"), st.lists(
    RECORDS | st.tuples(st.sampled_from(["list", "tuple"]), RECORDS | PLAIN), min_size=2, max_size=3))
SPECS = st.recursive(LEAVES, inner, max_leaves=6) | UNIONS


def annotation(spec: Spec) -> Any:
    head, *rest = spec
    if head == "positive":
        return Positive
    if head in ("record", "struct", "map"):
        return record(head, rest[0])
    if head in ("fixed", "or", "literal"):
        given = tuple(rest[0]) if head == "literal" else tuple(map(annotation, rest[0]))
        return {"fixed": tuple, "or": Union, "literal": Literal}[head][given]  # type: ignore[index]
    if head == "scalar":
        return rest[0]
    kinds: dict[str, Any] = {"list": list, "set": set, "frozenset": frozenset, "dict": dict, "tuple": tuple}
    return kinds[head][(*map(annotation, rest), *([...] if head == "tuple" else []))]


def record(head: str, given: list[tuple[str, Spec, bool]]) -> Any:
    """A class; where it is none of maps, a field with a default is None without a value, and may be so with one."""
    none = [] if head == "map" else [("scalar", type(None))]
    fields = [(name, annotation(("or", [spec, *(none if default else [])])), default) for name, spec, default in given]
    if head == "map":
        total = not any(default for _, _, default in given)
        return TypedDict("Made", {name: kind for name, kind, _ in fields}, total=total)  # type: ignore[operator]
    if head == "struct":
        return msgspec.defstruct("Made", [(name, kind, None) if default else (name, kind)
                                          for name, kind, default in fields])
    return make_dataclass("Made", [(name, kind, field(default=None)) if default else (name, kind)
                                   for name, kind, default in fields])


def values(spec: Spec) -> st.SearchStrategy[Any]:
    """Values of a type, also such as conversion makes others of."""
    head, *rest = spec
    if head == "scalar":
        return SCALARS[rest[0]]
    if head == "literal":
        return st.sampled_from(rest[0])
    if head == "positive":
        return st.integers(1, 9)
    if head in ("list", "tuple", "set", "frozenset"):
        made = {"list": list, "tuple": tuple, "set": list, "frozenset": tuple}[head]
        return st.lists(values(rest[0]), max_size=2).map(made)
    if head == "dict":
        return st.lists(st.tuples(values(rest[0]), values(rest[1])), max_size=2).map(_dict)
    if head == "fixed":
        return st.tuples(*map(values, rest[0]))
    if head == "or":
        return st.one_of(*map(values, rest[0]))
    optional = {name: values(inside) for name, inside, default in rest[0] if default or head == "map"}
    required = {name: values(inside) for name, inside, default in rest[0] if name not in optional}
    whole = head != "map" or not any(default for _, _, default in rest[0])
    return st.fixed_dictionaries({**required, **(optional if whole else {})}, optional={} if whole else optional)


def _dict(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made = {}
    for key, item in items:
        try:
            made[key] = item
        except TypeError:  # without a hash
            return {}
    return made


@st.composite
def akin(draw: st.DrawFn, spec: Spec) -> Spec:
    """Another type, much like the given one, which often fits."""
    what = draw(st.integers(0, 11))
    if what == 0:
        return draw(SPECS)
    if what == 1:
        return "or", draw(st.permutations([spec, draw(LEAVES)]))
    head, *rest = spec
    if head in ("list", "tuple", "set", "frozenset", "dict"):
        kind = head if head == "dict" else draw(st.sampled_from([head, "list", "set"]))
        return kind, *(draw(akin(each)) for each in rest)
    if head in ("fixed", "or"):
        return head, [draw(akin(each)) for each in rest[0]]
    if head in ("record", "struct", "map"):
        fields = [(name, draw(akin(inside)), draw(st.booleans())) for name, inside, _ in rest[0]]
        kept = fields[draw(st.integers(0, 1)):] + [("d", draw(LEAVES), True)] * draw(st.integers(0, 1))
        return draw(st.sampled_from(["record", "struct", head])), last(kept)
    if head == "literal":
        return head, list(dict.fromkeys([*rest[0], draw(st.sampled_from(LITERALS))]))
    return (head, draw(st.sampled_from([rest[0], *NEAR.get(rest[0], [])]))) if head == "scalar" else spec


def read(spec: Spec) -> Type | None:
    try:
        return Type.of(annotation(spec))
    except (InvalidAnnotation, TypeError):  # ambiguous, or without a hash
        return None


def is_taken(value: Any, published: Type, wanted: Type) -> bool:
    """Whether the subscriber's conversion takes a value, as it arrives; True for one that could not be published."""
    try:
        body, buffers = codec.encode(published.convert(value))
    except TypeError:
        return True
    try:
        wanted.convert(codec.decode(body, buffers))
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("examples", [
    250, pytest.param(1_500, marks=pytest.mark.slow)], ids=["", "often"])
def test_what_fits_is_always_taken(examples: int) -> None:
    answers = [0, 0]

    @settings(max_examples=examples, deadline=None, database=None,
              suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        one = data.draw(SPECS)
        other = data.draw(akin(one))
        published, wanted = read(one), read(other)
        if published is None or wanted is None:
            return
        fitting = not fits(published.shape, wanted.shape)
        answers[fitting] += 1
        for _ in range(3) if fitting else ():
            value = data.draw(values(one))
            assert is_taken(value, published, wanted), (published, wanted, value)

    check()
    assert min(answers) > examples // 20  # else nothing was shown


@given(SPECS)
def test_a_type_fits_itself_and_any(spec: Spec) -> None:
    mine = read(spec)
    if mine is not None:
        assert fits(mine.shape, mine.shape) == fits(mine.shape, Type.of(Any).shape) == ""
        assert fits(Type.of(Any).shape, mine.shape) == ""


# -- whatever comes


SHAPES = [Type.of(each).shape for pair in FIT for each in pair]


@given(st.binary(max_size=60), st.sampled_from(SHAPES))
def test_arbitrary_bytes_are_a_shape_or_malformed(data: bytes, other: bytes) -> None:
    for pair in (data, other), (other, data):
        try:
            fits(*pair)
        except MalformedMessage:
            pass


@given(st.sampled_from(SHAPES), st.sampled_from(SHAPES), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_shape_is_a_shape_or_malformed(shape: bytes, other: bytes, place: int, byte: int) -> None:
    data = bytearray(shape)
    data[place % len(data)] = byte
    for pair in (bytes(data), other), (other, bytes(data)):
        try:
            said = fits(*pair)
        except MalformedMessage:
            continue
        assert said.isprintable()
        assert len(said) < 400


def test_a_record_that_is_not_there_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="names its record 1, and has 1"):
        fits(msgspec.msgpack.encode(Shape(Record(1), (Definition("A", False, ()),))), SHAPES[0])


def test_too_long_a_shape_is_malformed_and_too_large_a_type_is_not_checked() -> None:
    with pytest.raises(MalformedMessage, match="the limit is"):
        fits(b"x" * (LONGEST + 1), SHAPES[0])
    large = Type.of(Literal[tuple(range(10_000))])
    assert large.shape == b""
    assert fits(large.shape, SHAPES[0]) == fits(SHAPES[0], large.shape) == ""


def chain(length: int, name: str) -> bytes:
    """Records of which each has two ways to the next."""
    def definition(at: int) -> Definition:
        following = Or((Record(at + 1), Record(at + 1))) if at + 1 < length else Scalar(name)
        return Definition("r", False, (Field("x", following, True, False),))
    return msgspec.msgpack.encode(Shape(Record(0), tuple(map(definition, range(length)))))


def nested(depth: int, leaf: str) -> bytes:
    return b"\x92" + b"\x93\xa1i\xa4list" * depth + msgspec.msgpack.encode(Scalar(leaf)) + b"\x90"


@pytest.mark.parametrize("make", [
    lambda leaf: chain(30, leaf), lambda leaf: chain(700, leaf), lambda leaf: nested(1500, leaf),
    lambda leaf: msgspec.msgpack.encode(Shape(Or(tuple(Scalar(f"{leaf}{n}") for n in range(1500))), ())),
], ids=["ways", "records", "depth", "arms"])
def test_no_shape_takes_long_to_compare(make: Callable[[str], bytes]) -> None:
    steps = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal steps
        steps += 1
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        assert fits(make("int"), make("str"))
    except MalformedMessage:
        pass  # too deep to be read
    finally:
        sys.setprofile(before)
    assert steps < 2_000_000
