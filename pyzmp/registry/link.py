"""Sessions with a registry that speaks the messages of `pyzmp.protocol.facts`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import facts
from pyzmp.protocol.envelope import Hello, Note, Parcel
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id

log = logging.getLogger("pyzmp.registry")


class Native:
    """A registry of ours at *address*.  ``counter`` is its epoch's, or 0 where that is not known beforehand."""

    def __init__(self, context: Context, address: str, counter: int = 0) -> None:
        self.address, self.counter = address, counter
        self._context = context

    def open(self, hear: Callable[[facts.Message], None], over: Callable[[str], None]) -> NativeLink:
        """Begin a session; *hear* gets each message, *over* the reason when it ended.  In a running loop only."""
        return NativeLink(self._context, self.address, hear, over)


class NativeLink:
    """One session with a registry, on the loop that runs."""

    def __init__(self, context: Context, address: str, hear: Callable[[facts.Message], None],
                 over: Callable[[str], None]) -> None:
        self._hear = hear
        hello = Hello(session_id(), f"pid {os.getpid()} on {socket.gethostname()}")
        self._session = Session(context, address, hello, on_parcel=self._received, on_end=over)
        self._session.attach(asyncio.get_running_loop())

    def say(self, message: facts.Message) -> None:
        """Send; dropped once the session has ended."""
        self._session.send(Note(facts.encode(message)))

    def close(self) -> None:
        """End the session; the registry is told."""
        self._session.close()

    def _received(self, parcel: Parcel) -> None:
        try:
            if not isinstance(parcel.message, Note):
                raise MalformedMessage(f"a {type(parcel.message).__name__} from a registry")
            message = facts.decode(parcel.message.body)
        except MalformedMessage as error:
            log.warning("the registry at %s sent a malformed message, dropped: %s", self._session.address, error)
        else:
            self._hear(message)
