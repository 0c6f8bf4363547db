"""Many values at once are the same as one by one."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.protocol import codec
from pyzmp.protocol.limits import MAX_DEPTH
from pyzmp.protocol.runs import decode_all

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
