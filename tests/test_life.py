"""The half of a node that runs in the node: what the behaviour of nodes does not show."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.exceptions import NodeExists, Refused, StartError
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.outcomes import Ask
from tests.campaigns.history import SCALE


class Slow(pyzmp.Node):
    kind = "thread"

    async def on_start(self) -> None:
        starting.set()
        await asyncio.sleep(60)


starting = threading.Event()


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


@pytest.mark.parametrize("kind", ["thread", "entity"])
def test_told_to_stop_while_it_starts_it_starts_no_further(kind: str) -> None:
    starting.clear()
    node = Slow("slow")
    node.kind = kind  # type: ignore[assignment]
    errors: list[BaseException] = []

    def start() -> None:
        try:
            node.start()
        except BaseException as error:
            errors.append(error)
    thread = threading.Thread(target=start)
    thread.start()
    assert starting.wait(5)
    began = time.monotonic()
    node.shutdown(join=False)
    thread.join()
    assert time.monotonic() - began < 2 * SCALE
    assert isinstance(errors[0], StartError)
    assert "before it was ready" in str(errors[0])
    assert pyzmp.discover("on") is None


class Noisy(pyzmp.Node):
    kind = "entity"
    ticks = 0

    @pyzmp.every(0.01)
    def tick(self) -> None:
        self.ticks += 1
        raise ValueError("too loud")

    @pyzmp.every(0.01)
    def lag(self) -> None:
        time.sleep(0.025)  # overruns two periods

    @pyzmp.service
    def ticked(self) -> int:
        return self.ticks


def test_a_timer_that_fails_is_logged_and_goes_on(caplog: pytest.LogCaptureFixture,
                                                  eventually: Callable[..., None]) -> None:
    with caplog.at_level(logging.ERROR, "pyzmp.node"), Noisy("noisy"):
        eventually(lambda: Noisy.ticked() > 3)
    assert caplog.messages.count("the timer Noisy.tick failed; it goes on") > 3
    assert caplog.records[0].exc_info is not None
    caplog.clear()


def test_a_node_that_waits_for_its_open_calls_says_so_when_it_gives_up(caplog: pytest.LogCaptureFixture,
                                                                      monkeypatch: pytest.MonkeyPatch,
                                                                      eventually: Any) -> None:
    class Busy(pyzmp.Node):
        kind = "entity"

        begun = False

        @pyzmp.service
        async def work(self) -> None:
            self.begun = True
            await asyncio.sleep(60)

        @pyzmp.service
        def on(self) -> bool:
            return self.begun

    monkeypatch.setattr("pyzmp.life.DRAIN", 1.05)
    node = Busy("busy")
    with caplog.at_level(logging.WARNING, "pyzmp.node"), node:
        open_call = Busy.work.submit()
        eventually(Busy.on)
    error = open_call.exception(5)
    assert isinstance(error, (pyzmp.RemoteError, pyzmp.NodeDied)), error
    assert any("1 calls were still running" in message for message in caplog.messages)
    caplog.clear()


class Meter(pyzmp.Node):
    kind = "entity"

    @pyzmp.service(idempotent=True)
    def read(self) -> int:
        return 1

    @pyzmp.service(deduplicate=True)
    def reset(self) -> None: ...

    @pyzmp.service
    def values(self) -> Iterator[int]:
        yield 1

    @pyzmp.service
    async def total(self, items: AsyncIterator[int]) -> int:
        return sum([item async for item in items])


def count(upto: int) -> Iterator[int]:
    yield from range(upto)


async def gather(items: AsyncIterator[int]) -> None: ...


class Gatherer:
    async def __call__(self, items: AsyncIterator[int]) -> None: ...


def drain(items: Iterator[int]) -> None: ...


def test_the_graph_knows_what_callers_should_know_of_a_service() -> None:
    node = Meter("meter")
    node.provides(count)
    node.provides(gather)
    node.provides(Gatherer(), "object")
    with node:
        facts = runtime.current().facts()
        assert {fact.name: fact.traits for fact in facts.services_of("meter")} == {
            "read": Trait.IDEMPOTENT, "reset": Trait.DEDUPLICATE, "values": Trait.STREAM, "total": 0,
            "count": Trait.STREAM, "gather": 0, "object": 0}


@pytest.mark.parametrize("running", [False, True])
def test_a_function_that_would_wait_for_a_stream_on_the_loop_is_not_offered(running: bool) -> None:
    node = Meter("meter")
    if running:
        node.start()
    with pytest.raises(TypeError, match="the offered service drain takes a stream, which would have to arrive on the"):
        node.provides(drain)
    with node:
        assert "drain" not in pyzmp.services


# -- parameters, as the node comes and goes ------------------------------------------------------------------------


class Oven(pyzmp.Node):
    kind = "entity"
    heat = pyzmp.Parameter(180.0)
    light = pyzmp.Parameter(0)
    on_start_goes_on: asyncio.Event | None = None
    on_stop_goes_on: asyncio.Event | None = None
    changed: asyncio.Event
    on_stop_ends: asyncio.Event

    async def on_start(self) -> None:
        if self.on_start_goes_on is not None:
            self.heat = 5.0
            await self.on_start_goes_on.wait()

    async def on_stop(self) -> None:
        if self.on_stop_goes_on is not None:
            await self.on_stop_goes_on.wait()
            self.heat = -1.0
            self.changed.set()
            await self.on_stop_ends.wait()


def test_what_is_set_in_on_start_is_told_once_the_node_is_reachable() -> None:
    async def main() -> None:
        oven, go = Oven("oven"), asyncio.Event()
        oven.on_start_goes_on = go
        starting = asyncio.create_task(oven.astart())
        await pyzmp.graph.await_for("oven", timeout=10)
        async with Meter("meter"):  # what was told before this is in the graph by now
            with pytest.raises(pyzmp.UnknownService, match="no parameter 'heat' in node 'oven'"):
                await Oven.at("oven").heat.aset(7.0)
        go.set()
        await starting
        assert await Oven.at("oven").heat.aget() == 5.0
        await Oven.at("oven").heat.aset(7.0)
        assert oven.heat == 7.0
        await oven.ashutdown()
    asyncio.run(main())


def test_what_is_set_during_a_shutdown_is_refused_and_changes_nothing() -> None:
    async def main() -> None:
        oven, here, errors = Oven("oven"), runtime.current(), list[Exception]()
        withdraw = here.withdraw

        async def slow(*args: Any) -> Any:
            try:
                await Oven.at("oven").heat.aset(7.0)
            except Exception as error:
                errors.append(error)
            values.append(oven.heat)
            return await withdraw(*args)
        values: list[float] = []
        await oven.astart()
        here.withdraw = slow  # type: ignore[method-assign]
        await oven.ashutdown()
        assert isinstance(errors[0], Refused)
        assert "'oven' is shutting down" in str(errors[0])
        assert errors[0].executed is False
        assert values == [180.0]
    asyncio.run(main())


def test_the_end_of_a_node_does_not_change_the_next_one_of_its_name() -> None:
    async def main() -> None:
        old, new, go = Oven("oven"), Oven("oven"), asyncio.Event()
        old.on_stop_goes_on, old.changed, old.on_stop_ends = go, asyncio.Event(), asyncio.Event()
        await old.astart()
        stopping = asyncio.create_task(old.ashutdown())
        await pyzmp.graph.await_for(lambda graph: "oven" not in graph, timeout=10)
        await new.astart()
        go.set()
        await old.changed.wait()
        assert (old.heat, new.heat) == (-1.0, 180.0)
        await Oven.at("oven").light.aset(1)  # what was told before this is in the graph by now
        assert await Oven.at("oven").heat.aget() == 180.0
        old.on_stop_ends.set()
        await stopping
        await new.ashutdown()
    asyncio.run(main())


class Plain(pyzmp.Node):
    kind = "entity"
    served = 0

    @pyzmp.service
    def on(self) -> int:
        self.served += 1
        return self.served


class Gate:
    """Holds what is announced from then on, *before* it is or once it is known, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
        self._here, self._before = runtime.current(), before
        self._announce = self._here.announce
        self.reached, self._opened = threading.Event(), threading.Event()
        self.announced: list[list[Any]] = []
        monkeypatch.setattr(self._here, "announce", self._held)

    async def _held(self, new: Any) -> Any:
        self.announced.append(list(new))
        position = None if self._before else await self._announce(self.announced[-1])
        self.reached.set()
        while not self._opened.is_set():  # noqa: ASYNC110 - another thread opens it
            await asyncio.sleep(0.001)
        return await self._announce(self.announced[-1]) if self._before else position

    def open(self) -> None:
        self._opened.set()


def starting_in_thread(node: pyzmp.Node, errors: list[BaseException]) -> threading.Thread:
    def start() -> None:
        try:
            node.start()
        except BaseException as error:
            errors.append(error)
    thread = threading.Thread(target=start)
    thread.start()
    return thread


def test_an_entity_is_announced_once_and_answers_before_it_hears_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    with Plain("first"):
        gate, node, errors = Gate(monkeypatch, before=False), Plain("plain"), list[BaseException]()
        thread = starting_in_thread(node, errors)
        assert gate.reached.wait(5)
        assert not node.has_started()
        assert Plain.at("plain").on() == 1
        gate.open()
        thread.join(5)
        assert node.has_started()
        assert len(gate.announced) == 1
        assert Plain.at("plain").on() == 2
        node.shutdown()
        assert pyzmp.discover("on") is not None
        assert not errors
    assert pyzmp.discover("on") is None


def test_an_entity_that_is_announced_once_refuses_what_is_asked_of_its_life_before(
        monkeypatch: pytest.MonkeyPatch) -> None:
    with Plain("first"):
        node, errors = Plain("plain"), list[BaseException]()
        with node:
            (before,) = Plain.at("plain").on.found()
        gate = Gate(monkeypatch, before=False)
        thread = starting_in_thread(node, errors)
        assert gate.reached.wait(5)
        here = runtime.current()
        for _ in range(2):  # before it knows its incarnation, and once it does
            ask = Ask("plain", "on", b"\x92\x90\x80", (), Deadline.after(5.0, time.monotonic()), 5.0,
                      before.incarnation)
            assert isinstance(here.sessions.ask(before, ask), Refused)
            gate.open()
            thread.join(5)
        assert node.has_started()
        node.shutdown()
        assert not errors


def test_an_entity_told_to_stop_while_it_is_announced_is_not_left_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (True, False):
        with monkeypatch.context() as patched, Plain("first"):
            gate, node, errors = Gate(patched, before=before), Plain("plain"), list[BaseException]()
            thread = starting_in_thread(node, errors)
            assert gate.reached.wait(5)
            node.shutdown(join=False)
            thread.join(5)
            assert [type(error) for error in errors] == [StartError]
            assert runtime.current().facts().node("plain") is None
            (host,) = runtime.current().hosts.values()
            assert set(host.guests) == {"first"}


def test_an_entity_whose_name_is_taken_leaves_nothing_where_it_was_to_live() -> None:
    async def main() -> None:
        async with Plain("other"):
            host = runtime.current().hosts[asyncio.get_running_loop()]
            with pytest.raises(NodeExists, match="as Plain"):
                await Plain("plain").astart()
            assert set(host.guests) == {"other"}
    with Plain("plain"):
        assert Plain.at("plain").on() == 1
        asyncio.run(main())
        assert Plain.at("plain").on() == 2
