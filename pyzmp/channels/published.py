"""What a living node publishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pyzmp import runtime
from pyzmp.channels.topic import Topic, patience
from pyzmp.exceptions import AnnouncementRefused, PyzmpError
from pyzmp.home import call_soon, in_context
from pyzmp.protocol.facts import LONG, Fact, PublisherFact
from pyzmp.publisher import Publisher
from pyzmp.publishing import Publishing

AGAIN = 1.0  # seconds until a topic is announced again that no registry took

log = logging.getLogger("pyzmp.topic")


class Published:
    """The topics of one node while it lives, on the loop of *publishing*: its own, and those with full names.

    *marks* gives the marks of its own, by attribute.  `named` is for any thread.
    """

    def __init__(self, node: str, publishing: Publishing, topics: Mapping[str, Topic[Any]],
                 marks: Callable[[str], tuple[str, ...]]) -> None:
        self._node, self._publishing = node, publishing
        self._own = {attribute: self._made(f"{node}/{attribute}", topic) for attribute, topic in topics.items()}
        self._marks = {publisher.topic: marks(attribute) for attribute, publisher in self._own.items()}
        self._named = {publisher.topic: publisher for publisher in self._own.values()}
        self._here: runtime.Runtime | None = None
        self._left, self._over = False, ""
        self._announcing: set[asyncio.Task[None]] = set()

    def _made(self, name: str, topic: Topic[Any]) -> Publisher:
        return Publisher(self._publishing, self._node, name, topic.typed(), topic.keep, patience, in_context)

    def of(self, attribute: str) -> Publisher:
        """Where the node's own topic is published."""
        return self._own[attribute]

    def named(self, topic: Topic[Any]) -> Publisher:
        """Where the node publishes a topic with a full name; the graph hears of it with the first use.

        Raises TypeError where the node publishes another type under that name.
        """
        name = topic.full_name or ""
        known = self._named.get(name)
        if known is None:
            fresh = self._made(name, topic)
            known = self._named.setdefault(name, fresh)
            if self._over:
                known.stop(self._over)
            elif known is fresh and self._here is not None:
                self._publishing.open(known)
                call_soon(self._publishing.loop, self._announce, name)
        if known.type is not topic.typed() and known.type.fingerprint != topic.typed().fingerprint:
            raise TypeError(f"{self._node!r} publishes {name} as {known.type.text} already, and not as "
                            f"{topic.typed().text}")
        if topic.keep:
            known.keep(topic.keep)
        return known

    def known(self, name: str) -> Publisher | None:
        """Where the node publishes the full *name* already."""
        return self._named.get(name)

    def facts(self, owner: str) -> list[Fact]:
        """All of them, as the graph is to have them."""
        return [self._fact(publisher, owner) for publisher in self._all()]

    def begin(self, here: runtime.Runtime) -> None:
        """Let others subscribe, and have the graph, which gets `facts`, hear of all that is published later."""
        self._here = here
        for publisher in self._all():
            self._publishing.open(publisher)

    def appeared(self) -> None:
        """The graph has heard of all that the `facts` were of."""
        for publisher in self._all():
            publisher.appeared()

    def _announce(self, name: str) -> None:
        if self._here is not None and not self._left:
            task = self._publishing.loop.create_task(self._announced(name, self._here))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _announced(self, name: str, here: runtime.Runtime) -> None:
        while True:
            try:
                await here.announce([self._fact(self._named[name], here.member.id)])
                self._named[name].appeared()
                return
            except AnnouncementRefused as error:  # the node was lost
                log.warning("%s cannot publish %s: %s", self._node, name, error)
                return
            except PyzmpError as error:
                log.warning("%s could not tell that it publishes %s: %s", self._node, name, error)
            await asyncio.sleep(AGAIN)

    def _fact(self, publisher: Publisher, owner: str) -> PublisherFact:
        return PublisherFact(self._node, publisher.topic, owner, publisher.type.fingerprint,
                             publisher.type.text[:LONG], self._marks.get(publisher.topic, ()))

    def leave(self) -> None:
        """Have the graph hear of nothing any more, before the node is withdrawn."""
        self._left = True
        for task in list(self._announcing):
            task.cancel()

    async def end(self, hurry: asyncio.Event) -> None:
        """End what is published, once what waits for its subscribers has left or there is a *hurry*."""
        self._over = f"{self._node!r} has stopped"
        await self._publishing.end(self._all(), self._over, hurry)

    def _all(self) -> list[Publisher]:
        return list(self._named.copy().values())
