"""Many values at once are the same as one by one."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.limits import MAX_DEPTH
from pyzmp.protocol.runs import SCALARS, Bodies, decode_all, pack_all, times_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8)


def bodies(*values: Any) -> list[bytes]:
    return [codec.encode(value)[0] for value in values]


@given(st.lists(VALUES, max_size=20))
def test_plain_values_are_decoded_together_as_one_by_one(values: list[Any]) -> None:
    encoded = bodies(*values)
    assert decode_all(encoded) == [codec.decode(body) for body in encoded] == values


@pytest.mark.parametrize("value", [(1, 2), {1, 2}, 2**70, datetime(2020, 1, 1, tzinfo=timezone.utc), 1j])
def test_values_of_extension_types_are_left_to_be_decoded_one_by_one(value: Any) -> None:
    assert decode_all(bodies(1, value)) is None


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


def test_nothing_is_nested_deeper_than_a_value_may_be() -> None:
    assert decode_all([nested(MAX_DEPTH), *bodies(1)]) is not None
    assert decode_all([nested(MAX_DEPTH + 1), *bodies(1)]) is None


@pytest.mark.parametrize("wrong", [b"", b"\xc1", b"\x92\x01", b"\xc4\xff", b"\xdd\xff\xff\xff\xff", b"\x01\x02",
                                   b"\xa1\xff"])
@pytest.mark.parametrize("first", [True, False])
def test_a_body_that_is_no_value_is_left_to_be_found_one_by_one(wrong: bytes, first: bool) -> None:
    encoded = bodies("a", 1.5)
    assert decode_all([wrong, *encoded] if first else [*encoded, wrong]) is None


@given(st.lists(VALUES.filter(lambda value: type(value) in SCALARS), max_size=20))
def test_values_that_were_packed_together_are_told_apart_as_they_were_encoded(values: list[Any]) -> None:
    packed = pack_all(values)
    assert len(packed) == len(values)
    assert list(packed) == bodies(*values)
    assert packed.size == sum(map(len, packed))
    assert decode_all(packed) == values


def test_bodies_that_were_encoded_already_are_packed_as_they_are() -> None:
    value = {"a": (1, [2**70])}
    assert list(pack_all([1, msgspec.Raw(codec.encode(value)[0]), 2**70])) == bodies(1, value, 2**70)
    assert decode_all(pack_all([1, msgspec.Raw(codec.encode(value)[0])])) is None


@pytest.mark.parametrize("joined", [b"\x92\x01", b"\x91\x01\x02", b"\x91\xc1", b"\x92\xdd\xff\xff\xff\xff\x01",
                                    b"\x92" + b"\x91" * 600 + b"\xc0\x01"])
def test_what_was_packed_wrong_is_found_once_it_is_told_apart(joined: bytes) -> None:
    assert decode_all(Bodies(joined)) is None
    with pytest.raises(MalformedMessage):
        [codec.decode(body) for body in Bodies(joined)]


@pytest.mark.parametrize("joined", [b"", b"\x01", b"\x81\x01\x02", b"\xc4\x01\x01"])
def test_what_is_no_array_was_not_packed(joined: bytes) -> None:
    with pytest.raises(MalformedMessage, match="no array"):
        Bodies(joined)


def test_only_values_of_the_expected_kinds_are_taken_together() -> None:
    assert decode_all(pack_all(["a", "b"]), frozenset({str})) == ["a", "b"]
    assert decode_all(pack_all(["a", 1]), frozenset({str})) is None
    assert decode_all(pack_all([]), frozenset({str})) == []


def test_times_that_are_no_whole_ones_are_malformed() -> None:
    with pytest.raises(MalformedMessage):
        times_of(b"1234567")
