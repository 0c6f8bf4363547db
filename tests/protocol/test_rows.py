"""The arguments of many calls: packed together, and read and looked at together."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec, rows
from pyzmp.protocol.schema import Signature

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(
    max_size=5)
VALUES = st.recursive(SCALARS, lambda inside: st.lists(inside, max_size=3) | st.tuples(inside)
                      | st.dictionaries(st.text(max_size=2), inside, max_size=2), max_leaves=4)


def add(a: int, b: int = 2) -> int:
    return a + b


@given(st.lists(st.lists(VALUES, max_size=3), min_size=2, max_size=6))
def test_what_is_packed_together_is_read_together_as_it_would_be_alone(given_rows: list[list[Any]]) -> None:
    body = rows.pack(given_rows)
    assert body is not None
    unchecked = Signature.of(lambda *values: values).rows
    assert unchecked.read(body, len(given_rows))[0] == given_rows
    alone = [codec.encode([row, {}])[0] for row in given_rows]
    assert [codec.decode(each) for each in rows.split(body, len(given_rows))] == [[row, {}] for row in given_rows]
    assert unchecked.read(rows.join(alone), len(alone))[0] == given_rows


@pytest.mark.parametrize(("given_rows", "fit"), [
    ([[1, 2], [3, 4]], True), ([[1], [2]], True), ([[1], [2, 3]], False), ([[1, 2.0], [3, 4]], False),
    ([[True, 2], [3, 4]], False), ([[], []], False), ([[1, 2, 3], [1, 2, 3]], False), ([[1, [2]], [3, 4]], False)])
def test_arguments_fit_at_a_glance_where_all_are_exactly_what_is_annotated(given_rows: list[list[Any]],
                                                                         fit: bool) -> None:
    body = rows.pack(given_rows)
    assert body is not None
    found, fits = Signature.of(add).rows.read(body, len(given_rows))
    assert found is not None
    assert [list(row) for row in found] == given_rows
    assert fits is fit is Signature.of(add).rows.fit(given_rows)


@pytest.mark.parametrize("body", [b"", b"\x01", b"\xdd\xff\xff\xff\xff", b"\x92\x91\x01", b"\x92\x01\x02",
                                  b"\x91\x91\x01",
                                  b"\x92\x91\x01\xdd\xff\xff\xff\xff", b"\x92" + b"\x91" * 300 + b"\x01\x91\x01"])
def test_bytes_that_are_not_so_many_rows_are_refused(body: bytes) -> None:
    assert Signature.of(add).rows.read(body, 2) == (None, False)
    if body != b"\x92\x01\x02":
        with pytest.raises(MalformedMessage):
            for row in rows.split(body, 2):
                codec.decode(row)


def test_large_buffers_and_what_cannot_travel_go_one_by_one() -> None:
    assert rows.pack([[b"x" * codec.THRESHOLD * 100], [b""]]) is None
    assert rows.pack([[object()], [1]]) is None
    assert rows.pack_values([1, {"a": bytearray(codec.THRESHOLD)}]) is None


def read_or_told_apart(body: bytes, count: int) -> list[list[Any]] | None:
    """What *body* is to a node, whichever way it goes; None where one by one is refused."""
    together = {name: signature.rows.read(body, count) for name, signature in SIGNATURES.items()}
    try:
        alone = [codec.decode(each)[0] for each in rows.split(body, count)]
    except MalformedMessage:
        alone = None
    for found, fits in together.values():
        if found is not None:
            assert [list(row) for row in found] == alone, "both ways say the same"
        else:
            assert not fits
    return alone


SIGNATURES = {"checked": Signature.of(add), "unchecked": Signature.of(lambda *values: values),
              "any": Signature.of(lambda one, two=0: one)}


@given(st.binary(max_size=60) | st.lists(st.lists(st.none() | st.integers(0, 300), max_size=3), max_size=5).map(
    lambda given_rows: rows.pack(given_rows) or b""), st.integers(0, 6))
def test_any_bytes_are_rows_or_refused(body: bytes, count: int) -> None:
    read_or_told_apart(body, count)


@given(st.lists(st.lists(VALUES, max_size=3), min_size=2, max_size=6), st.data())
def test_damaged_rows_are_rows_or_refused(given_rows: list[list[Any]], data: st.DataObject) -> None:
    body = bytearray(rows.pack(given_rows) or b"")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(0, len(body) - 1)))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "cut":
            del body[place:]
        elif change == "insert":
            body[place:place] = data.draw(st.binary(max_size=4))
        elif body:
            body[place] = data.draw(st.integers(0, 255))
    read_or_told_apart(bytes(body), len(given_rows) + data.draw(st.sampled_from([0, 0, 0, -1, 1])))


@pytest.mark.parametrize("count", [2, 4096, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("behind", [b"", b"\x91\x01", b"\x92\x01\x02" * 4000, b"\xdd\xff\xff\xff\xff"])
def test_counts_that_lie_cost_nothing(count: int, behind: bytes) -> None:
    body = b"\xdd" + count.to_bytes(4, "big") + behind
    read_or_told_apart(body, count)  # what is made once is made
    tracemalloc.start()
    try:
        for signature in SIGNATURES.values():
            assert signature.rows.read(body, count) == (None, False)
        with pytest.raises(MalformedMessage):
            rows.split(body, count)
        assert tracemalloc.get_traced_memory()[1] < 200_000 + 80 * len(body)
    finally:
        tracemalloc.stop()


@given(VALUES)
def test_a_result_is_packed_as_it_is_now(value: Any) -> None:
    held = [value]
    raw = rows.raw(held)
    assert raw is not None
    held.append("later")
    body = rows.pack_values([1, raw, raw])
    assert body is not None
    assert codec.decode(body) == [1, codec.decode(codec.encode([value])[0]), codec.decode(codec.encode([value])[0])]


def test_what_is_answered_alone_is_not_packed() -> None:
    for value in (object(), bytearray(rows.SIZE + 1), "x" * (rows.SIZE + 1), [bytes(codec.THRESHOLD)] * 2,
                  msgspec.Raw(b"1")):
        assert rows.raw(value) is None


@given(st.lists(VALUES, max_size=4))
def test_the_body_of_plain_arguments_is_what_the_codec_makes(args: list[Any]) -> None:
    plain = rows.Plain(None, frozenset())
    body = [plain.body(args), plain.body(args)]  # the first time looked at, then known
    simple = {type(value) for value in args} <= {int, float, bool, str, type(None)}
    assert body in ([None, None], [codec.encode([args, {}])[0]] * 2)
    assert (body[0] is not None) is (simple and codec.encode([args, {}])[0] == body[0])


@pytest.mark.parametrize(("args", "fit"), [
    ((1,), True), ((1, 2), True), ((), False), ((1, 2, 3), False), ((True,), False), ((1.0,), False), (("1",), False),
    ((1 << 80,), False), ((b"1",), False)])
def test_arguments_are_plain_where_they_are_exactly_what_is_annotated(args: tuple[Any, ...], fit: bool) -> None:
    signature = Signature.of(add)
    assert (rows.Plain(signature.rows, signature.gives).body(args) is not None) is fit
    assert rows.Plain(None, frozenset()).body(("\ud800",)) is None
