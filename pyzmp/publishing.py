"""The publishing end of topics: what the nodes of one loop publish, and who subscribes to it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from pyzmp.exceptions import MalformedMessage
from pyzmp.home import Demand, Subscription, in_context
from pyzmp.protocol import codec
from pyzmp.protocol.envelope import Cancel, Code, Failure, Parcel, Reply, Request, Subscribe, Taken
from pyzmp.protocol.feed import MAX, Full
from pyzmp.protocol.schema import Type
from pyzmp.publisher import Publisher
from pyzmp.transport.outbox import Flushed
from pyzmp.transport.server import Peer, Server

ACCOUNTS = "/accounts"  # behind the name of a topic: the service by which its publisher is asked for them
DRAIN = 1.0  # seconds in which what waits for subscribers may leave when the publisher ends
STALLED = 0.25  # seconds without any of it leaving after which that is given up
SUBSCRIPTIONS = 1024  # over one session, at most
TIMEOUT = 5.0  # seconds that a publisher waits for room where nothing else is said


class Publishing:
    """What is published on one loop.  But for `gathers` it is for the loop's thread.

    *server* is where its turns are counted, and *servers* are all whose callers may subscribe.  *hosts* tells whether
    the node of a name lives on the loop too, where that member of the domain says to be it.
    """

    def __init__(self, server: Server, servers: Callable[[], Iterable[Server]],
                 hosts: Callable[[str, str], bool] = lambda node, caller: False) -> None:
        self.loop, self.hosts = server.loop, hosts
        self._turn, self._servers = server.turn, servers
        self._publishers: dict[tuple[str, str], Publisher] = {}
        self._subscriptions: dict[tuple[Peer, int], Subscription] = {}
        self._peers: Counter[Peer] = Counter()
        self._heard = 0  # messages about subscriptions that make a difference to publishers

    def publisher(self, node: str, topic: str, type: Type, keep: int = 0,
                  patience: Callable[[float | None], float] = lambda timeout: timeout or TIMEOUT,
                  demand: Demand = in_context) -> Publisher:
        """A new publisher, from now on known to those who ask for it; any thread.

        *demand* makes a callback of `Publisher.on_demand` what the loop may call.
        """
        made = Publisher(self, node, topic, type, keep, patience, demand)
        self.open(made)
        return made

    def open(self, publisher: Publisher) -> None:
        """Have *publisher* known from now on to those who ask for it; any thread."""
        self._publishers[publisher.node, publisher.topic], publisher.known = publisher, True

    def gathers(self, publisher: Flushed) -> bool:
        """Have *publisher* flushed with the end of the loop's turn; False where there is none."""
        if not self._turn.runs():
            return False
        self._turn.gathers(publisher)
        return True

    def look(self) -> bool:
        """Hand over what has come, while the loop is held up; whether the caller may look again at once."""
        before = self._heard
        for server in self._servers():
            for address in server.addresses:
                server.read(address)
        return self._heard != before

    # What comes.

    def arrived(self, peer: Peer, parcel: Parcel) -> bool:
        """Take what is about subscriptions; False for anything else.  Raises MalformedMessage where it cannot be."""
        message = parcel.message
        kind = type(message)
        if kind is Request:  # first, as these come most often
            return message.service.endswith(ACCOUNTS) and self._asked(peer, message)  # type: ignore[union-attr,arg-type]
        if kind is Taken:
            found = self._subscriptions.get((peer, message.call))  # type: ignore[union-attr]
            if found is not None:
                self._heard += 1
                found.publisher.taken(found, message)  # type: ignore[arg-type]
        elif kind is Subscribe:
            self._heard += 1
            self._subscribe(peer, message)  # type: ignore[arg-type]
        elif kind is Cancel and (peer, message.call) in self._subscriptions:  # type: ignore[union-attr]
            self._end(peer, message.call)  # type: ignore[union-attr]
        else:
            return False
        return True

    def _subscribe(self, peer: Peer, message: Subscribe) -> None:
        if not (0 <= message.full <= Full.BLOCK and 0 <= message.length <= MAX and 0 < message.size <= MAX
                and 0 <= message.history <= MAX and message.since[1] >= 0
                and (peer, message.call) not in self._subscriptions):
            raise MalformedMessage(f"a subscription that cannot be: {message}"[:200])
        publisher = self._publishers.get((message.node, message.topic))
        if publisher is None:
            peer.send(Failure(message.call, Code.REFUSED, f"{message.node!r} does not publish {message.topic} here",
                              False))
        elif self._peers[peer] >= SUBSCRIPTIONS:
            peer.send(Failure(message.call, Code.OVERLOADED, f"one session has {SUBSCRIPTIONS} subscriptions already",
                              False))
        else:
            subscription = publisher.subscribe(peer, message)
            if subscription is not None:
                self._subscriptions[peer, message.call] = subscription
                self._peers[peer] += 1

    def _end(self, peer: Peer, call: int) -> None:
        subscription = self._subscriptions.pop((peer, call))
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
        subscription.publisher.end(subscription)

    def _asked(self, peer: Peer, request: Request) -> bool:
        """Answer who asks for the accounts of a topic."""
        publisher = self._publishers.get((request.node, request.service.removesuffix(ACCOUNTS)))
        if publisher is None:
            return False
        peer.send(Reply(request.call, codec.encode(publisher.accounts())[0]))
        return True

    def parted(self, peer: Peer) -> None:
        """A caller is gone, and with it its subscriptions."""
        if peer in self._peers:
            for place in [place for place in self._subscriptions if place[0] is peer]:
                self._end(*place)

    # Ends.

    async def end(self, ending: Collection[Publisher], why: str, hurry: asyncio.Event | None = None) -> None:
        """End these publishers, once what waits for their subscribers has left, within `DRAIN` seconds."""
        for publisher in ending:
            publisher.stop(why)
        over, last, since = time.monotonic() + DRAIN, -1, time.monotonic()
        while (left := sum(publisher.backlog for publisher in ending)) and time.monotonic() < over:
            if hurry is not None and hurry.is_set():
                break
            if left != last:
                last, since = left, time.monotonic()
            elif time.monotonic() > since + STALLED:
                break
            await asyncio.sleep(0.005)
        for publisher in ending:
            if self._publishers.get(name := (publisher.node, publisher.topic)) is publisher:  # and not its successor
                del self._publishers[name]
            publisher.close()
        for place in [place for place, known in self._subscriptions.items() if known.publisher in ending]:
            self._end(*place)

    def forget(self) -> None:
        """In a forked child: nothing is published by the parent's publishers."""
        for publisher in list(self._publishers.values()):
            publisher.forget()
