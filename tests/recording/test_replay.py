"""Publishing again what was recorded."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.subscription import Subscription, subscribe_to
from pyzmp.exceptions import NodeExists
from pyzmp.protocol import codec
from pyzmp.protocol.recording import Gap, Publisher
from pyzmp.protocol.schema import Type
from pyzmp.recording import Recording, Replayed, areplay, record, replay
from pyzmp.recording.file import Journal, selection
from pyzmp.recording.replay import _Rhythm
from tests.campaigns.history import SCALE

ALERTS = pyzmp.Topic(str, "house/alerts")


class Thermometer(pyzmp.Node):
    kind = "thread"
    reading = pyzmp.Topic(float)

    @pyzmp.service
    def publish(self, value: float) -> None:
        self.reading.publish(value)
        ALERTS.publish(f"{value}")

    @pyzmp.service
    def replay(self, path: str) -> None:
        replay(path)


def recorded(node: str, topic: str, type: Any, *marks: str) -> Publisher:
    return Publisher(topic, node, Type.of(type).text, Type.of(type).shape, marks)


KITCHEN = recorded("kitchen", "kitchen/reading", float, "Thermometer.reading")
HALL = recorded("hall", "hall/reading", float, "Thermometer.reading")
HOUSE = recorded("alarm", "house/alerts", str)
STEPS = [(KITCHEN, 4, 100.0, 20.5), (HALL, 0, 100.1, 18.0), (HOUSE, 2, 100.2, "warm"), (KITCHEN, 6, 100.3, 21.0)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recording."""
    with Journal(os.fspath(tmp_path / "a")) as journal:
        journal.began(99.0)
        for publisher, number, at, value in STEPS:
            journal.message(publisher, number, at, *codec.encode(value))
        journal.gap(KITCHEN, Gap(0, 7, 3, True, 100.3))
    return tmp_path / "a"


def subscribe(topic: Any, **options: Any) -> Subscription[Any]:
    """A subscription to a topic, a name or a pattern, that gives up in the end."""
    return subscribe_to(selection(topic), timeout=10 * SCALE, **options)


class Replay(threading.Thread):
    """A replay in a thread of its own; `result` waits for its end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(target=self._play, args=args, kwargs={"subscribers": 1, "lead": 0, "pace": None, **options})
        self.start()

    def _play(self, *args: Any, **options: Any) -> None:
        try:
            self.outcome: Any = replay(*args, timeout=10 * SCALE, **options)
        except Exception as error:
            self.outcome = error

    def result(self) -> Any:
        self.join()
        return self.outcome


SUBSCRIBED = {"by class": (Thermometer.reading, [0, 1, 3]), "at a node": (Thermometer.at("kitchen").reading, [0, 3]),
              "by pattern": ("*/reading", [0, 1, 3]), "by name": ("house/alerts", [2]), "as a topic": (ALERTS, [2])}


@pytest.mark.parametrize("how", SUBSCRIBED)
def test_whoever_subscribes_to_the_original_gets_it_as_it_was(how: str, path: Path) -> None:
    topic, wanted = SUBSCRIBED[how]
    chosen = [STEPS[index][0].topic for index in wanted]
    with subscribe(topic) as subscription:
        player = Replay(path, *chosen)
        messages = subscription.messages()
        found = sorted((next(messages) for _ in wanted), key=lambda message: message.time)
        assert player.result() == Replayed(len(wanted), 3 * ("kitchen/reading" in chosen), None)
    assert [(m.topic, m.node, m.time, m.value) for m in found] == [
        (publisher.topic, publisher.node, at, value) for publisher, _, at, value in (STEPS[index] for index in wanted)]
    assert [m.number for m in found] == {1: [0], 2: [0, 1], 3: [0, 0, 1]}[len(wanted)]  # anew, each publisher's


def test_what_is_recorded_of_a_replay_is_what_was_replayed(path: Path, eventually: Any) -> None:
    with record(path.with_name("b"), "**") as recorder:
        assert Replay(path).result() == Replayed(4, 3, None)
        eventually(lambda: recorder.messages == 4)
    again = Recording(path.with_name("b"))
    assert sorted((m.topic, m.node, m.time, m.value) for m in again) == sorted(
        (m.topic, m.node, m.time, m.value) for m in Recording(path))
    assert sorted(again.publishers, key=repr) == sorted(Recording(path).publishers, key=repr)


@pytest.mark.parametrize("node", ["living room", "x*"])
def test_a_node_is_replayed_whatever_it_is_called(node: str, tmp_path: Path) -> None:
    with Journal(os.fspath(tmp_path / "a")) as journal:
        journal.message(recorded(node, f"{node}/reading", float), 0, 100.0, *codec.encode(20.5))
    assert replay(tmp_path / "a", lead=0).messages == 1


def test_a_subscriber_of_another_type_is_refused_as_by_the_original(path: Path, eventually: Any) -> None:
    refused: list[Any] = []
    with pyzmp.Topic(str, "kitchen/reading").subscribe(on_event=refused.append, timeout=10 * SCALE) as subscription:
        taking = threading.Thread(target=lambda: next(subscription, None))
        taking.start()
        assert Replay(path, lead=0.2, subscribers=0).result().messages == 4
        eventually(lambda: refused)
        subscription.close()
        taking.join()
    assert "publishes it as float" in refused[0].reason


def test_nothing_of_it_is_left_in_the_graph(path: Path, eventually: Any) -> None:
    with subscribe("**"):
        assert Replay(path).result().messages == 4
    eventually(lambda: not {"kitchen", "hall", "alarm"} & {node.name for node in pyzmp.graph().nodes})
    assert replay(path, pace=None, lead=0).messages == 4  # and it can be done again


def test_it_goes_at_the_recorded_pace_or_another(path: Path) -> None:
    """Never faster than it should; how much slower is the machine's."""
    for pace, least in ((1.0, 0.3), (4.0, 0.075), (None, 0.0)):
        began = time.monotonic()
        assert replay(path, pace=pace, lead=0).messages == 4
        assert time.monotonic() - began >= least
    began = time.monotonic()
    replay(path, pace=0.0001, longest=0.01, lead=0)
    assert time.monotonic() - began < 20 * SCALE


def dues(times: list[float], pace: float | None = 1.0, longest: float = math.inf, lag: float = 0.0) -> list[float]:
    """When messages are due, where each takes *lag* seconds; from 1000 on."""
    rhythm, now, found = _Rhythm(pace, longest), 1000.0, []
    for at in times:
        due = rhythm.due(at, now)
        found.append(due - 1000.0)
        now = max(now, due) + lag
    return found


def test_the_rhythm_is_that_of_the_recording() -> None:
    assert dues([5, 6, 8]) == [0, 1, 3]
    assert dues([5, 6, 8], pace=2.0) == [0, 0.5, 1.5]
    assert dues([5, 6, 8], lag=0.75) == [0, 1, 3]  # what was late is caught up
    assert dues([5, 6, 8], lag=10) == [0, 1, 3]
    assert dues([5, 4, 6]) == [0, 0, 1]  # clocks of several hosts
    assert dues([5, math.nan, math.inf, -math.inf, 6]) == [0, 0, 0, 0, 1]
    assert dues([0, 1e6, 1e6 + 1], longest=2) == [0, 2, 3]
    assert dues([0, 1e6], pace=None, lag=0.5) == [0, 0.5]


def test_a_pause_between_two_recorders_is_not_waited_for() -> None:
    rhythm = _Rhythm(1.0, math.inf)
    assert [rhythm.due(5.0, 100.0), rhythm.due(6.0, 100.0)] == [100.0, 101.0]
    rhythm.rest()
    assert [rhythm.due(9000.0, 101.5), rhythm.due(9001.0, 101.5)] == [101.5, 102.5]


def test_times_may_be_those_of_the_replay(path: Path) -> None:
    with subscribe("house/*") as subscription:
        player = Replay(path, "house/*", now=True)
        assert next(subscription.messages()).time > 1e9
        player.result()


def test_a_node_that_lives_keeps_its_name(path: Path) -> None:
    with Thermometer("kitchen"), Thermometer("alarm"), subscribe("**") as subscription:
        with pytest.raises(NodeExists, match=r"'kitchen' lives, .*rename=.'kitchen/reading': 'old/kitchen/"):
            replay(path, pace=None, lead=0)
        player = Replay(path, rename={"kitchen/reading": "old/kitchen/reading"})
        messages = subscription.messages()
        found = {message.topic: message.node for message in (next(messages) for _ in range(4))}
        assert player.result().messages == 4
    alarm = found.pop("house/alerts")  # belongs to nobody, so this program publishes it
    assert found == {"old/kitchen/reading": "old/kitchen", "hall/reading": "hall"}
    assert alarm not in {"alarm", "kitchen", "hall"}


@pytest.mark.parametrize(("rename", "error"), [
    ({"kitchen/reading": "a//b"}, ValueError), (lambda name: name + "*", ValueError), ({"hall/reading": 3}, TypeError)])
def test_a_name_that_cannot_be_is_refused(rename: Any, error: type[Exception], path: Path) -> None:
    with pytest.raises(error):
        replay(path, rename=rename, lead=0)


def test_two_that_are_replayed_as_one_share_what_fits_both(path: Path, eventually: Any) -> None:
    names = {"hall/reading": "all/reading", "house/alerts": "all/reading", "kitchen/reading": "all/reading"}
    with subscribe("all/*") as subscription:
        player = Replay(path, "*/reading", rename=names)
        messages = subscription.messages()
        assert [(m.node, m.number, m.value) for m in (next(messages) for _ in range(3))] == [
            ("all", 0, 20.5), ("all", 1, 18.0), ("all", 2, 21.0)]
        player.result()


def test_topics_and_times_select_what_is_replayed(path: Path) -> None:
    assert replay(path, "house/*", Thermometer.at("hall").reading, pace=None, lead=0).messages == 2
    assert replay(path, start=100.1, end=100.3, pace=None, lead=0) == Replayed(2, 0, None)


def test_what_comes_before_a_damage_is_replayed_and_the_damage_told(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"warm")] ^= 1  # the third of four
    path.write_bytes(data)
    done = replay(path, pace=None, lead=0)
    assert done.messages == 2
    assert done.damage is not None
    assert not done.damage.unfinished
    assert done.damage == Recording(path).damage


def test_it_waits_for_subscribers_and_says_where_they_do_not_come(path: Path) -> None:
    with pytest.raises(TimeoutError, match="has 0 subscribers and not 2"):
        replay(path, subscribers=2, timeout=0.05)


def test_a_subscriber_that_wants_to_be_waited_for_is_waited_for(path: Path) -> None:
    with subscribe("kitchen/*", full="block", length=1) as subscription:
        player = Replay(path, "kitchen/*")
        assert [next(subscription), next(subscription)] == [20.5, 21.0]
        assert player.result().messages == 2


def test_in_coroutines(path: Path) -> None:
    async def main() -> None:
        async with await Thermometer.reading.asubscribe(timeout=10 * SCALE) as subscription:
            task = asyncio.create_task(areplay(path, "*/reading", subscribers=1, lead=0, pace=10))
            assert [await anext(subscription) for _ in range(3)] == [20.5, 18.0, 21.0]
            assert (await task).messages == 3
    asyncio.run(main())


def test_on_a_loop_with_nodes_it_does_not_block(path: Path) -> None:
    with Thermometer("pantry"), pytest.raises(pyzmp.RemoteError, match="await areplay"):
        Thermometer.replay(str(path))


@pytest.mark.parametrize(("options", "said"), [
    ({"rename": "x"}, "rename: expected a mapping .* got 'x'"),
    ({"longest": -1}, "longest: expected 0 or more seconds"),
    ({"longest": "x"}, "longest: .* got 'x'")])
def test_options_that_cannot_be_are_refused(options: Any, said: str, path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        replay(path, lead=0, **options)


def test_a_topic_that_was_not_recorded_is_refused_with_the_nearest(path: Path) -> None:
    with pytest.raises(LookupError, match="has no topic 'hall/readin'; the nearest is 'hall/reading'"):
        replay(path, "hall/readin", lead=0)
    assert replay(path, "cellar/*", lead=0).messages == 0


@pytest.mark.parametrize("pace", [0, -1, math.nan, "fast"])
def test_a_pace_is_a_positive_number(pace: Any, path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match="pace"):
        replay(path, pace=pace)
