"""The publishers of a subscription, as processes that are found, killed, cut off and started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime, subscribing
from pyzmp.channels import sources
from pyzmp.channels.message import Gap, Joined, Left
from pyzmp.exceptions import NodeDied
from pyzmp.protocol.index import Facts
from pyzmp.sessions import Target
from pyzmp.subscribing import Intake, Reach

WAIT = 30.0


class Lamp(pyzmp.Node):
    light = pyzmp.Topic(int, keep=4)

    @pyzmp.service
    def shine(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.light.publish(number)

    @pyzmp.service
    def grow(self) -> None:
        self.light._place("grow")._grow()  # type: ignore[union-attr]

    @pyzmp.service
    def pid(self) -> int:
        return os.getpid()

    @pyzmp.service
    def received(self) -> list[int]:
        return [account.received for account in self.light.accounts()]


def drained(lights: Any, into: list[Any]) -> bool:
    try:
        into.append(next(lights))
    except TimeoutError:
        return False
    return False


def test_a_publisher_that_is_killed_is_left_and_found_again(eventually: Callable[..., None],
                                                           caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []
    got: list[int] = []
    lamp = Lamp("lamp")
    lamp.start()
    with Lamp.light.subscribe(timeout=0.01, on_event=events.append) as lights:
        Lamp.at("lamp").shine(0, 3)
        eventually(lambda: drained(lights, got) or got == [0, 1, 2])
        os.kill(Lamp.at("lamp").pid(), signal.SIGKILL)
        eventually(lambda: drained(lights, got) or len(events) == 2)
        assert events[0] == Joined("lamp/light", "lamp")
        assert isinstance(events[1], Left)
        assert "lamp/light of 'lamp': the connection ended" in caplog.text
        assert lights.publishers == []
        lamp.shutdown()
        lamp.start()
        eventually(lambda: lights.publishers == ["lamp"])
        Lamp.at("lamp").shine(3, 5)
        eventually(lambda: drained(lights, got) or got == [0, 1, 2, 3, 4])
        assert (lights.received, lights.lost, lights.dropped) == (5, 0, 0)
    lamp.shutdown()


def test_what_was_published_while_it_was_cut_off_comes_or_is_lost(eventually: Callable[..., None],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    got: list[int] = []
    with Lamp("lamp"), Lamp.light.subscribe(timeout=0.01, on_event=events.append) as lights:
        Lamp.at("lamp").grow()
        Lamp.at("lamp").shine(0, 2)
        eventually(lambda: drained(lights, got) or got == [0, 1])
        opened, here = Intake.open, runtime.current()
        with monkeypatch.context() as cut:
            cut.setattr(Intake, "open", refuse)
            cut_off(here)
            Lamp.at("lamp").shine(2, 12)
        assert Intake.open is opened
        eventually(lambda: drained(lights, got) or got[-1] == 11)
        assert got == [0, 1, 8, 9, 10, 11]
        assert lights.lost == 6
        assert [type(event) for event in events] == [Joined, Left, Joined, Gap]
        assert events[-1] == Gap("lamp/light", "lamp", 2, 6, False)
        eventually(lambda: Lamp.at("lamp").received() == [4, 2])


def test_one_that_takes_nothing_is_not_filled_by_session_after_session(eventually: Callable[..., None],
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    pyzmp.configure(registry="memory")
    for module in (sources, subscribing):
        monkeypatch.setattr(module, "PAUSES", (0.001, 0.01))
    with Lamp("lamp", kind="entity"), Lamp.light.subscribe(timeout=WAIT, length=4) as lights:
        Lamp.at("lamp").grow()
        source = lights._sources._sources["lamp", "lamp/light"]
        for session in range(4):
            eventually(lambda: lights.publishers == ["lamp"])
            Lamp.at("lamp").shine(2 * session, 2 * session + 2)
            eventually(lambda: source.inlet.came == 2)
            cut_off(runtime.current())
        tries, again = [], Reach.again

        def counted(reach: Reach, now: float) -> float:
            tries.append(now)
            return again(reach, now)
        monkeypatch.setattr(Reach, "again", counted)
        eventually(lambda: len(tries) > 3)
        assert lights.publishers == []
        assert [next(lights) for _ in range(8)] == list(range(8))
        eventually(lambda: lights.publishers == ["lamp"])


def refuse(*_: Any) -> Any:
    raise ConnectionError("cut off")


def cut_off(here: runtime.Runtime) -> None:
    async def cut() -> None:
        for intake in list(here.sessions.intakes.values()):
            intake.close()
    here.run(cut())


def test_in_a_forked_child_it_is_the_parents() -> None:
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT) as lights:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                next(lights)
            except NodeDied as error:
                status = 0 if "what comes goes to the parent" in str(error) else 2
            finally:
                lights.close()
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        Lamp.at("lamp").shine(0, 1)
        assert next(lights) == 0


def test_one_that_says_nothing_is_named_and_the_subscription_goes_on(monkeypatch: pytest.MonkeyPatch,
                                                                    eventually: Callable[..., None],
                                                                    caplog: pytest.LogCaptureFixture) -> None:
    pyzmp.configure(timeout=0.5)
    with Lamp("lamp"):
        with monkeypatch.context() as cut:
            cut.setattr(Intake, "open", refuse)
            lights = Lamp.light.subscribe(timeout=WAIT)
        assert "subscribed to Lamp.light, and not confirmed within 0.5 s: lamp/light of 'lamp'" in caplog.text
        eventually(lambda: lights.publishers == ["lamp"])
        lights.close()


def test_nobody_waits_for_one_that_cannot_be_reached_from_here(monkeypatch: pytest.MonkeyPatch,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    pyzmp.configure(registry="memory", timeout=WAIT)
    with Lamp("lamp", kind="entity"):
        monkeypatch.setattr(runtime.Runtime, "target", lambda here, node: Target("lamp", "", node.loop, (0, 0), ""))
        began = time.monotonic()
        Lamp.light.subscribe().close()
        assert time.monotonic() - began < WAIT / 2
        assert "lamp/light of 'lamp', which listens nowhere where it can be reached from here" in caplog.text


class Talker(pyzmp.Node):
    """Publishes at once, and never again."""

    kind = "entity"
    said = pyzmp.Topic(int)

    def on_start(self) -> None:
        for number in range(3):
            self.said.publish(number)


def test_whoever_was_there_before_a_publisher_hears_all_of_it() -> None:
    pyzmp.configure(registry="memory")
    with Talker("first") as first, Talker.said.subscribe(timeout=WAIT) as said:
        messages = said.messages()
        second = Talker("second")
        with second:
            assert [next(messages).number for _ in range(3)] == [0, 1, 2]
        for again in (second, first):  # another life, also of one that was known at the beginning
            again.shutdown()
            with again:
                got = [next(messages) for _ in range(3)]
                assert [(message.node, message.number) for message in got] == [(again.name, 0), (again.name, 1),
                                                                               (again.name, 2)]
        assert (said.received, said.lost) == (9, 0)


def test_what_was_before_the_latest_is_counted_and_not_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    pyzmp.configure(registry="memory")
    with Talker("first"), Talker.said.subscribe(timeout=WAIT, full="latest") as said, Talker("second"):
        assert next(said) == 2
        assert said.lost + said.dropped == 2
    assert "messages" not in caplog.text


def test_who_is_found_by_the_first_look_of_all_was_there_before(monkeypatch: pytest.MonkeyPatch,
                                                               eventually: Callable[..., None]) -> None:
    pyzmp.configure(registry="memory")
    asked: dict[str, bool] = {}
    opened = Intake.open

    def noted(self: Intake, address: str, loop: str, subscribe: Any, receiver: Any) -> Any:
        asked[subscribe.node] = subscribe.early
        return opened(self, address, loop, subscribe, receiver)

    async def change() -> None:
        here.replica._changed()
    monkeypatch.setattr(Intake, "open", noted)
    here = runtime.current()
    with Talker("first"):
        view = here.replica.view
        with monkeypatch.context() as unknown:
            unknown.setattr(view, "position", None)
            unknown.setattr(view, "facts", Facts())
            said = Talker.said.subscribe(timeout=WAIT)
            assert not asked
        here.run(change())
        eventually(lambda: said.publishers == ["first"])
        with said, Talker("second"):
            eventually(lambda: said.publishers == ["first", "second"])
            assert asked == {"first": False, "second": True}


class Mute(pyzmp.Node):
    said = pyzmp.Topic(int)


def test_a_callback_whose_topic_nobody_publishes_warns_once(monkeypatch: pytest.MonkeyPatch,
                                                          caplog: pytest.LogCaptureFixture,
                                                          eventually: Callable[..., None]) -> None:
    pyzmp.configure(registry="memory", domain="x")
    with Talker("talker"):
        with pyzmp.Topic(int, "talker/sed").subscribe(print) as nothing:
            found = nothing._sources
            eventually(lambda: found._alone is not None)
        eventually(found._alone.cancelled)
        assert "no publisher" not in caplog.text
        monkeypatch.setattr(sources, "ALONE", 0.0)
        with (pyzmp.Topic(int, "talker/s*d").subscribe(print), pyzmp.Topic(int, "talker/said").subscribe(print),
              pyzmp.Topic(int, "other/*").subscribe(print), Mute.said.subscribe(print),
              pyzmp.Topic(int, "talker/sed").subscribe(print)):
            eventually(lambda: "no publisher" in caplog.text)
        assert ("has found no publisher in 0 s: nobody publishes 'talker/sed' in domain 'x' (1 node known); did you "
                "mean 'talker/said'?") in caplog.text
        assert caplog.text.count("no publisher") == 1
