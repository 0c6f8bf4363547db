"""What a living node listens to: its handlers of topics, called on its own loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn

from msgspec.structs import replace

from pyzmp import runtime
from pyzmp.channels.expecting import wants_messages
from pyzmp.channels.handling import Handling
from pyzmp.channels.message import Event
from pyzmp.channels.opening import Opening
from pyzmp.channels.selection import Selection
from pyzmp.channels.sources import Sources
from pyzmp.channels.subscribe import listening_of
from pyzmp.channels.subscription import Subscription
from pyzmp.channels.terms import Terms
from pyzmp.exceptions import PyzmpError
from pyzmp.protocol.facts import LONG, Fact, SubscriberFact

log = logging.getLogger("pyzmp.topic")


class Listening:
    """The subscriptions of one living node, on *loop*: those that its class declares, and those its code makes.

    Made in the node's context, before its `on_start`, on the loop.
    """

    def __init__(self, node: Any, here: runtime.Runtime, loop: asyncio.AbstractEventLoop) -> None:
        self.name: str = node.name
        self.lives = True
        self._node, self._here, self._loop = node, here, loop
        self._handled: dict[Handled, None] = {}
        self._announced: dict[str, SubscriberFact] | None = None  # once the graph has heard of something
        self._announcing: asyncio.Task[None] | None = None
        node._life.listening = self
        self.context = contextvars.copy_context()

    # For the node's life.

    def begin(self) -> None:
        """Begin to listen, once `on_start` has ended."""
        for attribute, listens in listening_of(type(self._node)).items():
            handler = getattr(self._node, attribute)
            for each in listens:
                self._begin(Handled(self, each.handled(handler), each.terms(self.name), handler))

    async def confirmed(self, timeout: float) -> None:
        """Wait until the publishers that are known by now have confirmed or refused; at most so many seconds."""
        over = time.monotonic() + timeout
        for handled in list(self._handled):
            await _opened(handled, over - time.monotonic())
            handled.sources.told()

    def facts(self, owner: str) -> list[Fact]:
        """What the graph is to have of it, which it has not heard of."""
        self._announced = self._facts(owner)
        return list(self._announced.values())

    def _facts(self, owner: str) -> dict[str, SubscriberFact]:
        facts: dict[str, SubscriberFact] = {}
        for fact in (_fact(handled, owner) for handled in self._handled):
            before = facts.get(fact.topic, fact)  # of the same name, but perhaps for another class
            marks = tuple(dict.fromkeys(before.marks + fact.marks)) if before.marks and fact.marks else ()
            facts[fact.topic] = replace(before, marks=marks)
        return facts

    def close(self) -> None:
        """Listen no more; no handler begins any more, and the node's end waits for those that are cancelled."""
        self.lives = False
        if self._announcing is not None:
            self._announcing.cancel()
        tasks = [handled._end() for handled in list(self._handled)]
        if self._node._life.home is not None:
            self._node._life.home.tasks.extend(filter(None, tasks))

    # For its code.

    def subscribe(self, selection: Selection, callback: Callable[[Any], Any], terms: Terms,
                  on_event: Callable[[Event], object] | None, raw: bool = False) -> Subscription[Any]:
        """Have *callback* called on the node's loop; in a thread it waits until publishers have confirmed."""
        handled = Handled(self, selection, terms, callback, on_event, raw=raw)
        if asyncio._get_running_loop() is self._loop:
            self._begin(handled)
            handled._post(handled.sources.told)
            return handled
        _called(self._loop, self._begin, handled).result()
        with contextlib.suppress(concurrent.futures.TimeoutError):
            handled.sources.opened.result(None if self._here.holds_up else self._here.settings.timeout)
        return self._opened(handled)

    async def asubscribe(self, selection: Selection, callback: Callable[[Any], Any], terms: Terms,
                         on_event: Callable[[Event], object] | None, raw: bool = False) -> Subscription[Any]:
        """As `subscribe`, in a coroutine, and it waits on the node's loop too."""
        handled = Handled(self, selection, terms, callback, on_event, raw=raw)
        try:
            await asyncio.wrap_future(_called(self._loop, self._begin, handled))
            await _opened(handled, self._here.settings.timeout)
            return self._opened(handled)
        except asyncio.CancelledError:
            handled.close()
            raise

    def _opened(self, handled: Handled) -> Handled:
        try:
            handled.sources.check_opened(self._here.settings.timeout)
        except PyzmpError:
            handled.close()
            raise
        handled._post(handled.sources.told)
        return handled

    def _begin(self, handled: Handled) -> None:
        """Look for publishers; on the node's loop."""
        if not self.lives or handled._over:
            handled._end()
            return
        self._handled[handled] = None
        self.context.copy().run(handled.sources.begin)  # what it calls later is the node's, too
        handled.sources.warn()
        self._announce()

    def forget(self, handled: Handled) -> None:
        """One of them has ended."""
        self._handled.pop(handled, None)
        self._announce()

    def _announce(self) -> None:
        """Have the graph hear of what the code of a node that serves has begun, or ended."""
        if self.lives and self._announced is not None and self._announcing is None:
            self._announcing = self._loop.create_task(self._announces())

    async def _announces(self) -> None:
        try:
            while (now := self._facts(self._here.member.id)) != (before := self._announced or {}):
                self._announced = now
                fresh = [fact for topic, fact in now.items() if before.get(topic) != fact]
                gone = [fact.key for topic, fact in before.items() if topic not in now]
                if fresh:
                    await self._here.announce(fresh)
                if gone:
                    await self._here.withdraw(gone)
        except PyzmpError as error:
            log.warning("%s could not tell what it listens to: %s", self.name, error)
        finally:
            self._announcing = None


class Handled(Subscription[Any]):
    """A subscription whose messages a function of a node gets, on the node's loop."""

    def __init__(self, listening: Listening, selection: Selection, terms: Terms, callback: Callable[[Any], Any],
                 on_event: Callable[[Event], object] | None = None, *, raw: bool = False) -> None:
        super().__init__(listening._here, selection, terms)
        self._listening = listening
        self._loop = listening._loop
        self._opening = Opening(selection.type, raw=raw)
        self._handling = Handling(listening.name, listening._loop, listening.context.copy(), self._opening, callback,
                                  messages=wants_messages(callback), on_event=on_event)
        self.sources = self._sources = Sources(listening._here, listening._loop, selection, terms, self._handling)
        self._handling.acknowledge, self._handling.wants = self.sources.acknowledge, self.sources.wants

    @property
    def selection(self) -> Selection:
        """What it is for."""
        return self._selection

    @property
    def received(self) -> int:
        """How many messages were handled."""
        return self._handling.received

    @property
    def failed(self) -> int:
        """How often the handler has raised."""
        return self._handling.failed

    def __next__(self) -> NoReturn:
        raise TypeError(f"{self!r} calls a function with what comes; one that is iterated has none")

    async def __anext__(self) -> NoReturn:
        raise TypeError(f"{self!r} calls a function with what comes; one that is iterated has none")

    def close(self) -> None:
        """End it; no handler begins any more."""
        if asyncio._get_running_loop() is self._loop:
            self._end()
        elif self._here.is_ours():
            self._over = True
            self._handling.stop()
            self._post(self._end)

    async def aclose(self) -> None:
        """As `close`, in a coroutine."""
        self.close()

    def _end(self) -> asyncio.Task[None] | None:
        self._over = True
        task = self._handling.close()
        self.sources.close()
        self._listening.forget(self)
        return task

    def _finish(self) -> None:
        """It is its node that holds it."""


async def _opened(handled: Handled, timeout: float) -> None:
    """Wait until publishers have confirmed."""
    await asyncio.wait([asyncio.wrap_future(handled.sources.opened)], timeout=max(0.0, timeout))


def _called(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: Any) -> Future[None]:
    """Have *loop* call back, from any thread; done once that has ended."""
    called: Future[None] = Future()

    def call() -> None:
        if called.set_running_or_notify_cancel():
            try:
                callback(*args)
                called.set_result(None)
            except BaseException as error:
                called.set_exception(error)
    loop.call_soon_threadsafe(call)
    return called


def _fact(handled: Handled, owner: str) -> SubscriberFact:
    chosen = handled.selection
    if chosen.pattern is not None:
        topic = chosen.pattern.text
    else:
        topic = f"{chosen.node or '**'}/{chosen.mark.rpartition('.')[2]}"
    marks = (chosen.mark,) if chosen.mark else ()
    fingerprint, text = (chosen.type.fingerprint, chosen.type.text[:LONG]) if chosen.type is not None else ("", "")
    return SubscriberFact(handled._terms.who, topic, owner, fingerprint, text, marks)
