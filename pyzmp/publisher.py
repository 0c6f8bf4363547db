"""One topic where it is published: what is published, and who subscribes to it."""

from __future__ import annotations

import os
import threading
import time
from asyncio import _get_running_loop  # the one of each call, without a look at the module
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from pyzmp.exceptions import DeadlockError, PublishTimeout, TopicEnded
from pyzmp.gathering import SMALL, Gathering, clock
from pyzmp.home import Demand, Home, Subscription, call_soon
from pyzmp.protocol import envelope
from pyzmp.protocol.accounts import SubscriberAccount
from pyzmp.protocol.envelope import Buffer, Code, Ended, Failure, Skipped, Subscribe, Subscribed, Taken
from pyzmp.protocol.feed import AROUND, YOUNG, Bounds, Feed, Full, Outlet, Run, Skip
from pyzmp.protocol.fits import fits
from pyzmp.protocol.limits import is_one
from pyzmp.protocol.schema import Type
from pyzmp.transport.server import Peer
from pyzmp.transport.waiters import Changes

ENDED = 64  # subscriptions that have ended whose accounts are kept
GLANCE = 0.0005  # seconds between two looks at what has come, on a loop that is held up
LARGE = 1 << 16  # bytes from which on a message may go beyond what a peer takes


class Publisher(Gathering):
    """One topic of one node, or program, where it is published.  Any thread may publish; the loop's thread sends.

    ``patience`` says how long a publisher may wait, where it was given so many seconds or None.
    """

    def __init__(self, home: Home, node: str, topic: str, type: Type, keep: int,
                 patience: Callable[[float | None], float], demand: Demand) -> None:
        super().__init__(type)
        self.node, self.topic, self.type = node, topic, type
        self.known = False  # whether anybody can subscribe by now
        self.over = ""  # why nothing can be published any more
        self.ended: deque[SubscriberAccount] = deque(maxlen=ENDED)
        self._home, self._loop, self._patience, self._in_loop = home, home.loop, patience, demand
        self._feed = Feed(os.urandom(8), keep, young=True)
        self._appeared: float | None = None  # when the graph heard of it, by the loop's clock
        self._careful = False  # whether a message may have to wait, or come too late
        self._lock = threading.RLock()
        self._changes = Changes(self._lock)  # of the room and the number of subscribers
        self._subscriptions: dict[Outlet, Subscription] = {}
        self._outgoing: deque[tuple[Subscription, bytes, Sequence[Buffer]]] = deque()  # made by other threads
        self._gathers = False  # whether what is published now leaves with the end of the loop's turn
        self._woken = False  # whether the loop will look at what other threads have published
        self._demand: list[Callable[[bool], object]] = []

    # Publishing.

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    def keep(self, count: int) -> None:
        """Keep the last *count* messages from now on, unless more of them are kept already."""
        with self._lock:
            self._feed.keep(count)

    def put(self, body: bytes, buffers: Sequence[Buffer] = (), at: float | None = None,
            timeout: float | None = None, *, alone: bool = False) -> None:
        """Publish an encoded value, *at* that time since 1970, or now; *alone* where it may be no value at all.

        Where a subscription that is waited for has no room, it blocks until there is; PublishTimeout after *timeout*
        seconds, DeadlockError where it would never come.  Raises CannotTravel, and `TopicEnded` after the end.
        """
        now = clock() if at is None else at
        if self._careful or buffers or len(body) > SMALL or alone:
            self._put_alone(body, buffers, now, timeout)
        elif not self._gather(now, body):
            self.off()

    def _put_alone(self, body: bytes, buffers: Sequence[Buffer], at: float, timeout: float | None) -> None:
        """Publish what is not gathered with what was published before."""
        size = self._size(body, buffers)
        if self._is_within():
            self._check_over()
            if buffers or not is_one(body):
                call_soon(self._loop, lambda: self.put(body, buffers, at, alone=True))
            else:
                self._gather(at, body)  # whatever the room: nothing can be waited for
        else:
            with self._lock:
                self._check_over()
                self._flush()
                if self._careful:
                    self._prepare(size, timeout)
                self._feed.publish(at, body, buffers)
                self._flush()
        self.off()

    async def aput(self, body: bytes, buffers: Sequence[Buffer] = (), at: float | None = None,
                   timeout: float | None = None) -> None:
        """As `put`, in a coroutine, and the loop goes on while it waits."""
        size, over = self._size(body, buffers), None
        while True:
            with self._lock:
                self._check_over()
                self._flush()
                crowded = self._crowded(size)
                if not crowded:
                    self._feed.publish(clock() if at is None else at, body, buffers)
                    self._flush()
                    break
                self._wake()
                change = self._changes.next()
            if over is None:
                over = time.monotonic() + (patience := self._patience(timeout))
            if not await self._changes.came(change, over):
                raise self._late(crowded, patience)
        self.off()

    def _size(self, body: bytes, buffers: Sequence[Buffer]) -> int:
        if buffers or len(body) > LARGE:
            envelope.fitting(body, buffers, self.topic, 4 * LARGE)
        return envelope.size_of(body, buffers) + AROUND

    def _is_within(self) -> bool:
        """Whether this thread is about something here already, and was interrupted by a signal or a finaliser."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def _check_over(self) -> None:
        if self.over:
            raise TopicEnded(f"{self.topic} cannot be published any more: {self.over}")

    def _prepare(self, size: int, timeout: float | None) -> None:
        """Wait until there is room for a message."""
        if not (crowded := self._crowded(size)):
            return
        patience = self._patience(timeout)
        self._check_deadlock(crowded)
        came = self._wait(lambda: self._feed.has_room(size), patience)
        self._check_over()
        if not came:
            raise self._late(crowded, patience)

    def _crowded(self, size: int) -> list[Subscription]:
        """Who has no room for a message of *size* bytes, and is waited for."""
        return [self._subscriptions[outlet] for outlet in self._feed.blocking if not outlet.has_room(size)]

    def _check_deadlock(self, crowded: list[Subscription]) -> None:
        who = next((each.who for each in crowded if self._home.hosts(each.who, each.peer.hello.caller)), None)
        if who is not None and _get_running_loop() is self._loop:
            raise DeadlockError(f"{self.topic}: {who!r} wants its publishers to wait for room, and lives on the loop "
                                "that would be held up by that; write await ….apublish(…)", node=self.node)

    def _late(self, crowded: list[Subscription], patience: float) -> PublishTimeout:
        return PublishTimeout(f"{self.topic}: {crowded[0].subscriber!r} has had no room for {patience:g} s and wants "
                              "its publishers to wait (full='block'); nothing was published")

    def _wait(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Block until *predicate*, in the lock; on the publisher's own loop what comes is looked at meanwhile."""
        if _get_running_loop() is not self._loop:
            self._wake()
            return self._changes.wait(lambda: predicate() or bool(self.over), timeout) and predicate()
        over = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > over or self.over:
                return False
            self._send_outgoing()  # of other threads, for which the loop has no turn
            self._flush()
            peers = [self._subscriptions[outlet].peer for outlet in self._feed.blocking]
            self._lock.release()  # they publish, and ask, meanwhile
            try:
                for peer in peers:
                    peer.flush()  # the turn does not end before they have said more
                if not self._home.look():
                    (peers[0].listener.wait if peers else time.sleep)(GLANCE)
            finally:
                self._lock.acquire()
        return True

    # Sending, in the loop's thread.

    def flush(self) -> None:
        """Let everything leave; called at the end of the loop's turn."""
        with self._lock:
            self._gathers, self.due = False, 0.0
            if self.pending or self._feed.gathers:  # most often all has left in the call that published it
                self._flush()

    def off(self) -> None:
        """Have what was published leave: at once in the loop's thread, and soon from any other."""
        if self._may_wait():
            return
        if self._is_within():
            self._wake()
        elif _get_running_loop() is self._loop:
            self._leave()
        else:
            with self._lock:
                if len(self.pending) >= self._most:
                    self._flush()
                self._wake()
                self._in_a_moment(clock())

    def _leave(self) -> None:
        """Let everything leave; what else is published in this turn of the loop leaves with its end."""
        began = clock()
        with self._lock:
            self._woken, self.due = False, 0.0
            self._send_outgoing()
            self._flush()
            held_up = self._gathers and any(not outlet.idle for outlet in self._feed.outlets)
            self._gathers = self._gathers or self._home.gathers(self)
            if self._gathers:
                self._in_a_moment(began)
        if held_up:
            self._home.look()  # nobody else hears what subscribers say

    def _flush(self) -> None:
        """Offer what was published to all subscriptions."""
        if self._feed.gathers:
            self._send(self._feed.flush())
        for times, bodies in self._taken():
            self._send(self._feed.offer(times, bodies))
        self._look()

    def _look(self) -> None:
        self._careful = bool(self.over) or not self._feed.is_clear
        self._weigh(careful=self._careful, few=bool(self._feed.blocking))

    def _send(self, parts: Iterable[tuple[Outlet, list[Run | Skip]]]) -> None:
        for outlet, pieces in parts:
            subscription = self._subscriptions[outlet]
            for piece in pieces:
                if isinstance(piece, Run):
                    self._transmit(subscription, *subscription.told(piece))
                else:
                    self._transmit(subscription, envelope.encode(Skipped(subscription.call, piece.number, piece.count)))

    def _transmit(self, subscription: Subscription, encoded: bytes, buffers: Sequence[Buffer] = ()) -> None:
        if _get_running_loop() is not self._loop:
            self._outgoing.append((subscription, encoded, buffers))
            return
        if self._outgoing:
            self._send_outgoing()
        subscription.peer.send_encoded(encoded, buffers)

    def _send_outgoing(self) -> None:
        while self._outgoing:
            subscription, encoded, buffers = self._outgoing.popleft()
            subscription.peer.send_encoded(encoded, buffers)

    def _wake(self) -> None:
        self._woken = self._woken or call_soon(self._loop, self._leave)

    # Subscriptions, in the loop's thread.

    def appeared(self) -> None:
        """The graph has heard of it: all that is published is kept for `YOUNG` seconds more."""
        if self._appeared is None:
            self._appeared = self._loop.time()
            self._loop.call_later(YOUNG, self._grow)

    def _grow(self) -> None:
        with self._lock:
            self._feed.grow()

    def awaited(self) -> float:
        """How many seconds those who were there before it may still need to hear what was published."""
        if not (self.pending or self._feed.next) or self.over:
            return 0.0
        return YOUNG / 2 if self._appeared is None else max(0.0, self._appeared + YOUNG / 2 - self._loop.time())

    def subscribe(self, peer: Peer, message: Subscribe) -> Subscription | None:
        """Begin a subscription, or tell why not."""
        bounds = Bounds.of(message.length, message.size)
        with self._lock:
            reason = fits(self.type.shape, message.shape)
            if reason or self.over:
                code, text = (Code.REFUSED, self.over) if self.over else (
                    Code.INVALID_CALL, f"{self.node!r} publishes it as {self.type.text}" + (
                        "" if reason.startswith(f"published {self.type.text}, expected ") else f": {reason}"))
                peer.send(Failure(message.call, code, text, False))
                return None
            self._flush()
            self._send_outgoing()
            outlet = self._feed.subscribe(message.full, bounds, message.history, message.since,
                                           early=message.early)
            subscription = Subscription(self, peer, message, outlet)
            self._subscriptions[outlet] = subscription
            peer.send(Subscribed(message.call, self._feed.life, outlet.start, self.type.shape))
            self._send([(outlet, outlet.grant(0, bounds.window, bounds.window_size))])
            self._look()
            if len(self._subscriptions) == 1:
                self._tell(True)
            self._changes.tell()
        return subscription

    def taken(self, subscription: Subscription, message: Taken) -> None:
        """A subscriber has taken messages, and has room for more.  Raises MalformedMessage where that cannot be."""
        outlet = subscription.outlet
        with self._lock:
            if outlet.ended:
                return
            self._send_outgoing()
            self._send([(outlet, outlet.grant(message.taken, message.items, message.size))])
            self._look()
            if outlet.full == Full.BLOCK or self.over:
                self._changes.tell()

    def end(self, subscription: Subscription) -> None:
        """A subscription is over."""
        with self._lock:
            outlet = subscription.outlet
            if outlet.ended:
                return
            self._flush()
            self._send_outgoing()
            self._feed.end(outlet)
            del self._subscriptions[outlet]
            self._look()
            self.ended.append(subscription.account())  # without what still waited
            if not self._subscriptions:
                self._tell(False)
            self._changes.tell()

    def accounts(self) -> list[SubscriberAccount]:
        """What became of what was offered to whom: to all who subscribe, and the last who did."""
        with self._lock:
            self._flush()
            self._wake()
            return [*(each.account() for each in self._subscriptions.values()), *self.ended]

    # Who subscribes.

    def on_demand(self, callback: Callable[[bool], object]) -> None:
        """Have *callback* called with True when there is a subscriber at last, with False when there is none again."""
        called = self._in_loop(callback)
        with self._lock:
            self._demand.append(called)
            if self._subscriptions:
                call_soon(self._loop, called, True)

    def _tell(self, wanted: bool) -> None:
        for callback in self._demand:
            call_soon(self._loop, callback, wanted)

    def wait_for(self, count: int, timeout: float) -> None:
        """Block until there are *count* subscriptions; TimeoutError after *timeout* seconds."""
        if not self.known and _get_running_loop() is self._loop:
            raise DeadlockError(f"{self.topic}: nobody can subscribe before on_start has ended, and it would wait in "
                                "there; wait in a task", node=self.node)
        with self._lock:
            if not self._wait(lambda: len(self._subscriptions) >= count, timeout):
                raise self._too_few(count, timeout)

    async def await_for(self, count: int, timeout: float) -> None:
        """As `wait_for`, in a coroutine."""
        over = time.monotonic() + timeout
        while True:
            with self._lock:
                if len(self._subscriptions) >= count:
                    return
                change = None if self.over else self._changes.next()
            if change is None or not await self._changes.came(change, over):
                break
        raise self._too_few(count, timeout)

    def _too_few(self, count: int, timeout: float) -> TimeoutError:
        return TimeoutError(f"{self.topic} has {self.subscribers} subscribers and not {count}" + (
            f"; {self.over}" if self.over else f" within {timeout:g} s"))

    # Its end.

    def stop(self, why: str) -> None:
        """Take nothing any more."""
        with self._lock:
            self.over, self._careful, self.quick = why, True, frozenset()  # first: nothing comes behind what is flushed
            self._flush()
            self._send_outgoing()
            self._changes.tell()

    def forget(self) -> None:
        """In a forked child: take nothing any more.  A thread of the parent's may have the lock."""
        self._lock = threading.RLock()
        self._changes = Changes(self._lock)
        self.over = "it was published by the parent of this forked process"
        self._look()

    @property
    def backlog(self) -> int:
        """How much waits for subscribers to have room."""
        return sum(outlet.offered - outlet.sent - outlet.dropped - outlet.start for outlet in self._feed.outlets)

    def close(self) -> None:
        """Tell all subscribers that it is over."""
        with self._lock:
            for subscription in list(self._subscriptions.values()):
                self.end(subscription)
                subscription.peer.send(Ended(subscription.call, self._feed.number, self.over))
                subscription.peer.flush()
