"""Many values at once: what travels together is read together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from msgpack import unpackb

from pyzmp.protocol.limits import MAX_DEPTH, within

# What heads no container, and no extension type.
_SCALARS = bytes(byte for byte in range(256) if not (
    0x80 <= byte <= 0x9f or byte == 0xc1 or 0xc7 <= byte <= 0xc9 or 0xd4 <= byte <= 0xd8 or 0xdc <= byte <= 0xdf))


def decode_all(bodies: Sequence[bytes]) -> list[Any] | None:
    """The values of *bodies*, as ``codec.decode`` makes them; None where they are to be decoded one by one.

    That is where one is no value, or of an extension type: then it takes more to know.
    """
    joined = b"".join((b"\xdd", len(bodies).to_bytes(4, "big"), *bodies))
    try:
        plain = not bytes([body[0] for body in bodies]).translate(None, _SCALARS)
        if not plain and not within(joined, MAX_DEPTH + 1):
            return None
        values: list[Any] = unpackb(joined, strict_map_key=False, ext_hook=_refuse, timestamp=3)
    except Exception:  # whatever it is, the one that has it tells
        return None
    return values


def _refuse(code: int, data: bytes) -> NoReturn:
    raise ValueError(code)
