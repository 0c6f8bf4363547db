"""A node as its host knows it: what it provides, and what of that is running."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from pyzmp.protocol.admission import Limits
from pyzmp.protocol.kept import Kept
from pyzmp.protocol.schema import Signature

WORKERS = 64  # calls of worker services that one node runs at once; more wait


class Provided(msgspec.Struct, frozen=True):
    """A service as its node holds it."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    marks: tuple[str, ...] = ()
    worker: bool = False
    traits: int = 0  # bits of `pyzmp.protocol.facts.Trait`
    announced: bool = True  # to the graph


class Workers:
    """The threads in which a node's worker services run: made as they are needed, and never waited for at exit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0

    def submit(self, work: Callable[[], object]) -> None:
        """Have *work* run in one of the threads."""
        with self._lock:
            fresh = not self._idle and self._threads < WORKERS
            self._threads += fresh
            self._idle -= bool(self._idle)
        if fresh:
            self._start()
        self._work.put(work)

    def _start(self) -> None:
        """Start a thread; RuntimeError where the system gives none and there is no other."""
        try:
            threading.Thread(target=self._run, name=f"{self._name}-worker-{self._threads}", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    raise

    def close(self) -> None:
        """Let the threads end once they have dealt with what they were given."""
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._lock:
                self._idle += 1


class Running(Protocol):
    """A call that runs beside the loop's turn."""

    def cancel(self) -> None:
        """Tell the service that nobody waits any more."""

    def abandon(self) -> None:
        """Answer that it goes on although its node has ended."""


class Guest(msgspec.Struct, eq=False):
    """A node on a host: its services, and what of them is running."""

    name: str
    context: contextvars.Context
    services: dict[str, Provided] = msgspec.field(default_factory=dict)
    incarnation: tuple[int, int] = (0, 0)
    leaving: bool = False
    left: bool = False
    gone: bool = False
    hurry: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    running: set[Running] = msgspec.field(default_factory=set)
    idle: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    turned: Callable[[], object] | None = None
    workers: Workers | None = None
    failed_posts: int = 0
    working: int = 0  # calls that its workers run
    limits: Limits = Limits()
    kept: Kept[Any, Any] | None = None  # once a service wants it

    def __post_init__(self) -> None:
        self.idle.set()

    def refuses(self, service: str) -> bool:
        """Whether it begins no calls of *service* any more; of what the graph does not know, as soon as it leaves."""
        provided = self.services.get(service)
        return self.leaving or (self.left and provided is not None and not provided.announced)

    def begin(self, work: Running) -> None:
        """Note that a call runs beside the loop's turn."""
        self.running.add(work)
        self.idle.clear()

    def ended(self, work: Running) -> None:
        """Note that it has ended."""
        self.running.discard(work)
        if not self.running:
            self.idle.set()


async def either(*waits: Coroutine[Any, Any, object], timeout: float) -> None:
    """Wait until one of them has ended, at most *timeout* seconds; the others are given up, errors raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        ended, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
