"""Recordings: messages of topics and what is missing between them, to the bytes of a file and back.

A file is `HEADER`, then *records*.  A record is a head of three big-endian 32-bit numbers, which are the bytes of
its value, their CRC-32, and the CRC-32 of the eight bytes before, and then the value: a MessagePack array that
begins with what kind of record it is.  So a file that merely ends too early, as one does whose writer was killed,
is told from one that was damaged: its last head is whole and right, or cut off itself.

Publishers are records of their own, and stand for the numbers 0, 1, 2 … in the order in which they come.
"""

from __future__ import annotations

import struct
from binascii import crc32
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec

from pyzmp.protocol.envelope import Buffer

HEADER = b"pyzmp recording 1\n"

_HEAD = struct.Struct(">III")
_FRONT = struct.Struct(">II")

Count = Annotated[int, msgspec.Meta(ge=0)]


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What all records share: immutable, and arrays in the file."""


class Began(_Record, frozen=True, tag=0):
    """A recorder began to write here, at *time*; the first record of each."""

    time: float


class Publisher(_Record, frozen=True, tag=1):
    """Who published, under which full name; ``text``, ``shape`` and ``marks`` say what, as the graph does."""

    topic: str
    node: str
    text: str = ""
    shape: bytes = b""
    marks: tuple[str, ...] = ()


class Message(_Record, frozen=True, tag=2):
    """A message: whose it is, its number there, when it was published, and its encoded value.

    ``time`` is in seconds since 1970.
    """

    publisher: Count
    number: Count
    time: float
    body: bytes
    buffers: Sequence[memoryview] = ()  # the last: how `Writer` adds them


class Gap(_Record, frozen=True, tag=3):
    """So many messages from ``number`` on did not come to the recorder, as it knew at ``time``.

    ``dropped`` by the publisher, as the recorder was too slow, or lost with a connection.
    """

    publisher: Count
    number: Count
    count: Annotated[int, msgspec.Meta(ge=1)]
    dropped: bool
    time: float


Record = Began | Publisher | Message | Gap


class Damage(msgspec.Struct, frozen=True):
    """Where a file cannot be read any more, and why.

    ``unfinished``: it merely ends in the middle of a record, which begins at ``offset``.
    """

    offset: int
    reason: str
    unfinished: bool = False

    def __str__(self) -> str:
        return f"at byte {self.offset}: {self.reason}"


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Writer:
    """Makes the bytes of records, in pieces to be written one after the other.

    *publishers* are those that the file has already.
    """

    def __init__(self, publishers: Iterable[Publisher] = ()) -> None:
        self._known = {publisher: number for number, publisher in enumerate(publishers)}

    def began(self, time: float) -> list[Buffer]:
        return [_record(_encode(Began(time)))]

    def message(self, publisher: Publisher, number: int, time: float, body: bytes,
                buffers: Sequence[Buffer] = ()) -> list[Buffer]:
        """A message, before it its publisher where the file has not got that yet; *buffers* are not copied."""
        pieces, index = self._publisher(publisher)
        encoded = _encode(Message(index, number, time, body))
        if buffers:
            pieces.extend(_framed(_with(encoded, buffers)))
        else:
            pieces.append(_record(encoded))
        return pieces

    def gap(self, publisher: Publisher, number: int, count: int, *, dropped: bool, time: float) -> list[Buffer]:
        """As `message`, for messages that did not come."""
        pieces, index = self._publisher(publisher)
        pieces.append(_record(_encode(Gap(index, number, count, dropped, time))))
        return pieces

    def _publisher(self, publisher: Publisher) -> tuple[list[Buffer], int]:
        index = self._known.get(publisher)
        if index is not None:
            return [], index
        index = self._known[publisher] = len(self._known)
        return [_record(_encode(publisher))], index


def _record(value: bytes) -> bytes:
    front = _FRONT.pack(len(value), crc32(value))
    return front + crc32(front).to_bytes(4, "big") + value


def _with(message: bytes, buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """The value of a message, with buffers in the place of the empty array at its end."""
    few = len(buffers) < 16
    yield message[:-1] + (bytes([0x90 | len(buffers)]) if few else b"\xdd" + len(buffers).to_bytes(4, "big"))
    for buffer in buffers:
        yield b"\xc6" + memoryview(buffer).nbytes.to_bytes(4, "big")
        yield buffer


def _framed(value: Iterable[Buffer]) -> list[Buffer]:
    pieces, size, check = list(value), 0, 0
    for piece in pieces:
        size, check = size + memoryview(piece).nbytes, crc32(piece, check)
    front = _FRONT.pack(size, check)
    return [front + crc32(front).to_bytes(4, "big"), *pieces]


class Reader:
    """Reads a file piece by piece, up to its end or to where it is damaged.

    ``offset`` is where the last whole record ends, and ``publishers`` are those that came.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.publishers: list[Publisher] = []
        self.damage: Damage | None = None
        self._rest = bytearray()

    def feed(self, data: Buffer) -> list[Record]:
        """The file goes on; the records that are whole now."""
        if self.damage is not None:
            return []
        self._rest += data
        with memoryview(self._rest) as rest:
            start = self.offset
            records = list(self._records(rest))
        del self._rest[:self.offset - start]
        return records

    def end(self) -> Damage | None:
        """The file is over; what is wrong with it."""
        if self.damage is None and (self._rest or not self.offset):
            what = "a record" if self.offset else "its header"
            self._damaged(f"the file ends in the middle of {what}, as it does where its writer was killed",
                          unfinished=True)
        return self.damage

    def _records(self, rest: memoryview) -> Iterator[Record]:
        at = 0
        if not self.offset:
            if bytes(rest[:len(HEADER)]) != HEADER[:len(rest)]:
                self._damaged("this is no recording, or one of another version")
                return None
            if len(rest) < len(HEADER):
                return None
            self.offset = at = len(HEADER)
        while (value := self._value(rest[at:])) is not None:
            record = self._record(value)
            if record is None:
                return None
            at += _HEAD.size + len(value)
            self.offset += _HEAD.size + len(value)
            yield record
        return None

    def _value(self, rest: memoryview) -> bytes | None:
        """The value of the next record, where it is whole and right."""
        if len(rest) < _HEAD.size:
            return None
        size, check, front = _HEAD.unpack_from(rest)
        if crc32(rest[:_FRONT.size]) != front:
            self._damaged("the head of a record is damaged")
            return None
        if len(rest) < _HEAD.size + size:
            return None
        value = bytes(rest[_HEAD.size:_HEAD.size + size])
        if crc32(value) != check:
            self._damaged("a record is damaged")
            return None
        return value

    def _record(self, value: bytes) -> Record | None:
        try:
            record: Record = _decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
            self._damaged(f"not a record of this version: {error}")
            return None
        if isinstance(record, Publisher):
            self.publishers.append(record)
        elif not isinstance(record, Began) and record.publisher >= len(self.publishers):
            self._damaged(f"a record of publisher {record.publisher}, where {len(self.publishers)} are known")
            return None
        return record

    def _damaged(self, reason: str, *, unfinished: bool = False) -> None:
        self.damage = Damage(self.offset, reason, unfinished)
