"""What nodes listen to, over the kinds of nodes."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels import sources
from pyzmp.channels.message import Event, Joined, Message
from pyzmp.channels.subscription import Subscription, subscribe_to


class Lamp(pyzmp.Node):
    kind = "entity"
    light = pyzmp.Topic(int, keep=10)

    @pyzmp.service
    async def shine(self, first: int, last: int) -> int:
        for number in range(first, last):
            self.light.publish(number)
        return self.light.subscribers


class Eye(pyzmp.Node):
    def on_start(self) -> None:
        self.got: list[int] = []
        self.late: list[str] = []
        self.threads: set[str] = set()

    @pyzmp.subscribe(Lamp.light)
    def see(self, value: int) -> None:
        self.threads.add(threading.current_thread().name)
        if value == 13:
            raise ValueError("unlucky")
        self.got.append(value)

    @pyzmp.subscribe(Lamp.light)
    async def slowly(self, message: Message[int]) -> None:
        await asyncio.sleep(0)
        assert pyzmp.current_node() is self
        self.late.append(f"{message.node} {message.number}")

    @pyzmp.service
    def seen(self) -> tuple[list[int], list[str]]:
        self.threads.add(threading.current_thread().name)
        return self.got, self.late

    @pyzmp.service
    def places(self) -> int:
        return len(self.threads)


class Chooser(pyzmp.Node):
    """Subscribes at run time."""

    kind = "thread"

    def on_start(self) -> None:
        self.got: list[int] = []
        self.events: list[Event] = []
        self.lights: Subscription[int] = Lamp.at("lamp").light.subscribe(self.see, history=2,
                                                                        on_event=self.events.append)

    def see(self, value: int) -> None:
        self.got.append(value)

    @pyzmp.service
    def seen(self) -> list[int]:
        return self.got

    @pyzmp.service
    def state(self) -> tuple[int, int, int, int, list[str], str]:
        lights = self.lights
        return lights.received, lights.dropped, lights.lost, lights.failed, lights.publishers, repr(self.events)

    @pyzmp.service
    def stop(self) -> None:
        self.lights.close()

    @pyzmp.service(worker=True)
    def more(self) -> list[str]:
        self.other = Lamp.light.subscribe(self.see)
        return self.other.publishers

    @pyzmp.service
    async def even_more(self) -> list[str]:
        self.last = await Lamp.light.asubscribe(self.asee)
        return self.last.publishers

    @pyzmp.service
    async def not_wanted(self) -> None:
        asks = asyncio.ensure_future(Lamp.light.asubscribe(self.see))
        await asyncio.sleep(0)
        asks.cancel()
        await asyncio.wait([asks])

    async def asee(self, value: int) -> None:
        self.got.append(-value)

    @pyzmp.service(worker=True)
    def unread(self) -> list[bytes]:
        came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        selected = Lamp.at("lamp").light.selection()
        with subscribe_to(msgspec.structs.replace(selected, type=None), came.put, history=1, raw=True):
            return [came.get(timeout=30).body]

    @pyzmp.service
    async def iterates(self) -> None:
        with pytest.raises(TypeError, match="calls a function with what comes"):
            next(self.lights)
        with pytest.raises(TypeError, match="calls a function with what comes"):
            await self.lights.__anext__()


@pytest.mark.parametrize("kind", ["entity", "thread", "process"])
def test_handlers_are_called_in_the_node_in_order_from_its_start_on(kind: Any, eventually: Callable[..., None],
                                                                   caplog: pytest.LogCaptureFixture) -> None:
    with Lamp("lamp"), Eye("eye", kind=kind):
        assert Lamp.at("lamp").shine(0, 100) == 2
        eventually(lambda: len(Eye.at("eye").seen()[1]) == 100)
        got, late = Eye.at("eye").seen()
        assert got == [number for number in range(100) if number != 13]
        assert late == [f"lamp {number}" for number in range(100)]
        assert Eye.at("eye").places() == 1
        if kind != "process":
            assert "lamp/light of 'lamp': the handler Eye.see of 'eye' raised" in caplog.text
    here = runtime.current()
    here.run(asyncio.sleep(0))
    assert not here.sessions.intakes


def test_what_the_code_of_a_node_subscribes_to_is_the_nodes(eventually: Callable[..., None]) -> None:
    pyzmp.configure(registry="memory")
    with Lamp("lamp"):
        Lamp.at("lamp").shine(0, 5)
        with Chooser("chooser"):
            chooser = Chooser.at("chooser")
            assert Lamp.at("lamp").shine(5, 7) == 1
            eventually(lambda: chooser.seen() == [3, 4, 5, 6])
            assert chooser.state() == (4, 0, 0, 0, ["lamp"], repr([Joined("lamp/light", "lamp")]))
            chooser.iterates()
            assert chooser.unread() == [b"\x06"]
            chooser.stop()
            eventually(lambda: Lamp.at("lamp").shine(7, 8) == 0)
            assert chooser.seen() == [3, 4, 5, 6]
            chooser.not_wanted()
            eventually(lambda: Lamp.at("lamp").shine(8, 8) == 0)
            assert chooser.more() == ["lamp"]
            assert chooser.even_more() == ["lamp"]
            assert Lamp.at("lamp").shine(8, 9) == 2
            eventually(lambda: sorted(chooser.seen()[4:]) == [-8, 8])
        eventually(lambda: Lamp.at("lamp").shine(9, 10) == 0)


def test_the_graph_says_what_a_node_listens_to(eventually: Callable[..., None]) -> None:
    pyzmp.configure(registry="memory")
    with Lamp("lamp"), Chooser("chooser"), Eye("eye", kind="thread"):
        assert pyzmp.graph().node("eye").subscribes == ("**/light",)
        assert pyzmp.graph().node("chooser").subscribes == ("lamp/light",)
        Chooser.at("chooser").more()
        eventually(lambda: set(pyzmp.graph().node("chooser").subscribes) == {"lamp/light", "**/light"})
        Chooser.at("chooser").stop()
        eventually(lambda: pyzmp.graph().node("chooser").subscribes == ("**/light",))


def test_a_node_starts_though_its_type_is_refused_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pyzmp.configure(registry="memory")

    class Wrong(pyzmp.Node):
        kind = "thread"

        @pyzmp.subscribe("lamp/light")
        def see(self, value: str) -> None: ...
    with Lamp("lamp"), Wrong("wrong"):
        assert "'lamp' refuses a subscription: lamp/light is expected to be str, and 'lamp' publishes it as int" in (
            caplog.text)


def test_a_node_may_listen_to_itself_and_others_on_its_loop(eventually: Callable[..., None]) -> None:
    pyzmp.configure(registry="memory")

    class Echo(Lamp):
        def on_start(self) -> None:
            self.got: list[tuple[str, int]] = []

        @pyzmp.subscribe(Lamp.light, full="latest")
        def see(self, message: Message[int]) -> None:
            self.got.append((message.node, message.value))

        @pyzmp.service
        def seen(self) -> list[tuple[str, int]]:
            return self.got
    with Echo("one"), Echo("two"):
        eventually(lambda: Lamp.at("one").shine(0, 0) == Lamp.at("two").shine(0, 0) == 2)
        Lamp.at("one").shine(5, 6)
        Lamp.at("two").shine(6, 7)
        for name in ("one", "two"):
            eventually(lambda name=name: sorted(Echo.at(name).seen()) == [("one", 5), ("two", 6)])


class Careful(pyzmp.Node):
    kind = "thread"
    notes: list[str] = []  # noqa: RUF012  of the test

    @pyzmp.subscribe(Lamp.light)
    async def see(self, value: int) -> None:
        self.notes.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.notes.append("ended")


def test_the_end_of_a_node_waits_for_what_a_handler_does_when_it_is_cancelled(eventually: Callable[..., None]) -> None:
    pyzmp.configure(registry="memory")
    Careful.notes.clear()
    with Lamp("lamp"), Careful("careful"):
        Lamp.at("lamp").shine(0, 2)
        eventually(lambda: Careful.notes)
    assert Careful.notes == ["begun", "ended"]


def test_a_refusal_in_on_start_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(pyzmp.Node):
        kind = "entity"

        def on_start(self) -> None:
            pyzmp.Topic(str, "lamp/light").subscribe(print)
    pyzmp.configure(registry="memory")
    with Lamp("lamp"), Wrong("wrong"):
        assert caplog.text.count("'lamp' refuses a subscription: lamp/light is expected to be str") == 1


def test_a_handler_whose_topic_nobody_publishes_warns(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
                                                      eventually: Callable[..., None]) -> None:
    class Misspelt(pyzmp.Node):
        kind = "entity"

        @pyzmp.subscribe("lamp/ligt")
        def see(self, value: int) -> None: ...
    pyzmp.configure(registry="memory", domain="x")
    monkeypatch.setattr(sources, "ALONE", 0.0)
    with Lamp("lamp"), Misspelt("eye"):
        eventually(lambda: "a subscription of 'eye' has found no publisher in 0 s: " in caplog.text)
        assert "'lamp/ligt' in domain 'x' (2 nodes known); did you mean 'lamp/light'?" in caplog.text
