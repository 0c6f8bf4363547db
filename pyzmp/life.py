"""A node where it lives: on its loop, from its first word to the registry to its last."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec.structs import replace

from pyzmp import runtime
from pyzmp.channels.call import Ending, ending_here, running_node, serving
from pyzmp.channels.declare import (
    check_streams,
    marks_of,
    methods_of,
    parameters_of,
    timers_of,
    topic_marks_of,
    topics_of,
)
from pyzmp.channels.ticking import period_of, ticks
from pyzmp.channels.values import Values
from pyzmp.coprocess import DRAIN, START, CoProcess
from pyzmp.exceptions import RegistryUnavailable, StartError
from pyzmp.guest import Guest, Provided, either, setters
from pyzmp.launchers.base import Control
from pyzmp.launchers.entity import EntityControl
from pyzmp.loopthread import Mark, awaited, call_in, run_alone
from pyzmp.protocol.admission import LIMITS, Limits
from pyzmp.protocol.facts import Fact, NodeFact, Position, ServiceFact, Trait
from pyzmp.protocol.schema import Signature

if TYPE_CHECKING:
    from pyzmp.channels.listening import Listening
    from pyzmp.channels.published import Published
    from pyzmp.host import Host

Kind = Literal["process", "thread", "entity"]

UPDATE = 0.1  # seconds between two calls of an update, at most
WITHDRAW = 4.0  # seconds that a node which stops waits for the registry, at most
LOST = 1.0  # the same, where none is followed when it stops: the next one on this host takes less
CONFIRMED = 1.0  # seconds that a node which starts waits for the publishers that it subscribes to, at most
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
            runtime.current().begin_registry()  # beside all that comes before the first word to it
        life = self._lives(control)
        return life if isinstance(control, EntityControl) else run_alone(life, ENDING)

    async def _lives(self, control: Control) -> int | None:
        """The node's whole life, on the running loop."""
        running_node.set(self)
        serving.set(None)  # whoever started it may be a service, whose deadline is not the node's
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        begun, stop, early = Mark(), Mark(), False

        def told() -> None:
            nonlocal early
            stop.set()
            if not begun.is_set() and task is not None:
                early = True
                task.cancel()
        control.on_stop(lambda: call_in(loop, told))
        try:
            return await self._serves(control, begun, stop)
        except asyncio.CancelledError:
            if early:
                raise StartError(f"{self.name!r} was told to stop before it was ready") from None
            raise

    async def _serves(self, control: Control, begun: asyncio.Event, stop: asyncio.Event) -> int | None:
        """Start, which ends with *begun*, and serve until *stop*."""
        from pyzmp.host import Host  # where nodes live, and not where they are only defined and called

        loop, here = asyncio.get_running_loop(), runtime.current()
        status: list[int | None] = []
        ending = Ending()
        ending_here.set(ending)
        host = Host.of(here, loop)
        guest = Guest(self.name, contextvars.copy_context(), limits=Limits(self.max_calls, self.max_bytes))
        control.on_hurry(lambda: call_in(loop, guest.hurry.set))
        try:
            listening = self._opens(here, host, guest)
            known = await self._claims(here, host, guest)
            try:
                with self._entered(self._args, self._kwargs) as (args, kwargs):
                    ready = await self._begins(here, host, guest, begun, known)
                    home = self._life.home = _Home(host, guest, self._tasks(guest, args, kwargs, stop, status))
                    control.on_told(self._told)
                    control.ready(ready)
                    try:
                        await stop.wait()
                        await asyncio.sleep(0)  # an update is called once at least, however soon the stop comes
                    finally:
                        listening.close()
                        await self._ends(home)
                        await self._leaves(here, host, guest)
                        await awaited(self.on_stop())
            finally:
                await self._leaves(here, host, guest)
        finally:
            await self._closes(host, guest, ending)
        return status[0] if status else 0

    def _opens(self, here: runtime.Runtime, host: Host, guest: Guest) -> Listening:
        """Have the channels of the node until it `_closes` them; nobody knows of them yet."""
        from pyzmp.channels.listening import Listening
        from pyzmp.channels.published import Published

        cls, life = type(self), self._life
        life.listening = None
        declared = parameters_of(cls)
        life.values = Values(self.name, host.loop, declared, {key: each.given(self) for key, each in declared.items()})
        life.published = Published(self.name, host.publishing, topics_of(cls), functools.partial(topic_marks_of, cls))
        return Listening(self, here, host.loop)

    async def _closes(self, host: Host, guest: Guest, ending: Ending) -> None:
        """End what `_opens` has made, and all else that the node holds; each of it, whatever ends with an error."""
        life = self._life
        with contextlib.ExitStack() as stack:  # made here, as it would be the largest thing that a node holds
            stack.callback(host.release)
            stack.callback(ending.close)
            stack.callback(setattr, life, "values", None)  # what it was given before the start is there again
            stack.callback(setattr, life, "published", None)
            if life.listening is not None:
                stack.callback(life.listening.close)
            stack.callback(host.leave, guest)
            if life.published is not None:
                await life.published.end(guest.hurry)  # with what it publishes when it stops

    async def _claims(self, here: runtime.Runtime, host: Host, guest: Guest) -> Position | None:
        """Have the name in the graph; since when, where it serves with that.

        That halves what the start of an entity waits for.  Others bind an address that is named after them, have
        what may not run before the name is theirs, or yet to find a registry and where to listen.
        """
        try:
            if not (here.replica.following and self._is_plain(host)):
                await here.announce([self._fact(here, host)])
                return None
            guest.since = here.incarnation()
            position = await self._appears(here, guest, self._joins(host, guest, self._fact(here, host)))
            guest.incarnation, guest.since = self._registered(here).incarnation, None
            return position
        except asyncio.CancelledError:  # perhaps too late to keep it out of the graph
            await self._leaves(here, host, guest)
            raise
        except BaseException:
            await host.remove(guest, 0)
            raise

    def _is_plain(self, host: Host) -> bool:
        """Whether nothing is run, or heard, between the claim of its name and its first call."""
        from pyzmp.channels.subscribe import listening_of

        cls = type(self)
        return (self.kind == "entity" and self._socket_bind is None and self._context_manager is None
                and getattr(self.on_start, "__func__", None) is LivingNode.on_start
                and not topics_of(cls) and not listening_of(cls) and self.name not in host.guests)

    def _joins(self, host: Host, guest: Guest, own: NodeFact) -> NodeFact:
        """Serve calls from now on; what to tell of that."""
        guest.services = self._services()
        addresses = host.bind(guest, self._socket_bind, shared=self.kind == "entity", insecure=self._insecure)
        guest.incarnation = own.incarnation
        host.add(guest)
        return replace(own, addresses=tuple(addresses))

    async def _begins(self, here: runtime.Runtime, host: Host, guest: Guest, begun: asyncio.Event,
                      known: Position | None) -> tuple[str, Position]:
        """Run what the user has for the start, and serve; where that is, and since when the graph knows."""
        if known is None:
            await awaited(self.on_start())
            own = self._joins(host, guest, self._registered(here))
            begun.set()
            known = await self._appears(here, guest, own)
        begun.set()
        return self._registered(here).addresses[-1], known

    async def _appears(self, here: runtime.Runtime, guest: Guest, own: NodeFact) -> Position:
        """Be in the graph with all channels, and subscribed to the publishers that are there."""
        life, owner = self._life, here.member.id
        values, published, listening = life.values, life.published, life.listening
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
        return {**services, **offered, **setters(self._life.values)}

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
            await either(_withdrawn(here, self.name, values, patience), guest.hurried(), timeout=patience)
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
