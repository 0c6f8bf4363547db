"""Topics as they are declared, and as values.  Nodes that publish: behaviour/test_topics.py."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest

import pyzmp
from pyzmp.channels.topic import Topic
from pyzmp.exceptions import CannotTravel, InvalidAnnotation
from pyzmp.protocol import codec


@dataclasses.dataclass
class Place:
    x: float
    y: float


class Laser(pyzmp.Node):
    scan = pyzmp.Topic(list[float], keep=2)
    place = pyzmp.Topic(Place)
    range: pyzmp.Topic[float | None] = pyzmp.Topic(float | None)
    count: ClassVar[pyzmp.Topic[int]] = pyzmp.Topic(int)
    anything = pyzmp.Topic(Any)


class Better(Laser):
    scan = pyzmp.Topic(list[float])


alerts = pyzmp.Topic(str, "house/alerts")


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def test_names_marks_and_texts() -> None:
    laser = Laser("front")
    assert (Laser.scan.name, laser.scan.name, Laser.at("rear").scan.name, alerts.name) == (
        "Laser.scan", "front/scan", "rear/scan", "house/alerts")
    assert (Laser.scan.mark, laser.scan.mark, Better.place.mark, Better.scan.mark) == (
        "Laser.scan", "Laser.scan", "Laser.place", "Better.scan")
    assert laser.scan is laser.scan
    laser.name = "left"
    assert laser.scan.name == "left/scan"
    assert repr(Laser.scan) == "<Topic Laser.scan: list[float]>"
    assert repr(laser.range) == "<Topic left/range: float | None>"
    assert repr(alerts) == "<Topic house/alerts: str>"


def test_what_a_topic_selects() -> None:
    every, one, named = Laser.scan.selection(), Laser.at("front").scan.selection(), alerts.selection()
    assert (every.mark, every.node, every.pattern) == ("Laser.scan", "", None)
    assert (one.mark, one.node, one.text) == ("Laser.scan", "front", "front/scan")
    assert named.pattern is not None
    assert named.pattern.matches("house/alerts")
    assert Laser("front").scan.selection().node == "front"
    with pytest.raises(TypeError, match="no name"):
        pyzmp.Topic(int).selection()


def test_what_cannot_be_a_topic() -> None:
    with pytest.raises(TypeError, match="is a pattern"):
        pyzmp.Topic(int, "a/*").publish(3)
    for name in ("", "a//b", "/a"):
        with pytest.raises(ValueError, match=r"name|level"):
            pyzmp.Topic(int, name)
    with pytest.raises(TypeError, match="keep"):
        pyzmp.Topic(int, keep=True)
    with pytest.raises(ValueError, match="keep"):
        pyzmp.Topic(int, keep=-1)
    with pytest.raises(InvalidAnnotation):
        pyzmp.Topic(object())


def test_what_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match=r"hide Node\.start"):
        type("Bad", (pyzmp.Node,), {"start": pyzmp.Topic(int)})
    with pytest.raises(TypeError, match="has the name 'scan' already"):
        type("Bad", (pyzmp.Node,), {"other": Laser.scan})
    with pytest.raises(TypeError, match="overrides a topic"):
        type("Bad", (Laser,), {"scan": 3})
    with pytest.raises(TypeError, match=r"made as Topic\(int\)"):
        type("Bad", (pyzmp.Node,), {"__annotations__": {"t": "pyzmp.Topic[str]"}, "t": pyzmp.Topic(int),
                                    "__module__": __name__})
    with pytest.raises(TypeError, match=r"write Topic\[…\]"):
        type("Bad", (pyzmp.Node,), {"__annotations__": {"t": "int"}, "t": pyzmp.Topic(int), "__module__": __name__})


@pytest.mark.parametrize("node", [Laser("front"), Laser("front", kind="thread")])
def test_before_the_start_values_are_checked_and_nobody_gets_them(node: Laser) -> None:
    node.scan.publish([1.0, 2.0])
    node.place.publish(Place(1, 2))
    node.range.publish(None)
    node.anything.publish(10 ** 30)
    node.count.publish(10 ** 30)
    assert node.scan.subscribers == 0
    with pytest.raises(TypeError, match=r"front/scan: value\[1\]: expected float, got str"):
        node.scan.publish([1.0, "2"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"front/place: value\.x: expected float, got None"):
        node.place.publish({"x": None, "y": 1.0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected int, got bool"):
        node.count.publish(True)
    with pytest.raises(CannotTravel):
        node.anything.publish(object())
    with pytest.raises(RuntimeError, match="before its start"):
        node.scan.wait_for_subscribers(timeout=1)


def test_only_the_node_itself_publishes_what_is_its_own() -> None:
    with pytest.raises(TypeError, match=r"Laser\.scan belongs to a node; publish from an instance, or give the topic a "
                                        "full name"):
        Laser.scan.publish([])
    with pytest.raises(RuntimeError, match=r"front/scan is published by 'front' itself"):
        Laser.at("front").scan.publish([])
    with pytest.raises(RuntimeError, match="that is gone"):
        Laser("gone").scan.publish([])


def test_topics_are_values_that_can_be_sent() -> None:
    laser = Laser("front")
    laser.scan.publish([])
    for topic in (alerts, Laser.at("front").scan, laser.scan):
        other = pickle.loads(pickle.dumps(topic))
        assert (other.name, other.typed().text, other.mark) == (topic.name, topic.typed().text, topic.mark)
    sent = pickle.loads(pickle.dumps(laser))
    assert "scan" not in vars(sent)
    other_laser = copy.copy(laser)
    other_laser.name = "rear"
    assert (sent.scan.name, other_laser.scan.name, laser.scan.name) == ("front/scan", "rear/scan", "front/scan")
    assert isinstance(laser.scan, Topic)


def test_plain_values_are_packed_as_the_codec_packs_them() -> None:
    values = [b"", b"x" * 300, "ü" * 300, 0.5, 1 << 62, -5, True, None, 1 << 70, "\ud800", b"y" * codec.THRESHOLD]
    with Laser("front", kind="thread") as laser:
        got: list[Any] = []
        with laser.anything.subscribe(timeout=10) as subscription:
            for value in values:
                if value != "\ud800":
                    laser.anything.publish(value)
                else:
                    with pytest.raises(CannotTravel):
                        laser.anything.publish(value)
            got = [next(subscription) for _ in range(len(values) - 1)]
    assert got == [value for value in values if value != "\ud800"]


def test_a_node_that_is_started_again_publishes_again() -> None:
    laser = Laser("front", kind="thread")
    for turn in range(2):
        with laser, laser.count.subscribe(timeout=10) as subscription:
            laser.count.publish(turn)
            assert next(subscription) == turn
    with pytest.raises(RuntimeError, match="'front' has stopped"):
        laser.count.publish(2)
