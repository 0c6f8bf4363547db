"""What one end has to send, gathered into batches.

The flush rule: a message goes out in the call that makes it, unless another went out in this turn
of the loop; the rest goes when the turn ends, or when `GATHER` messages or bytes are there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Buffer, Message

T = TypeVar("T")

GATHER = 64  # messages that go out together, at most
GATHER_BYTES = 64 * 1024

log = logging.getLogger("pyzmp.transport")


class Flushed(Protocol):
    """What gathers in a turn, and is flushed when it ends."""

    def flush(self) -> None:
        """Let what is gathered leave now."""


class Turn:
    """The turns of *loop*, as the outboxes of one end count them.  Without a loop there are none."""

    __slots__ = ("_gathering", "_loop", "_open", "number")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.number = 0
        self._loop = loop
        self._open = False
        self._gathering: list[Flushed] = []

    def begin(self) -> bool:
        """Begin a turn that the caller will `end`; False where one is under way."""
        if self._open:
            return False
        self._open = True
        self.number += 1
        return True

    def runs(self) -> bool:
        """Whether a turn is under way; one begins now, and ends with the loop's, unless there is no loop for it."""
        if self._loop is None or self._loop.is_closed():
            return False
        if self.begin():
            self._loop.call_soon(self.end)
        return True

    def gathers(self, outbox: Flushed) -> None:
        """Have *outbox* flushed when the turn ends."""
        self._gathering.append(outbox)

    def end(self) -> bool:
        """End the turn: what was gathered leaves.  Whether there was anything."""
        self._open = False
        gathering, self._gathering = self._gathering, []
        each = iter(gathering)
        try:
            for outbox in each:
                outbox.flush()
        finally:
            for outbox in each:  # behind one that a Ctrl-C has hit: nobody else would flush them
                outbox.flush()
        return bool(gathering)


class Outbox:
    """What one end has to send, by the flush rule.  Without a loop everything goes at once."""

    __slots__ = ("_buffers", "_gathered", "_send", "_sent", "_size", "_turn")

    def __init__(self, send: Callable[[Sequence[Buffer]], bool], turn: Turn) -> None:
        self._send = send
        self._turn = turn
        self._gathered: list[bytes] = []
        self._buffers: list[Buffer] = []
        self._size = 0
        self._sent = 0  # the turn in which something went out at once

    def put(self, message: Message, buffers: Sequence[Buffer]) -> None:
        """Send, or gather.  Raises CannotTravel for what goes beyond the limits of a message."""
        self.put_encoded(envelope.encode(message), buffers)

    def put_encoded(self, encoded: bytes, buffers: Sequence[Buffer]) -> None:
        """As `put`, for a message that is encoded already."""
        size = len(encoded)
        if buffers or size > GATHER_BYTES:
            size = envelope.fitting(encoded, buffers)
        turn = self._turn
        if not turn.runs() or self._sent != turn.number:
            self._sent = turn.number
            if self._gathered:  # in a turn that never ended: its loop was closed
                self.flush()
            self._send([envelope.pack([encoded]), *buffers])
            return
        if self._size + size > GATHER_BYTES or len(self._buffers) + len(buffers) > GATHER:
            self.flush()  # first: together they might go beyond what a peer takes
        if not self._gathered:
            turn.gathers(self)
        self._gathered.append(encoded)
        self._buffers.extend(buffers)
        self._size += size
        if len(self._gathered) >= GATHER or self._size >= GATHER_BYTES or len(self._buffers) >= GATHER:
            self.flush()

    def flush(self) -> None:
        """Let what is gathered leave now."""
        if self._gathered:
            frames = [envelope.pack(self._gathered), *self._buffers]
            self._gathered, self._buffers, self._size = [], [], 0
            self._send(frames)


def soon(loop: asyncio.AbstractEventLoop | None, callback: Callable[..., object], *args: object) -> bool:
    """Have *loop* call back; False where there is none, or it is closed and has no turns any more."""
    if loop is None or loop.is_closed():
        return False
    loop.call_soon(callback, *args)
    return True


def guarded(callback: Callable[..., T], *args: object) -> T | None:
    """Call back.  An error there is logged, and what has come behind goes on."""
    try:
        return callback(*args)
    except Exception:
        log.exception("%r failed", callback)
        return None
