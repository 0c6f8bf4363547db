"""One topic where it is published, over real sessions: what leaves when, who is waited for, and how it ends."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pyzmp.exceptions import DeadlockError, PublishTimeout, TopicEnded
from pyzmp.protocol import codec
from pyzmp.protocol.envelope import (
    Cancel,
    Ended,
    Failure,
    Hello,
    Parcel,
    Published,
    Skipped,
    Subscribe,
    Subscribed,
    Taken,
)
from pyzmp.protocol.feed import YOUNG, Full
from pyzmp.protocol.schema import Type
from pyzmp.publisher import Publisher
from pyzmp.publishing import Publishing
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.server import Peer, Server
from tests.campaigns.history import SCALE


class Reader:
    """A session that subscribes, and takes what comes unless it is told not to."""

    def __init__(self, world: World, name: str = "reader", *, takes: bool = True) -> None:
        self.got: list[Any] = []
        self.values: list[Any] = []
        self.numbers: list[int] = []
        self.ended = ""
        self._taken = 0
        self.takes = takes
        self.session = Session(world.context, world.address, Hello(session_id(), name), on_parcel=self.parcel,
                               on_end=lambda reason: setattr(self, "ended", reason))
        self.session.attach(asyncio.get_running_loop())

    def subscribe(self, *, call: int = 1, topic: str = "n/t", **fields: Any) -> Reader:
        self.session.send(Subscribe(call, "n", topic, **{"size": 1 << 20, **fields}))
        return self

    def parcel(self, parcel: Parcel) -> None:
        message = parcel.message
        self.got.append(message)
        if isinstance(message, Published):
            self.values += [codec.decode(body, parcel.buffers) for body in message.bodies]
            self.numbers += range(message.number, message.number + len(message.bodies))
            if self.takes:
                self.take(len(message.bodies))

    def take(self, count: int) -> None:
        self._taken += count
        self.session.send(Taken(1, self._taken, count, 1 << 20))

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.got if isinstance(message, kind)]


class World:
    """A server on the running loop, and one topic that is published there."""

    def __init__(self, context: Context, address: str, **more: Any) -> None:
        self.context = context
        self.loop = asyncio.get_running_loop()
        self.server = Server(context, self.loop, "loop", on_parcel=self._arrived,
                             on_end=self._parted)
        self.home = Publishing(self.server, lambda: [self.server],
                               lambda node, caller: (node, caller) == ("beside", "me"))
        self.address = self.server.bind(address)
        self.publisher: Publisher = self.home.publisher("n", "n/t", Type.of(int), **more)

    def _arrived(self, peer: Peer, parcel: Parcel) -> None:
        self.home.arrived(peer, parcel)

    def _parted(self, peer: Peer) -> None:
        self.home.parted(peer)

    def put(self, value: Any, **more: Any) -> None:
        body, buffers = codec.encode(value)
        self.publisher.put(body, buffers, **more)

    async def until(self, condition: Callable[[], object]) -> None:
        over = time.monotonic() + 10 * SCALE
        while not condition():
            assert time.monotonic() < over
            await asyncio.sleep(0.002)


@pytest.fixture(params=["memory://pub", "tcp://127.0.0.1:*"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run a test with a world and readers, over memory and over a socket."""
    def do(test: Callable[[World, Callable[..., Reader]], Coroutine[Any, Any, None]], **more: Any) -> None:
        async def main() -> None:
            context = Context()
            world = World(context, request.param, **more)
            readers: list[Reader] = []

            def reader(*args: Any, **kwargs: Any) -> Reader:
                readers.append(Reader(world, *args, **kwargs))
                return readers[-1]
            try:
                await asyncio.wait_for(test(world, reader), 20 * SCALE)
            finally:
                for each in readers:
                    each.session.close()
                world.server.close()
                context.close()
        asyncio.run(main())
    return do


Readers = Callable[..., Reader]


def test_messages_come_in_order_with_their_numbers_and_late_joiners_get_the_kept_ones(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        early = reader().subscribe()
        await world.until(lambda: early.of(Subscribed))
        for value in range(200):
            world.put(value)
        await world.until(lambda: len(early.values) == 200)
        assert early.values == early.numbers == list(range(200))
        assert len(early.of(Published)) < 50, "what is published in one turn travels together"
        late = reader().subscribe(history=3)
        world.put(200)
        await world.until(lambda: late.values[-1:] == [200])
        assert late.values in ([197, 198, 199, 200], [198, 199, 200])  # the subscription comes before or after it
        assert late.of(Subscribed)[0].number == late.values[0]
    run(test, keep=3)


def test_the_first_of_a_turn_leaves_at_once_and_the_rest_with_its_end(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        listener = reader().subscribe()
        await world.until(lambda: listener.of(Subscribed))
        for value in range(3):
            world.put(value)
        await world.until(lambda: len(listener.values) == 3)
        assert [len(message.bodies) for message in listener.of(Published)] == [1, 2]
    run(test)


def test_large_messages_and_buffers_keep_their_place_among_small_ones(run: Any) -> None:
    values = [1, b"x" * 5000, 2, b"y" * 300_000, b"z" * 70_000, 3, 4]

    async def test(world: World, reader: Readers) -> None:
        listener = reader().subscribe()
        await world.until(lambda: listener.of(Subscribed))
        for value in values * 5:
            world.put(value)
        await world.until(lambda: len(listener.values) == 5 * len(values))
        assert listener.values == values * 5
    run(test)


def test_other_threads_publish_too_each_in_its_own_order(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        listener = reader().subscribe()
        await world.until(lambda: listener.of(Subscribed))
        threads = [threading.Thread(target=lambda base=base: [world.put(base + n) for n in range(1000)])  # type: ignore[misc]
                   for base in (0, 10_000)]
        for thread in threads:
            thread.start()
        world.put(-1)
        await world.until(lambda: len(listener.values) == 2001)
        assert listener.numbers == list(range(2001))
        assert [value for value in listener.values if 0 <= value < 10_000] == list(range(1000))
        assert [value for value in listener.values if value >= 10_000] == list(range(10_000, 11_000))
        for thread in threads:
            thread.join()
    run(test)


@pytest.mark.parametrize("full", [Full.DROP_OLDEST, Full.DROP_NEWEST])
def test_what_a_full_queue_drops_is_told_and_adds_up(run: Any, full: int) -> None:
    async def test(world: World, reader: Readers) -> None:
        slow, quick = reader(takes=False).subscribe(full=full, length=10), reader().subscribe()
        await world.until(lambda: slow.of(Subscribed) and quick.of(Subscribed))
        for value in range(100):
            world.put(value)
        await world.until(lambda: len(quick.values) == 100)
        await world.until(lambda: len(slow.values) == 5)
        for _ in range(10):
            slow.take(len(slow.values) - slow._taken)
            await asyncio.sleep(0.005)
        await world.until(lambda: len(slow.values) == 10)
        skipped = sum(message.count for message in slow.of(Skipped))
        assert slow.values[:5] == list(range(5))
        assert slow.values[5:] == (list(range(5, 10)) if full == Full.DROP_NEWEST else list(range(95, 100)))
        account = next(each for each in world.publisher.accounts() if each.dropped)
        assert (account.offered, account.dropped) == (100, skipped) == (100, 90)
        assert account.received + account.dropped + account.waiting + account.lost == account.offered
    run(test)


def test_a_type_that_does_not_fit_is_refused_naming_both(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        wrong = reader().subscribe(shape=Type.of(str).shape)
        await world.until(lambda: wrong.of(Failure))
        assert wrong.of(Failure)[0].text == "'n' publishes it as int"  # and the subscriber knows what it expects
        world.home.publisher("n", "n/list", Type.of(list[int]))
        nested = reader().subscribe(topic="n/list", shape=Type.of(list[str]).shape)
        await world.until(lambda: nested.of(Failure))
        assert re.fullmatch(r"'n' publishes it as list\[int\]: .*published int, expected str",
                            nested.of(Failure)[0].text)
        unknown = reader().subscribe(topic="n/other")
        await world.until(lambda: unknown.of(Failure))
        assert "n/other" in unknown.of(Failure)[0].text
        assert world.publisher.subscribers == 0
    run(test)


def test_who_subscribes_is_seen_and_told_of(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        told: list[bool] = []
        world.publisher.on_demand(told.append)
        world.publisher.on_demand(lambda wanted: 1 / 0)
        with pytest.raises(TimeoutError, match="0 subscribers and not 1"):
            await world.publisher.await_for(1, 0.01)
        one, two = reader("one").subscribe(who="kitchen"), reader("two").subscribe()
        await world.publisher.await_for(2, 10 * SCALE)
        assert {each.subscriber for each in world.publisher.accounts()} == {"kitchen", "two"}
        await world.until(lambda: told == [True])
        one.session.send(Cancel(1))
        two.session.close()
        await world.until(lambda: told == [True, False])
        assert [each.ended for each in world.publisher.accounts()] == [True, True]
    run(test)


def test_on_a_loop_that_is_held_up_subscribers_are_still_heard(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        ready = threading.Event()

        def listens() -> None:
            async def beside() -> None:
                listener = Reader(world).subscribe(full=Full.BLOCK, length=4)
                ready.set()
                await world.until(lambda: len(listener.values) == 50)
                listener.session.close()
            asyncio.run(beside())
        thread = threading.Thread(target=listens, daemon=True)
        thread.start()
        ready.wait(10)
        world.publisher.wait_for(1, 10 * SCALE)  # blocks the loop, and so does what follows
        for value in range(50):
            world.put(value, timeout=10 * SCALE)
        await world.until(lambda: not thread.is_alive())
        assert world.publisher.accounts()[0].dropped == 0
    run(test)


def test_what_other_threads_have_published_leaves_while_the_loop_is_held_up_and_they_are_not(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        first, second = threading.Event(), threading.Event()

        def listens() -> None:
            async def beside() -> None:
                listener = Reader(world).subscribe(full=Full.BLOCK, length=4)
                await world.until(lambda: listener.of(Subscribed))  # so the loop waits
                for value in range(4):
                    world.put(value)
                first.set()
                other = Reader(world).subscribe()
                await world.until(lambda: len(listener.values) == 5)
                for each in listener, other:
                    each.session.close()
                second.set()
            asyncio.run(beside())
        threading.Thread(target=listens, daemon=True).start()
        world.publisher.wait_for(2, 10 * SCALE)  # holds up the loop
        assert first.is_set()
        world.put(4, timeout=10 * SCALE)  # and so does this, until what the thread has published was taken
        await world.until(second.is_set)
    run(test)


def test_whoever_waits_for_room_is_told_when_the_publisher_stops(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        reader(takes=False).subscribe(full=Full.BLOCK, length=2)
        await world.publisher.await_for(1, 10 * SCALE)
        world.put(0)
        world.put(1)
        thread = asyncio.create_task(asyncio.to_thread(world.put, 2, timeout=20 * SCALE))
        task = asyncio.create_task(world.publisher.aput(codec.encode(2)[0], timeout=20 * SCALE))
        many = asyncio.create_task(world.publisher.await_for(2, 20 * SCALE))
        await world.until(lambda: len(world.publisher._changes._futures) == 2)
        await world.until(lambda: world.publisher._changes._condition._waiters)  # type: ignore[attr-defined]
        await world.home.end([world.publisher], "it has stopped")
        for waiting in thread, task:
            with pytest.raises(TopicEnded, match="it has stopped"):
                await waiting
        with pytest.raises(TimeoutError, match="it has stopped"):
            await many
        with pytest.raises(TimeoutError, match="it has stopped"):
            await world.publisher.await_for(2, 20 * SCALE)
    run(test)


@pytest.mark.parametrize("full", [Full.DROP_OLDEST, Full.BLOCK])
def test_what_is_published_amid_another_publish_comes_behind_it(full: int) -> None:
    """As by signals and finalisers: in each of its lines, on the loop and beside it."""
    published: list[int] = []

    def publish(publisher: Publisher, line: int) -> bool:
        """Publish several messages, and in that *line* of it some more; whether it has so many."""
        def put(value: Any) -> None:
            published.append(value)
            publisher.put(*codec.encode(value))

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal line
            if frame.f_globals["__name__"] not in ("pyzmp.publisher", "pyzmp.protocol.feed"):
                return None
            line -= event == "line"
            if not line:
                line = -1
                for value in 1, b"x" * 2000, bytes(20_000):
                    put(value)
            return trace
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for value in 1, 2, b"x" * 2000:
                put(value)
        finally:
            sys.settrace(before)
        return line < 0

    async def main() -> None:
        context = Context()
        world = World(context, "memory://pub")
        listener = Reader(world).subscribe(full=full, length=full and 100)
        await world.publisher.await_for(1, 10 * SCALE)
        line = 1
        while publish(world.publisher, line) | await asyncio.to_thread(publish, world.publisher, line):
            line += 1
            await world.until(lambda: len(listener.values) == len(published))
        assert line > 50
        await world.until(lambda: len(listener.values) == len(published))
        assert sorted(map(str, listener.values)) == sorted(map(str, published))
        assert listener.numbers == list(range(len(published)))
        account, = world.publisher.accounts()
        assert (account.offered, account.dropped) == (len(published), 0)
        listener.session.close()
        world.server.close()
        context.close()
    asyncio.run(main())


def test_who_asked_for_it_holds_the_publisher_up_until_there_is_room(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        slow, other = reader(takes=False).subscribe(full=Full.BLOCK, length=4), reader().subscribe()
        await world.publisher.await_for(2, 10 * SCALE)
        for value in range(4):
            world.put(value)
        with pytest.raises(PublishTimeout, match="'reader' has had no room"):
            world.put(4, timeout=0.02)
        with pytest.raises(PublishTimeout):
            await world.publisher.aput(codec.encode(4)[0], timeout=0.02)
        with pytest.raises(PublishTimeout):
            await asyncio.to_thread(world.put, 4, timeout=0.02)
        await world.until(lambda: len(other.values) == 4)
        waiting = asyncio.create_task(world.publisher.aput(codec.encode(5)[0], timeout=10 * SCALE))
        thread = asyncio.create_task(asyncio.to_thread(world.put, 5, timeout=10 * SCALE))
        await world.until(lambda: len(slow.values) == 2)
        slow.take(2)
        await waiting
        await thread
        await world.until(lambda: other.values == [0, 1, 2, 3, 5, 5])
        await world.until(lambda: slow.values == [0, 1, 2, 3])
        slow.session.close()  # whoever is gone holds nobody up
        await world.until(lambda: world.publisher.subscribers == 1)
        world.put(6)
        await world.until(lambda: other.values[-1] == 6)
    run(test)


def test_a_subscriber_on_the_very_loop_is_not_waited_for(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        slow = reader("me", takes=False).subscribe(full=Full.BLOCK, length=2, who="beside")
        await world.publisher.await_for(1, 10 * SCALE)
        world.put(0)
        world.put(1)
        with pytest.raises(DeadlockError, match="apublish"):
            world.put(2)
        assert slow.ended == ""
    run(test)


def test_a_stranger_who_calls_himself_a_node_of_the_loop_is_waited_for(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        reader("stranger", takes=False).subscribe(full=Full.BLOCK, length=2, who="beside")
        await world.publisher.await_for(1, 10 * SCALE)
        world.put(0)
        world.put(1)
        with pytest.raises(PublishTimeout, match="'beside' has had no room"):
            world.put(2, timeout=0.01)
    run(test)


def test_a_young_publisher_keeps_all_for_those_who_were_there_before_it(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        for value in range(100):
            world.put(value)
        early, late = reader().subscribe(early=True), reader().subscribe(history=9)
        latest = reader().subscribe(early=True, length=1)
        blocks = reader().subscribe(early=True, length=4, full=Full.BLOCK)
        await world.until(lambda: len(early.values) == len(blocks.values) == 100)
        await world.publisher.await_for(4, 10 * SCALE)
        world.put(100)
        await world.until(lambda: all(each.values[-1:] == [100] for each in (early, late, blocks)))
        assert early.values == blocks.values == list(range(101))
        assert late.values == [98, 99, 100]
        latest.session.send(Taken(1, 0, 1, 1 << 20))
        await world.until(lambda: latest.values)
        assert latest.values == [100]
        assert latest.of(Subscribed)[0].number == 99  # and no more, as it holds one
    run(test, keep=2)


def test_it_is_young_until_a_while_after_the_graph_has_heard_of_it(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        asked: list[tuple[float, Callable[[], None]]] = []
        publisher = world.publisher
        assert publisher.awaited() == 0
        world.put(1)
        assert publisher.awaited() == YOUNG / 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.loop, "call_later", lambda pause, callback: asked.append((pause, callback)))
            publisher.appeared()
            publisher.appeared()
        assert 0 < publisher.awaited() <= YOUNG / 2
        (pause, grow), = asked
        assert pause == YOUNG
        before = reader().subscribe(early=True)
        await publisher.await_for(1, 10 * SCALE)
        grow()
        after = reader().subscribe(early=True)
        await publisher.await_for(2, 10 * SCALE)
        world.put(2)
        await world.until(lambda: before.values == [1, 2] and after.values == [2])
    run(test)


def test_the_end_lets_everything_leave_and_tells_all(run: Any) -> None:
    async def test(world: World, reader: Readers) -> None:
        listener, stuck = reader().subscribe(length=4), reader(takes=False).subscribe(length=4)
        await world.publisher.await_for(2, 10 * SCALE)
        for value in range(4):
            world.put(value)
        await world.home.end([world.publisher], "it has stopped")
        with pytest.raises(TopicEnded, match="it has stopped"):
            world.put(4)
        await world.until(lambda: listener.of(Ended) and stuck.of(Ended))
        assert listener.values == [0, 1, 2, 3]
        assert listener.of(Ended)[0] == Ended(1, 4, "it has stopped")
        late = reader().subscribe()
        await world.until(lambda: late.of(Failure))
        assert sorted((each.ended, each.lost) for each in world.publisher.accounts()) == [(True, 0), (True, 4)]
    run(test)


def test_what_a_forked_child_has_of_it_is_over() -> None:
    async def test() -> None:
        context = Context()
        world = World(context, "memory://pub")
        world.home.forget()
        with pytest.raises(TopicEnded, match="forked"):
            world.put(1)
        world.server.close()
        context.close()
    asyncio.run(test())
