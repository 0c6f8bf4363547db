"""Sessions: links with a greeting, batches and a turn of the loop, at the caller's end.

A `Session` is driven by whoever calls `pump`: an asyncio loop that it is attached to, or a thread
that blocks in `wait`.  The other end is in `pyzmp.transport.server`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence

from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Buffer, Calls, Goodbye, Hello, Message, Parcel, Request, Welcome
from pyzmp.transport.address import Address, parse
from pyzmp.transport.context import Context
from pyzmp.transport.link import Connection
from pyzmp.transport.memory import MemoryConnection
from pyzmp.transport.outbox import Outbox, Turn, guarded, soon

DRAIN = 256  # messages that one session handles before the loop's other business has its turn
NO_ROOM = "the connection ended or has no room"

log = logging.getLogger("pyzmp.transport")


class Session:
    """The caller's end of one connection, used by one thread or loop.

    It opens by itself; what is sent before that waits, and leaves right behind the greeting.  Once
    ``ended`` (the reason, as text) it stays so.  ``on_parcel`` gets what arrives, ``on_end`` is
    called once with the reason; both run in `pump`.
    """

    def __init__(self, context: Context, address: str, hello: Hello, *, on_parcel: Callable[[Parcel], object],
                 on_end: Callable[[str], object]) -> None:
        parsed = parse(address)
        self.address = address
        self.hello = hello
        self.welcome: Welcome | None = None
        self.ended: str | None = None
        self.sent = False  # whether anything has left that the listener may have looked at
        self.malformed = 0
        self._greeted = False
        self._pumping = False
        self._due = False
        self._on_parcel = on_parcel
        self._on_end = on_end
        self._held: list[tuple[Message, Sequence[Buffer], float]] = []  # and since when
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link = _connect(context, parsed)
        try:
            self._outbox = Outbox(self._transmit, Turn(None))
        except BaseException:  # a Ctrl-C: nobody else would close it
            self._link.close()
            raise

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let *loop*, which is the running one, pump from now on."""
        self._loop = loop
        self._outbox = Outbox(self._transmit, Turn(loop))
        self._link.attach(loop, self.pump)

    def wait(self, timeout: float) -> None:
        """Block until there is something to `pump`, or *timeout* seconds are over."""
        self._link.wait(timeout)

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send, or hold until the session is open.  After the end it is dropped: ``on_end`` was told.

        Raises CannotTravel for what goes beyond the limits of a message.
        """
        if self.ended is not None:
            return
        if self._greeted:
            self._outbox.put(message, buffers)
        else:
            envelope.fitting(envelope.encode(message), buffers)
            self._held.append((message, buffers, time.monotonic()))

    def take_back(self, calls: Collection[int]) -> None:
        """Let nothing of *calls* leave, which have ended before the session opened."""
        self._held = [held for held in self._held if getattr(held[0], "call", 0) not in calls]

    def pump(self) -> None:
        """Handle all that has happened to the connection."""
        if self.ended is not None or self._pumping:
            return
        self._pumping = again = True
        try:
            again = self._pump()
        finally:
            self._pumping = False
            if again and self._loop is not None:  # also after a Ctrl-C: what is left is not told again
                self._pump_soon()

    def _pump_soon(self) -> None:
        """Pump in the loop's next turn, where there is one; once, however often it is asked for."""
        if not self._due:
            self._due = soon(self._loop, self._pump_due)

    def _pump_due(self) -> None:
        self._due = False
        self.pump()

    def _pump(self) -> bool:
        """As `pump`; True where there is more than a turn's worth."""
        self._link.update()
        over = self._link.ended  # looked at first: what came before the end is handled before it
        if self._link.opened and not self._greeted and over is None:
            self._greet()
        # A thread that waits is told of what is left, unless the connection is over.
        for _ in range(1 if self._loop is None and over is None else DRAIN):
            frames = self._link.receive() if self.ended is None else None
            if frames is None:
                break
            self._handle(frames)
        else:
            return True
        if over is not None:
            self._end(over)
        return False

    def catch_up(self) -> None:
        """Handle what happened while nobody was looking, for a thread that comes back to the session."""
        if self.ended is None and (self._link.pending() or not self._greeted):
            self.pump()

    def close(self) -> None:
        """End the session; the listener is told, if it is there still."""
        self.catch_up()
        if self.ended is None and self._greeted:
            self._outbox.put(Goodbye("closed by the caller"), ())
            self._outbox.flush()
        self.abandon()

    def abandon(self) -> None:
        """End the session without a word, and without a look at what has come, which may be half read."""
        self._end("the session was closed here")

    def _greet(self) -> None:
        self._greeted = True
        held, self._held = self._held, []
        self._outbox.put(self.hello, ())
        now = time.monotonic()
        for message, buffers, since in held:
            if isinstance(message, (Calls, Request)):
                message = replace(message, remaining=max(0.0, message.remaining - (now - since)))  # noqa: PLW2901
            self._outbox.put(message, buffers)

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        done = self._link.send(frames)
        self.sent |= done
        if not done:
            if not soon(self._loop, self._end, NO_ROOM):
                self._end(NO_ROOM)
        elif self._loop is not None and not self._pumping and self._link.pending():
            self._pump_soon()  # sending took the notice that something has come
        return done

    def _handle(self, frames: Sequence[Buffer]) -> None:
        try:
            parcels = envelope.unpack(frames)
        except MalformedMessage as error:
            self.malformed += 1
            if self.malformed == 1:
                log.warning("%s sent a malformed message, dropped: %s", self.address, error)
            return
        for parcel in parcels:
            message = parcel.message
            if self.ended is not None:
                return
            if type(message) is Welcome:
                self.welcome = message
            elif type(message) is Goodbye:
                self.sent &= self.welcome is not None  # else what was sent has not been looked at
                self._end(message.reason)
            else:
                try:  # as `guarded`, without a call for each
                    self._on_parcel(parcel)
                except Exception:
                    log.exception("%r failed", self._on_parcel)

    def _end(self, reason: str) -> None:
        if self.ended is None:
            self.ended = reason
            self._held = []
            self._link.close()
            guarded(self._on_end, reason)


def _connect(context: Context, address: Address) -> Connection | MemoryConnection:
    if address.scheme == "memory":
        return MemoryConnection(context, address)
    try:
        return Connection(context, address)
    except ConnectionError as error:  # no room for its sockets: a session that has ended
        return MemoryConnection(context, address, str(error))


def session_id() -> bytes:
    """A new name for a session."""
    return os.urandom(16)
