"""What functions raise that are called with what comes: counted, and logged in few lines however much it is."""

from __future__ import annotations

import logging
import time
import traceback
from typing import Protocol

from pyzmp.subscribing import QUIET

PUBLISHERS = 64  # of which it is known what was logged

log = logging.getLogger("pyzmp.topic")


class Origin(Protocol):
    """Where something has come from."""

    @property
    def topic(self) -> str: ...
    @property
    def node(self) -> str: ...


class _Log:
    """What was logged of one publisher's, and what was not."""

    __slots__ = ("last", "more", "shown", "what")

    def __init__(self, what: str, shown: float) -> None:
        self.what, self.shown = what, shown
        self.more = 0
        self.last = ""

    def tell(self) -> None:
        """Log what was not logged yet."""
        if self.more:
            log.error("%s raised %d more times, at last %s", self.what, self.more, self.last)
        self.more, self.last = 0, ""


class Failing:
    """Errors of one function: the first of a publisher is logged at once, then at most one line in ten seconds.

    ``count`` are all of them.  Used by one thread at a time.
    """

    def __init__(self) -> None:
        self.count = 0
        self._logs: dict[tuple[str, str], _Log] = {}

    def raised(self, origin: Origin, what: str, error: BaseException) -> None:
        """*what* has raised with what came from *origin*: a source, a message or an event."""
        self.count += 1
        place, now = (origin.topic, origin.node), time.monotonic()
        found = self._logs.get(place)
        if found is None:
            if len(self._logs) >= PUBLISHERS:
                self._logs.pop(next(iter(self._logs))).tell()
            self._logs[place] = found = _Log(f"{origin.topic} of {origin.node!r}: {what}", now)
            log.error("%s raised; it goes on", found.what, exc_info=error)
            return
        found.more += 1
        found.last = "".join(traceback.format_exception_only(type(error), error)).strip()  # the error itself holds more
        if now >= found.shown + QUIET:
            found.shown = now
            found.tell()

    def tell_rest(self) -> None:
        """It is over: log what was not logged yet."""
        for each in list(self._logs.values()):
            each.tell()
