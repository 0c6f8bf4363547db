"""Nodes: they have a name, declare channels, and live on a loop that a launcher starts."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from typing_extensions import Self

from pyzmp import runtime
from pyzmp.channels.at import At
from pyzmp.channels.call import running_node
from pyzmp.channels.declare import check_class
from pyzmp.channels.topic import Topic
from pyzmp.coprocess import START, CoProcess, graces
from pyzmp.exceptions import StartError
from pyzmp.launchers.base import Launcher, NotReady
from pyzmp.launchers.entity import EntityHandle, EntityLauncher, in_thread
from pyzmp.launchers.thread import ThreadLauncher
from pyzmp.life import LOST, Kind, LivingNode, offer
from pyzmp.protocol.deadline import seconds
from pyzmp.registry.domain import check_node_name, check_service_name

R = TypeVar("R")

WITHDRAWN = 6.0  # seconds in which the registry has noticed that a node which was killed is gone
UNREADY = 0.5  # seconds that a node may take to stop which never got ready
AGAIN = 0.05  # seconds until a start that is given up, and under way in another thread, is ended once more

log = logging.getLogger("pyzmp.node")


class Node(LivingNode):
    """A code-executing entity with a name, that serves calls.

    Subclasses declare services with ``@service``, timers with ``@every``, and override `on_start` and
    `on_stop`.  ``kind`` says where an instance lives: in a ``"process"`` of its own, in a ``"thread"``,
    or as an ``"entity"`` on an asyncio loop that it shares; it is settable before the start.

    ``__init__`` runs where the instance is made; a process gets a copy.  What belongs to the node,
    such as devices and connections, is opened in `on_start`.

    *socket_bind* is an address of the node's own, such as ``tcp://127.0.0.1:4242``; by default it is
    reached through the socket of its loop.  Beyond loopback it is encrypted, and lets in the processes of
    this host's domain and those whose keys ``pyzmp keys`` has authorised, unless *insecure* says that the
    network itself keeps others out.
    *context_manager*, *args*, *kwargs* and *loop_target* (in the place of `update`) are as in `CoProcess`.

    The class attributes ``max_calls`` (16384) and ``max_bytes`` (256 MiB of arguments) are what one node takes at
    once: the calls of all callers, running and waiting.  Calls beyond them end as Overloaded; one with more bytes
    is taken when it is alone.
    """

    _named = True  # by who made it

    def __init__(self, name: str | None = None, socket_bind: str | None = None, context_manager: Any = None,
                 loop_target: Callable[..., Any] | None = None, args: tuple[Any, ...] | None = None,
                 kwargs: dict[str, Any] | None = None, *, kind: Kind | None = None, start_method: str | None = None,
                 insecure: bool = False) -> None:
        super().__init__(name, context_manager, loop_target, args, kwargs, start_method=start_method)
        check_node_name(self.name)
        self._named = name is not None
        if kind is not None:
            self.kind = kind
        self._socket_bind, self._insecure = socket_bind, insecure
        self._provided: dict[str, Callable[..., Any]] = {}

    @property
    def name(self) -> str:
        """Its name, a uuid where none was given; settable while it does not run."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._rename(name)
        self._named = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_class(cls, Node)

    # What callers and owners do.

    @classmethod
    def at(cls, node: str, /) -> type[Self]:
        """This class's channels, of the one node of that name: ``Class.at("name").method(…)``."""
        return cast("type[Self]", At(cls, node))

    def provides(self, callable: Callable[..., Any], service_name: str | None = None) -> None:
        """Offer a function or method as a service, under its own name or *service_name*; also while the node runs.

        A method keeps the object that it is bound to.  A callable without a signature is not checked.
        """
        name = service_name or getattr(callable, "__name__", None)
        if not builtin_callable(callable) or not name:
            raise TypeError(f"provides() takes a callable, with a service_name where it has no name, got {callable!r}")
        check_service_name(name)
        offer(name, callable)
        self._provided[name] = callable
        self._follow(name)

    def withholds(self, name: str | Callable[..., Any]) -> None:
        """Take back what `provides` offered, by its name or the callable; also while the node runs."""
        known = [offered for offered, provided in self._provided.items() if name in (offered, provided)]
        for offered in known:
            del self._provided[offered]
            self._follow(offered)
        if not known:
            raise ValueError(f"{self.name!r} does not provide {name!r}; it provides {sorted(self._provided)}")

    def start(self, timeout: float | None = None) -> Any:
        """Start the node, and return its address once it is ready and in this process's view of the graph.

        False once *timeout* seconds are over; what was begun is ended then.  Without one StartError is
        raised after 30 s.  Raises what the node's hooks raised, NodeExists, AnnouncementRefused,
        InvalidAddress and AddressInUse.  A running node is shut down and started again, under the same address.
        """
        self._check()
        over = time.monotonic() + (START if timeout is None else seconds(timeout))
        if self.kind == "process":
            runtime.current().begin_registry()  # while the process is started
        return self._seen(super().start(timeout), over)

    async def astart(self, timeout: float | None = None) -> Any:
        """As `start`, in a coroutine; an entity then lives on the running loop."""
        self._check()
        if self.kind != "entity":
            given_up = threading.Event()
            try:
                return await in_thread(self._start_unless, given_up, timeout)
            except asyncio.CancelledError:
                given_up.set()
                threading.Thread(target=self._undo_start, name=f"pyzmp-undo-{self.name}", daemon=True).start()
                raise
        async with self._life.astarting:
            return await self._astart_entity(timeout)

    def _start_unless(self, given_up: threading.Event, timeout: float | None = None) -> Any:
        """Start it, unless that is *given_up*; whoever gives it up then calls `_undo_start` too."""
        with self._life.starting:
            if given_up.is_set():
                raise StartError(f"{self.name!r} was told to stop before it was started")
            return self.start(timeout)

    def _undo_start(self, timeout: float | None = None) -> None:
        """End what a start has begun that failed, or was given up and is under way in another thread.

        Within *timeout* seconds, or however long that start takes to notice.
        """
        over = None if timeout is None else time.monotonic() + timeout

        def left(otherwise: float | None = None) -> float | None:
            return otherwise if over is None else max(AGAIN, over - time.monotonic())
        while not self._life.starting.acquire(timeout=AGAIN):
            if over is not None and time.monotonic() > over:
                return
            self._hinder(left())
        try:
            if self.is_alive():
                self._end_start(left())
        finally:
            self._life.starting.release()
        self._gone(min(WITHDRAWN, left(WITHDRAWN) or 0))

    def _end_start(self, timeout: float | None) -> None:
        """Shut it down, quickly where it never got ready."""
        self.shutdown(timeout=timeout if self.has_started() else min(UNREADY, timeout or UNREADY))

    _hinder = _end_start  # what makes a start that another thread is in fail

    async def _astart_entity(self, timeout: float | None) -> Any:
        if self.is_alive():
            await self.ashutdown()
        life = self._life
        life.ready, life.here = False, None
        handle = life.handle = EntityLauncher(asyncio.get_running_loop()).launch(self._live, name=self.name)
        try:
            value = await handle.await_ready(START if timeout is None else seconds(timeout))
        except NotReady:
            await _end(handle, 0)
            if timeout is None:
                raise StartError(f"{self.name!r} was not ready within {START:g} s of its start and was ended; pass a "
                                 "timeout to astart() to wait for longer") from None
            return False
        except BaseException:
            await _end(handle, 0)
            raise
        life.ready = True
        return value[0]

    def shutdown(self, join: bool = True, timeout: float | None = None) -> int | None:
        """Stop the node: new calls are refused, running ones may end; then it is gone, with all that it holds.

        Returns its exit code; None if it was never started.  *timeout* bounds it, in seconds.  Called
        again it returns the same code.  Called inside the node it asks, and does not wait.  Raises
        RuntimeError on the loop that an entity shares, which it would hold up.
        """
        life, was = self._life, self.is_alive()
        if running_node.get() is self and life.control is not None:
            life.control.request_stop()
            return None
        if join and self._lives_here():
            raise RuntimeError(f"{self.name!r} lives on the loop that runs here; write await node.ashutdown()")
        over = None if timeout is None else time.monotonic() + seconds(timeout)
        status = super().shutdown(join, timeout)
        if was and join and life.handle is not None:
            self._gone(WITHDRAWN if over is None else max(0.0, over - time.monotonic()))
        return status

    async def ashutdown(self, join: bool = True, timeout: float | None = None) -> int | None:
        """As `shutdown`, in a coroutine."""
        handle = self._life.handle
        if not isinstance(handle, EntityHandle):
            return await in_thread(self.shutdown, join, timeout)
        if not join or running_node.get() is self:
            handle.request_stop()
        else:
            await _end(handle, timeout)
        return handle.exitcode

    def join(self, timeout: float | None = None) -> None:
        """Wait until the node has ended, at most *timeout* seconds.

        Raises RuntimeError on the loop that an entity shares, which would then never end.
        """
        if self._lives_here():
            raise RuntimeError(f"{self.name!r} lives on the loop that runs here; write await node.ajoin()")
        super().join(timeout)

    async def ajoin(self) -> None:
        """Wait, in a coroutine, until the node has ended."""
        handle = self._life.handle
        if isinstance(handle, EntityHandle):
            await handle.ajoin()
        else:
            await in_thread(self.join)

    async def __aenter__(self) -> Self:
        if not self.is_alive():
            await self.astart()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ashutdown()

    def __repr__(self) -> str:
        if "_provided" not in self.__dict__:
            return f"<{type(self).__name__} that was not initialized>"
        return super().__repr__().replace(" process ", f" {self.kind} ", 1)

    # In the starter.

    def _rename(self, name: str) -> None:
        CoProcess.name.fset(self, check_node_name(name))  # type: ignore[attr-defined]

    def _refuse_alive(self, hint: str) -> None:
        if self.is_alive():
            raise RuntimeError(f"{self.name!r} runs; {hint}")

    def _enter(self, groups: tuple[str, ...], name: str) -> None:
        """Be in *groups*, the innermost first; a node without a name of its own is called *name* there."""
        self._groups = groups
        if not self._named:
            self._rename(name)

    def _lives_here(self) -> bool:
        """Whether it is an entity that runs on the very loop that runs in this thread."""
        handle = self._life.handle
        return isinstance(handle, EntityHandle) and handle.is_alive() and handle.lives_here()

    def _launcher(self) -> Launcher:
        if self.kind == "thread":
            return ThreadLauncher()
        if self.kind == "entity":
            return EntityLauncher(runtime.current().entity_loop().loop)
        return super()._launcher()

    def _check(self) -> None:
        if "_provided" not in self.__dict__:
            raise TypeError(f"{type(self).__name__}.__init__ did not call super().__init__(name, **options)")
        if self.kind not in ("process", "thread", "entity"):
            raise ValueError(f"kind of {self.name!r}: expected 'process', 'thread' or 'entity', got {self.kind!r}")
        from pyzmp.channels.channel import count

        for limit in ("max_calls", "max_bytes"):
            count(getattr(self, limit), f"{limit} of {self.name!r}")
        if self.kind == "process" and runtime.settings().registry == "memory":
            raise StartError(f"{self.name!r} is a process, and with registry='memory' nothing leaves this one; make it "
                             "a thread or an entity, or leave the registry setting out")

    def _seen(self, value: Any, over: float) -> Any:
        """The address out of what the node said when it was ready, once this process's view has caught up with it."""
        if value is False:
            return False
        address, position = value
        if self.kind == "process":
            view = runtime.current().replica.view
            runtime.current().wait_until(lambda: view.reached(position), max(0.0, over - time.monotonic()))
        return address

    def _gone(self, timeout: float) -> None:
        """Wait until the node is out of this process's view."""
        if self.kind != "process" or not runtime.in_use():
            return
        here = runtime.current()
        known = here.replica.view.facts.node(self.name)
        if known is not None and known.pid == self.ident:
            patience = timeout if here.replica.following else min(timeout, LOST)
            here.wait_until(lambda: here.replica.view.facts.node(self.name) != known, patience)

    def _guarded(self, service: str, bound: Callable[..., R]) -> Callable[..., R]:
        """The method itself in unit tests and inside the node; elsewhere a call of it is an error."""
        handle = self._life.handle
        if handle is None or running_node.get() is self or not handle.is_alive():
            return bound
        place = {"process": f"process {handle.ident}", "thread": "a thread of its own", "entity": "its loop"}[self.kind]

        def refuse(*_: Any, **__: Any) -> R:
            raise RuntimeError(f"{self.name!r} runs in {place}; ask it with "
                               f"{type(self).__name__}.at({self.name!r}).{service}()")
        return refuse

    def _follow(self, name: str) -> None:
        """Have the running node, if there is one, do what `_provided` says of *name*; the graph says so at the end."""
        life, function = self._life, self._provided.get(name)
        if life.home is not None:
            self._here(self._offers(name))
        elif life.control is None and life.handle is not None and life.handle.is_alive():
            # A method of the node's own is the one of the copy that runs.
            own = getattr(function, "__self__", None) is self
            life.handle.tell((name, getattr(function, "__name__", "") if own else function, own))
            here = runtime.current()
            here.wait_until(lambda: bool(here.facts().provider(self.name, name)) is (function is not None), START)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in super().__getstate__().items()
                 if not (isinstance(value, Topic) and value.is_bound)}
        return {**state, "_settings": runtime.settings()}


builtin_callable = callable


def check_nodes(nodes: Iterable[object], who: str) -> None:
    """Raise TypeError where *nodes* are not one node or more, for *who* takes them."""
    given = tuple(nodes)
    if not given:
        raise TypeError(f"{who} takes one node or more, got none")
    for node in given:
        if not isinstance(node, Node):
            hint = f"; write {node.__name__}(…)" if isinstance(node, type) else ""
            raise TypeError(f"{who} takes one node or more, got {node!r}{hint}")


async def _end(handle: EntityHandle, timeout: float | None) -> None:
    """End an entity: ask it, then hurry it, then cancel it."""
    for ask, grace in zip((handle.request_stop, handle.terminate, handle.kill), graces(timeout), strict=True):
        ask()
        if await handle.ajoin(max(grace, 0.05)):
            return


def current_node() -> Node:
    """The node that runs this code.  Raises RuntimeError outside of nodes."""
    node = running_node.get()
    if node is None:
        raise RuntimeError("current_node() is for code that a node runs; no node runs this")
    return cast("Node", node)



