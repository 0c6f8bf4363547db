"""What a living node publishes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pyzmp import runtime
from pyzmp.channels.topic import Topic, patience
from pyzmp.exceptions import AnnouncementRefused, PyzmpError
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
        self._node, self._publishing, self._marks = node, publishing, marks
        self._own = {attribute: publishing.publisher(node, f"{node}/{attribute}", topic.typed(), topic.keep, patience)
                     for attribute, topic in topics.items()}
        self._named: dict[str, Publisher] = {}
        self._here: runtime.Runtime | None = None
        self._left = False
        self._announcing: set[asyncio.Task[None]] = set()

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
            fresh = self._publishing.publisher(self._node, name, topic.typed(), topic.keep, patience)
            known = self._named.setdefault(name, fresh)
            if known is fresh:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._publishing.loop.call_soon_threadsafe(self._announce, name)
        if known.type is not topic.typed() and known.type.fingerprint != topic.typed().fingerprint:
            raise TypeError(f"{self._node!r} publishes {name} as {known.type.text} already, and not as "
                            f"{topic.typed().text}")
        return known

    def facts(self, owner: str) -> list[Fact]:
        """All of them, as the graph is to have them."""
        return [*(self._fact(publisher, owner, self._marks(attribute)) for attribute, publisher in self._own.items()),
                *(self._fact(publisher, owner) for publisher in list(self._named.values()))]

    def begin(self, here: runtime.Runtime) -> None:
        """Have the graph, which has `facts`, hear of what is published for the first time from now on."""
        self._here = here

    def _announce(self, name: str) -> None:
        if self._here is not None and not self._left:
            task = self._publishing.loop.create_task(self._announced(name, self._here))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _announced(self, name: str, here: runtime.Runtime) -> None:
        while True:
            try:
                await here.announce([self._fact(self._named[name], here.member.id)])
                return
            except AnnouncementRefused as error:  # the node was lost
                log.warning("%s cannot publish %s: %s", self._node, name, error)
                return
            except PyzmpError as error:
                log.warning("%s could not tell that it publishes %s: %s", self._node, name, error)
            await asyncio.sleep(AGAIN)

    def _fact(self, publisher: Publisher, owner: str, marks: tuple[str, ...] = ()) -> PublisherFact:
        return PublisherFact(self._node, publisher.topic, owner, publisher.type.fingerprint,
                             publisher.type.text[:LONG], marks)

    def leave(self) -> None:
        """Have the graph hear of nothing any more, before the node is withdrawn."""
        self._left = True
        for task in list(self._announcing):
            task.cancel()

    async def end(self, hurry: asyncio.Event) -> None:
        """End what is published, once what waits for its subscribers has left or there is a *hurry*."""
        await self._publishing.end(self._node, f"{self._node!r} has stopped", hurry)
