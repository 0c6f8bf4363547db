"""The parameters of a node where it lives: what the graph hears of them, and when.  The graph is a list here."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

import pyzmp
from pyzmp.channels import values as module
from pyzmp.channels.declare import parameters_of
from pyzmp.channels.graph import unpacked
from pyzmp.channels.values import Values
from pyzmp.exceptions import AnnouncementRefused, PyzmpError, RegistryUnavailable
from pyzmp.protocol.facts import Epoch, Fact, Member, ParameterFact, Position


class Oven(pyzmp.Node):
    heat = pyzmp.Parameter(180.0)
    light = pyzmp.Parameter(False, settable=False)


class Baker(pyzmp.Node):
    recipes: pyzmp.Parameter[list[str]] = pyzmp.Parameter([])


class Registry:
    """Takes what is announced, unless it is told to fail next."""

    def __init__(self) -> None:
        self.member = Member("me", "host", 1, "now")
        self.heard: list[dict[str, Any]] = []
        self.hears = asyncio.Event()
        self.fails: list[PyzmpError] = []
        self.open = asyncio.Event()
        self.open.set()

    async def announce(self, facts: Iterable[Fact]) -> Position:
        await self.open.wait()
        if self.fails:
            raise self.fails.pop()
        self.heard.append({fact.name: unpacked(fact.value) for fact in facts if isinstance(fact, ParameterFact)})
        self.hears.set()
        return Position(Epoch(1, ""), len(self.heard))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that is heard."""
        while not condition():
            self.hears.clear()
            await self.hears.wait()


def run(test: Callable[[Values, Any], Coroutine[Any, Any, None]], *, begin: bool = True) -> None:
    async def main() -> None:
        parameters, registry = parameters_of(Oven), Registry()
        given = {name: parameter.default for name, parameter in parameters.items()}
        values = Values("oven", asyncio.get_running_loop(), parameters, given)
        if begin:
            values.begin(registry)  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(test(values, registry), 20)
        finally:
            values.leave()
    asyncio.run(main())


def test_the_facts_say_what_there_is() -> None:
    async def test(values: Values, registry: Registry) -> None:
        heat, light = values.facts("me")
        assert isinstance(heat, ParameterFact)
        assert isinstance(light, ParameterFact)
        assert (heat.node, heat.name, heat.owner, heat.text, heat.settable) == ("oven", "heat", "me", "float", True)
        assert (unpacked(light.value), light.settable) == (False, False)
        assert registry.heard == []
    run(test)


def test_many_values_of_one_turn_are_told_as_the_last() -> None:
    async def test(values: Values, registry: Registry) -> None:
        for number in range(100):
            values.set("heat", float(number))
        values.set("light", True)
        assert values.get("heat") == 99.0
        await registry.until(lambda: registry.heard)
        assert registry.heard == [{"heat": 99.0, "light": True}]
    run(test)


def test_while_the_graph_is_slow_nothing_piles_up() -> None:
    async def test(values: Values, registry: Registry) -> None:
        registry.open.clear()
        values.set("heat", -1.0)
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(values.aset("heat", float(number))) for number in range(50)]
        await asyncio.sleep(0)
        registry.open.set()
        assert {position.version for position in await asyncio.gather(*waiting)} == {2}
        assert registry.heard == [{"heat": -1.0}, {"heat": 49.0}]
    run(test)


def test_what_other_threads_set_is_told_too() -> None:
    async def test(values: Values, registry: Registry) -> None:
        threads = [threading.Thread(target=values.set, args=("heat", float(number))) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        await registry.until(lambda: registry.heard and registry.heard[-1]["heat"] == values.get("heat"))
    run(test)


def test_what_no_registry_took_is_told_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def test(values: Values, registry: Registry) -> None:
        registry.fails = [RegistryUnavailable("nobody there")]
        with pytest.raises(RegistryUnavailable):
            await values.aset("heat", 1.0)
        assert values.get("heat") == 1.0
        await registry.until(lambda: registry.heard)
        assert registry.heard == [{"heat": 1.0}]
    monkeypatch.setattr(module, "AGAIN", 0.01)
    with caplog.at_level(logging.WARNING, "pyzmp.node"):
        run(test)
    assert "oven could not tell its parameters: nobody there" in caplog.text


def test_what_is_refused_is_not_told_again() -> None:
    async def test(values: Values, registry: Registry) -> None:
        registry.fails = [AnnouncementRefused("the node is gone")]
        with pytest.raises(AnnouncementRefused):
            await values.aset("heat", 1.0)
        values.set("light", True)
        await registry.until(lambda: registry.heard)
        assert registry.heard == [{"light": True}]
    run(test)


def test_a_wrong_value_is_told_to_nobody() -> None:
    async def test(values: Values, registry: Registry) -> None:
        with pytest.raises(TypeError, match=r"Oven.heat: expected float"):
            await values.aset("heat", "hot")
        values.set("light", True)
        await registry.until(lambda: registry.heard)
        assert (registry.heard, values.get("heat")) == ([{"light": True}], 180.0)
    run(test)


def test_timers_are_told_of_each_value() -> None:
    async def test(values: Values, registry: Registry) -> None:
        timer = asyncio.Event()
        values.tells(timer)
        values.set("heat", 1.0)
        await timer.wait()
    run(test)


def test_what_was_given_is_not_changed_by_the_node() -> None:
    loop, given = asyncio.new_event_loop(), {"recipes": ["bread"]}
    values = Values("baker", loop, parameters_of(Baker), given)
    values.get("recipes").append("cake")
    assert given == {"recipes": ["bread"]}
    loop.close()


def test_a_value_that_is_set_when_the_loop_has_ended_is_kept() -> None:
    loop = asyncio.new_event_loop()
    values = Values("oven", loop, parameters_of(Oven), {"heat": 1.0, "light": False})
    loop.close()
    values.set("heat", 2.0)
    assert values.get("heat") == 2.0


def test_who_waits_when_the_node_leaves_has_its_end_for_an_answer_and_nothing_more_is_told() -> None:
    async def test(values: Values, registry: Registry) -> None:
        registry.open.clear()
        values.begin(registry)  # type: ignore[arg-type]
        waiting = [asyncio.ensure_future(values.aset("heat", float(number))) for number in range(3)]
        await asyncio.sleep(0)
        values.leave()
        values.set("heat", -1.0)
        registry.open.set()
        gone = Position(Epoch(1, ""), 99)
        values.over(gone)
        values.over(RegistryUnavailable("too late"))
        assert await asyncio.gather(*waiting) == [gone] * 3
        assert await values.aset("light", True) == gone
        assert values.get("heat") == -1.0
        await asyncio.sleep(0)
        assert registry.heard == []
    run(test, begin=False)
