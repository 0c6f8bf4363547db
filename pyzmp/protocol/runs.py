"""Many values at once: what travels together is packed together, and read together."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from sys import byteorder
from typing import Any, NoReturn, overload

import msgspec
from msgpack import Packer, Unpacker, unpackb

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.envelope import Buffer
from pyzmp.protocol.limits import MAX_DEPTH, within

SCALARS = frozenset({bytes, str, float, int, bool, type(None)})
"""The types whose values pack alike in ``msgspec`` and ``msgpack``, and hold no others."""

_pack = msgspec.msgpack.Encoder().encode
_head = Packer().pack_array_header


class Bodies(Sequence[bytes]):
    """The bodies of values that were packed as one MessagePack array, *joined*: told apart only for who asks.

    Raises MalformedMessage where they cannot be, or (at once) where it is no array.
    """

    __slots__ = ("_count", "_parts", "joined", "size")

    def __init__(self, joined: Buffer) -> None:
        first = bytes(joined[:1])
        wide = {b"\xdc": 2, b"\xdd": 4}.get(first, 0)
        if not wide and not b"\x90" <= first <= b"\x9f":
            raise MalformedMessage("values of a topic that are no array")
        self.joined = joined
        self._count = int.from_bytes(joined[1:1 + wide], "big") if wide else first[0] & 0x0F
        self.size = len(joined) - 1 - wide  # that of all bodies
        self._parts: list[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: Any) -> Any:
        return self._split()[place]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._split())

    def _split(self) -> list[bytes]:
        if self._count == 1 and self.size + 1 == len(self.joined):
            return [bytes(self.joined[1:])]
        if self._parts is None:
            try:
                self._parts = _parts(self.joined)
            except Exception as error:  # whatever the bytes are
                raise MalformedMessage(f"values of a topic that cannot be told apart: {error}") from error
        return self._parts


def _parts(joined: Buffer) -> list[bytes]:
    walker = Unpacker(max_buffer_size=len(joined) + 1, read_size=1)
    walker.feed(joined)
    parts = []
    for _ in range(walker.read_array_header()):
        before = walker.tell()
        walker.skip()
        parts.append(bytes(joined[before:walker.tell()]))
    if walker.tell() != len(joined):
        raise ValueError("bytes are left over behind them")
    return parts


def pack_all(values: Sequence[Any]) -> Bodies:
    """The bodies of *values*: of the exact types `SCALARS`, or encoded already, as ``msgspec.Raw``."""
    try:
        return Bodies(_pack(values))
    except OverflowError:  # an integer that is too large for MessagePack
        return Bodies(_pack([each if type(each) is msgspec.Raw else msgspec.Raw(codec.encode(each)[0])
                             for each in values]))


def tail(number: int, times: Sequence[float]) -> bytes:
    """What a `Packed` says to whomever it is sent, with values as its buffer; `packed` makes it one."""
    clocks = array("d", times)
    if byteorder == "big":
        clocks.byteswap()
    return _pack((number, clocks.tobytes()))[1:]


def packed(call: int, tail: bytes) -> bytes:
    """The encoded `Packed` for one subscription."""
    return b"\x94\x15" + _pack(call) + tail


def times_of(clocks: bytes) -> Sequence[float]:
    """The times of a `Packed`.  Raises MalformedMessage."""
    times = array("d")
    try:
        times.frombytes(clocks)
    except ValueError as error:
        raise MalformedMessage(f"times of {len(clocks)} bytes") from error
    if byteorder == "big":
        times.byteswap()
    return times


def decode_all(bodies: Sequence[bytes], kinds: frozenset[type] | None = None) -> list[Any] | None:
    """The values of *bodies*, as ``codec.decode`` makes them; None where they are to be decoded one by one.

    That is where one is no value, of an extension type, or of none of these *kinds*: then it takes more to know.
    """
    count = len(bodies)
    if isinstance(bodies, Bodies):
        joined: Buffer = bodies.joined
    elif all(bodies):
        joined = b"".join((_head(count), *bodies))
    else:
        return None
    # Bounded as this is, what it takes is bounded before it is known that nothing stands in each other.
    values = _unpacked(joined, max_array_len=count, max_map_len=0)
    if values is not None and (kinds if kinds and kinds <= SCALARS else SCALARS).issuperset(map(type, values)):
        return values
    try:
        values = _unpacked(joined) if within(bytes(joined), MAX_DEPTH + 1) else None
    except MalformedMessage:
        return None
    return values if values is not None and (kinds is None or kinds.issuperset(map(type, values))) else None


def _unpacked(joined: Buffer, **bounds: int) -> list[Any] | None:
    try:
        values: list[Any] = unpackb(joined, strict_map_key=False, ext_hook=_refuse, timestamp=3, **bounds)
    except Exception:  # whatever it is, the one that has it tells
        return None
    return values


def _refuse(code: int, data: bytes) -> NoReturn:
    raise ValueError(code)
