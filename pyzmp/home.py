"""The loop where topics are published, as each of them needs it, and what is called back there."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Protocol

from pyzmp.transport.outbox import Flushed

log = logging.getLogger("pyzmp.topic")


class Over(RuntimeError):
    """What was to be published cannot be any more."""


class Home(Protocol):
    """The loop where topics are published, as each of them needs it."""

    loop: asyncio.AbstractEventLoop

    def gathers(self, publisher: Flushed) -> bool:
        """Have *publisher* flushed with the end of the loop's turn; False where there is none."""

    def look(self) -> bool:
        """Hand over what has come, while the loop is held up; whether the caller may look again at once."""

    def hosts(self, node: str) -> bool:
        """Whether the node lives on the loop too."""


Demand = Callable[[Callable[[bool], object]], Callable[[bool], object]]


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> bool:
    """Have *loop* call back, from any thread; False where it is closed."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True


def in_context(callback: Callable[[bool], object]) -> Callable[[bool], object]:
    """*callback* in the context of whoever asks for it."""
    context = contextvars.copy_context()

    def called(wanted: bool) -> None:
        try:
            context.run(callback, wanted)
        except BaseException:  # also an exit: it would end the loop
            log.exception("%r, which waits for subscribers, failed", callback)
    return called
