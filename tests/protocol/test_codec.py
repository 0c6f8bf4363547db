"""Values and bytes: what arrives, what cannot travel, and what hostile bytes may do (nothing)."""

from __future__ import annotations

import math
import pathlib
import threading
import tracemalloc
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyzmp.exceptions import CannotTravel, MalformedMessage
from pyzmp.protocol.codec import THRESHOLD, Code, decode, encode
from pyzmp.protocol.limits import MAX_DEPTH

BIG = bytes(range(256)) * (THRESHOLD // 256)


def travelled(value: Any) -> Any:
    body, buffers = encode(value)
    return decode(body, [memoryview(buffer) for buffer in buffers])


def same(left: Any, right: Any) -> bool:
    """Equal, of equal types, NaN and numpy arrays too."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind in "fcmM")
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, c) and same(b, d) for (a, b), (c, d) in zip(left.items(), right.items(), strict=True))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right) if isinstance(left, float | complex | Decimal) else left == right


# ------------------------------------------------------------------------------------------------ properties

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text() | st.integers(-5, 5), inside), max_leaves=20)

offsets = st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
    | st.datetimes() | st.datetimes(timezones=offsets) | st.dates() | st.times() | st.timedeltas() | st.uuids(),
    lambda inside: st.lists(inside).map(tuple) | st.frozensets(inside), max_leaves=8)
arrays = st.builds(
    lambda dtype, shape: np.arange(math.prod(shape)).astype(dtype).reshape(shape),
    st.sampled_from(["?", "i1", ">u8", "f2", "<f8", "c16", "M8[ns]", "m8[D]", "S3", "U5"]),
    st.lists(st.integers(0, 4), max_size=3))
values = st.recursive(
    hashable | st.floats() | arrays | st.sampled_from([np.float64(1.5), np.int8(-3), np.bool_(True), BIG])
    | st.builds(np.zeros, st.just(THRESHOLD)),
    lambda inside: st.lists(inside) | st.lists(inside).map(tuple) | st.dictionaries(hashable, inside)
    | st.sets(hashable), max_leaves=12)


@given(values)
@settings(max_examples=150, deadline=None)
def test_what_travels_arrives_as_it_was(value: Any) -> None:
    assert same(travelled(value), value)


@given(plain)
@settings(max_examples=100, deadline=None)
def test_plain_values_are_the_bytes_of_plain_messagepack(value: Any) -> None:
    body, buffers = encode(value)
    assert not buffers
    assert body == msgpack.packb(value)
    assert same(msgpack.unpackb(body, strict_map_key=False), value)


@given(st.binary(max_size=200), st.lists(st.binary(max_size=20), max_size=2))
@settings(max_examples=500, deadline=None)
def test_arbitrary_bytes_give_a_value_or_are_malformed(body: bytes, buffers: list[bytes]) -> None:
    refused_or_decoded(body, buffers)


@given(values, st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_give_a_value_or_are_malformed(value: Any, data: st.DataObject) -> None:
    body, buffers = encode(value)
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    refused_or_decoded(bytes(damaged), buffers)
    refused_or_decoded(bytes(damaged[:cut]), buffers)
    refused_or_decoded(bytes(damaged), buffers[1:])


def refused_or_decoded(body: bytes, buffers: Any) -> None:
    try:
        decode(body, buffers)
    except MalformedMessage as error:
        assert str(error)


# ------------------------------------------------------------------------------------------- the wire's form

@pytest.mark.parametrize(("value", "code", "payload"), [
    ((1, 2), 1, b"\x92\x01\x02"),
    ({3}, 2, b"\x91\x03"),
    (frozenset({3}), 3, b"\x91\x03"),
    (1 << 64, 4, b"\x01" + bytes(8)),
    (-(1 << 63) - 1, 4, b"\xff\x7f" + b"\xff" * 7),
    (1 - 2j, 5, bytes.fromhex("3ff0000000000000c000000000000000")),
    (Decimal("1.50"), 6, b"1.50"),
    (datetime(2024, 5, 17, 12, 30, tzinfo=timezone(timedelta(hours=2))), 7, b"2024-05-17T12:30:00+02:00"),
    (date(2024, 5, 17), 8, b"2024-05-17"),
    (time(12, 30), 9, b"12:30:00"),
    (timedelta(-1, 2, 3), 10, bytes.fromhex("ffffffff0000000200000003")),
    (UUID(int=5), 11, bytes(15) + b"\x05"),
    (np.array([[1, 2]], "<i2"), 12, msgpack.packb(["<i2", [1, 2], b"\x01\0\x02\0"])),
    (np.int16(2), 13, msgpack.packb([np.dtype("i2").str, np.int16(2).tobytes()])),
    (BIG, 14, bytes(4)),
], ids=lambda value: type(value).__name__)
def test_an_extension_type_has_its_documented_number_and_payload(value: Any, code: int, payload: bytes) -> None:
    assert msgpack.unpackb(encode(value)[0]) == msgpack.ExtType(code, payload)
    assert Code(code).value == code


def test_every_number_is_in_the_documentation() -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "types.md").read_text()
    for code in Code:
        assert f"| {code.value} | {code.name.lower()} |" in text


def test_a_timestamp_of_another_messagepack_library_arrives_as_datetime() -> None:
    assert decode(msgpack.packb(msgpack.Timestamp(0, 0))) == datetime(1970, 1, 1, tzinfo=timezone.utc)


# ---------------------------------------------------------------------------------------------- large buffers

@dataclass
class Photo:
    name: str
    pixels: Any


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize("wrap", [
    lambda b: b, lambda b: [[b], {}], lambda b: {"a": {"b": [b]}}, lambda b: (1, (b, 2)), lambda b: Photo("p", b),
    lambda b: Photo("p", [b]), lambda b: Pair(b, 1), lambda b: [*range(5000), b], lambda b: [[*range(5000), [b]]],
    lambda b: OrderedDict(a=b), lambda b: {1: Photo("p", {"x": (b,)})},
])
@pytest.mark.parametrize("buffer", [BIG, bytearray(BIG), memoryview(BIG), np.zeros(THRESHOLD)],
                         ids=lambda b: type(b).__name__)
def test_a_large_buffer_travels_beside_the_body_without_a_copy(wrap: Any, buffer: Any) -> None:
    body, (beside,) = encode(wrap(buffer))
    assert len(body) < THRESHOLD
    assert np.shares_memory(np.frombuffer(beside, "u1"), np.frombuffer(buffer, "u1"))
    decode(body, [beside])


def test_a_buffer_below_the_threshold_stays_in_the_body() -> None:
    assert encode(BIG[1:])[1] == []
    assert encode(np.zeros(THRESHOLD - 1, "u1"))[1] == []


def test_a_large_array_lies_read_only_over_the_buffer_that_arrived() -> None:
    body, buffers = encode([np.arange(float(THRESHOLD))])
    received = bytes(buffers[0])
    array, = decode(body, [memoryview(received)])
    assert np.shares_memory(array, np.frombuffer(received, "u1"))
    assert not array.flags.writeable
    assert array[5] == 5.0


def test_views_of_every_kind_arrive_as_their_bytes() -> None:
    grid = np.arange(6, dtype=">i4").reshape(2, 3)
    large = memoryview(BIG * 2)[::2]
    for view in (memoryview(b"abcdef")[::2], memoryview(grid), memoryview(grid.T), large, memoryview(grid)[1:]):
        assert travelled([*range(2000), view])[-1] == view.tobytes()
        assert travelled(view) == view.tobytes()


def test_a_packed_value_of_many_small_ones_is_not_taken_for_a_buffer() -> None:
    value = [[b"\xc5\xc6" * 100] for _ in range(2000)]
    assert travelled(value) == value


# --------------------------------------------------------------------------------------- what cannot travel

class Colour(Enum):
    RED = 1
    ODD = object()


@dataclass(frozen=True)
class Point:
    x: int = 0


class Spot(msgspec.Struct, frozen=True):
    x: int = 0


circle: list[Any] = []
circle.append([circle])
ring: dict[str, Any] = {}
ring["self"] = ({"again": ring},)


@dataclass
class Linked:
    next: Any = None


linked = Linked()
linked.next = [linked]
wide: list[Any] = []
wide += [wide, wide]


@pytest.mark.parametrize(("value", "type_name", "path"), [
    (object(), "object", "arguments"),
    ([0, {"key": Photo("p", object())}], "object", "arguments[1]['key'].pixels"),
    ({"a": (1, [lambda: 0])}, "<lambda>", "arguments['a'][1][0]"),
    ({1: {2, Point}}, "type", "arguments[1] item of type type"),
    ({Point(): 1}, "Point", "arguments key of type Point"),
    ({Spot(): 1}, "Spot", "arguments key of type Spot"),
    ({(Point(),)}, "tuple", "arguments item of type tuple"),
    (Colour.ODD, "object", "arguments.value"),
    (pathlib.PurePosixPath("/a"), "PurePosixPath", "arguments"),
    (["\ud800"], "str", "arguments[0]"),
    ([np.array([object()])], "ndarray", "arguments[0]"),
    (np.zeros(2, [("a", "i4"), ("b", "O")]), "ndarray", "arguments"),
    (np.ma.masked_array([1, 2], [True, False]), "MaskedArray", "arguments"),
    (ValueError("no"), "ValueError", "arguments"),
    (iter([]), "list_iterator", "arguments"),
    (Photo, "type", "arguments"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_travel_is_named_with_its_place(value: Any, type_name: str, path: str) -> None:
    with pytest.raises(CannotTravel) as raised:
        encode(value, "arguments")
    assert (raised.value.type_name, raised.value.path) == (type_name.replace("<lambda>", "function"), path)


def test_a_path_says_its_way_out() -> None:
    with pytest.raises(CannotTravel, match=r"send str\(path\)"):
        encode([pathlib.Path("a")])


@pytest.mark.parametrize("value", [circle, ring, linked, wide, (circle,), Photo("p", circle), {1: (wide,)}])
def test_a_value_that_holds_itself_is_too_deep(value: Any) -> None:
    with pytest.raises(CannotTravel, match="deeper than 64 levels, or in itself"):
        encode(value)


def test_a_broken_object_gives_no_error_of_its_own() -> None:
    class Broken(dict[str, int]):
        def __iter__(self) -> Any:
            raise ZeroDivisionError
        keys = items = __iter__

    part = Photo("p", 1)
    del part.pixels
    for value in (Broken(), part, memoryview(b"")):
        if isinstance(value, memoryview):
            value.release()
        with pytest.raises(CannotTravel):
            encode([value])


def nested(depth: int, wraps: list[Any]) -> Any:
    value: Any = 0
    for level in range(depth):
        value = wraps[level % len(wraps)](value)
    return value


WRAPS: list[list[Any]] = [[lambda v: [v]], [lambda v: {"k": v}], [lambda v: (v,)], [lambda v: frozenset([v])],
         [lambda v: (v,), lambda v: [v]], [lambda v: [v], lambda v: {1: v}, lambda v: (v,), lambda v: [v, 2]],
         [lambda v: Photo("p", v)]]


@pytest.mark.parametrize("wraps", WRAPS)
def test_depth_64_travels_and_65_does_not(wraps: list[Any]) -> None:
    travelled(nested(MAX_DEPTH, wraps))
    travelled([[1]] * 100 + [nested(MAX_DEPTH - 1, wraps)])
    for value in (nested(MAX_DEPTH + 1, wraps), [[1]] * 100 + [nested(MAX_DEPTH, wraps)]):
        with pytest.raises(CannotTravel, match="deeper than 64"):
            encode(value)


# ------------------------------------------------------------------------------------------------ hostile bytes

def ext(code: int, payload: bytes) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, payload))


def array(*parts: Any) -> bytes:
    return ext(Code.ARRAY, msgpack.packb(list(parts)))


def wrapped(levels: int) -> bytes:
    body = b"\x90"
    for _ in range(levels):
        body = ext(Code.TUPLE, b"\x91" + body)
    return body


HOSTILE = {
    "nothing": b"",
    "reserved": b"\xc1",
    "left over": b"\x01\x02",
    "left over, long": msgpack.packb(["a" * 100] * 100) + b"\x01",
    "cut": msgpack.packb(["a" * 100])[:-1],
    "text that is none": b"\xa1\xff",
    "a list as a key": b"\x81\x90\x01",
    "a map as a key": b"\x81\x80\x01",
    "an array as a key": b"\x81" + array("<i4", [0], b"") + b"\x01",
    "a set of lists": ext(Code.SET, b"\x91\x90"),
    "a set of sNaN": ext(Code.SET, b"\x91" + ext(Code.DECIMAL, b"sNaN")),
    "depth 65": b"\x91" * 65 + b"\x01",
    "depth 600": b"\x91" * 600 + b"\x01",
    "depth 100,000": b"\x91" * 100_000,
    "maps 100,000 deep": b"\x81\x01" * 100_000 + b"\x01",
    "65 tuples": wrapped(65),
    "3,000 tuples": wrapped(3000),
    "deep in a tuple": ext(Code.TUPLE, b"\x91" * 65 + b"\x01"),
    "unknown number": ext(99, b""),
    "a tuple of no array": ext(Code.TUPLE, b"\x01"),
    "a tuple of nothing": ext(Code.TUPLE, b""),
    "a tuple and more": ext(Code.TUPLE, b"\x90\x90"),
    "half a complex": ext(Code.COMPLEX, bytes(8)),
    "no decimal": ext(Code.DECIMAL, b"one"),
    "no decimal text": ext(Code.DECIMAL, b"\xff"),
    "day 40": ext(Code.DATE, b"2024-01-40"),
    "no date": ext(Code.DATE, b"today"),
    "no time": ext(Code.TIME, b""),
    "no datetime": ext(Code.DATETIME, b"\xff\xfe"),
    "endless duration": ext(Code.TIMEDELTA, b"\x7f" * 12),
    "short uuid": ext(Code.UUID, bytes(15)),
    "no buffer": ext(Code.BUFFER, bytes(4)),
    "short buffer": ext(Code.BUFFER, b"\0"),
    "timestamp": b"\xc7\x0c\xff" + b"\xff" * 12,
    "array of objects": array("|O8", [1], bytes(8)),
    "array by name": array("builtins.object", [1], bytes(8)),
    "structured array": array("i4,O", [1], bytes(12)),
    "negative shape": array("<i4", [-1, -1], bytes(4)),
    "huge shape": array("<i4", [1 << 62, 1 << 62], bytes(4)),
    "huge empty shape": array("<i4", [0, 1 << 62, 1 << 62], b""),
    "endless shape": array("<i4", [1 << 60] * 1000, b""),
    "shape of floats": array("<i4", [1.0], bytes(4)),
    "shape of booleans": array("<i4", [True], bytes(4)),
    "no shape": array("<i4", 1, bytes(4)),
    "short array": array("<i4", [2], bytes(4)),
    "long array": array("<i4", [1], bytes(8)),
    "array of text": array("<i4", [1], "abcd"),
    "array of two": array("<i4", [1]),
    "array in array": array("<i4", [1], [bytes(4)]),
    "no unit": array("<M8[zz]", [1], bytes(8)),
    "endless width": array("<U999999999", [1], b""),
    "number of two": ext(Code.NUMBER, msgpack.packb(["<i4", bytes(8)])),
    "number without bytes": ext(Code.NUMBER, msgpack.packb(["<i4", None])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_that_are_no_value_are_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage):
        decode(HOSTILE[name])


def test_each_buffer_is_part_of_the_value_exactly_once() -> None:
    one = ext(Code.BUFFER, bytes(4))
    assert decode(one, [b"a"]) == b"a"
    for body, buffers in ((one, []), (b"\x92" + one + one, [b"a"]), (b"\x01", [b"a"]), (one, [b"a", b"b"]),
                          (ext(Code.BUFFER, b"\xff" * 4), [b"a"]), (array("<i4", [1], msgpack.ExtType(14, bytes(4))),
                                                                    [b"abc"])):
        with pytest.raises(MalformedMessage):
            decode(body, buffers)


CLAIMS = {
    "nested arrays": (b"\xdd" + (1_000_000).to_bytes(4, "big")) * 60 + b"\x01" * 1_000_000,
    "nested arrays among others": b"\x92" + msgpack.packb([[1]] * 100) + (b"\xdd\x00\x0f\x00\x00") * 60
                                  + b"\x01" * 1_000_000,
    "nested tuples": ext(Code.TUPLE, (b"\xdd\x00\x0f\x00\x00") * 14 + b"\x01" * 1_000_000),
    "a map": b"\xdf\x7f\xff\xff\xff" + b"\x01" * 1_000_000,
    "a buffer": b"\xc6\x7f\xff\xff\xff" + b"\x01" * 1_000_000,
    "text": b"\xdb\x7f\xff\xff\xff" + b"\x01" * 1_000_000,
    "an extension": b"\xc9\x7f\xff\xff\xff\x01" + b"\x01" * 1_000_000,
    "little": b"\xdd\x00\x00\x00\x20" * 12 + b"\x01",
}


@pytest.mark.parametrize("name", CLAIMS)
def test_memory_follows_the_bytes_and_not_their_claims(name: str) -> None:
    body = CLAIMS[name]
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(body)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body) + 100_000
    finally:
        tracemalloc.stop()


def test_a_small_stack_is_deep_enough() -> None:
    body = b"\x92" + wrapped(30) + b"\x91" * 60 + b"\x90"
    failed: list[Exception] = []

    def run() -> None:
        try:
            decode(body)
            decode(HOSTILE["65 tuples"])
        except MalformedMessage:
            return
        except Exception as error:
            failed.append(error)

    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(10)
    finally:
        threading.stack_size(before)
    assert not thread.is_alive()
    assert not failed


def test_threads_and_finalizers_do_not_disturb_each_other() -> None:
    class Noisy:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            encode([{"x": 1}] * 10)

    def run() -> None:
        for number in range(300):
            Noisy()
            value = [{"n": number, "t": (number,)} for _ in range(20)]
            results.append(travelled(value) == value)

    results: list[bool] = []
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1200
    assert all(results)


def test_subclasses_arrive_as_their_base() -> None:
    @dataclass
    class Hidden:
        x: int = 1
        cache: int = field(default=2, init=False)

    class Word(str):
        def __str__(self) -> str:
            return "other"

    class Count(int):
        def __int__(self) -> int:
            return 0

    for value, arrived in ((defaultdict(int, a=1), {"a": 1}), (Word("w"), "w"), (Count(3), 3), (Pair(1, 2), (1, 2)),
                           (Hidden(), {"x": 1, "cache": 2}), (Spot(4), {"x": 4}), (np.str_("a"), "a")):
        assert same(travelled(value), arrived)
