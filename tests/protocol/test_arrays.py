"""numpy comes in only when an array does, and arrays come out as they were."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import arrays


@pytest.mark.parametrize("dtype", ["?", "i1", ">i4", "u8", "f2", "f4", "f8", "c8", "c16", "M8[us]", "m8[25s]",
                                   "S4", "U2"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_an_array_is_its_dtype_its_shape_and_its_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
    for seen in (array, array.T, array[..., None][..., 0], np.asfortranarray(array)):
        kind, lengths, data = arrays.take(seen)
        made = arrays.make(kind, lengths, data)
        assert made.dtype == seen.dtype
        assert made.shape == seen.shape
        assert np.array_equal(made, seen)
        assert not made.flags.writeable


def test_an_array_in_c_order_is_not_copied() -> None:
    array = np.arange(10.0)
    assert np.shares_memory(np.frombuffer(arrays.take(array)[2], "u1"), array)


@pytest.mark.parametrize("value", [np.array([object()]), np.zeros(1, "i4,f4"), np.zeros(1, "V3"), np.longdouble(1),
                                   np.ma.masked_array([1])], ids=lambda value: str(value.dtype))
def test_arrays_without_a_form_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"no form on the wire|its data and its mask"):
        arrays.take(value)


@pytest.mark.parametrize("parts", [("O", [1], bytes(8)), ("<i4", [2], bytes(4)), ("<i4", [-1], b""), ("<i4", None, b""),
                                   ("<i4\n", [1], bytes(4)), ("<f16", [1], bytes(16)), (None, [], b""), ("<i4", [], 1)])
def test_parts_that_make_no_array_are_malformed(parts: Any) -> None:
    with pytest.raises(MalformedMessage):
        arrays.make(*parts)


def test_numpy_is_not_imported_for_values_that_are_not_its() -> None:
    code = ("import sys\nfrom pyzmp.protocol import codec, schema\n"
            "codec.decode(*codec.encode([1, (2,), {3}, 4j, b'x' * 20000]))\n"
            "schema.Type.of(list[float] | None).convert(['x'] and [1])\n"
            "sys.exit('numpy' in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
