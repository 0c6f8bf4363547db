"""The runtime of a process: its view of the graph, its links, and the thread that drives them.

A `Runtime` is made when it is first needed and ended when the interpreter exits.  Its one thread
runs no code of users'; it keeps the replica, and the sessions that futures and awaited calls share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.launchers.base import at_exit
from pyzmp.loopthread import LoopThread
from pyzmp.protocol.facts import Epoch, Fact, Key, Member, NodeFact, Position
from pyzmp.protocol.index import Facts
from pyzmp.protocol.retry import Budget
from pyzmp.registry import keys, reach
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.finder import finder_for
from pyzmp.registry.replica import Replica
from pyzmp.sessions import Sessions, Target
from pyzmp.settings import TIMEOUT, Settings
from pyzmp.transport.context import Context

T = TypeVar("T")

FIRST_LOOK = 1.0  # seconds that the first look of a process waits for what a registry knows, at most
LATER_LOOK = 0.1  # and any later one, as long as nothing is known
BUSY = 1.0  # seconds for which the end of a runtime waits for an entity's code, at most


class Runtime:
    """The runtime of this process; `runtime.current` gives it.  Its methods may be called from any thread.

    *forget* is called once it is about to end.
    """

    def __init__(self, settings: Settings, forget: Callable[[Runtime], object]) -> None:
        self.settings, self._forget = settings, forget
        self.domain = domain = None if settings.registry == "memory" else Domain.named(settings.domain)
        self.context = Context((lambda: keys.security(domain)) if domain is not None else None)
        key = self.context.public_key() if settings.registry.startswith(("tcp:", "beacon")) else ""
        self.member = this_process(os.path.basename(sys.argv[0]) if sys.argv else "", key)
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._thread = LoopThread("pyzmp")
        self._entities: LoopThread | None = None
        self._loops: dict[str, asyncio.AbstractEventLoop] = {}
        self._names: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, str] = weakref.WeakKeyDictionary()
        self.sessions = Sessions(self.context, self._thread.loop, self.member.id)
        self._looked = False
        self.hosts: dict[asyncio.AbstractEventLoop, Any] = {}  # each knows its loop: as weak keys they would stay
        self.ends: list[Callable[[], Coroutine[Any, Any, object]]] = []  # what comes before ours, the last one first
        loop = self.loop = self._thread.loop
        try:
            self._finder = finder_for(settings.registry, self.context, domain, loop)
        except BaseException:  # nothing is left of what has failed
            self._thread.close()
            raise
        self.replica = Replica(loop, self.member, self._finder, settings.domain)
        self.replica.on_change(self._look_around)
        self._epoch: Epoch | None = None
        self.budgets: dict[str, Budget] = {}  # for the retries of each service that ever needed one
        self._at_exit = at_exit(self.close)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is about to be: whoever waits for a change ends then."""
        return self.replica.closed

    def is_ours(self) -> bool:
        """Whether this is the process that made it, not a forked child."""
        return self._pid == os.getpid()

    # The graph.

    def facts(self) -> Facts:
        """What this process knows.  Where that is nothing yet it waits for a registry's answer.

        At most a second the first time, a tenth later on.
        """
        replica = self.replica
        if replica.view.position is None:
            replica.look(self._patience())
        elif replica.stale_since is not None:
            replica.seek()
        return replica.view.facts

    async def alook(self) -> None:
        """As `facts` waits, without blocking the running loop."""
        if self.replica.view.position is None:
            await self.replica.alook(self._patience())
        elif self.replica.stale_since is not None:
            self.replica.seek()

    def _patience(self) -> float:
        looked, self._looked = self._looked, True
        return LATER_LOOK if looked else FIRST_LOOK

    def incarnation(self) -> tuple[int, int]:
        """That of a node that was registered last, as far as is known: later ones are greater."""
        position = self.replica.view.position
        return (position.epoch.counter, position.version) if position is not None else (0, 0)

    def wait_until(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Block until *predicate*, looked at whenever the graph changes; what it says at last.

        At most *timeout* seconds, and not beyond the runtime's end.
        """
        return self.replica.wait_until(lambda _: predicate(), timeout)

    async def await_until(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """As `wait_until`, in a coroutine."""
        return await self.replica.await_until(lambda _: predicate(), timeout)

    async def announce(self, new: Iterable[Fact]) -> Position:
        """Put facts of this process into the graph, and its own view; raises as `Replica.announce` does."""
        return await self.arun(self.replica.announce(new))

    async def withdraw(self, keys: Iterable[Key], timeout: float = TIMEOUT) -> Position:
        """Take facts of this process out of the graph, and its own view; raises RegistryUnavailable after *timeout*."""
        return await self.arun(self.replica.withdraw(keys, timeout))

    def begin_registry(self) -> None:
        """Have a registry started where none is, without waiting for it: a member is about to come."""
        asyncio.run_coroutine_threadsafe(self._begin_registry(), self._thread.loop)

    async def _begin_registry(self) -> None:
        with contextlib.suppress(RegistryUnavailable):  # whoever needs it will ask again, and hear why not
            await self.replica.connect(start=True)

    def target(self, node: NodeFact) -> Target:
        """How this process reaches *node*: in memory where it lives in this process too, by TCP on another host.

        Not at all where it does not listen for other hosts, and is on one.
        """
        shown = node.addresses[-1] if node.addresses else ""
        near = node.owner == self.member.id
        if near or self._is_here(node):
            address = next((place for place in node.addresses if near or not place.startswith("memory:")), shown)
        else:
            address = reach.nearest([place for place in node.addresses if reach.travels(place)]) or ""
        return Target(node.name, address, node.loop, node.incarnation, shown)

    def _is_here(self, node: NodeFact) -> bool:
        """Whether the process of *node* runs on this host."""
        owner = self.replica.view.facts.get(("member", node.owner))
        return reach.same_host(owner, self.member) if isinstance(owner, Member) else node.host == self.member.host

    def budget(self, service: str) -> Budget:
        """The budget that all calls of *service* in this process share for their retries."""
        return self.budgets.setdefault(service, Budget())

    # Loops that nodes live on.

    def register(self, loop: asyncio.AbstractEventLoop) -> str:
        """Give *loop* its name in the graph.  What was left on loops that are closed by now is ended."""
        for closed in [known for known in self.hosts.copy() if known.is_closed()]:
            self.hosts[closed].close()
        with self._lock:
            name = self._names.get(loop)
            if name is None:
                name = self._names[loop] = f"{self.member.id}-{len(self._names) + 1}-{os.urandom(2).hex()}"
            self._loops[name] = loop
        return name

    def unregister(self, name: str) -> None:
        """The loop *name* hosts no nodes any more."""
        self._loops.pop(name, None)

    def runs(self, name: str) -> bool:
        """Whether the loop *name*, or the runtime's own, is the one that runs in this very thread."""
        running = asyncio._get_running_loop()
        return running is not None and running in (self._loops.get(name), self._thread.loop)

    @property
    def in_own_thread(self) -> bool:
        """Whether this is the runtime's thread, which must not block."""
        return asyncio._get_running_loop() is self._thread.loop

    @property
    def holds_up(self) -> bool:
        """Whether to block in this very thread holds up nodes that serve here, or the runtime itself."""
        running = asyncio._get_running_loop()
        host = self.hosts.get(running) if running is not None else None
        return self.in_own_thread or (host is not None and bool(host.guests))

    def lane(self) -> str:
        """The name of the loop with nodes on it that runs in this very thread, or nothing."""
        running = asyncio._get_running_loop()
        if running is None:
            return ""
        name = self._names.get(running, "")
        return name if name in self._loops else ""

    def places(self, loop: str, node: str) -> list[str]:
        """Where the loop *loop* listens: in memory, at the address of *node*, or its own where that is empty.

        In a domain of several hosts also where the others reach it.
        """
        if self.domain is None:
            return [f"memory://node-{node}" if node else f"memory://{loop}"]
        return [f"memory://{loop}", self.domain.address_for(node or loop),
                *(reach.at(interface, "*") for interface in self.interfaces())]

    def interfaces(self) -> Sequence[str]:
        """The addresses where others reach what listens here, as the registry makes it; none where that has one host.

        They lead to the registry, or were asked for.  Raises InvalidAddress where there is no such interface.
        """
        found, chosen = self._finder.interfaces(), self.settings.interface
        if found is None or not chosen:
            return found or ()
        return [reach.resolved(interface) for interface in chosen.split(",")]

    def _look_around(self) -> None:
        """Have each loop listen for other hosts too where a registry that is new here serves them."""
        position = self.replica.view.position
        if position is not None and position.epoch != self._epoch:
            self._epoch = position.epoch
            for loop, host in self.hosts.copy().items():
                with contextlib.suppress(RuntimeError):  # it is closed
                    loop.call_soon_threadsafe(host.widen)

    def entity_loop(self) -> LoopThread:
        """The thread for entities that are started outside of a running loop."""
        with self._lock:
            if self._entities is None:
                self._entities = LoopThread("pyzmp-entities")
            return self._entities

    # The thread.

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the runtime's thread, and block until it has ended."""
        return self._thread.run(coroutine)

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the runtime's thread, and await its end on the running loop."""
        return await self._thread.arun(coroutine)

    def close(self) -> None:
        """Withdraw what is left, end every session and thread.  Nothing of the runtime remains."""
        if not self.is_ours():
            return
        self.replica.closed = True  # first: whoever is woken by the end makes no runtime anew
        self._forget(self)
        self._at_exit.cancel()
        if self._entities is not None:
            self._entities.close(BUSY)
        self.sessions.close_own()
        self.run(self._close())
        self._thread.close()
        self.context.close()

    async def _close(self) -> None:
        for end in reversed(self.ends):
            await end()
        await self.sessions.close_shared()
        await self.replica.close()
