"""The publishers of a subscription, as processes that are found, killed, cut off and started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels.message import Gap, Joined, Left
from pyzmp.exceptions import NodeDied
from pyzmp.sessions import Target
from pyzmp.subscribing import Intake

WAIT = 30.0


class Lamp(pyzmp.Node):
    light = pyzmp.Topic(int, keep=4)

    @pyzmp.service
    def shine(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.light.publish(number)

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
