"""numpy arrays and scalars to plain parts and back; numpy is imported when the first one comes by."""

from __future__ import annotations

import re
from math import prod
from typing import Any

from pyzmp.exceptions import MalformedMessage

# Booleans, integers, floats, complex numbers, dates, durations, and text and bytes of fixed width.
_DTYPE = re.compile(r"[<>|](b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,9}|[mM]8(\[\d{0,9}[A-Za-z]{1,2}\])?)")

_MAX_DIMENSIONS = 64


def is_numpy(kind: type) -> bool:
    """Whether ``kind`` is a class of numpy's, or derived from one; numpy is not imported for it."""
    return any(base.__module__.partition(".")[0] == "numpy" for base in kind.__mro__)


def is_array(kind: type) -> bool:
    """Whether a class of numpy's is that of arrays."""
    return any(base.__name__ == "ndarray" for base in kind.__mro__)


def take(value: Any) -> tuple[str, list[int], memoryview]:
    """The dtype, the shape and the bytes of an array or scalar; the bytes are a copy only if not in C order."""
    import numpy as np

    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("send its data and its mask as two arrays")
    array = np.asarray(value)
    if not _DTYPE.fullmatch(array.dtype.str):
        raise TypeError(f"arrays of {array.dtype} have no form on the wire; send plain numbers, dates or text")
    flat = np.ascontiguousarray(array).reshape(-1)
    data: Any = flat.view(np.uint8) if flat.nbytes else b""
    return array.dtype.str, list(array.shape), memoryview(data)


def make(dtype: Any, shape: Any, data: Any) -> Any:
    """A read-only array over ``data``."""
    kind = _dtype(dtype)
    if (type(shape) is not list or len(shape) > _MAX_DIMENSIONS
            or not all(type(length) is int and 0 <= length < 1 << 63 for length in shape)):
        raise MalformedMessage("the shape of an array is a list of lengths")
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise MalformedMessage("the content of an array is bytes")
    if prod(shape) * kind.itemsize != memoryview(data).nbytes:
        raise MalformedMessage(f"an array of shape {shape} and type {dtype} does not have that many bytes")
    import numpy as np

    array: Any = np.ndarray(shape, kind, data or b"\0")
    array.flags.writeable = False
    return array


def make_number(dtype: Any, data: Any) -> Any:
    """A numpy scalar."""
    return make(dtype, [], data)[()]


def _dtype(text: Any) -> Any:
    if type(text) is not str or not _DTYPE.fullmatch(text):
        raise MalformedMessage("an array of a type that is none of ours")
    try:
        import numpy as np
    except ImportError as error:
        raise MalformedMessage("a numpy array arrived, but numpy is not installed here") from error
    return np.dtype(text)
