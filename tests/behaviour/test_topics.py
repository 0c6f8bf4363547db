"""Topics: what is published reaches who listens, in order, and what does not is counted."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import PublishTimeout, TopicMismatch
from tests.campaigns.history import SCALE
from tests.conftest import eventually

PATIENCE = 10 * SCALE
POLICIES = ["drop_oldest", "drop_newest", "latest", "block"]


class Source(pyzmp.Node):
    number = pyzmp.Topic(int, keep=3)
    blob = pyzmp.Topic(bytes)

    @pyzmp.service
    def say(self, *numbers: int) -> None:
        for number in numbers:
            self.number.publish(number)

    @pyzmp.service
    async def asay(self, first: int, last: int) -> int:
        for number in range(first, last):
            await self.number.apublish(number)
        return last - first

    @pyzmp.service(worker=True)
    def wsay(self, first: int, last: int) -> int:
        for number in range(first, last):
            self.number.publish(number)
        return last - first

    @pyzmp.service
    def send(self, size: int) -> None:
        self.blob.publish(bytes(size))

    @pyzmp.service
    def listeners(self) -> int:
        return self.number.subscribers


class Sink(pyzmp.Node):
    def on_start(self) -> None:
        self.heard: list[tuple[str, int, int]] = []

    @pyzmp.subscribe(Source.number)
    def hear(self, number: pyzmp.Message[int]) -> None:
        self.heard.append((number.node, number.number, number.value))
        if number.value == 13:
            raise ValueError("unlucky")

    @pyzmp.service
    def told(self) -> list[tuple[str, int, int]]:
        return self.heard


class SlowSink(pyzmp.Node):
    def on_start(self) -> None:
        self.heard: list[int] = []

    @pyzmp.subscribe(Source.number, history=3)
    async def hear(self, number: int) -> None:
        await asyncio.sleep(0 if number % 5 else 0.001)
        self.heard.append(number)

    @pyzmp.service
    def told(self) -> list[int]:
        return self.heard


def take(subscription: Any, count: int) -> list[Any]:
    return [next(subscription) for _ in range(count)]


def test_a_plain_program_gets_all_in_order(place: Any) -> None:
    place.start(Source("source"))
    with Source.number.subscribe(timeout=PATIENCE) as subscription:
        Source.say(*range(500))
        assert take(subscription, 500) == list(range(500))
        assert Source.asay(500, 700) == 200
        assert Source.wsay(700, 900) == 200
        assert take(subscription, 400) == list(range(500, 900))
        assert (subscription.received, subscription.dropped, subscription.lost) == (900, 0, 0)


def test_nodes_get_all_in_order_and_go_on_after_an_error(place: Any, eventually: Callable[..., None]) -> None:
    place.start(Source("one"), Source("two"), Sink("sink"))
    for name in ("one", "two"):
        Source.at(name).say(*range(50))
    eventually(lambda: len(Sink.told()) == 100)
    told = Sink.told()
    for name in ("one", "two"):
        assert [tuple(each) for each in told if each[0] == name] == [(name, number, number) for number in range(50)]


def test_an_async_handler_takes_one_after_the_other(place: Any, eventually: Callable[..., None]) -> None:
    place.start(Source("source"))
    Source.say(1, 2, 3, 4)
    place.start(SlowSink("late"))
    Source.say(*range(5, 60))
    eventually(lambda: len(SlowSink.told()) == 58)
    assert SlowSink.told() == [2, 3, 4, *range(5, 60)]


def test_late_joiners_get_what_is_kept_and_then_what_comes(place: Any) -> None:
    place.start(Source("source"))
    Source.say(*range(10))
    for history, expected in ((0, []), (1, [9]), (2, [8, 9]), (99, [7, 8, 9])):
        with Source.at("source").number.subscribe(timeout=PATIENCE, history=history) as subscription:
            Source.say(9)
            assert take(subscription, len(expected) + 1) == [*expected, 9]
        Source.say(7, 8, 9)


def test_large_values_come_whole(place: Any) -> None:
    place.start(Source("source"))
    with Source.blob.subscribe(timeout=PATIENCE) as subscription:
        for size in (0, 100, 20_000, 3 << 20):
            Source.send(size)
            assert len(next(subscription)) == size


async def _awaited(place: Any) -> None:
    async with Source("source", kind=place.kind):
        subscription = await Source.number.asubscribe(timeout=PATIENCE)
        async with subscription:
            await Source.say.acall(1, 2, 3)
            messages = subscription.messages()
            found = [await anext(messages) for _ in range(3)]
            assert [(message.value, message.number, message.node, message.topic) for message in found] == [
                (1, 0, "source", "source/number"), (2, 1, "source", "source/number"), (3, 2, "source", "source/number")]
            async for number in await Source.number.asubscribe(timeout=PATIENCE, history=2):
                assert number == 2
                break


def test_a_coroutine_subscribes_and_iterates(home: Any) -> None:
    asyncio.run(_awaited(home))


def test_a_publisher_sees_who_comes_and_goes(home: Any, eventually: Callable[..., None]) -> None:
    home.start(Source("source"))
    assert Source.listeners() == 0
    with Source.number.subscribe(), Source.number.subscribe():
        assert Source.listeners() == 2
    eventually(lambda: Source.listeners() == 0)


def test_a_publisher_that_is_started_anew_is_heard_again(home: Any, eventually: Callable[..., None]) -> None:
    source = Source("source")
    home.settle(source)
    with Source.number.subscribe(timeout=PATIENCE) as subscription:
        for life in (1, 2):
            with source:
                eventually(lambda: subscription.publishers == ["source"])
                Source.say(life)
                assert next(subscription) == life
            eventually(lambda: subscription.publishers == [])


def test_patterns_select_whole_names(home: Any, eventually: Callable[..., None]) -> None:
    home.start(Source("room/a"), Source("room/b"), Source("roof"))
    with pyzmp.Topic(int, "room/*/number").subscribe(timeout=PATIENCE) as rooms, \
            pyzmp.Topic(int, "**/number").subscribe(timeout=PATIENCE) as everywhere, \
            pyzmp.Topic(int, "room/a/num").subscribe() as nothing:
        assert sorted(rooms.publishers) == ["room/a", "room/b"]
        assert sorted(everywhere.publishers) == ["roof", "room/a", "room/b"]
        assert nothing.publishers == []
        for number, name in enumerate(("roof", "room/a", "room/b")):
            Source.at(name).say(number)
        assert sorted(take(rooms, 2)) == [1, 2]
        assert sorted(take(everywhere, 3)) == [0, 1, 2]


def test_who_expects_another_type_is_refused_and_nobody_else(home: Any, caplog: pytest.LogCaptureFixture) -> None:
    home.start(Source("source"))
    with Source.number.subscribe(timeout=PATIENCE) as good:
        with pytest.raises(TopicMismatch, match=r"is expected to be str, and .source. publishes it as int"):
            pyzmp.Topic(str, "source/number").subscribe()
        with pyzmp.Topic(float, "source/number").subscribe(timeout=PATIENCE) as wider:
            Source.say(4)
            assert (next(good), next(wider)) == (4, 4.0)


class Wall(pyzmp.Node):
    paint = pyzmp.Topic(dict[str, int])


def test_a_value_that_does_not_fit_is_an_error_and_nothing_is_sent(domain: Path) -> None:
    alerts = pyzmp.Topic(dict[str, int], "house/alerts", keep=9)
    with pytest.raises(TypeError, match=r"house/alerts: value\['red'\]: expected int, got str"):
        alerts.publish({"red": "much"})  # type: ignore[dict-item]
    alerts.publish({"red": 1})
    with pyzmp.Topic(dict[str, int], "house/alerts").subscribe(timeout=PATIENCE, history=9) as subscription:
        assert next(subscription) == {"red": 1}
        alerts.publish({"red": 2})
        assert next(subscription) == {"red": 2}


def test_a_topic_of_a_class_is_published_by_its_nodes_only(domain: Path) -> None:
    for topic in (Wall.paint, Wall.at("wall").paint):
        with pytest.raises((TypeError, RuntimeError), match=r"Wall\.paint|wall/paint"):
            topic.publish({})


@pytest.fixture
def flood(script: Any, tmp_path: Path, eventually: Callable[..., None]) -> Iterator[Callable[[str, float], Flood]]:
    """A topic of this process, one who takes all of it at once, and a process that listens in another way."""
    with pyzmp.Topic(int, "flood/number").subscribe(timeout=PATIENCE) as other:
        def begin(full: str, pause: float) -> Flood:
            process = script.start("-c", LISTENER, full, str(tmp_path / "taken"), str(pause))
            made = Flood(pyzmp.Topic(int, "flood/number"), other, process, tmp_path / "taken")
            made.topic.wait_for_subscribers(2, timeout=PATIENCE)
            return made
        yield begin


class Flood:
    def __init__(self, topic: Any, other: Any, process: subprocess.Popen[str], log: Path) -> None:
        self.topic, self.other, self.process, self.log = topic, other, process, log

    @property
    def account(self) -> Any:
        """What the publisher knows of the process."""
        pid = f"[{self.process.pid}]"
        return next(each for each in self.topic.accounts() if pid in each.subscriber)

    def taken(self) -> list[int]:
        """What the process has written down, in order and once each."""
        taken = [int(line) for line in self.log.read_text().split()] if self.log.exists() else []
        assert taken == sorted(set(taken))
        return taken

    def publish(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.topic.publish(number)

    def check(self, published: int) -> Any:
        """Once all of it is taken or dropped both ends say the same, and so does the log; the publisher's account."""
        assert eventually(lambda: self.account.waiting == 0)
        account = self.account
        assert eventually(lambda: len(self.taken()) == account.received)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=PATIENCE)
        assert [next(self.other) for _ in range(published)] == list(range(published))
        counts = [int(count) for count in self.log.with_suffix(".counts").read_text().split()]
        assert counts == [account.received, account.dropped, 0]
        assert account.received + account.dropped == account.offered == published
        assert account.lost == 0
        return account


LISTENER = """
import signal, sys, time
import pyzmp
full, path, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
subscription = pyzmp.Topic(int, "flood/number").subscribe(full=full, length=None if full == "latest" else 8)
signal.signal(signal.SIGTERM, lambda *_: subscription.close())
with open(path, "w", buffering=1) as log:
    for number in subscription:
        log.write(f"{number}\\n")
        time.sleep(pause)
with open(path + ".counts", "w") as counts:
    counts.write(f"{subscription.received} {subscription.dropped} {subscription.lost}")
"""


@pytest.mark.parametrize("full", POLICIES)
def test_a_slow_subscriber_gets_what_its_queue_keeps(full: str, flood: Any) -> None:
    made = flood(full, 0.002)
    made.publish(0, 300)
    account = made.check(300)
    assert (account.dropped == 0) is (full == "block")
    assert full == "drop_newest" or made.taken()[-1] == 299  # the newest is never dropped


@pytest.mark.parametrize("full", POLICIES)
def test_a_subscriber_that_is_stopped_and_goes_on_misses_what_its_queue_has_dropped(full: str, flood: Any) -> None:
    made = flood(full, 0)
    made.publish(0, 40)
    assert eventually(made.taken)
    made.process.send_signal(signal.SIGSTOP)
    if full != "block":
        made.publish(40, 300)
        assert made.account.waiting <= 8
    else:
        with pytest.raises(PublishTimeout, match=r"has had no room for 0\.01 s"):
            for number in range(40, 300):
                made.topic.publish(number, timeout=0.01)
    made.process.send_signal(signal.SIGCONT)
    published = made.account.offered
    made.publish(published, 301)
    account = made.check(301)
    assert (account.dropped == 0) is (full == "block")
    assert full == "drop_newest" or made.taken()[-1] == 300


@pytest.mark.parametrize("full", POLICIES)
def test_what_a_killed_subscriber_did_not_acknowledge_is_lost(full: str, flood: Any) -> None:
    made = flood(full, 0)
    made.publish(0, 40)
    assert eventually(made.taken)
    made.process.kill()
    made.publish(40, 300)
    made.process.wait(timeout=PATIENCE)
    assert eventually(lambda: made.account.ended)
    account = made.account
    assert account.received + account.dropped + account.lost == account.offered
    assert account.waiting == 0
    assert account.received <= len(made.taken()) <= account.received + account.lost


def test_a_handler_that_raises_is_logged_with_node_and_topic(
        domain: Path, caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]) -> None:
    with caplog.at_level(logging.ERROR), Source("source", kind="thread"), Sink("sink", kind="thread"):
        Source.say(13, 14)
        eventually(lambda: len(Sink.told()) == 2)
    found = [record for record in caplog.records if "source/number" in record.getMessage()]
    assert len(found) == 1
    assert "sink" in found[0].getMessage()
    assert found[0].exc_info is not None
    caplog.clear()


def test_what_a_short_program_publishes_is_heard_by_whoever_was_there_before(script: Any) -> None:
    """No registry was there before it."""
    listen = "import pyzmp\nheard = pyzmp.Topic(str, 'one/shot').subscribe(timeout=20)\nprint('there', flush=True)\n"
    listener = script.start("-c", f"{listen}print(next(heard), heard.lost)", stdout=subprocess.PIPE)
    assert listener.stdout.readline() == "there\n"
    said = script.python("-c", "import pyzmp\npyzmp.Topic(str, 'one/shot').publish('x')")
    assert (said.code, said.err) == (0, "")
    assert listener.communicate(timeout=PATIENCE)[0] == "x 0\n"
