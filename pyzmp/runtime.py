"""What a process has one of: its view of the graph, its links, and the thread that drives them.

A `Runtime` is made when it is first needed and ended when the interpreter exits.  Its one thread
runs no code of users'; it keeps the replica, and the sessions that futures and awaited calls share.
A forked child makes a runtime of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pyzmp.launchers.base import at_exit
from pyzmp.protocol.calls import Ask, Outcome
from pyzmp.protocol.deadline import seconds
from pyzmp.exceptions import RegistryUnavailable
from pyzmp.protocol.facts import Fact, Key, NodeFact, Position
from pyzmp.protocol.graph import Facts
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.finder import Inside, OnHost
from pyzmp.registry.replica import Replica
from pyzmp.transport.context import Context
from pyzmp.transport.line import Line

T = TypeVar("T")

TIMEOUT = 5.0  # seconds that a call may take where nothing else is said
FIRST_LOOK = 1.0  # seconds that the first look of a process waits for what a registry knows, at most
LATER_LOOK = 0.1  # and any later one, while no registry is followed
SESSIONS = 64  # sessions of a thread's own that a process has, at most; the rest share the runtime's


@dataclass(frozen=True, slots=True)
class Settings:
    """What `configure` sets and children inherit."""

    domain: str = "default"
    registry: str = ""
    timeout: float = TIMEOUT

    @classmethod
    def from_environment(cls) -> Settings:
        """The defaults, where ``PYZMP_DOMAIN``, ``PYZMP_REGISTRY`` and ``PYZMP_TIMEOUT`` say nothing else."""
        text = os.environ.get("PYZMP_TIMEOUT") or str(TIMEOUT)
        try:
            timeout = seconds(float(text), "PYZMP_TIMEOUT")
        except ValueError as error:
            raise ValueError(f"PYZMP_TIMEOUT: expected a positive number of seconds, got {text!r}") from error
        return cls(os.environ.get("PYZMP_DOMAIN") or "default", os.environ.get("PYZMP_REGISTRY") or "", timeout).checked()

    def checked(self) -> Settings:
        """These settings; raises ValueError for what cannot be."""
        if self.registry not in ("", "memory"):
            raise ValueError(f"registry: expected 'memory', or nothing for one of this host's own, got {self.registry!r}")
        Domain.named(self.domain)
        return self


@dataclass(frozen=True, slots=True)
class Target:
    """A node as a caller reaches it: at ``address``, served by ``loop``; ``shown`` is the address that users see."""

    node: str
    address: str
    loop: str
    incarnation: tuple[int, int]
    shown: str


class LoopThread:
    """A daemon thread that runs an asyncio loop until it is closed."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run *coroutine* on the loop, from another thread, and block until it has ended.

        Raises TimeoutError after *timeout* seconds; the coroutine is cancelled then.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and its thread."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


class _OwnLines:
    """The sessions that one thread has for itself, closed when the thread ends."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.asked: set[tuple[str, str]] = set()
        self.lines: dict[tuple[str, str], Line] = {}

    def line(self, target: Target) -> Line | None:
        """This thread's own session to *target*'s loop; None where it is to use the shared one."""
        place = target.address, target.loop
        line = self.lines.get(place)
        if line is not None and line.usable():
            return line
        if line is not None:
            del self.lines[place]
            self._runtime.own_sessions -= 1
        memory = target.address.startswith("memory:")
        if not memory and (place not in self.asked or self._runtime.own_sessions >= SESSIONS):
            self.asked.add(place)
            return None
        self._runtime.own_sessions += 1
        line = self.lines[place] = self._runtime.line(target)
        return line

    def close(self) -> None:
        while self.lines:
            self.lines.popitem()[1].close()
            self._runtime.own_sessions -= 1

    def __del__(self) -> None:
        if self._runtime.is_ours():
            self.close()


class _Deliveries:
    """Outcomes on their way from the runtime's thread to the futures of one loop, woken once for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Future[Outcome], Outcome]] = deque()
        self._asked = False

    def put(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        self._waiting.append((future, outcome))
        if not self._asked:
            self._asked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._asked = False  # first: what is put from now on asks again
        while self._waiting:
            future, outcome = self._waiting.popleft()
            settle(future, outcome)


def settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    """Give *future* its outcome as a value, unless whoever waited has gone."""
    if not future.done():
        future.set_result(outcome)


class Runtime:
    """The runtime of this process; `current` gives it.  Its methods may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.context = Context()
        self.member = this_process(os.path.basename(sys.argv[0]) if sys.argv else "")
        self.own_sessions = 0
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._thread = LoopThread("pyzmp")
        self._entities: LoopThread | None = None
        self._loops: dict[str, asyncio.AbstractEventLoop] = {}
        self._names: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, str] = weakref.WeakKeyDictionary()
        self._shared: dict[tuple[str, str], Line] = {}
        self._asked: deque[tuple[Target, Ask, Callable[[Outcome], object]]] = deque()
        self._waking = False
        self._local = threading.local()
        self._near: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[_Deliveries, dict[str, Line]]] = (
            weakref.WeakKeyDictionary())
        self._looked = False
        self.hosts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()
        self.domain = None if settings.registry == "memory" else Domain.named(settings.domain)
        loop = self._thread.loop
        finder = Inside(self.context, loop) if self.domain is None else OnHost(self.domain)
        self.replica = Replica(self.context, loop, self.member, finder)
        self._at_exit = at_exit(self.close)

    def is_ours(self) -> bool:
        """Whether this is the process that made it, not a forked child."""
        return self._pid == os.getpid()

    # The graph.

    def facts(self) -> Facts:
        """What this process knows.  Its very first look waits for a registry's answer, at most a second."""
        replica = self.replica
        if not replica.following:
            replica.look(self._patience())
        return replica.view.facts

    async def alook(self) -> None:
        """Have the first look over, without blocking the running loop."""
        if not self.replica.following:
            await self.replica.alook(self._patience())

    def _patience(self) -> float:
        looked, self._looked = self._looked, True
        return LATER_LOOK if looked else FIRST_LOOK

    def wait_until(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Block until *predicate*, looked at whenever the graph changes, at most *timeout* seconds; what it says then."""
        return self.replica.wait_until(lambda _: predicate(), timeout)

    async def await_until(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """As `wait_until`, in a coroutine."""
        return await self.replica.await_until(lambda _: predicate(), timeout)

    async def announce(self, new: Iterable[Fact]) -> Position:
        """Put facts of this process into the graph, and its own view; raises NodeExists, RegistryUnavailable."""
        return await self.arun(self.replica.announce(new))

    async def withdraw(self, keys: Iterable[Key]) -> Position:
        """Take facts of this process out of the graph, and its own view."""
        return await self.arun(self.replica.withdraw(keys))

    def begin_registry(self) -> None:
        """Have a registry started where none is, without waiting for it: a member is about to come."""
        asyncio.run_coroutine_threadsafe(self._begin_registry(), self._thread.loop)

    async def _begin_registry(self) -> None:
        with contextlib.suppress(RegistryUnavailable):  # whoever needs it will ask again, and hear why not
            await self.replica.connect(start=True)

    def target(self, node: NodeFact) -> Target:
        """How this process reaches *node*: in memory where it lives in this process too."""
        shown = node.addresses[-1] if node.addresses else ""
        near = node.owner == self.member.id
        address = next((place for place in node.addresses if near or not place.startswith("memory:")), shown)
        return Target(node.name, address, node.loop, node.incarnation, shown)

    # Loops that nodes live on.

    def register(self, loop: asyncio.AbstractEventLoop) -> str:
        """Give *loop* its name in the graph."""
        with self._lock:
            name = self._names.get(loop)
            if name is None:
                name = self._names[loop] = f"{self.member.id}-{len(self._names) + 1}-{os.urandom(2).hex()}"
            self._loops[name] = loop
        return name

    def unregister(self, name: str) -> None:
        """The loop *name* hosts no nodes any more."""
        self._loops.pop(name, None)

    def runs(self, target: Target) -> bool:
        """Whether the loop that serves *target* is the one that runs in this very thread."""
        loop = self._loops.get(target.loop)
        return loop is not None and asyncio._get_running_loop() is loop

    def places(self, loop: str, node: str) -> list[str]:
        """Where the loop *loop* listens: in memory, and at the address of *node*, or its own where that is empty."""
        memory = f"memory://{loop}"
        return [memory] if self.domain is None else [memory, self.domain.address_for(node or loop)]

    def entity_loop(self) -> LoopThread:
        """The thread for entities that are started outside of a running loop."""
        with self._lock:
            if self._entities is None:
                self._entities = LoopThread("pyzmp-entities")
            return self._entities

    # Calls.

    def line(self, target: Target) -> Line:
        """A new session to *target*'s loop."""
        return Line(self.context, target.address, target.loop, self.member.id)

    def ask(self, target: Target, ask: Ask) -> Outcome:
        """Make a call and block until its one outcome is there, on a session of this thread's or the shared one."""
        own: _OwnLines | None = getattr(self._local, "lines", None)
        if own is None:
            own = self._local.lines = _OwnLines(self)
        line = own.line(target)
        if line is not None:
            return line.ask(ask)
        waiter = _Waiter()
        self.submit(target, ask, waiter.settle)
        return waiter.outcome()

    def submit(self, target: Target, ask: Ask, done: Callable[[Outcome], object]) -> None:
        """Begin a call on the shared session; *done* gets its one outcome, in the runtime's thread."""
        self._asked.append((target, ask, done))
        if not self._waking:
            self._waking = True
            self._thread.loop.call_soon_threadsafe(self._start_asked)

    async def acall(self, target: Target, ask: Ask) -> Outcome:
        """Make a call and await its one outcome."""
        loop = asyncio.get_running_loop()
        near = self._near.get(loop)
        if near is None:
            near = self._near[loop] = _Deliveries(loop), {}
        deliveries, lines = near
        future: asyncio.Future[Outcome] = loop.create_future()
        if target.address.startswith("memory:"):
            line = lines.get(target.address)
            if line is None or line.ended:
                line = lines[target.address] = self.line(target)
                line.attach(loop)
            line.start(ask, lambda outcome: settle(future, outcome))
        else:
            self.submit(target, ask, lambda outcome: deliveries.put(future, outcome))
        return await future

    def _start_asked(self) -> None:
        self._waking = False  # first: what is asked from now on wakes again
        while self._asked:
            target, ask, done = self._asked.popleft()
            place = target.address, target.loop
            line = self._shared.get(place)
            if line is None or line.ended:
                line = self._shared[place] = self.line(target)
                line.attach(self._thread.loop)
            line.start(ask, done)

    # The thread.

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the runtime's thread, and block until it has ended."""
        return self._thread.run(coroutine)

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the runtime's thread, and await its end on the running loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._thread.loop))

    def close(self) -> None:
        """Withdraw what is left, end every session and thread.  Nothing of the runtime remains."""
        if not self.is_ours():
            return
        _state.forget(self)
        self._at_exit.cancel()
        if self._entities is not None:
            self._entities.close()
        own = getattr(self._local, "lines", None)
        if own is not None:
            own.close()
        self.run(self._close())
        self._thread.close()
        self.context.close()

    async def _close(self) -> None:
        for line in self._shared.values():
            line.close()
        await self.replica.close()


class _Waiter:
    """One outcome, for a thread that blocks."""

    __slots__ = ("_lock", "_outcome")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def settle(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._lock.release()

    def outcome(self) -> Outcome:
        self._lock.acquire()
        return self._outcome


class _State:
    """The one piece of state of the process: its settings, and its runtime once it has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._runtime: Runtime | None = None
        self._inherited: list[Runtime] = []

    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_environment()
        return self._settings

    def current(self) -> Runtime:
        runtime = self._runtime
        if runtime is None:
            with self._lock:
                runtime = self._runtime = self._runtime or Runtime(self.settings())
        return runtime

    def inherit(self, settings: Settings) -> None:
        with self._lock:
            if self._runtime is None:
                self._settings = settings

    def configure(self, changes: dict[str, Any]) -> None:
        with self._lock:
            if self._runtime is not None:
                raise RuntimeError("configure() comes before the first use of pyzmp; this process has used it already, "
                                   f"with {self.settings()}")
            self._settings = replace(self.settings(), **changes).checked()

    def forget(self, runtime: Runtime) -> None:
        if self._runtime is runtime:
            self._runtime = None

    def reset(self) -> None:
        """End the runtime, if there is one, and forget the settings: as in a new process."""
        if self._runtime is not None:
            self._runtime.close()
        self._settings = None

    def after_fork(self) -> None:
        """In a forked child: close what the parent's runtime holds, and start without one.

        The parent's objects are kept, so that nothing of them is finalised here.
        """
        self._lock = threading.Lock()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            self._inherited.append(runtime)
            runtime.context.close_inherited()
            runtime.replica.close_inherited()


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.after_fork)


def current() -> Runtime:
    """The runtime of this process, made now where there is none."""
    return _state.current()


def settings() -> Settings:
    """The settings of this process."""
    return _state.settings()


def inherit(settings: Settings) -> None:
    """Take over the settings of the process that started this one, unless it has used pyzmp already."""
    _state.inherit(settings)


def reset() -> None:
    """End the runtime of this process and forget its settings, for tests that need a process as new."""
    _state.reset()


def configure(*, domain: str | None = None, registry: str | None = None, timeout: float | None = None) -> None:
    """Set, before pyzmp is first used, what differs from the environment's ``PYZMP_*``.

    *domain* names the world of nodes that see each other.  *registry* is ``"memory"`` to keep
    everything inside this process.  *timeout* is the default of calls, in seconds.  The processes
    that this one starts inherit all of it.  Raises RuntimeError once pyzmp was used.
    """
    changes = {"domain": domain, "registry": registry, "timeout": None if timeout is None else seconds(timeout)}
    _state.configure({name: value for name, value in changes.items() if value is not None})
