"""What a living node publishes: its own topics, and those with full names that its code uses."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import pytest

import pyzmp

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


def test_one_name_has_one_type_in_one_node() -> None:
    with Sensor("one"):
        Sensor.alarm("fire")
        with pytest.raises(TypeError, match="publishes house/alerts as str already"):
            Sensor.other_type()


def test_nothing_can_be_published_once_the_node_serves_no_more(caplog: pytest.LogCaptureFixture) -> None:
    node = Sensor("one")
    with caplog.at_level(logging.ERROR):
        node.start()
        status = node.shutdown()
    assert status != 0
    assert "one/reading cannot be published any more: 'one' has stopped" in caplog.text


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
