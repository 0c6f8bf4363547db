"""The call that is being served, and the node that serves it, for the code that runs in it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import msgspec

from pyzmp.exceptions import Cancelled
from pyzmp.protocol.deadline import Deadline

if TYPE_CHECKING:
    from pyzmp.protocol.envelope import Lane


Place = tuple[int, "asyncio.Task[Any] | None"]


class Call(msgspec.Struct, eq=False):  # made for every call, in C
    """The call that the running code serves.

    ``service`` and ``node`` name what was called, ``caller`` the process that called.
    """

    node: str
    service: str
    caller: str
    deadline: Deadline
    chain: tuple[Any, ...] = ()  # of `Lane`, which is not imported only for this
    place: Place | None = None  # where the service runs
    look: Callable[[], object] | None = None  # reads what has come, where the service holds up its loop
    _cancelled: bool = False
    over: bool = False  # whether the service has ended; what it started may go on, and is not bound by it

    @property
    def remaining(self) -> float:
        """Seconds until the caller stops waiting; zero once it has, infinity for a stream that has begun."""
        return self.deadline.remaining(time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the caller has given the call up, or is gone.  An async service is told by CancelledError instead."""
        if not self._cancelled and self.look is not None and not self.over:
            self.look()
        return self._cancelled

    @property
    def given_up(self) -> bool:
        """As far as is known without a look: whether the caller has given the call up."""
        return self._cancelled

    def begins(self) -> None:
        """Note that the service begins in this very thread, and task."""
        self.place = here()

    def ends(self) -> None:
        """Note that the service has ended.  Its task is let go, and with it what an error's frames hold."""
        self.over, self.place = True, None

    @property
    def waiting(self) -> tuple[Lane, ...]:
        """The loops that are held up until what the running code now waits for has ended.

        None where it is not the service itself, but something that it has begun, and may go on without it.
        """
        return self.chain if not self.over and self.place == here() else ()

    def cancel(self) -> None:
        """Note that the caller has given the call up; any thread may."""
        self._cancelled = True

    def check(self) -> None:
        """Raise Cancelled once nobody waits for the call any more, for services that should end then."""
        if self.cancelled or not self.remaining:
            why = "was given up by its caller" if self._cancelled else "ran beyond its caller's deadline"
            raise Cancelled(f"{self.service}() of {self.node!r} {why}", service=self.service, node=self.node,
                            executed=True)


def here() -> Place:
    """What runs here: the thread, and the task where it runs one."""
    loop = asyncio._get_running_loop()
    return threading.get_ident(), asyncio.current_task(loop) if loop is not None else None


class Ending:
    """What the code of a node has made, and its end closes.  Used by any thread."""

    def add(self, made: Any) -> None:
        """Have *made* closed at the end, if somebody holds it still."""
        vars(self).setdefault("made", WeakSet()).add(made)  # made at one stroke, and by few nodes: it is large

    def close(self) -> None:
        """The end."""
        for each in list(vars(self).get("made", ())):
            each.close()


serving: ContextVar[Call | None] = ContextVar("pyzmp_call", default=None)
running_node: ContextVar[Any] = ContextVar("pyzmp_node", default=None)
ending_here: ContextVar[Ending | None] = ContextVar("pyzmp_ending", default=None)


def current_call() -> Call:
    """The call that this code serves.  Raises RuntimeError outside of a service."""
    call = serving.get()
    if call is None:
        raise RuntimeError("current_call() is for code that a service runs; nothing is being served here")
    return call
