"""Batches come back as they went, hostile bytes are refused cheaply, and any MessagePack library reads them."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyzmp.exceptions import CannotTravel, MalformedMessage
from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import (
    AROUND,
    BATCH,
    FRAMES,
    LANES,
    NAME,
    SIZE,
    Buffer,
    Calls,
    Cancel,
    Credit,
    End,
    Ended,
    Failure,
    Goodbye,
    Hello,
    Item,
    Lane,
    Message,
    Note,
    Opened,
    Packed,
    Parcel,
    Published,
    Reply,
    Request,
    Results,
    Skipped,
    Subscribe,
    Subscribed,
    Taken,
    Welcome,
)

text = st.text(max_size=20)
body = st.binary(max_size=60)
number = st.integers(0, 2 ** 63)
buffers = st.lists(st.binary(max_size=40), max_size=4)
lanes = st.builds(Lane, text, text)
plain_messages = st.one_of(
    st.builds(Hello, body, text, text, body), st.builds(Welcome, text, number, number), st.builds(Goodbye, text),
    st.builds(Failure, number, st.integers(0, 300), text, st.sampled_from([True, False, None]), body,
              st.none() | st.floats(0, 100)),
    st.builds(Cancel, number, number), st.builds(End, number), st.builds(Credit, number, number, number),
    st.builds(Note, body), st.builds(Opened, number),
    st.builds(Subscribe, number, text, text, number, number, number, number, body, st.tuples(body, number), text,
              st.booleans(), st.booleans()),
    st.builds(Subscribed, number, body, number, body),
    st.builds(Published, number, number, st.lists(st.floats(0, 1e10)), st.lists(body)),
    st.builds(Skipped, number, number, number), st.builds(Taken, number, number, number, number),
    st.builds(Ended, number, number, text),
    st.builds(Calls, number, text, text, st.floats(allow_nan=False), body, number, st.tuples(number, number),
              st.lists(lanes, max_size=3).map(tuple)),
    st.builds(Results, number, body, number))


@st.composite
def parcels(draw: st.DrawFn) -> Parcel:
    kind = draw(st.sampled_from(["plain", "request", "reply", "item", "packed"]))
    if kind == "plain":
        return Parcel(draw(plain_messages))
    carried = draw(buffers)
    if kind == "request":
        message: Message = Request(
            draw(number), draw(text), draw(text), draw(st.floats(allow_nan=False)), draw(body), len(carried),
            draw(st.tuples(number, number)), draw(st.integers(0, 7)),
            tuple(draw(st.lists(lanes, max_size=3))), draw(body))
    elif kind == "packed":
        message = Packed(draw(number), draw(number), draw(body), len(carried))
    elif kind == "reply":
        message = Reply(draw(number), draw(body), len(carried))
    else:
        message = Item(draw(number), draw(number), draw(body), len(carried))
    return Parcel(message, carried)


batches = st.lists(parcels(), min_size=1, max_size=20)


def frames_of(batch: Sequence[Parcel]) -> list[Buffer]:
    head = envelope.pack([envelope.encode(parcel.message) for parcel in batch])
    return [head, *(buffer for parcel in batch for buffer in parcel.buffers)]


def comparable(batch: Sequence[Parcel]) -> list[tuple[Message, list[bytes]]]:
    return [(parcel.message, [bytes(buffer) for buffer in parcel.buffers]) for parcel in batch]


def plain(value: Any) -> Any:
    if isinstance(value, Lane):
        return [value.loop, value.what]
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else value


@given(batches)
def test_a_batch_comes_back_as_it_went(batch: list[Parcel]) -> None:
    assert comparable(envelope.unpack(frames_of(batch))) == comparable(batch)


@given(batches)
def test_views_are_as_good_as_bytes(batch: list[Parcel]) -> None:
    views = [memoryview(bytes(frame)) for frame in frames_of(batch)]
    assert comparable(envelope.unpack(views)) == comparable(batch)


@given(batches)
def test_the_reference_library_reads_the_same_arrays(batch: list[Parcel]) -> None:
    head = bytes(frames_of(batch)[0])
    assert head[0] == envelope.VERSION
    arrays = msgpack.unpackb(head[1:], strict_map_key=False)
    assert len(arrays) == len(batch)
    for array, parcel in zip(arrays, batch, strict=True):
        fields = [getattr(parcel.message, name) for name in parcel.message.__struct_fields__]
        assert array == [type(parcel.message).__struct_config__.tag, *map(plain, fields)]


def unpack_or_malformed(frames: Sequence[Buffer]) -> list[Parcel] | None:
    try:
        return envelope.unpack(frames)
    except MalformedMessage:
        return None


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_arbitrary_frames_are_a_batch_or_malformed(frames: list[bytes]) -> None:
    unpack_or_malformed(frames)


@given(st.binary(max_size=300), st.lists(st.binary(max_size=20), max_size=4))
def test_arbitrary_bytes_behind_the_version_are_a_batch_or_malformed(data: bytes, more: list[bytes]) -> None:
    unpack_or_malformed([b"\x01" + data, *more])


@settings(max_examples=300)
@given(batches, st.data())
def test_a_mutated_batch_is_a_batch_or_malformed(batch: list[Parcel], data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in frames_of(batch)]
    for _ in range(data.draw(st.integers(1, 4))):
        head = frames[0]
        place = data.draw(st.integers(0, max(0, len(head) - 1)))
        change = data.draw(st.sampled_from(["set", "cut", "insert", "drop", "add"]))
        if change == "set" and head:
            head[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del head[place:]
        elif change == "insert":
            head[place:place] = data.draw(st.binary(max_size=8))
        elif change == "drop" and len(frames) > 1:
            frames.pop()
        else:
            frames.append(bytearray(b"more"))
    unpack_or_malformed([bytes(frame) for frame in frames])


BIG = (2 ** 31 - 1).to_bytes(4, "big")
CLAIMS = {
    "messages": b"\x01\xdd" + BIG,
    "fields": b"\x01\x91\xdd" + BIG,
    "fields behind the last": b"\x01\x91\xdd" + BIG + b"\x09\x01",
    "bytes": b"\x01\x91\x92\x0b\xc6" + BIG,
    "text": b"\x01\x91\x92\x03\xdb" + BIG,
    "lanes": b"\x01\x91\x9a\x04\x01\xa1n\xa1s\xcb" + bytes(8) + b"\xc4\x00\x00\x92\x00\x00\x00\xdd" + BIG,
    "calls": b"\x01\x91\x97\x13\x01\xa1n\xa1s\xcb" + bytes(8) + b"\xc6" + BIG,
    "lanes of calls": b"\x01\x91\x99\x13\x01\xa1n\xa1s\xcb" + bytes(8) + b"\xc4\x00\x02\x92\x00\x00\xdd" + BIG,
    "results": b"\x01\x91\x94\x14\x01\xc6" + BIG,
    "times of what is packed": b"\x01\x91\x95\x15\x01\x00\xc6" + BIG,
    "a map behind the last": b"\x01\x91\x93\x09\x01\xdf" + BIG,
    "an extension": b"\x01\x91\x93\x09\x01\xc9" + BIG + b"\x01",
    "depth": b"\x01\x91\x93\x09\x01" + b"\x91" * 100_000,
    "depth of maps": b"\x01\x91\x93\x09\x01" + b"\x81\x01" * 100_000,
}


@pytest.mark.parametrize("head", CLAIMS.values(), ids=CLAIMS.keys())
def test_claims_cost_nothing(head: bytes) -> None:
    with pytest.raises(MalformedMessage):
        envelope.unpack([head])  # what is made once is made
    tracemalloc.start()
    try:
        assert unpack_or_malformed([head]) is None
        assert tracemalloc.get_traced_memory()[1] < 100_000 + 2 * len(head)
    finally:
        tracemalloc.stop()


def test_memory_is_taken_in_proportion_to_the_bytes() -> None:
    head = envelope.pack([envelope.encode(End(1))] * BATCH)
    tracemalloc.start()
    try:
        kept = envelope.unpack([head])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(kept) == BATCH
    assert peak < 80 * len(head)


def test_a_batch_has_a_limit_on_both_sides() -> None:
    one = envelope.encode(End(1))
    assert len(envelope.unpack([envelope.pack([one] * BATCH)])) == BATCH
    with pytest.raises(ValueError, match="a batch holds at most 1024 messages, got 1025"):
        envelope.pack([one] * (BATCH + 1))
    head = b"\x01\xdc" + (BATCH + 1).to_bytes(2, "big") + one * (BATCH + 1)
    with pytest.raises(MalformedMessage, match="claims 1025 messages; the limit is 1024"):
        envelope.unpack([head])


def test_frames_have_a_limit() -> None:
    count = FRAMES - 1
    frames: list[Buffer] = [envelope.pack([envelope.encode(Reply(1, b"", count))]), *[b""] * count]
    assert len(envelope.unpack(frames)[0].buffers) == count
    with pytest.raises(MalformedMessage, match="a message of 1025 frames; the limit is 1024"):
        envelope.unpack([*frames, b""])


@pytest.mark.parametrize(("claimed", "there"), [(1, 0), (0, 1), (2, 1), (-1, 0), (2 ** 62, 3)])
def test_buffers_are_counted(claimed: int, there: int) -> None:
    with pytest.raises(MalformedMessage):
        envelope.unpack([envelope.pack([envelope.encode(Reply(1, b"", claimed))]), *[b"x"] * there])


def test_no_message_may_take_anothers_buffers() -> None:
    greedy = envelope.pack([envelope.encode(Reply(1, b"", 2)), envelope.encode(Reply(2, b"", -1))])
    with pytest.raises(MalformedMessage):
        envelope.unpack([greedy, b"x"])


@pytest.mark.parametrize("frames", [[], [b""], [b"\x01"], [b"\x02\x90"], [b"\x01\x80"], [b"\x01\x91\x91\x63"],
                                    [b"\x01\x91\x92\x09\xa1x"], [b"\x01\x91\x92\x03\xa2\xff\xfe"],
                                    [b"\x01\x91\x92\x09\x01\x00"]])
def test_what_is_no_batch_is_malformed(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        envelope.unpack(frames)


def test_another_version_is_named() -> None:
    with pytest.raises(MalformedMessage, match="of version 7 of the wire format; this is version 1"):
        envelope.unpack([b"\x07\x90"])


def test_a_message_beyond_the_limits_is_refused_where_it_is_made() -> None:
    assert envelope.fitting(b"head", [b"xy", memoryview(b"z")]) == 7
    with pytest.raises(CannotTravel, match="large buffers"):
        envelope.fitting(b"", [b""] * FRAMES)
    with mmap.mmap(-1, SIZE) as long, pytest.raises(CannotTravel, match="it takes 1073741828 bytes"):
        envelope.fitting(b"head", [long])  # type: ignore[list-item]


def test_what_goes_round_an_item_has_room_beside_it() -> None:
    item = Item(2 ** 62, 2 ** 62, bytes(1 << 20), 1023)
    assert len(envelope.encode(item)) - len(item.body) <= AROUND
    with mmap.mmap(-1, SIZE) as long, memoryview(long)[:SIZE - envelope.HEAD - AROUND] as most:
        assert envelope.fitting(b"", [most], room=AROUND) == len(most)
        with pytest.raises(CannotTravel, match="an item of tap"):
            envelope.fitting(b"1", [most], "an item of tap()", AROUND)


@given(st.builds(Published, number, number, st.lists(st.floats(0, 1e10)), st.lists(body), st.integers(0, 9)))
def test_what_is_published_is_encoded_once_for_all(message: Published) -> None:
    tail = envelope.tail(message.number, message.times, message.bodies, message.buffers)
    assert envelope.published(message.call, tail) == envelope.encode(message)


def test_sizes_are_those_of_the_bytes_in_a_buffer() -> None:
    assert envelope.size_of(b"body", ()) == 4
    assert envelope.size_of(b"body", (b"12", memoryview(bytearray(16)).cast("d"))) == 22
    assert envelope.size_of(b"", ()) == 0


@pytest.mark.parametrize("message", [
    Request(1, "n" * (NAME + 1), "s", 1.0, b""), Request(1, "n", "s" * (NAME + 1), 1.0, b""),
    Request(1, "n", "s", 1.0, b"", chain=(Lane("l", "w"),) * (LANES + 1)),
    Calls(1, "n" * (NAME + 1), "s", 1.0, b"", 2), Calls(1, "n", "s" * (NAME + 1), 1.0, b"", 2),
    Calls(1, "n", "s", 1.0, b"", 2, chain=(Lane("l", "w"),) * (LANES + 1)),
])
def test_names_and_chains_beyond_their_limits_are_malformed(message: Request | Calls) -> None:
    with pytest.raises(MalformedMessage, match="length <="):
        envelope.unpack([envelope.pack([envelope.encode(message)])])


def test_names_and_chains_at_their_limits_are_not() -> None:
    message = Request(1, "n" * NAME, "s" * NAME, 1.0, b"", chain=(Lane("l", "w"),) * LANES)
    assert envelope.unpack([envelope.pack([envelope.encode(message)])])[0].message == message
