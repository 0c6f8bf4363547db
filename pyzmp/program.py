"""A program without nodes, as others see it that listen to what it publishes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import re
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from msgspec.structs import replace

from pyzmp import runtime
from pyzmp.exceptions import MalformedMessage, NodeExists, PyzmpError, RegistryUnavailable, TopicEnded
from pyzmp.home import call_soon, in_context
from pyzmp.protocol.calls import CALLS, SIZE
from pyzmp.protocol.envelope import Code, Parcel, Request
from pyzmp.protocol.facts import LONG, Member, NodeFact, PublisherFact
from pyzmp.protocol.outcomes import refuse
from pyzmp.protocol.schema import Type
from pyzmp.publisher import Publisher
from pyzmp.publishing import Publishing
from pyzmp.registry import reach
from pyzmp.runtime import Runtime
from pyzmp.transport.server import Peer, Server

AGAIN = 1.0  # seconds until what no registry took is announced again
BEGUN = 0.1  # seconds in which the runtime's thread begins to look for a registry, at most
APPEAR = 1.0  # seconds that the end of a program waits for the graph to hear of what it has published, at most
WITHDRAW = 0.5  # seconds that the end of a program waits for the registry, at most
KIND = "program"  # of a node that is none

log = logging.getLogger("pyzmp.topic")


def name_of(member: Member) -> str:
    """What a process without nodes is called: by its program, for people, and unlike any other."""
    program = re.sub(r"[^\w.-]+", "_", member.program)[:40] if member.program not in ("", "-c") else "python"
    return f"{program}[{member.pid}]-{member.id[:8]}"


class Program:
    """This process as a publisher: it listens on the runtime's own loop from its first topic on.

    In the graph it is a node of the kind ``program``, called as `name_of` says.
    """

    def __init__(self, here: Runtime) -> None:
        self.guests: dict[str, Any] = {}  # none; as a host has them
        self._here, self._loop = here, here.loop
        self.node = name_of(here.member)
        self.name = f"{here.member.id}-program"  # of its loop
        self._server = Server(here.context, here.loop, self.name, on_parcel=self._arrived, on_end=self._parted,
                              window=(CALLS, SIZE))
        self._publishing = Publishing(self._server, lambda: [self._server])
        self._lock = threading.Lock()
        self._publishers: dict[str, Publisher] = {}
        self._stand_ins: dict[str, Collection[Publisher]] = {}
        self._addresses: list[str] = []
        self._announcing: asyncio.Task[None] | None = None
        self._more = False  # to be announced
        self._begun = threading.Event()  # to look for a registry
        self._resting = False  # as no registry took what was announced
        self._over = ""  # why nothing can be published any more
        self._calls: queue.SimpleQueue[Callable[[], object] | None] | None = None
        here.ends.append(self._end)

    @classmethod
    def of(cls, here: Runtime) -> Program:
        """The one of this process, made now where there is none."""
        made: Program | None = here.hosts.get(here.loop)
        if made is None:
            made = here.hosts.setdefault(here.loop, cls(here))
        return made

    @staticmethod
    def known(topic: str) -> Publisher | None:
        """Where this process publishes *topic* without a node, if it does."""
        here = runtime.current() if runtime.in_use() else None
        made: Program | None = here.hosts.get(here.loop) if here is not None else None
        return made._publishers.get(topic) if made is not None else None

    def publisher(self, topic: str, type: Type, keep: int, patience: Callable[[float | None], float]) -> Publisher:
        """Where *topic* is published; others hear of it in a moment.

        Raises TypeError where this program publishes another type under that name, and `TopicEnded` after its end.
        """
        with self._lock:
            if self._over:
                raise TopicEnded(f"{topic} cannot be published any more: {self._over}")
            known = self._publishers.get(topic)
            if known is None:
                known = self._publishers[topic] = self._publishing.publisher(self.node, topic, type, keep, patience,
                                                                             self.on_demand)
                call_soon(self._loop, self._announce)
        if not self._here.in_own_thread:
            self._begun.wait(BEGUN)  # it takes a moment; a runtime that ends looks for none any more
        if known.type.fingerprint != type.fingerprint:
            raise TypeError(f"this program publishes {topic} as {known.type.text} already, and not as {type.text}")
        known.keep(keep)
        return known

    def on_demand(self, callback: Callable[[bool], object]) -> Callable[[bool], object]:
        """*callback* as the loop may call it: what it does is done in a thread of its own."""
        with self._lock:
            calls = self._calls
            if calls is None:
                calls = self._calls = queue.SimpleQueue()
                threading.Thread(target=_call_all, args=(calls,), name="pyzmp-demand", daemon=True).start()
        called = in_context(callback)
        return lambda wanted: calls.put(lambda: called(wanted))

    # In the loop's thread.

    async def stand_in(self, node: str, topics: Mapping[str, tuple[Type, tuple[str, ...]]],
                       patience: Callable[[float | None], float]) -> dict[str, Publisher]:
        """Publish *topics*, each with its type and marks, in the name of *node*; when it returns they are in the graph.

        Raises NodeExists where somebody runs a node of that name, and what announcing raises.
        """
        if node in self._stand_ins:
            raise NodeExists(node, "this program already", "it")
        member = self._here.member.id
        made = {topic: self._publishing.publisher(node, topic, kind, 0, patience, self.on_demand)
                for topic, (kind, _) in topics.items()}
        self._stand_ins[node] = made.values()
        try:
            await self._listen()
            await self._here.replica.announce([replace(self._fact(), name=node, incarnation=(0, 0)), *(
                PublisherFact(node, topic, member, kind.fingerprint, kind.text[:LONG], marks)
                for topic, (kind, marks) in topics.items())])
            for publisher in made.values():
                publisher.appeared()
        except BaseException:
            await self._ended(node, "it was not announced")
            raise
        return made

    async def stand_down(self, node: str, why: str) -> None:
        """Publish nothing any more in the name of *node*, once what waits for subscribers has left."""
        try:
            await self._here.replica.withdraw([("node", node)], WITHDRAW)
        except RegistryUnavailable as error:
            log.info("%s is not withdrawn: %s", node, error)
        await self._ended(node, why)

    async def _ended(self, node: str, why: str) -> None:
        await self._publishing.end(self._stand_ins.get(node, []), why)
        self._stand_ins.pop(node, None)

    async def _listen(self) -> None:
        await self._here.replica.connect(start=True)  # which makes the domain's directory
        if not self._addresses:
            self._addresses = [self._server.bind(place, secure=True) for place in self._here.places(self.name, "")]

    def _announce(self) -> None:
        self._more = True
        if self._announcing is None or self._announcing.done():
            self._announcing = self._loop.create_task(self._announced())
            self._loop.call_soon(self._begun.set)

    async def _announced(self) -> None:
        """Listen, and have the graph say so, with all that is published by now."""
        here = self._here
        while self._more:
            self._more = self._resting = False
            publishers = list(self._publishers.values())
            try:
                await self._listen()
                await here.replica.announce([self._fact(), *map(self._fact_of, publishers)])
                for publisher in publishers:
                    publisher.appeared()
            except PyzmpError as error:
                if here.closed:
                    return
                log.warning("this program could not tell what it publishes: %s", error)
                self._more = self._resting = True
                await asyncio.sleep(AGAIN)

    def _fact(self) -> NodeFact:
        member, addresses = self._here.member, tuple(self._addresses)
        known = self._here.replica.view.facts.node(self.node)
        if known is not None and known.owner == member.id:
            # of the incarnation that it has got: else it would be another of that name
            return replace(known, addresses=addresses)
        return NodeFact(self.node, member.id, self.name, addresses, KIND, member.host, member.pid, member.program)

    def _fact_of(self, publisher: Publisher) -> PublisherFact:
        return PublisherFact(self.node, publisher.topic, self._here.member.id, publisher.type.fingerprint,
                             publisher.type.text[:LONG])

    def widen(self) -> None:
        """Listen for other hosts too, where the registry has come to serve several, and have the graph say so."""
        if not self._addresses:
            return
        try:
            missing = reach.missing(self._here.interfaces(), self._addresses)
            self._addresses += [self._server.bind(reach.at(host, "*"), secure=True) for host in missing]
        except PyzmpError as error:
            log.warning("this program cannot be reached by other hosts: %s", error)
        else:
            if missing:
                self._announce()

    def _arrived(self, peer: Peer, parcel: Parcel) -> None:
        message = parcel.message
        try:
            if not self._publishing.arrived(peer, parcel) and type(message) is Request:
                peer.send(refuse(message.call, Code.UNKNOWN_SERVICE, "a program without nodes has no services"))
        except MalformedMessage as error:
            self._server.blame((str(peer.listener.address), peer.key), str(error))

    def _parted(self, peer: Peer) -> None:
        self._publishing.parted(peer)

    async def _end(self) -> None:
        """Publish nothing any more, once what waits for subscribers has left."""
        await self._introduced()
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.wait([self._announcing], timeout=WITHDRAW)
        try:
            if self._addresses and self._here.replica.following:
                await self._here.replica.withdraw([("node", self.node)], WITHDRAW)
        except PyzmpError as error:
            log.info("this program ends without a registry: %s", error)
        with self._lock:
            self._over = over = "the program that published it has ended"
        await self._publishing.end([*self._publishers.values(), *itertools.chain(*self._stand_ins.values())], over)
        self.close()

    async def _introduced(self) -> None:
        """Let those who were there first hear of what was published last, and subscribe."""
        def awaited() -> float:
            return max((publisher.awaited() for publisher in self._publishers.values()), default=0.0)
        if self._here.domain is None:  # nobody else sees it
            return
        if awaited() and self._announcing is not None and not self._resting:
            await asyncio.wait([self._announcing], timeout=APPEAR)
        if self._here.replica.following:
            await asyncio.sleep(awaited())

    def close(self) -> None:
        """Listen no more."""
        self._server.close()
        if self._calls is not None:
            self._calls.put(None)
        if self._here.hosts.get(self._loop) is self:
            del self._here.hosts[self._loop]

    def close_inherited(self) -> None:
        """In a forked child: what the parent publishes is the parent's."""
        self._publishing.forget()


def _call_all(calls: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
