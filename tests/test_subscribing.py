"""The sessions by which subscriptions come, and what is counted of it, against a real publisher."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyzmp.protocol import codec
from pyzmp.protocol.batch import Batch
from pyzmp.protocol.envelope import Failure, Published, Subscribe
from pyzmp.protocol.feed import SIZE, Bounds, Full
from pyzmp.protocol.inlet import Gap, Inlet
from pyzmp.protocol.schema import Type
from pyzmp.publisher import Publisher
from pyzmp.publishing import Publishing
from pyzmp.subscribing import PAUSES, QUIET, Intake, Reach, Source
from pyzmp.transport.context import Context
from pyzmp.transport.server import Server
from tests.conftest import SCALE

HI = codec.encode("hi")[0]


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    yield made
    made.close()


class Sink:
    """Takes what comes, when it is told to."""

    def __init__(self, *, hungry: bool = False) -> None:
        self.hungry, self.asked = hungry, False
        self.batches: list[Batch] = []

    def put(self, item: Batch) -> None:
        self.batches.append(item)

    @property
    def numbers(self) -> list[int]:
        return [batch.number + place for batch in self.batches for place in range(len(batch.bodies))]

    def take_all(self) -> None:
        for batch in self.batches:
            list(batch.begin(list(batch.bodies)))


class Heard:
    """Notes what becomes of a source."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def came(self) -> None: ...

    def confirmed(self, source: Source) -> None:
        self.events.append("confirmed")

    def missed(self, source: Source, gap: Gap) -> None:
        self.events.append(gap)

    def refused(self, source: Source, failure: Failure) -> None:
        self.events.append(failure.text)

    def ended(self, source: Source, reason: str, *, stood: bool, died: bool) -> None:
        self.events.append((reason, stood, died))


class Scene:
    """A publisher and a subscription on one loop, with a socket between them."""

    def __init__(self, context: Context, folder: Path, *, full: int = Full.DROP_OLDEST, length: int = 0, keep: int = 0,
                 hungry: bool = False, young: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.server = Server(context, loop, "there", on_parcel=self.arrived,
                             on_end=self._parted)
        self.publishing = Publishing(self.server, lambda: [self.server])
        self.publisher: Publisher = self.publishing.publisher("lamp", "lamp/light", Type.of(str), keep)
        if not young:
            self.publisher._grow()
        self.address = self.server.bind(f"ipc://{folder}/socket")
        self.intakes: dict[asyncio.AbstractEventLoop, Intake] = {}
        self.context, self.loop = context, loop
        self.sink, self.heard = Sink(hungry=hungry), Heard()
        self.subscribe = Subscribe(0, "-", "-", full, length, SIZE)
        self.source = Source("lamp", "lamp/light", Inlet(Bounds.of(length, SIZE)), self.sink, self.heard)

    def _parted(self, peer: Any) -> None:
        self.publishing.parted(peer)

    def arrived(self, peer: Any, parcel: Any) -> None:
        assert self.publishing.arrived(peer, parcel)

    @property
    def intake(self) -> Intake:
        return Intake.of(self.intakes, self.context, self.loop, "caller")

    async def connect(self, *, early: bool = False) -> None:
        before = len(self.heard.events)
        self.source.connect(self.intake, self.address, "there", self.subscribe, early=early)
        await until(lambda: len(self.heard.events) > before)

    async def publish(self, count: int) -> None:
        for _ in range(count):
            self.publisher.put(HI)
            await asyncio.sleep(0)

    async def close(self) -> None:
        self.source.close()
        await until(lambda: not self.publisher.subscribers)
        self.server.close()


async def until(condition: Callable[[], object]) -> None:
    async def look() -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    await asyncio.wait_for(look(), 10 * SCALE)


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30 * SCALE))


def test_all_that_is_published_after_the_confirmation_comes_in_order(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path)
        await scene.publish(3)
        await scene.connect()
        assert scene.heard.events == ["confirmed"]
        await scene.publish(500)
        await until(lambda: len(scene.sink.numbers) == 500)
        assert scene.sink.numbers == list(range(3, 503))
        await scene.close()
        assert not scene.intakes
    run(test)


def test_the_publisher_knows_what_was_taken_once_it_is_told(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path)
        await scene.connect()
        await scene.publish(5)
        await until(lambda: len(scene.sink.numbers) == 5)
        assert scene.source.acknowledge(now=True) == 0
        assert scene.source.open
        scene.sink.take_all()
        assert scene.source.acknowledge() == 5
        assert scene.publisher.accounts()[0].received == 0
        assert scene.source.open
        assert scene.source.acknowledge(now=True) == 0
        await until(lambda: not scene.source.open)
        await until(lambda: scene.publisher.accounts()[0].received == 5)
        await scene.close()
    run(test)


def test_what_was_taken_is_told_when_it_is_closed(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path)
        await scene.connect()
        await scene.publish(6)
        await until(lambda: len(scene.sink.numbers) == 6)
        first = scene.sink.batches[0]
        next(first.begin(list(first.bodies)))
        await scene.close()
        account, = scene.publisher.accounts()
        assert (account.offered, account.received, account.lost, account.ended) == (6, 1, 5, True)
    run(test)


def test_a_window_makes_the_rest_wait_and_what_is_dropped_is_told_in_its_place(context: Context,
                                                                              tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path, length=4)
        await scene.connect()
        await scene.publish(10)
        await until(lambda: scene.sink.numbers == [0, 1])
        scene.sink.take_all()
        scene.source.acknowledge()
        await until(lambda: len(scene.sink.numbers) == 4)
        assert scene.heard.events == ["confirmed", Gap(2, 6, dropped=True)]
        assert scene.sink.numbers == [0, 1, 8, 9]
        await scene.close()
    run(test)


def test_without_a_window_the_latest_comes_to_whoever_waits(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path, length=1)
        await scene.connect()
        await scene.publish(5)
        assert not scene.sink.batches
        scene.source.wants()
        scene.source.wants()  # once is enough
        await until(lambda: scene.sink.batches)
        assert scene.sink.numbers == [4]
        scene.source.wants()  # not while something is there
        await scene.publish(3)
        scene.sink.take_all()
        scene.source.acknowledge()
        scene.source.wants()
        await until(lambda: len(scene.sink.batches) == 2)
        assert scene.sink.numbers == [4, 7]
        await scene.close()
    run(test)


def test_whoever_waits_already_gets_the_first(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path, length=1, hungry=True)
        await scene.connect()
        await scene.publish(1)
        await until(lambda: scene.sink.numbers == [0])
        await scene.close()
    run(test)


def test_a_new_session_goes_on_where_the_old_one_was_cut(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path, keep=4)
        await scene.connect()
        await scene.publish(3)
        await until(lambda: len(scene.sink.numbers) == 3)
        scene.intake.close()
        assert scene.heard.events[1:] == [("the session was closed here", True, True)]
        assert not scene.source.tries
        await until(lambda: not scene.publisher.subscribers)
        await scene.publish(2)
        await scene.connect()
        await until(lambda: len(scene.sink.numbers) == 5)
        scene.sink.take_all()  # those of the old session are not told to the new one
        assert scene.source.acknowledge(now=True) == 2
        await until(lambda: scene.publisher.accounts()[0].received == 2)
        scene.intake.close()
        await until(lambda: not scene.publisher.subscribers)
        await scene.publish(10)  # more than are kept
        await scene.connect()
        await until(lambda: len(scene.sink.numbers) == 9)
        assert scene.heard.events[-2:] == ["confirmed", Gap(5, 6, dropped=False)]
        assert scene.sink.numbers == [*range(5), *range(11, 15)]
        await scene.close()
    run(test)


def test_whoever_was_there_first_gets_all_from_a_young_publisher(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path, young=True)
        await scene.publish(5)
        await scene.connect(early=True)
        await until(lambda: len(scene.sink.numbers) == 5)
        scene.intake.close()
        await until(lambda: not scene.publisher.subscribers)
        await scene.publish(2)
        await scene.connect(early=True)  # goes on where it was
        await until(lambda: len(scene.sink.numbers) == 7)
        assert scene.sink.numbers == list(range(7))
        assert scene.source.inlet.lost == 0
        await scene.close()
    run(test)


def test_whoever_was_there_first_is_told_what_was_kept_no_more(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path, keep=2)
        await scene.publish(5)
        await scene.connect(early=True)
        await until(lambda: len(scene.sink.numbers) == 2)
        assert scene.heard.events == ["confirmed", Gap(0, 3, dropped=False)]
        assert scene.source.inlet.lost == 3
        await scene.close()
    run(test)


def test_what_waits_untaken_of_former_sessions_is_bounded(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path, length=4)  # a window of two
        for session in range(4):
            assert not scene.source.crowded
            await scene.connect()
            await scene.publish(2)
            await until(lambda number=2 * session + 2: len(scene.sink.numbers) == number)
            scene.intake.close()
            await until(lambda: not scene.publisher.subscribers)
        assert scene.source.crowded
        list(scene.sink.batches[0].begin(list(scene.sink.batches[0].bodies)))
        assert not scene.source.crowded
        await scene.connect()
        await scene.close()
    run(test)


def test_a_refusal_and_an_end_are_told(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path)
        scene.subscribe = Subscribe(0, "-", "-", 0, 0, SIZE, shape=Type.of(int).shape)
        await scene.connect()
        assert "'lamp' publishes it as str" in scene.heard.events[0]
        assert not scene.source.tries
        assert not scene.intakes
        scene.subscribe = Subscribe(0, "-", "-", 0, 0, SIZE)
        await scene.connect()
        await scene.publish(2)
        await scene.publishing.end([scene.publisher], "it has stopped")
        await until(lambda: len(scene.heard.events) == 3)
        assert scene.heard.events[1:] == ["confirmed", ("it has stopped", True, False)]
        assert scene.sink.numbers == [0, 1]
        assert not scene.intakes
        await scene.close()
    run(test)


def test_sources_of_one_loop_share_a_session_until_the_last_has_ended(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path)
        await scene.connect()
        other = Source("lamp", "lamp/light", Inlet(Bounds.of(0, SIZE)), Sink(), Heard())
        other.connect(scene.intake, scene.address, "there", scene.subscribe)
        await until(lambda: scene.publisher.subscribers == 2)
        assert len(scene.server.peers) == 1
        other.close()
        await until(lambda: scene.publisher.subscribers == 1)
        await scene.publish(1)
        await until(lambda: scene.sink.numbers == [0])
        scene.source.close()
        await until(lambda: not scene.server.peers)
        await scene.close()
    run(test)


def test_who_listens_nowhere_cannot_be_reached(context: Context, tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(context, tmp_path)
        with pytest.raises(ConnectionError, match="listens nowhere"):
            scene.source.connect(scene.intake, "", "there", scene.subscribe)
        assert not scene.source.tries
        await scene.close()
    run(test)


def test_messages_that_cannot_be_are_dropped_and_the_first_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Parcel:
        def __init__(self, message: Any) -> None:
            self.message, self.buffers = message, ()
    sink = Sink()
    source = Source("lamp", "lamp/light", Inlet(Bounds.of(0, SIZE)), sink, Heard())
    source.arrived(Parcel(Published(1, 0, [1.0], [HI])))  # type: ignore[arg-type]
    source.stands = True
    source.arrived(Parcel(Published(1, 0, [1.0], [HI, HI])))  # type: ignore[arg-type]
    source.arrived(Parcel(Published(1, 0, [], [])))  # type: ignore[arg-type]
    source.arrived(Parcel(Published(1, 0, [1.0], [HI])))  # type: ignore[arg-type]
    source.arrived(Parcel(Published(1, 0, [1.0], [HI])))  # type: ignore[arg-type]
    assert len(sink.batches) == 1
    assert source.malformed == 4
    assert caplog.text.count("lamp/light of 'lamp' has sent what cannot be, dropped: 1 messages with 1 times") == 1


def test_pauses_grow_up_to_the_last() -> None:
    reach = Reach()
    pauses = [reach.again(10.0) for _ in range(8)]
    assert pauses[0] == PAUSES[0]
    assert pauses[-1] == PAUSES[1] == max(pauses)
    assert reach.due == 10.0 + PAUSES[1]


def test_the_first_gap_is_logged_at_once_and_later_ones_together() -> None:
    reach = Reach()
    assert reach.gap(Gap(0, 3, dropped=True), 100.0) == (3, 0)
    assert reach.gap(Gap(3, 2, dropped=False), 101.0) == (0, 0)
    assert reach.gap(Gap(5, 1, dropped=True), 101.0 + QUIET) == (1, 2)
    assert reach.gap(Gap(5, 4, dropped=True), 102.0 + QUIET) == (0, 0)
    assert reach.rest() == (4, 0)
    assert reach.rest() == (0, 0)


def test_what_a_closed_loop_has_left_is_ended(context: Context, tmp_path: Path) -> None:
    intakes: dict[asyncio.AbstractEventLoop, Intake] = {}
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(f"{tmp_path}/silent")
    silent.listen()

    async def leave() -> None:
        source = Source("lamp", "lamp/light", Inlet(Bounds.of(0, SIZE)), Sink(), Heard())
        intake = Intake.of(intakes, context, asyncio.get_running_loop(), "caller")
        source.connect(intake, f"ipc://{tmp_path}/silent", "there", Subscribe(0, "-", "-"))
    asyncio.run(leave())
    assert len(intakes) == 1

    async def look() -> None:
        intake = Intake.of(intakes, context, asyncio.get_running_loop(), "caller")
        assert list(intakes.values()) == [intake]
    asyncio.run(look())
    silent.close()
