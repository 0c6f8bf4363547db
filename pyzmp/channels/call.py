"""The call that is being served, and the node that serves it, for the code that runs in it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

from pyzmp.exceptions import CallTimeout
from pyzmp.protocol.deadline import Deadline


class Call:
    """The call that the running code serves.

    ``service`` and ``node`` name what was called, ``caller`` the process that called.
    """

    __slots__ = ("caller", "deadline", "node", "over", "service")

    def __init__(self, node: str, service: str, caller: str, deadline: Deadline) -> None:
        self.node, self.service, self.caller, self.deadline = node, service, caller, deadline
        self.over = False  # whether the service has ended; what it started may go on, and is not bound by it

    @property
    def remaining(self) -> float:
        """Seconds until the caller stops waiting; zero once it has."""
        return self.deadline.remaining(time.monotonic())

    def check(self) -> None:
        """Raise CallTimeout once the caller has stopped waiting: for loops that should end then."""
        if not self.remaining:
            raise CallTimeout(f"{self.service}() of {self.node!r} ran beyond its caller's deadline",
                              service=self.service, node=self.node, executed=True)


serving: ContextVar[Call | None] = ContextVar("pyzmp_call", default=None)
running_node: ContextVar[Any] = ContextVar("pyzmp_node", default=None)


def current_call() -> Call:
    """The call that this code serves.  Raises RuntimeError outside of a service."""
    call = serving.get()
    if call is None:
        raise RuntimeError("current_call() is for code that a service runs; nothing is being served here")
    return call
