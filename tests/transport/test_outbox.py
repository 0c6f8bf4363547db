"""The flush rule, and that no batch goes beyond what a peer takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pyzmp.exceptions import CannotTravel
from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Note, Reply
from pyzmp.transport.outbox import GATHER, GATHER_BYTES, Outbox, Turn


def notes(count: int) -> list[Note]:
    return [Note(b"%d" % number) for number in range(count)]


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


class Sent:
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.frames: list[int] = []

    def __call__(self, frames: Any) -> bool:
        parcels = envelope.unpack(frames)
        self.batches.append(len(parcels))
        self.frames.append(len(frames))
        return True


def test_a_message_that_is_encoded_already_leaves_as_any_other() -> None:
    async def test() -> None:
        sent = Sent()
        outbox = Outbox(sent, Turn(asyncio.get_running_loop()))
        outbox.put(Note(b"1"), ())
        outbox.put_encoded(envelope.encode(Note(b"2")), [])
        outbox.put_encoded(envelope.encode(Reply(1, b"", 1)), [b"large"])
        assert sent.batches == [1]
        await asyncio.sleep(0)
        assert (sent.batches, sent.frames) == ([1, 2], [1, 2])

    run(test)


def test_a_message_leaves_at_once_and_the_rest_of_the_turn_together() -> None:
    async def test() -> None:
        sent = Sent()
        outbox = Outbox(sent, Turn(asyncio.get_running_loop()))
        for note in notes(10):
            outbox.put(note, ())
        assert sent.batches == [1]
        await asyncio.sleep(0)
        assert sent.batches == [1, 9]
        outbox.put(Note(b""), ())
        assert sent.batches == [1, 9, 1]
        await asyncio.sleep(0)
        assert sent.batches == [1, 9, 1]
    run(test)


def test_what_is_left_of_a_closed_loop_goes_out_in_order() -> None:
    loop, sent = asyncio.new_event_loop(), []

    def send(frames: Any) -> bool:
        sent.extend(parcel.message for parcel in envelope.unpack(frames))
        return True
    outbox = Outbox(send, Turn(loop))
    first, second, third = notes(3)
    outbox.put(first, ())
    outbox.put(second, ())
    loop.close()
    outbox.put(third, ())
    assert sent == [first, second, third]


def test_what_is_gathered_leaves_though_a_ctrl_c_comes_at_the_end_of_the_turn() -> None:
    class Hit:
        def flush(self) -> None:
            raise KeyboardInterrupt

    class Behind:
        flushed = False

        def flush(self) -> None:
            self.flushed = True
    turn, behind = Turn(None), Behind()
    assert turn.begin()
    turn.gathers(Hit())
    turn.gathers(behind)
    with pytest.raises(KeyboardInterrupt):
        turn.end()
    assert behind.flushed


def test_what_is_gathered_leaves_when_it_is_many_or_large() -> None:
    async def test() -> None:
        sent = Sent()
        outbox = Outbox(sent, Turn(asyncio.get_running_loop()))
        for note in notes(1 + GATHER + 1):
            outbox.put(note, ())
        assert sent.batches == [1, GATHER]
        for _ in range(3):
            outbox.put(Note(bytes(GATHER_BYTES // 2)), ())
        assert sent.batches == [1, GATHER, 2, 1]
        outbox.flush()
        assert sum(sent.batches) == 1 + GATHER + 4
    run(test)


def test_no_batch_goes_beyond_what_a_peer_takes() -> None:
    async def test() -> None:
        sent = Sent()
        outbox = Outbox(sent, Turn(asyncio.get_running_loop()))
        for count in [1, 60, 1023, 60, 1023, 1023, 3]:
            outbox.put(Reply(1, b"", count), [b"x"] * count)
        with pytest.raises(CannotTravel):
            outbox.put(Reply(1, b"", 1024), [b"x"] * 1024)
        await asyncio.sleep(0)
        assert sum(sent.batches) == 7
        assert max(sent.frames) == envelope.FRAMES
    run(test)


def test_without_a_loop_everything_leaves_at_once() -> None:
    sent = Sent()
    outbox = Outbox(sent, Turn(None))
    for note in notes(3):
        outbox.put(note, ())
    assert sent.batches == [1, 1, 1]
    closed = asyncio.new_event_loop()
    closed.close()
    outbox = Outbox(sent, Turn(closed))
    outbox.put(Note(b""), ())
    assert sent.batches == [1, 1, 1, 1]
