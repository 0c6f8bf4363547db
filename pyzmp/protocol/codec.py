"""Values to bytes and back: MessagePack, with an extension type for each type that it does not know.

Exact built-in values take the C path of ``msgpack``.  Everything else comes to ``_Encoder.default``, and
arrives by a number of ``Code``: no name from the wire is ever looked up.  ``docs/types.md`` has the table.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import islice
from pathlib import PurePath
from typing import Any, NoReturn, Union
from uuid import UUID

import msgspec
from msgpack import ExtType, Packer, Unpacker, unpackb
from msgpack.exceptions import StackError

from pyzmp.exceptions import CannotTravel, MalformedMessage
from pyzmp.protocol import arrays

THRESHOLD = 16384
"""Buffers of at least this many bytes travel as frames of their own."""

MAX_DEPTH = 64
"""How deep containers may stand in each other; a tuple or set counts like a list."""

Buffer = Union[bytes, bytearray, memoryview]


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
        _blame(value, path, error)


def decode(body: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """The value that ``encode`` made ``body`` and ``buffers`` from.

    Raises MalformedMessage, and nothing else, whatever the bytes.  Takes memory in proportion to the bytes,
    not to what they claim.
    """
    try:
        return _Decoder(buffers).decode(body if type(body) is bytes else bytes(body))
    except MalformedMessage:
        raise
    except Exception as error:
        raise MalformedMessage(f"the bytes are no value: {error}") from error


# ---------------------------------------------------------------------------------------------------- limits

_ONE = b"\x91"      # the header of an array of one item
# What heads no container, and no extension type, in which containers may be.
_LEAVES = bytes(byte for byte in range(256) if not (
    0x80 <= byte <= 0x9f or 0xc7 <= byte <= 0xc9 or 0xd4 <= byte <= 0xd8 or 0xdc <= byte <= 0xdf))
_skip = msgspec.msgpack.Decoder(msgspec.Raw).decode


def _skips(data: bytes) -> bool:
    """Walk over one value without making anything: not deeper than ``msgpack`` goes, and all of its bytes."""
    skipper = Unpacker(max_buffer_size=len(data) + 1, read_size=1)
    skipper.feed(data)
    try:
        skipper.skip()
    except StackError:
        return False
    if skipper.tell() != len(data):
        raise MalformedMessage("bytes are left over behind the value")
    return True


# The C walk has a fixed depth (512); what we wrap around a value is what we take away from it.
_NESTING = next(depth for depth in range(MAX_DEPTH, 1 << 16) if not _skips(_ONE * depth + b"\xc0")) - 1


def _within(body: bytes, depth: int) -> bool:
    """Whether containers stand at most ``depth`` deep; raises where counts claim more than the bytes hold.

    Inside extension types it does not look.  The ``msgpack`` decoder allocates what an array claims, at
    each level anew, so nothing above a few bytes is decoded before this.  With few headers there can be no
    depth, and msgspec walks four times as fast; with many it might overflow the stack, and msgpack cannot.
    """
    if len(body) <= depth:
        return True
    if len(body.translate(None, _LEAVES)) <= depth:
        _skip(body)
        return True
    return _skips(_ONE * (_NESTING - depth) + body)


# Total depth is exact but slow to know; it cannot be beyond the limit while no body is deeper than a
# quarter of it and no extension type stands in more than two others.
_SHALLOW = MAX_DEPTH // 4
_FEW = 3
_CONTAINERS = frozenset({list, dict, tuple, set, frozenset})


def _too_deep(value: Any) -> bool:
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(MAX_DEPTH):
        level = [item for container in level for item in _items(container) if type(item) in _CONTAINERS]
    return bool(level)


def _items(container: Any) -> Iterable[Any]:
    return (*container, *container.values()) if type(container) is dict else container


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
        if len(body) > _SHALLOW and not self.deepest and not _within(body, MAX_DEPTH):
            raise RecursionError
        if self.doubtful or self.deepest > _FEW or (self.deepest and not _within(body, _SHALLOW)):
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
        self.doubtful = self.doubtful or not _within(body, _SHALLOW)
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
_FORMS: dict[type, _Form] = {
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
    raise TypeError("send str(path) and make a path of it there" if issubclass(kind, PurePath) else "")


def _number(encoder: _Encoder, value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return str(value) if isinstance(value, str) else bytes(value)
    dtype, _, data = arrays.take(value)
    return encoder.nest(Code.NUMBER, [dtype, bytes(data)])


# ------------------------------------------------------------------------------------ why a value cannot travel

def _blame(value: Any, path: str, error: Exception) -> NoReturn:
    """Raise CannotTravel for the first part of ``value`` that cannot: slow, and only run after a failure."""
    _search(value, path, 1)
    reason = "" if isinstance(error, (TypeError, RecursionError)) else str(error)
    raise CannotTravel(type(value).__qualname__, path, reason) from error


def _search(value: Any, path: str, depth: int) -> None:
    try:
        parts = _parts(value, path)
    except Exception as error:
        raise CannotTravel(type(value).__qualname__, path, f"looking into it raised {type(error).__name__}") from error
    if parts is None:
        return _try_leaf(value, path)
    if depth > MAX_DEPTH:
        raise CannotTravel(type(value).__qualname__, path[:80] + " ...",
                           f"it is nested deeper than {MAX_DEPTH} levels, or in itself")
    for where, part, must_hash in parts:
        _search(part, where, depth + 1)
        if must_hash:
            _try_key(part, where)


def _try_leaf(value: Any, path: str) -> None:
    try:
        _Encoder().encode(value)
    except Exception as error:
        raise CannotTravel(type(value).__qualname__, path, str(error)) from error


def _try_key(value: Any, path: str) -> None:
    try:
        hash(decode(*encode(value)))
    except (TypeError, MalformedMessage) as error:
        raise CannotTravel(type(value).__qualname__, path,
                           "it arrives without a hash, so that it cannot be a key or stand in a set") from error


def _parts(value: Any, path: str) -> list[tuple[str, Any, bool]] | None:
    """What ``value`` is made of: where it stands, the part, and whether it must have a hash when it arrives."""
    if isinstance(value, Enum):
        return [(f"{path}.value", value.value, False)]
    if isinstance(value, dict):
        return [part for key, item in list(value.items())
                for part in ((f"{path} key {_show(key)}", key, True), (f"{path}[{_show(key)}]", item, False))]
    if isinstance(value, (set, frozenset)):
        return [(f"{path} item {_show(item)}", item, True) for item in value]
    if isinstance(value, (list, tuple)):
        return [(f"{path}[{index}]", item, False) for index, item in enumerate(value)]
    names = ([field.name for field in fields(type(value))] if hasattr(type(value), "__dataclass_fields__")
             else list(type(value).__struct_fields__) if isinstance(value, msgspec.Struct) else None)
    if names is None or not all(hasattr(value, name) for name in names):
        return None
    return [(f"{path}.{name}", getattr(value, name), False) for name in names]


def _show(value: Any) -> str:
    try:
        return repr(value)[:40] if isinstance(value, (str, float, bytes)) or value in (True, False, None) else (
            f"{value:d}"[:40] if isinstance(value, int) else f"of type {type(value).__qualname__}")
    except Exception:
        return f"of type {type(value).__qualname__}"


# -------------------------------------------------------------------------------------------------- decoding

_SAFE_LEVEL = 4


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
        if len(body) > MAX_DEPTH and not _within(body, MAX_DEPTH):
            self.refuse_depth()
        value = self.unpack(body)
        if self.unused:
            raise MalformedMessage(f"{len(self.unused)} of {len(self.buffers)} buffers are not part of the value")
        if self.deepest and (self.doubtful or self.deepest > _FEW or not _within(body, _SHALLOW)) and _too_deep(value):
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
        if not _within(data, _SHALLOW):
            self.doubtful = True
            if not _within(data, MAX_DEPTH):
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
_ARRIVALS: dict[int, _Arrival] = {
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
