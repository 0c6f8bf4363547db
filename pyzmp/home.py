"""The loop where topics are published, as each of them needs it, and who subscribes to them there."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from pyzmp.protocol import envelope, runs
from pyzmp.protocol.accounts import SubscriberAccount
from pyzmp.protocol.envelope import Buffer, Subscribe, Taken
from pyzmp.protocol.feed import Outlet, Run
from pyzmp.protocol.runs import Bodies
from pyzmp.transport.outbox import Flushed
from pyzmp.transport.server import Peer

log = logging.getLogger("pyzmp.topic")


class Home(Protocol):
    """The loop where topics are published, as each of them needs it."""

    loop: asyncio.AbstractEventLoop

    def gathers(self, publisher: Flushed) -> bool:
        """Have *publisher* flushed with the end of the loop's turn; False where there is none."""

    def look(self) -> bool:
        """Hand over what has come, while the loop is held up; whether the caller may look again at once."""

    def hosts(self, node: str, caller: str) -> bool:
        """Whether the node lives on the loop too, and the *caller* that says to be it is this very process."""


class Origin(Protocol):
    """A topic where it is published, as its subscriptions need it."""

    node: str
    topic: str

    def taken(self, subscription: Subscription, message: Taken) -> None:
        """The subscriber has taken messages."""

    def end(self, subscription: Subscription) -> None:
        """The subscription is over."""


class Subscription:
    """One subscription of a publisher, and whose it is."""

    __slots__ = ("call", "outlet", "packed", "peer", "publisher", "subscriber", "who")

    def __init__(self, publisher: Origin, peer: Peer, asked: Subscribe, outlet: Outlet) -> None:
        self.publisher, self.peer, self.outlet = publisher, peer, outlet
        self.call, self.who, self.packed = asked.call, asked.who, asked.packed
        self.subscriber = self.who or peer.hello.caller

    def told(self, run: Run) -> tuple[bytes, Sequence[Buffer]]:
        """The message, with its buffers, that tells it of *run*; most of it is made once for all."""
        bodies, tails = run.bodies, run.tails
        if self.packed and isinstance(bodies, Bodies) and len(bodies) > 1:
            if True not in tails:
                tails[True] = runs.tail(run.number, run.times)
            return runs.packed(self.call, tails[True]), (bodies.joined,)
        if False not in tails:
            tails[False] = envelope.tail(run.number, run.times, list(bodies), len(run.buffers))
        return envelope.published(self.call, tails[False]), run.buffers

    def account(self) -> SubscriberAccount:
        """What became of what was offered to it."""
        known, of = self.outlet.account, self.publisher
        return SubscriberAccount(self.subscriber, of.topic, of.node, known.offered, known.taken, known.dropped,
                                 known.waiting, known.lost, self.outlet.ended)


Demand = Callable[[Callable[[bool], object]], Callable[[bool], object]]


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> bool:
    """Have *loop* call back, from any thread; False where it is closed."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True


def in_context(callback: Callable[[bool], object]) -> Callable[[bool], object]:
    """*callback* in the context of whoever asks for it."""
    context = contextvars.copy_context()

    def called(wanted: bool) -> None:
        try:
            context.run(callback, wanted)
        except BaseException:  # also an exit: it would end the loop
            log.exception("%r, which waits for subscribers, failed", callback)
    return called
