"""A node as its host knows it: what it provides, and what of that is running."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import math
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import force_setattr

from pyzmp.loopthread import Mark
from pyzmp.protocol.admission import Limits
from pyzmp.protocol.envelope import Calls, Code, Failure, Flag, Request
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.kept import Kept
from pyzmp.protocol.outcomes import refuse, unknown
from pyzmp.protocol.schema import Signature

if TYPE_CHECKING:
    from pyzmp.channels.values import Values

HURRY = 0.1  # seconds that a node which stops still waits for the registry once it is hurried
WORKERS = 64  # calls of worker services that one node runs at once; more wait

log = logging.getLogger("pyzmp.node")


class Provided(msgspec.Struct, frozen=True):
    """A service as its node holds it."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    marks: tuple[str, ...] = ()
    worker: bool = False
    traits: int = 0  # bits of `pyzmp.protocol.facts.Trait`
    announced: bool = True  # to the graph
    inline: bool = False  # whether it is run as soon as it is begun

    def __post_init__(self) -> None:
        force_setattr(self, "inline", not (self.worker or self.traits & Trait.STREAM
                                           or inspect.iscoroutinefunction(self.function)))


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
    since: tuple[int, int] | None = None  # after what it was announced, until it knows its incarnation
    leaving: bool = False
    left: bool = False
    gone: bool = False
    hurry: asyncio.Event = msgspec.field(default_factory=Mark)
    running: set[Running] = msgspec.field(default_factory=set)
    idle: asyncio.Event = msgspec.field(default_factory=Mark)
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

    async def hurried(self) -> None:
        """Wait for the hurry, and a moment more for what needs only that."""
        await self.hurry.wait()
        await asyncio.sleep(HURRY)

    def is_ahead(self, incarnation: tuple[int, int]) -> bool:
        """Whether a caller has heard of this life of the node before the node itself."""
        return self.since is not None and incarnation > self.since

    def begin(self, work: Running) -> None:
        """Note that a call runs beside the loop's turn."""
        self.running.add(work)
        self.idle.clear()

    def ended(self, work: Running) -> None:
        """Note that it has ended."""
        self.running.discard(work)
        if not self.running:
            self.idle.set()

    async def cancel(self, within: float) -> None:
        """Cancel the calls that still run, so that they are answered before the node is gone."""
        if self.running:
            log.warning("%s: %d calls were still running when it stopped", self.name, len(self.running))
        stopping = list(self.running)
        for serving in stopping:
            serving.cancel()
        if stopping:
            await either(self.idle.wait(), timeout=within)
            await asyncio.sleep(0)  # for their answers
        for serving in list(self.running):
            serving.abandon()


def setters(values: Values) -> dict[str, Provided]:
    """The services by which parameters are set from elsewhere."""
    return {each.setter: Provided(each.setter, functools.partial(_set, values, name), each.signature(), announced=False)
            for name, each in values.parameters.items() if each.settable}


async def _set(values: Values, name: str, value: Any) -> tuple[int, str, int]:
    """Set a parameter; where in the graph it is then."""
    epoch, version = await values.aset(name, value)
    return *epoch, version


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


def why_not(request: Request | Calls, guest: Guest | None) -> Failure | None:
    """Why a call is not begun, or None."""
    if guest is None:
        return refuse(request.call, Code.REFUSED, f"there is no node {request.node!r} here any more")
    if request.incarnation not in ((0, 0), guest.incarnation) and not guest.is_ahead(request.incarnation):
        return refuse(request.call, Code.REFUSED, f"{guest.name!r} was started again since; ask it anew")
    if guest.refuses(request.service):
        return refuse(request.call, Code.REFUSED, f"{guest.name!r} is shutting down")
    if request.service not in guest.services:
        return refuse(request.call, Code.UNKNOWN_SERVICE,
                      unknown(request.service, guest.services, f"in node {guest.name!r}"))
    flags = request.flags if type(request) is Request else 0
    if flags & Flag.ONE_WAY and flags & (Flag.STREAM | Flag.UPSTREAM):
        return refuse(request.call, Code.INVALID_CALL, f"a one-way call of {request.service}() has no streams")
    if not 0 < request.remaining < math.inf:
        return refuse(request.call, Code.EXPIRED, f"{request.service}() of {guest.name!r} came with "
                      f"{request.remaining} s left, so it was not begun")
    return None


def too_late(request: Request | Calls) -> Failure:
    """The answer to calls whose turn came too late."""
    return refuse(request.call, Code.EXPIRED, f"{request.service}() of {request.node!r} waited for its turn until it "
                  "was too late for an answer in time, and was not begun")


def full(request: Request | Calls, limits: Limits, retry_after: float) -> str:
    """Why there is no room for a call, in words."""
    return (f"{request.node!r} has no room for {request.service}() now, which did not run: it takes {limits.calls} "
            f"calls and {limits.size} bytes at once, and none that would wait too long for its turn; try again in "
            f"{retry_after:.2g} s, or call it with_options(wait=True)")
