"""Recordings: whatever a file is cut at or has flipped in it, it is read up to there, and that is noticed."""

from __future__ import annotations

from binascii import crc32
from collections.abc import Sequence
from itertools import accumulate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.protocol.recording import HEADER, Began, Damage, Gap, Message, Publisher, Reader, Record, Writer

KITCHEN = Publisher("kitchen/reading", "kitchen", "float", b"\x01", ("Thermometer.reading",))
HALL = Publisher("hall/reading", "hall", "float", b"\x01", ("Thermometer.reading",))
TIMES = st.floats(allow_nan=False)
NUMBERS = st.integers(0, (1 << 62) - 1)
PUBLISHERS = st.builds(Publisher, st.text(max_size=9), st.sampled_from(["a", "b"]), st.just("int"),
                       st.binary(max_size=3), st.lists(st.text(max_size=3), max_size=2).map(tuple))
STEPS = st.one_of(
    st.tuples(st.just("began"), TIMES),
    st.tuples(st.just("message"), PUBLISHERS, NUMBERS, TIMES, st.binary(max_size=20),
              st.lists(st.binary(max_size=30), max_size=18)),
    st.tuples(st.just("gap"), PUBLISHERS, NUMBERS, st.integers(1, 1 << 40), st.booleans(), TIMES))


def write(steps: Sequence[tuple], writer: Writer | None = None) -> list[bytes]:
    """The bytes of each step."""
    writer, made = writer or Writer(), []
    for step in steps:
        if step[0] == "gap":
            pieces = writer.gap(*step[1:4], dropped=step[4], time=step[5])
        else:
            pieces = getattr(writer, step[0])(*step[1:])
        made.append(b"".join(pieces))
    return made


def plain(reader: Reader, records: Sequence[Record]) -> list[tuple]:
    """The steps that records were made from."""
    steps = []
    for record in records:
        if isinstance(record, Began):
            steps.append(("began", record.time))
        elif isinstance(record, Message):
            steps.append(("message", reader.publishers[record.publisher], record.number, record.time, record.body,
                          [bytes(buffer) for buffer in record.buffers]))
        elif isinstance(record, Gap):
            steps.append(("gap", reader.publishers[record.publisher], record.number, record.count, record.dropped,
                          record.time))
    return steps


def read(data: bytes, piece: int = 1 << 20) -> tuple[Reader, list[Record]]:
    reader, records = Reader(), []
    for start in range(0, len(data), piece):
        records += reader.feed(data[start:start + piece])
    reader.end()
    return reader, records


@given(st.lists(STEPS, max_size=8), st.integers(1, 200))
def test_what_was_written_is_read_in_pieces_of_any_size(steps: list[tuple], piece: int) -> None:
    data = HEADER + b"".join(write(steps))
    reader, records = read(data, piece)
    assert (reader.damage, reader.offset) == (None, len(data))
    assert plain(reader, records) == steps
    assert len(set(reader.publishers)) == len(reader.publishers)  # each is written once


@given(st.lists(STEPS, max_size=6), st.data())
def test_a_file_that_is_cut_is_read_up_to_there_and_can_go_on(steps: list[tuple], data: st.DataObject) -> None:
    made = write(steps)
    whole = HEADER + b"".join(made)
    cut = data.draw(st.integers(0, len(whole)))
    reader, records = read(whole[:cut], data.draw(st.integers(1, 64)))
    ends = list(accumulate(map(len, made), initial=len(HEADER)))
    steps_left = sum(end <= cut for end in ends[1:])
    assert plain(reader, records) == steps[:steps_left]
    if reader.damage is None:
        assert reader.offset == cut
    else:
        assert reader.damage == Damage(reader.offset, reader.damage.reason, unfinished=True)
        # A publisher may be whole whose message is not.
        assert max((end for end in ends if end <= cut), default=0) <= reader.offset < cut or cut == 0
    went_on = write(steps[steps_left:], Writer(reader.publishers))
    again, records = read((whole[:reader.offset] or HEADER) + b"".join(went_on))
    assert again.damage is None
    assert plain(again, records) == steps


def small_file() -> tuple[bytes, list[int], list[tuple]]:
    """A file with every kind of record, where the records end, and what it was made from."""
    steps = [("began", 1.0), ("message", KITCHEN, 0, 1.5, b"\xcb\x00", []), ("message", HALL, 7, 1.6, b"\x01", []),
             ("gap", KITCHEN, 1, 3, True, 1.7), ("message", KITCHEN, 4, 1.8, b"\x02", [b"buffer", b"s"])]
    data = HEADER + b"".join(write(steps))
    reader, ends = Reader(), []
    for index in range(len(data)):
        reader.feed(data[index:index + 1])
        if reader.offset and reader.offset not in ends:
            ends.append(reader.offset)
    assert reader.end() is None
    return data, ends, steps


def test_every_cut_is_noticed_unless_it_is_between_two_records() -> None:
    data, ends, _ = small_file()
    assert (ends[0], ends[-1], len(ends)) == (len(HEADER), len(data), 8)
    for cut in range(len(data)):
        reader, _ = read(data[:cut])
        offset = max((end for end in ends if end <= cut), default=0)
        assert reader.offset == offset
        if cut in ends:
            assert reader.damage is None
        else:
            assert reader.damage is not None
            assert (reader.damage.offset, reader.damage.unfinished) == (offset, True)


def test_every_flipped_bit_is_noticed_and_never_taken_for_a_mere_end() -> None:
    data, ends, steps = small_file()
    for index in range(len(data)):
        before = max((end for end in ends if end <= index), default=0)
        for bit in range(8):
            bad = bytearray(data)
            bad[index] ^= 1 << bit
            reader, records = read(bytes(bad))
            assert reader.damage is not None
            assert (reader.damage.offset, reader.damage.unfinished, reader.offset) == (before, False, before)
            got = plain(reader, records)
            assert got == steps[:len(got)]
            assert not reader.feed(data[before:])  # nothing after it is believed


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_reported(data: bytes, headed: bool) -> None:
    reader, records = read((HEADER if headed else b"") + data)
    headed = headed or data.startswith(HEADER)
    assert reader.damage is not None or headed
    assert not records or headed


def sealed(value: bytes) -> bytes:
    front = len(value).to_bytes(4, "big") + crc32(value).to_bytes(4, "big")
    return front + crc32(front).to_bytes(4, "big") + value


@pytest.mark.parametrize("value", [
    [2, 0, 0, 1.0, b""], [2, -1, 0, 1.0, b""], [3, 0, 0, 0, True, 1.0], [9, 1], [], None, [1, "x"],
    [0, "now"], [2, 0, 0, 1.0, b"", ["text"]],
])
def test_a_record_that_says_nothing_sensible_is_damage_where_it_begins(value: object) -> None:
    good = b"".join(write([("began", 1.0)]))
    reader, records = read(HEADER + good + sealed(msgspec.msgpack.encode(value)) + good)
    assert records == [Began(1.0)]
    assert reader.damage is not None
    assert (reader.damage.offset, reader.damage.unfinished) == (len(HEADER + good), False)


@given(st.binary(max_size=40))
def test_a_record_of_any_bytes_is_read_or_reported(value: bytes) -> None:
    reader, records = read(HEADER + sealed(value))
    assert (reader.damage is None) == (len(records) == 1)


def test_buffers_are_neither_copied_on_their_way_out_nor_twice_on_their_way_in() -> None:
    frame = bytearray(1 << 16)
    pieces = Writer().message(KITCHEN, 0, 1.0, b"\x01", [memoryview(frame).cast("d")])
    assert any(isinstance(piece, memoryview) and piece.obj is frame for piece in pieces)
    _, records = read(HEADER + b"".join(pieces))
    message = records[-1]
    assert isinstance(message, Message)
    assert message.buffers[0].readonly
    assert message.buffers[0] == bytes(frame)
    assert isinstance(message.buffers[0].obj, bytes)


def test_another_version_and_another_file_are_told_from_a_recording() -> None:
    for data in (b"pyzmp recording 2\n", b"\x7fELF", b"p\x00"):
        reader, _ = read(data)
        assert reader.damage == Damage(0, "this is no recording, or one of another version")
    assert str(Damage(3, "bad")) == "at byte 3: bad"
