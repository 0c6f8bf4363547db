"""A node where it lives: on its loop, from its first word to the registry to its last."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from pyzmp import runtime
from pyzmp.channels.call import ending_here, running_node, serving
from pyzmp.channels.declare import (
    check_streams,
    marks_of,
    methods_of,
    parameters_of,
    timers_of,
    topic_marks_of,
    topics_of,
)
from pyzmp.channels.listening import Listening
from pyzmp.channels.published import Published
from pyzmp.channels.ticking import period_of, ticks
from pyzmp.channels.values import Values
from pyzmp.coprocess import DRAIN, START, CoProcess
from pyzmp.exceptions import RegistryUnavailable, StartError
from pyzmp.guest import Guest, Provided, either
from pyzmp.host import Host
from pyzmp.launchers.base import Control
from pyzmp.launchers.entity import EntityControl
from pyzmp.protocol.admission import LIMITS, Limits
from pyzmp.protocol.facts import Fact, NodeFact, Position, ServiceFact, Trait
from pyzmp.protocol.schema import Signature

Kind = Literal["process", "thread", "entity"]

UPDATE = 0.1  # seconds between two calls of an update, at most
WITHDRAW = 4.0  # seconds that a node which stops waits for the registry, at most
LOST = 1.0  # the same, where none is followed when it stops: the next one on this host takes less
CONFIRMED = 1.0  # seconds that a node which starts waits for the publishers that it subscribes to, at most
HURRY = 0.1  # seconds that it still waits for it once it is hurried
ENDING = 1.0  # seconds that its timers and its update may take to end

log = logging.getLogger("pyzmp.node")


class _Home(NamedTuple):
    """Where a node lives in this process."""

    host: Host
    guest: Guest
    tasks: list[asyncio.Task[None]]


class LivingNode(CoProcess):
    """The half of `pyzmp.Node` that runs in the node: its hooks, and how it serves until it is told to stop."""

    kind: Kind | Literal["group"] = "process"
    max_calls: int = LIMITS.calls
    max_bytes: int = LIMITS.size
    _open_in = "on_start"
    _socket_bind: str | None
    _insecure: bool
    _groups: tuple[str, ...] = ()  # that it is in, the innermost first
    _provided: dict[str, Callable[..., Any]]

    # What subclasses override.

    def on_start(self) -> Awaitable[None] | None:
        """Called in the node, before it serves; may be ``async``.  What it raises comes out of `start`."""

    def on_stop(self) -> Awaitable[None] | None:
        """Called in the node once it serves no more, though it still publishes; may be ``async``."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Called in the node after each turn of its loop that brought calls, and at least every 100 ms.

        It gets the keyword ``timedelta``, the seconds since the last call.  Returning something other
        than None ends the node with that status.  Where it is not overridden nobody wakes up for it.
        """

    @property
    def failed_posts(self) -> int:
        """How many one-way calls have failed in this node since it started.

        It is known where the node runs; elsewhere RuntimeError is raised while it does, so let a service return it.
        """
        home: _Home | None = self._life.home
        if home is None and self.is_alive():
            raise RuntimeError(f"failed_posts of {self.name!r} is known in its own process only; have a service return "
                               "it")
        return home.guest.failed_posts if home is not None else 0

    # Its life.

    def _body(self, control: Control) -> Any:
        inherited = self.__dict__.pop("_settings", None)
        if inherited is not None:
            runtime.inherit(inherited)
        life = self._lives(control)
        return life if isinstance(control, EntityControl) else _run(life)

    async def _lives(self, control: Control) -> int | None:
        """The node's whole life, on the running loop."""
        running_node.set(self)
        serving.set(None)  # whoever started it may be a service, whose deadline is not the node's
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        begun, stop, early = asyncio.Event(), asyncio.Event(), False

        def told() -> None:
            nonlocal early
            stop.set()
            if not begun.is_set() and task is not None:
                early = True
                task.cancel()
        control.on_stop(lambda: _call(loop, told))
        try:
            return await self._serves(control, begun, stop)
        except asyncio.CancelledError:
            if early:
                raise StartError(f"{self.name!r} was told to stop before it was ready") from None
            raise

    async def _serves(self, control: Control, begun: asyncio.Event, stop: asyncio.Event) -> int | None:
        """Start, which ends with *begun*, and serve until *stop*."""
        loop, here = asyncio.get_running_loop(), runtime.current()
        status: list[int | None] = []
        watches = _watches()
        host = Host.of(here, loop)
        guest = Guest(self.name, contextvars.copy_context(), limits=Limits(self.max_calls, self.max_bytes))
        control.on_hurry(lambda: _call(loop, guest.hurry.set))
        own = self._fact(here, host)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(host.release)
            stack.callback(_close_all, watches)
            listening = self._opens(stack, here, host, guest)
            try:
                await here.announce([own])
            except asyncio.CancelledError:  # perhaps too late to keep it out of the graph
                await self._leaves(here, host, guest)
                raise
            stack.push_async_callback(self._leaves, here, host, guest)
            args, kwargs = stack.enter_context(self._entered(self._args, self._kwargs))
            await _awaited(self.on_start())
            guest.services = self._services()
            addresses = host.bind(guest, self._socket_bind, shared=self.kind == "entity", insecure=self._insecure)
            own = replace(self._registered(here), addresses=tuple(addresses))
            guest.incarnation = own.incarnation
            host.add(guest)
            begun.set()
            position = await self._appears(here, guest, own, listening)
            home = self._life.home = _Home(host, guest, self._tasks(guest, args, kwargs, stop, status))
            control.on_told(self._told)
            control.ready((addresses[-1], position))
            try:
                await stop.wait()
                await asyncio.sleep(0)  # an update is called once at least, however soon the stop comes
            finally:
                listening.close()
                await self._ends(home)
                await self._leaves(here, host, guest)
                await _awaited(self.on_stop())
        return status[0] if status else 0

    def _opens(self, stack: contextlib.AsyncExitStack, here: runtime.Runtime, host: Host, guest: Guest) -> Listening:
        """Have the channels of the node for as long as *stack* stands; nobody knows of them yet."""
        cls, life = type(self), self._life
        declared = parameters_of(cls)
        life.values = Values(self.name, host.loop, declared, {key: each.given(self) for key, each in declared.items()})
        life.published = Published(self.name, host.publishing, topics_of(cls), functools.partial(topic_marks_of, cls))
        listening = Listening(self, here, host.loop)
        stack.callback(setattr, life, "values", None)  # what it was given before the start is there again
        stack.callback(setattr, life, "published", None)
        stack.callback(listening.close)
        stack.callback(host.leave, guest)
        stack.push_async_callback(life.published.end, guest.hurry)  # with what it publishes when it stops
        return listening

    async def _appears(self, here: runtime.Runtime, guest: Guest, own: NodeFact, listening: Listening) -> Position:
        """Be in the graph with all channels, and subscribed to the publishers that are there."""
        values, published, owner = self._life.values, self._life.published, here.member.id
        published.begin(here)
        listening.begin()
        position = await here.announce([own, *self._service_facts(here, guest), *values.facts(owner),
                                        *published.facts(owner), *listening.facts(owner)])
        published.appeared()
        values.begin(here)
        await listening.confirmed(CONFIRMED)
        return position

    async def _ends(self, home: _Home) -> None:
        """End what the node does by itself.  A timer or an update that will not end is left behind."""
        self._life.home = None
        for task in home.tasks:
            task.cancel()
        if home.tasks:
            await asyncio.wait(home.tasks, timeout=ENDING)

    def _fact(self, here: runtime.Runtime, host: Host) -> NodeFact:
        return NodeFact(self.name, here.member.id, host.name, (), self.kind, here.member.host, here.member.pid,
                        type(self).__qualname__, groups=self._groups)

    def _registered(self, here: runtime.Runtime) -> NodeFact:
        """This node as the registry has it, with its incarnation."""
        known = here.facts().node(self.name)
        if known is None or known.owner != here.member.id:
            raise StartError(f"{self.name!r} was lost from the registry while it started")
        return known

    def _services(self) -> dict[str, Provided]:
        declared = methods_of(type(self))
        services = {method.name: Provided(method.name, method.function.__get__(self), method.declared().signature,
                                          marks_of(type(self), attribute), method.worker, method.traits())
                    for attribute, method in declared.items()}
        offered = {name: offer(name, function) for name, function in self._provided.items()}
        return {**services, **offered, **_setters(self._life.values)}

    def _living_values(self, verb: str) -> Values | None:
        """Its parameters where it lives; None where it does not live at all."""
        values: Values | None = self._life.values
        if values is None and self.kind == "process" and self.is_alive():
            raise RuntimeError(f"{self.name!r} runs in process {self.ident}; ask it with "
                               f"{type(self).__name__}.at({self.name!r}).{verb}")
        return values

    def _living_topics(self, verb: str = "") -> Published | None:
        """Its topics where it lives; None where it does not live at all.  For a *verb* RuntimeError elsewhere."""
        published: Published | None = self._life.published
        if verb and published is None and self.kind == "process" and self.is_alive():
            raise RuntimeError(f"{self.name!r} runs in process {self.ident}, and it alone publishes its topics, so "
                               f"{verb} is not for here; ask a service of {type(self).__name__}.at({self.name!r})")
        return published

    def _service_facts(self, here: runtime.Runtime, guest: Guest) -> list[Fact]:
        return [self._service_fact(here, provided) for provided in guest.services.values() if provided.announced]

    def _service_fact(self, here: runtime.Runtime, provided: Provided) -> ServiceFact:
        return ServiceFact(self.name, provided.name, here.member.id, provided.marks, provided.signature.fingerprint,
                           provided.signature.text, provided.traits)

    def _told(self, told: tuple[str, Any, bool]) -> None:
        """The starter's instance provides or withholds something."""
        name, function, own = told
        if function is None:
            self._provided.pop(name, None)
        else:
            self._provided[name] = getattr(self, function) if own else function
        self._here(self._offers(name))

    def _here(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run *coroutine* on the node's loop; waits for it, unless this is that loop."""
        loop: asyncio.AbstractEventLoop = self._life.home.host.loop
        if asyncio._get_running_loop() is loop:
            self._life.home.tasks.append(loop.create_task(coroutine))
        else:
            asyncio.run_coroutine_threadsafe(coroutine, loop).result(START)

    async def _offers(self, name: str) -> None:
        """Bring *name*, and the graph, in line with what the node provides."""
        here, guest = runtime.current(), self._life.home.guest
        guest.services = self._services()
        if name in guest.services:
            await here.announce([self._service_fact(here, guest.services[name])])
        else:
            await here.withdraw([("service", self.name, name)])

    async def _leaves(self, here: runtime.Runtime, host: Host, guest: Guest) -> None:
        """Be gone from the graph, then refuse new calls and answer the open ones; once."""
        if guest.left:
            return
        guest.left, values, published = True, self._life.values, self._life.published
        values.leave()
        published.leave()
        try:
            patience = WITHDRAW if here.replica.following else LOST
            await either(_withdrawn(here, self.name, values, patience), _hurried(guest), timeout=patience)
        except RegistryUnavailable as error:  # then a view that lives on learns it from the end of the connection
            log.warning("%s stops without a registry: %s", self.name, error)
        finally:
            values.over(RegistryUnavailable(f"{self.name!r} has stopped before the graph heard of it"))
            await host.remove(guest, DRAIN - 1)

    def _tasks(self, guest: Guest, args: tuple[Any, ...], kwargs: dict[str, Any], stop: asyncio.Event,
               status: list[int | None]) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(ticks(getattr(self, attribute), *period_of(period, self._life.values)))
                 for attribute, period in timers_of(type(self)).items()]
        if not self._idle():
            turned = asyncio.Event()
            guest.turned = turned.set
            tasks.append(asyncio.create_task(self._updates(self._step(args, kwargs), turned, stop, status)))
        return tasks

    def _idle(self) -> bool:
        return self._target is None and getattr(self.update, "__func__", None) is LivingNode.update

    def task(self, *args: Any, **kwargs: Any) -> Any:
        """What a node does in each turn of its loop: `update`."""
        return self.update(*args, **kwargs)

    async def _updates(self, step: Callable[[], Any], turned: asyncio.Event, stop: asyncio.Event,
                       status: list[int | None]) -> None:
        while True:
            try:
                result = step()
                if inspect.isawaitable(result):
                    result = await result
            except asyncio.CancelledError:
                raise
            except SystemExit as error:
                result = error.code or 0
            except BaseException:
                log.exception("the update of %r failed, which ends it", self.name)
                result = 1
            if result is not None:
                status.append(result)
                stop.set()
                return
            turned.clear()
            due = asyncio.get_running_loop().call_later(UPDATE, turned.set)
            try:
                await turned.wait()
            finally:
                due.cancel()


def offer(name: str, function: Callable[..., Any]) -> Provided:
    """A function as a service.  Raises InvalidAnnotation, and TypeError for a stream that could not arrive."""
    signature = Signature.of(function, drop_first=False)
    check_streams(f"the offered service {name}", function, signature)
    return Provided(name, function, signature, traits=Trait.STREAM if signature.streams else 0)


async def _withdrawn(here: runtime.Runtime, name: str, values: Values, timeout: float) -> None:
    """Take a node out of the graph; those who set its parameters last have their answer with that."""
    values.over(await here.withdraw([("node", name)], timeout))


async def _hurried(guest: Guest) -> None:
    """Wait for the hurry, and a moment more for what needs only that."""
    await guest.hurry.wait()
    await asyncio.sleep(HURRY)


def _run(life: Coroutine[Any, Any, int | None]) -> int | None:
    """Run a node's life on a loop of its own.  As `asyncio.run`, but that tasks which will not end are left behind."""
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(life)
    finally:
        if tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            _, left = loop.run_until_complete(asyncio.wait(tasks, timeout=ENDING))
            if left:
                log.warning("%d tasks have not ended with their loop: %s", len(left), left)
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


async def _awaited(value: Any) -> None:
    if inspect.isawaitable(value):
        await value


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the node with it
        loop.call_soon_threadsafe(callback)


def _watches() -> weakref.WeakSet[Any]:
    """What the code of the node, as it runs here from now on, makes to end with it."""
    made: weakref.WeakSet[Any] = weakref.WeakSet()
    ending_here.set(made)
    return made


def _close_all(watches: weakref.WeakSet[Any]) -> None:
    for watch in list(watches):
        watch.close()


def _setters(values: Values) -> dict[str, Provided]:
    """The services by which parameters are set from elsewhere."""
    return {each.setter: Provided(each.setter, functools.partial(_set, values, name), each.signature(), announced=False)
            for name, each in values.parameters.items() if each.settable}


async def _set(values: Values, name: str, value: Any) -> tuple[int, str, int]:
    """Set a parameter; where in the graph it is then."""
    epoch, version = await values.aset(name, value)
    return *epoch, version
