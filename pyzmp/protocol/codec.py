"""Values to bytes and back: MessagePack, with an extension type for each type that it does not know.

Exact built-in values take the C path of ``msgpack``.  Everything else comes to ``_Encoder.default``, and
arrives by a number of ``Code``: no name from the wire is ever looked up.  ``docs/types.md`` has the table.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import islice
from typing import Any, NoReturn, TypeAlias
from uuid import UUID

import msgspec
from msgpack import ExtType, Packer, Unpacker, unpackb

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import arrays
from pyzmp.protocol.blame import blame
from pyzmp.protocol.limits import FEW, MAX_DEPTH, SHALLOW, too_deep, within

THRESHOLD = 16384
"""Buffers of at least this many bytes travel as frames of their own."""

Buffer: TypeAlias = bytes | bytearray | memoryview


class Code(IntEnum):
    """The numbers of the extension types.  They are the protocol: never reuse one."""

    TUPLE = 1       # a MessagePack array
    SET = 2         # a MessagePack array
    FROZENSET = 3   # a MessagePack array
    INT = 4         # two's complement, big-endian
    COMPLEX = 5     # two big-endian doubles
    DECIMAL = 6     # its text
    DATETIME = 7    # ISO 8601, with the offset from UTC where it has one
    DATE = 8        # ISO 8601
    TIME = 9        # ISO 8601
    TIMEDELTA = 10  # days, seconds and microseconds, three big-endian 32-bit integers
    UUID = 11       # its 16 bytes
    ARRAY = 12      # MessagePack [dtype, shape, data]; data is a bin, or BUFFER
    NUMBER = 13     # MessagePack [dtype, data]: a numpy scalar
    BUFFER = 14     # the index of a buffer that travels beside the body, big-endian, 32 bits


def encode(value: Any, path: str = "value") -> tuple[bytes, list[Buffer]]:
    """The body of ``value``, and the large buffers in it, which are not copied.

    Raises CannotTravel, and nothing else; ``path`` is what its text calls ``value``.
    """
    encoder = _Encoder()
    try:
        return encoder.encode(value), encoder.buffers
    except Exception as error:
        blame(value, path, error, _there_and_back)


def _there_and_back(value: Any) -> Any:
    encoder = _Encoder()
    return decode(encoder.encode(value), encoder.buffers)


def decode(body: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """The value that ``encode`` made ``body`` and ``buffers`` from.

    Raises MalformedMessage, and nothing else, whatever the bytes.  Takes memory in proportion to the bytes,
    not to what they claim.
    """
    try:
        if body and body[0] in _LONE and not buffers:
            return _decode_lone(body)
        return _Decoder(buffers).decode(body if type(body) is bytes else bytes(body))
    except MalformedMessage:
        raise
    except Exception as error:
        raise MalformedMessage(f"the bytes are no value: {error}") from error


# -------------------------------------------------------------------------------------------------- encoding

_BUFFERS = frozenset({bytes, bytearray, memoryview})
_WATCHED = _BUFFERS | {list, dict}
_NATIVE = frozenset("bBhHiIlLqQfdc")     # the formats of a memoryview that can be cast to bytes
_GLANCE = 1000
_FIRST_BUFFER = 4096


class _Lifted:
    """A buffer on its way out of the body."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer


def _holds_buffers(value: Any, most: int) -> bool | None:
    """Whether a large buffer is among the first ``most`` values; None where it is not but there are more.

    The packer copies whatever buffer it meets, so buffers are looked for before it runs.  Looking at
    everything would double the time for a list of a million numbers; a glance finds nearly every buffer
    there is, and what it misses shows in the size of the body and is packed again.
    """
    pending, cut = [value], False
    for item in pending:
        kind = type(item)
        if kind is list or kind is dict:
            if not item:
                continue
            inside = item if kind is list else item.values()
            most -= len(inside)
            if most < 0:
                inside, most, cut = list(islice(inside, most + len(inside))), 0, True
            if not _WATCHED.isdisjoint(map(type, inside)):
                pending += [item for item in inside if type(item) in _WATCHED]
        elif kind in _BUFFERS and _lifts(item):
            return True
    return None if cut else False


def _may_hold(body: bytes) -> bool:
    return len(body) >= THRESHOLD and (b"\xc5" in body or b"\xc6" in body)       # the headers of long buffers


def _lifts(buffer: Buffer) -> bool:
    if type(buffer) is memoryview:
        return buffer.nbytes >= THRESHOLD or not buffer.c_contiguous      # the packer takes no other
    return len(buffer) >= THRESHOLD


def _flat(buffer: Buffer) -> Buffer:
    if type(buffer) is not memoryview:
        return buffer
    return buffer.cast("B") if buffer.c_contiguous and buffer.format in _NATIVE else buffer.tobytes()


class _Encoder:
    """One value on its way out."""

    __slots__ = ("buffers", "deepest", "doubtful", "level")

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.level = 0              # how many extension types stand around what is packed now
        self.deepest = 0
        self.doubtful = False       # it may turn out at the other end to be too deep, or a key without a hash

    def encode(self, value: Any) -> bytes:
        body = self.pack(value)
        if len(body) > SHALLOW and not self.deepest and not within(body, MAX_DEPTH):
            raise RecursionError
        if self.doubtful or self.deepest > FEW or (self.deepest and not within(body, SHALLOW)):
            decode(body, self.buffers)
        return body

    def pack(self, value: Any) -> bytes:
        holds = _holds_buffers(value, _GLANCE)
        if not holds:
            before = len(self.buffers)
            try:
                body = self.packed(value)
            except BufferError:     # a view that is not contiguous, beyond the glance
                pass
            else:
                if holds is False or not _may_hold(body) or not _holds_buffers(value, sys.maxsize):
                    return body
            del self.buffers[before:]
        return self.packed(self.lift(value, 0))

    def packed(self, value: Any) -> bytes:
        # A packer of its own for each value (0.15 µs): one that is shared would be entered again by a
        # finalizer or another thread in the middle of a value.  Its own first buffer of 256 KiB would be
        # mapped and unmapped each time.
        body: bytes = Packer(default=self.default, strict_types=True, buf_size=_FIRST_BUFFER).pack(value)
        return body

    def lift(self, value: Any, depth: int) -> Any:
        """``value`` with its large buffers marked, so that they come to ``default``."""
        if depth > MAX_DEPTH:
            raise RecursionError
        kind = type(value)
        if kind is list and not _WATCHED.isdisjoint(map(type, value)):
            return [self.lift(item, depth + 1) for item in value]
        if kind is dict and not _WATCHED.isdisjoint(map(type, value.values())):
            return {key: self.lift(item, depth + 1) for key, item in value.items()}
        return _Lifted(value) if kind in _BUFFERS and _lifts(value) else value

    def default(self, value: Any) -> Any:
        """What stands for ``value``: the packer's hook for all that is not an exact built-in type."""
        plain = (_FORMS.get(type(value)) or _form_of(type(value)))(self, value)
        if type(plain) in _WATCHED and _holds_buffers(plain, _GLANCE) is not False:
            return self.lift(plain, 0)
        return plain

    def nest(self, code: Code, value: list[Any]) -> ExtType:
        self.level += 1
        if self.level > MAX_DEPTH:
            raise RecursionError
        self.deepest = max(self.deepest, self.level)
        body = self.pack(value)
        self.level -= 1
        self.doubtful = self.doubtful or not within(body, SHALLOW)
        return ExtType(code, body)

    def aside(self, buffer: Buffer) -> ExtType | bytes:
        flat = _flat(buffer)
        if len(flat) < THRESHOLD:
            return bytes(flat)
        self.buffers.append(flat)
        return ExtType(Code.BUFFER, struct.pack(">I", len(self.buffers) - 1))

    def array(self, value: Any) -> ExtType:
        dtype, shape, data = arrays.take(value)
        return self.nest(Code.ARRAY, [dtype, shape, data])

    def fields(self, items: dict[str, Any], kind: type) -> dict[str, Any]:
        # What has a hash could be a key here, and a map cannot be one there.
        self.doubtful = self.doubtful or kind.__hash__ is not None
        return items


def _integer(value: int) -> ExtType:
    return ExtType(Code.INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _timedelta(value: timedelta) -> ExtType:
    return ExtType(Code.TIMEDELTA, struct.pack(">iii", value.days, value.seconds, value.microseconds))


_Form = Callable[[_Encoder, Any], Any]
# The base's own methods, since a subclass may write itself in another way.
_FORMS: Mapping[type, _Form] = {
    tuple: lambda encoder, value: encoder.nest(Code.TUPLE, list(value)),
    set: lambda encoder, value: encoder.nest(Code.SET, list(value)),
    frozenset: lambda encoder, value: encoder.nest(Code.FROZENSET, list(value)),
    int: lambda encoder, value: _integer(value),
    complex: lambda encoder, value: ExtType(Code.COMPLEX, struct.pack(">dd", value.real, value.imag)),
    Decimal: lambda encoder, value: ExtType(Code.DECIMAL, Decimal.__str__(value).encode()),
    datetime: lambda encoder, value: ExtType(Code.DATETIME, datetime.isoformat(value).encode()),
    date: lambda encoder, value: ExtType(Code.DATE, date.isoformat(value).encode()),
    time: lambda encoder, value: ExtType(Code.TIME, time.isoformat(value).encode()),
    timedelta: lambda encoder, value: _timedelta(value),
    UUID: lambda encoder, value: ExtType(Code.UUID, value.bytes),
    _Lifted: lambda encoder, value: encoder.aside(value.buffer),
}
# In this order: the first base that fits.
_BASES: tuple[tuple[type, _Form], ...] = (
    (Enum, lambda encoder, value: value.value),
    (str, lambda encoder, value: str.__str__(value)),
    (int, lambda encoder, value: int.__int__(value)),
    (float, lambda encoder, value: float.__float__(value)),
    (bytes, lambda encoder, value: memoryview(value)),
    (bytearray, lambda encoder, value: memoryview(value)),
    (list, lambda encoder, value: list(value)),
    (dict, lambda encoder, value: dict(value)),
    *((base, _FORMS[base]) for base in (
        tuple, set, frozenset, complex, Decimal, datetime, date, time, timedelta, UUID)),
)


def _form_of(kind: type) -> _Form:
    if arrays.is_numpy(kind):
        return _Encoder.array if arrays.is_array(kind) else _number
    if hasattr(kind, "__dataclass_fields__"):
        return lambda encoder, value: encoder.fields(
            {field.name: getattr(value, field.name) for field in fields(kind)}, kind)
    if issubclass(kind, msgspec.Struct):
        return lambda encoder, value: encoder.fields(
            {name: getattr(value, name) for name in kind.__struct_fields__}, kind)
    for base, form in _BASES:
        if issubclass(kind, base):
            return form
    is_path = any(base.__name__ == "PurePath" for base in kind.__mro__)  # by name: pathlib costs to import
    raise TypeError("send str(path) and make a path of it there" if is_path else "")


def _number(encoder: _Encoder, value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return str(value) if isinstance(value, str) else bytes(value)
    dtype, _, data = arrays.take(value)
    return encoder.nest(Code.NUMBER, [dtype, bytes(data)])


# -------------------------------------------------------------------------------------------------- decoding

_SAFE_LEVEL = 4
# What a number, None, a bool or a text begins with: such a value holds no others, and is read in a tenth of the time.
_LONE = frozenset((*range(0x80), *range(0xA0, 0xC1), 0xC2, 0xC3, *range(0xCA, 0xD4), *range(0xD9, 0xDC),
                   *range(0xE0, 0x100)))
_decode_lone = msgspec.msgpack.Decoder().decode


class _Decoder:
    """One value on its way in."""

    __slots__ = ("buffers", "deepest", "doubtful", "level", "unused", "views")

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers
        self.views = False          # whether a buffer is wanted as it is, for an array over it
        self.unused = set(range(len(buffers))) if buffers else None
        self.level = 0
        self.deepest = 0
        self.doubtful = False

    def decode(self, body: bytes) -> Any:
        if len(body) > MAX_DEPTH and not within(body, MAX_DEPTH):
            self.refuse_depth()
        value = self.unpack(body)
        if self.unused:
            raise MalformedMessage(f"{len(self.unused)} of {len(self.buffers)} buffers are not part of the value")
        if self.deepest and (self.doubtful or self.deepest > FEW or not within(body, SHALLOW)) and too_deep(value):
            self.refuse_depth()
        return value

    def refuse_depth(self) -> NoReturn:
        raise MalformedMessage(f"the value is nested deeper than {MAX_DEPTH} levels")

    def unpack(self, body: bytes) -> Any:
        if self.level <= _SAFE_LEVEL:
            return unpackb(body, strict_map_key=False, ext_hook=self.extension, timestamp=3)
        # Each level of unpackb takes 20 KiB of the thread's stack, which may be small; this one is on the heap.
        unpacker = Unpacker(strict_map_key=False, ext_hook=self.extension, timestamp=3,
                            max_buffer_size=len(body) + 1, read_size=1)
        unpacker.feed(body)
        value = unpacker.unpack()
        if unpacker.tell() != len(body):
            raise MalformedMessage("bytes are left over behind the value")
        return value

    def extension(self, code: int, data: bytes) -> Any:
        form = _ARRIVALS.get(code)
        if form is None:
            raise MalformedMessage(f"{code} is no extension type of ours")
        return form(self, data)

    def nested(self, data: bytes) -> Any:
        self.level += 1
        if self.level > MAX_DEPTH:
            self.refuse_depth()
        self.deepest = max(self.deepest, self.level)
        if not within(data, SHALLOW):
            self.doubtful = True
            if not within(data, MAX_DEPTH):
                self.refuse_depth()
        value = self.unpack(data)
        self.level -= 1
        return value

    def items(self, data: bytes) -> list[Any]:
        value = self.nested(data)
        if type(value) is not list:
            raise MalformedMessage(f"an array was expected, got {type(value).__name__}")
        return value

    def buffer(self, data: bytes) -> Buffer:
        index, = struct.unpack(">I", data)
        if not self.unused or index not in self.unused:     # twice would be a copy for six bytes
            raise MalformedMessage(f"there is no buffer {index}, or it is already part of the value")
        self.unused.discard(index)
        buffer = self.buffers[index]
        return buffer if self.views or type(buffer) is bytes else bytes(buffer)

    def array(self, data: bytes) -> Any:
        self.views = True
        dtype, shape, content = self.items(data)
        self.views = False
        return arrays.make(dtype, shape, content)


_Arrival = Callable[[_Decoder, bytes], Any]
_ARRIVALS: Mapping[int, _Arrival] = {
    Code.TUPLE: lambda decoder, data: tuple(decoder.items(data)),
    Code.SET: lambda decoder, data: set(decoder.items(data)),
    Code.FROZENSET: lambda decoder, data: frozenset(decoder.items(data)),
    Code.INT: lambda decoder, data: int.from_bytes(data, "big", signed=True),
    Code.COMPLEX: lambda decoder, data: complex(*struct.unpack(">dd", data)),
    Code.DECIMAL: lambda decoder, data: Decimal(data.decode("ascii")),
    Code.DATETIME: lambda decoder, data: datetime.fromisoformat(data.decode("ascii")),
    Code.DATE: lambda decoder, data: date.fromisoformat(data.decode("ascii")),
    Code.TIME: lambda decoder, data: time.fromisoformat(data.decode("ascii")),
    Code.TIMEDELTA: lambda decoder, data: timedelta(*struct.unpack(">iii", data)),
    Code.UUID: lambda decoder, data: UUID(bytes=data),
    Code.ARRAY: _Decoder.array,
    Code.NUMBER: lambda decoder, data: arrays.make_number(*decoder.items(data)),
    Code.BUFFER: _Decoder.buffer,
}
