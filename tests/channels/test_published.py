"""What a living node publishes: its own topics, and those with full names that its code uses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from tests.campaigns.history import SCALE

alerts = pyzmp.Topic(str, "house/alerts", keep=3)
early = pyzmp.Topic(str, "house/early", keep=1)


class Sensor(pyzmp.Node):
    kind = "thread"
    reading = pyzmp.Topic(int, keep=1)

    def on_start(self) -> None:
        early.publish(f"{self.name} starts")
        self.reading.publish(0)

    @pyzmp.service
    def alarm(self, text: str) -> None:
        alerts.publish(text)

    @pyzmp.service
    def keeps_more(self, count: int) -> None:
        pyzmp.Topic(str, "house/alerts", keep=count).publish("")

    @pyzmp.service
    def twice(self) -> None:
        pyzmp.Topic(int, f"{self.name}/reading").publish(1)
        self.reading.publish(2)

    @pyzmp.service
    def other_type(self) -> None:
        pyzmp.Topic(int, "house/alerts").publish(3)

    def on_stop(self) -> None:
        self.reading.publish(1)


class Better(Sensor):
    reading = pyzmp.Topic(int, keep=1)


def test_the_graph_has_a_nodes_own_topics_with_a_mark_for_each_class_that_declares_them(
        eventually: Callable[..., None]) -> None:
    with Sensor("one"), Better("two"):
        with Sensor.reading.subscribe(timeout=10, history=1) as both, Better.reading.subscribe(timeout=10) as better:
            assert [next(both), next(both)] == [0, 0]
            assert sorted(both.publishers) == ["one", "two"]
            assert better.publishers == ["two"]
        assert {topic.name for topic in pyzmp.graph().topics} >= {"one/reading", "two/reading", "house/early"}
    eventually(lambda: not pyzmp.graph().topics)


def test_a_full_name_is_the_nodes_whose_code_publishes_it_and_known_with_the_first_use() -> None:
    with Sensor("one"), early.subscribe(timeout=10, history=1) as started:
        message = next(started.messages())
        assert (message.value, message.node, message.topic) == ("one starts", "one", "house/early")
        assert "house/alerts" not in {topic.name for topic in pyzmp.graph().topics}
        with alerts.subscribe(timeout=10, history=3) as heard:
            Sensor.alarm("fire")
            assert next(heard) == "fire"
            assert heard.publishers == ["one"]
        Sensor.keeps_more(5)
        for number in range(5):
            Sensor.alarm(str(number))
        with alerts.subscribe(timeout=10, history=9) as heard:
            assert [next(heard) for _ in range(5)] == list("01234")


class Talks(Sensor):
    once = pyzmp.Topic(int)

    def on_start(self) -> None:
        self.once.publish(0)

    @pyzmp.service
    def say(self, value: int) -> None:
        pyzmp.Topic(int, "house/numbers").publish(value)


def test_those_who_were_there_hear_what_a_node_publishes_first_and_again_when_it_is_started_anew() -> None:
    talks = Talks("talks")
    with Talks.once.subscribe(timeout=10) as once, pyzmp.Topic(int, "house/*").subscribe(timeout=10) as numbers:
        for turn in range(2):
            with talks:
                for value in range(3):
                    Talks.say(value)
                    talks.once.publish(value + 1)
                assert [next(once) for _ in range(4)] == list(range(4)), turn
                assert [next(numbers) for _ in range(3)] == list(range(3)), turn
        assert (once.lost, numbers.lost) == (0, 0)


def test_a_full_name_may_be_that_of_a_nodes_own_topic() -> None:
    with Sensor("one"), Sensor.reading.subscribe(timeout=10) as readings:
        Sensor.twice()
        assert [next(readings), next(readings)] == [1, 2]


def test_one_name_has_one_type_in_one_node() -> None:
    with Sensor("one"):
        Sensor.alarm("fire")
        with pytest.raises(TypeError, match="publishes house/alerts as str already"):
            Sensor.other_type()


def test_what_a_node_publishes_when_it_stops_is_published_and_nothing_after_that(tmp_path: Any) -> None:
    node = Sensor("one", socket_bind=f"ipc://{tmp_path}/one")
    node.start()
    with Sensor.reading.subscribe(timeout=10) as readings:
        published = node._life.published
        assert node.shutdown() == 0
        assert next(readings) == 1
    with pytest.raises(RuntimeError, match="'one' has stopped"):
        published.of("reading").put(b"")
    with pytest.raises(RuntimeError, match="'one' has stopped"):
        published.named(alerts).put(b"")
    with pytest.raises(RuntimeError, match="'one' has stopped"):
        node.reading.publish(2)


def test_a_node_whose_name_is_taken_takes_nothing_from_the_one_that_has_it() -> None:
    class Entity(Sensor):
        kind = "entity"

    with Entity("one") as one:
        with pytest.raises(pyzmp.exceptions.NodeExists):
            Entity("one").start()
        with one.reading.subscribe(timeout=10) as readings:
            one.reading.publish(7)
            assert next(readings) == 7


def test_to_wait_for_subscribers_before_there_can_be_any_is_an_error_at_once() -> None:
    class Waits(Sensor):
        def on_start(self) -> None:
            self.reading.wait_for_subscribers(timeout=60 * SCALE)

    begun = time.monotonic()
    with pytest.raises(pyzmp.exceptions.DeadlockError, match="before on_start has ended"):
        Waits("one").start()
    assert time.monotonic() < begun + 30 * SCALE


class Patient(pyzmp.Node):
    kind = "entity"

    @pyzmp.subscribe(Sensor.reading, full="block", length=2)
    def take(self, value: int) -> None: ...


class Busy(Sensor):
    kind = "entity"

    @pyzmp.service
    def hurry(self) -> None:
        for value in range(10):
            self.reading.publish(value)

    @pyzmp.service
    async def wait(self) -> int:
        for value in range(10):
            await self.reading.apublish(value)
        return self.reading.subscribers


def test_a_node_that_would_wait_for_one_on_its_own_loop_is_told_at_once_and_may_await_it() -> None:
    with Busy("busy"), Patient("patient"):
        with pytest.raises(pyzmp.RemoteError, match="apublish"):
            Busy.hurry()
        assert Busy.wait() == 1


class Forks(pyzmp.Node):
    number = pyzmp.Topic(int)

    @pyzmp.service
    def fork(self) -> int:
        self.number.publish(1)
        child = os.fork()
        if not child:
            try:
                self.number.publish(2)
            finally:
                os._exit(7 if not self.number.subscribers else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_a_forked_child_publishes_nobody_gets() -> None:
    with Forks("forks"), Forks.number.subscribe(timeout=10) as numbers:
        assert Forks.fork() == 7
        assert Forks.fork() == 7
        assert [next(numbers), next(numbers)] == [1, 1]
