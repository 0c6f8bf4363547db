"""Depth and counts are known before anything is made of the bytes."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.limits import MAX_DEPTH, too_deep, within

FILLER = msgpack.packb([[1]] * 100)


@pytest.mark.parametrize("depth", [3, 16, 64])
@pytest.mark.parametrize("header", [b"\x91", b"\xdc\x00\x01", b"\x81\xa1k", b"\xde\x00\x01\x01"])
@pytest.mark.parametrize("beside", [msgpack.packb("x" * 200), FILLER], ids=["few headers", "many headers"])
def test_the_limit_is_exact(depth: int, header: bytes, beside: bytes) -> None:
    before = b"\x92" + beside
    assert within(before + header * (depth - 1) + b"\xc0", depth)
    assert not within(before + header * depth + b"\xc0", depth)


@pytest.mark.parametrize("body", [b"\xdd\x00\x10\x00\x00" * 10 + bytes(100), b"\x92" + FILLER + b"\xdd\xff\xff\xff\xff",
                                  FILLER + b"\x00", b"\x93" + FILLER * 2, b"\xc6\xff\xff\xff\xff" + bytes(100)])
def test_claims_beyond_the_bytes_raise_without_taking_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Exception) as raised:
            within(body, MAX_DEPTH)
        assert isinstance(raised.value, MalformedMessage | ValueError | msgpack.OutOfData)
        assert tracemalloc.get_traced_memory()[1] < len(body) + 50_000
    finally:
        tracemalloc.stop()


def test_tuples_and_sets_count_as_depth() -> None:
    value: object = 0
    for level in range(MAX_DEPTH):
        value = (value,) if level % 2 else frozenset([value])
    assert not too_deep([1, {2: 3}])
    assert not too_deep(value)
    assert too_deep([value])
    assert too_deep({value: 1})
