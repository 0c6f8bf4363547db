"""What one end has to send, gathered into batches.

The flush rule: a message goes out in the call that makes it, unless another went out in this turn
of the loop; the rest goes when the turn ends, or when `GATHER` messages or bytes are there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Buffer, Message

GATHER = 64  # messages that go out together, at most
GATHER_BYTES = 64 * 1024

log = logging.getLogger("pyzmp.transport")


class Outbox:
    """What one end has to send, by the flush rule.  Without a loop everything goes at once."""

    __slots__ = ("_buffers", "_gathered", "_loop", "_send", "_size", "_turn")

    def __init__(self, send: Callable[[Sequence[Buffer]], bool], loop: asyncio.AbstractEventLoop | None) -> None:
        self._send = send
        self._loop = loop
        self._gathered: list[bytes] = []
        self._buffers: list[Buffer] = []
        self._size = 0
        self._turn = False

    def put(self, message: Message, buffers: Sequence[Buffer]) -> None:
        encoded = envelope.encode(message)
        size = envelope.size_of(encoded, buffers)
        if not self._turn:
            self._turn = soon(self._loop, self._end_turn)
            self._send([envelope.pack([encoded]), *buffers])
            return
        if self._size + size > GATHER_BYTES or len(self._buffers) + len(buffers) > GATHER:
            self.flush()  # first: together they might go beyond what a peer takes
        self._gathered.append(encoded)
        self._buffers.extend(buffers)
        self._size += size
        if len(self._gathered) >= GATHER or self._size >= GATHER_BYTES or len(self._buffers) >= GATHER:
            self.flush()

    def flush(self) -> None:
        if self._gathered:
            frames = [envelope.pack(self._gathered), *self._buffers]
            self._gathered, self._buffers, self._size = [], [], 0
            self._send(frames)

    def _end_turn(self) -> None:
        self._turn = False
        self.flush()


def soon(loop: asyncio.AbstractEventLoop | None, callback: Callable[..., object], *args: object) -> bool:
    """Have *loop* call back; False where there is none, or it is closed and has no turns any more."""
    if loop is None or loop.is_closed():
        return False
    loop.call_soon(callback, *args)
    return True


def guarded(callback: Callable[..., object], *args: object) -> None:
    """Call back.  An error there is logged, and what has come behind goes on."""
    try:
        callback(*args)
    except Exception:
        log.exception("%r failed", callback)
