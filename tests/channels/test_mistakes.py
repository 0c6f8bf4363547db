"""What is easily got wrong with topics, and the sentences that say so."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest

import pyzmp


class Sensor(pyzmp.Node):
    kind = "thread"
    celsius = pyzmp.Topic(float)
    alerts = pyzmp.Topic(str, "house/alerts")


class Better(Sensor):
    humid = pyzmp.Topic(float)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value if name != "twice" else 2 * value)


class Both(Better):
    more = pyzmp.Topic(float)


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


@pytest.mark.parametrize(("attribute", "node"), [
    ("celsius", Sensor("one")), ("alerts", Sensor("one")), ("celsius", Better("one")), ("humid", Better("one")),
    ("celsius", Both("one")), ("humid", Both("one")), ("more", Both("one"))])
def test_to_assign_to_a_topic_is_told_with_what_to_write(attribute: str, node: Sensor) -> None:
    with pytest.raises(TypeError, match=rf"{attribute} is a topic: write self\.{attribute}\.publish\(21\.5\)"):
        setattr(node, attribute, 21.5)
    node.other = 3  # type: ignore[attr-defined]
    for same in node, copy.copy(node), pickle.loads(pickle.dumps(node)):
        same.celsius.publish(21.5)
        assert same.other == 3


def test_a_class_may_have_its_own_way_to_assign() -> None:
    node = Both("one")
    node.twice = 3  # type: ignore[attr-defined]
    assert node.twice == 6  # type: ignore[attr-defined]


def test_what_has_stopped_publishes_no_more_and_has_no_subscribers() -> None:
    node = Sensor("one")
    node.celsius.publish(21.5)  # in a unit test
    for _ in range(2):
        with node:
            node.celsius.publish(21.5)
        for topic in node.celsius, vars(node).pop("celsius"), node.celsius:
            with pytest.raises(RuntimeError, match="one/celsius cannot be published any more: 'one' has stopped"):
                topic.publish(21.5)
            assert topic.subscribers == 0


def test_to_look_for_subscribers_publishes_nothing() -> None:
    alerts = pyzmp.Topic(str, "house/alerts")
    assert alerts.subscribers == 0
    assert repr(alerts) == "<Topic house/alerts: str>"
    alerts.publish("fire")
    assert pyzmp.Topic(str, "house/alerts").subscribers == 0
    with alerts.subscribe(timeout=10):
        alerts.wait_for_subscribers(timeout=10)
        assert pyzmp.Topic(str, "house/alerts").subscribers == 1
    assert pyzmp.Topic(str, "house/other").subscribers == 0
    with Sensor("one") as node:
        assert node.alerts.subscribers == 0
        assert {topic.name for topic in pyzmp.graph().topics} <= {"house/alerts", "one/celsius"}


@pytest.mark.parametrize("ask", [lambda topic: topic.subscribers, lambda topic: topic.on_demand(print),
                                 lambda topic: topic.wait_for_subscribers(timeout=1)])
def test_who_subscribes_is_asked_of_one_publisher(ask: Any) -> None:
    with pytest.raises(TypeError, match=r"Sensor\.celsius is that of all nodes of the class, and .* is for a single"):
        ask(Sensor.celsius)
    with pytest.raises(RuntimeError, match=r"one/celsius is published by 'one' itself, .* ask accounts\(\) from here"):
        ask(Sensor.at("one").celsius)


@pytest.mark.parametrize(("make", "error", "text"), [
    (lambda: pyzmp.Topic("a/b"), TypeError, r"the type of the values comes first, as in Topic\(float, 'a/b'\)"),
    (lambda: pyzmp.Topic(int, "a/*", keep=3), ValueError, "only whoever publishes keeps"),
    (lambda: pyzmp.Topic(pyzmp.Topic), TypeError, "a topic is of values"),
    (lambda: pyzmp.Topic(pyzmp.Topic[int]), TypeError, "a topic is of values"),
    (lambda: pyzmp.Topic(pyzmp.Topic(int)), TypeError, "a topic is of values"),
    (lambda: pyzmp.Topic(int, "a/b").publish(1, timeout=-1), ValueError, "expected a positive"),
])
def test_what_a_topic_cannot_be_made_of(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_a_topic_without_a_name_is_shown_as_that() -> None:
    assert repr(pyzmp.Topic(int)) == "<Topic: int>"
    assert repr(pyzmp.Topic("Later")) == "<Topic>"


def test_on_demand_takes_a_plain_function_of_one_argument() -> None:
    async def waits(wanted: bool) -> None: ...
    topic = pyzmp.Topic(int, "a/b")
    for callback, text in [(waits, "nobody would await"), (lambda: None, r"takes \(\), and is to take one argument"),
                           (threading.Event().set, "one argument"), (3, "expected a function")]:
        with pytest.raises(TypeError, match=text):
            topic.on_demand(callback)  # type: ignore[arg-type]
    told: list[bool] = []
    for right in told.append, lambda wanted, more=1: None, print:
        topic.on_demand(right)  # type: ignore[arg-type]
