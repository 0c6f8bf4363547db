"""Parameters of nodes: who reads, sets and follows them, wherever the node lives."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.setting import Setting
from pyzmp.exceptions import CannotTravel, DeadlockError, Refused


@dataclasses.dataclass
class Range:
    low: float
    high: float


class Thermometer(pyzmp.Node):
    period = pyzmp.Parameter(60.0)
    range = pyzmp.Parameter(Range(0.0, 100.0))
    ticks = pyzmp.Parameter(0, settable=False)
    mark = pyzmp.Parameter("cold")
    image = pyzmp.Parameter(b"")

    def on_start(self) -> None:
        self.mark += "-started"

    @pyzmp.every(period)
    def tick(self) -> None:
        self.ticks += 1

    @pyzmp.service
    def has(self) -> list[Any]:
        return [self.period, self.range, self.mark]

    @pyzmp.service
    def write(self, mark: str, n: int = 1) -> str:
        for number in range(n):
            self.mark = f"{mark}-{number}"
        return self.mark

    @pyzmp.service
    def confuse(self) -> str:
        try:
            self.mark = 3  # type: ignore[assignment]
        except TypeError as error:
            return f"{error}; {self.mark}"
        return ""

    @pyzmp.service
    def ask_myself(self) -> None:
        Thermometer.at("kitchen").mark.set("asked")

    @pyzmp.service
    async def aask_myself(self) -> str:
        await Thermometer.at("kitchen").mark.aset("asked")
        return self.mark


kitchen = Thermometer.at("kitchen")


def test_what_is_set_is_at_the_node_and_in_the_graph(home: Any) -> None:
    home.start(Thermometer("kitchen"))
    assert (kitchen.period.get(), kitchen.range.get()) == (60.0, Range(0.0, 100.0))
    assert kitchen.mark.get() == "cold-started"
    kitchen.range.set(Range(1.0, 2.0))
    kitchen.image.set(bytes(40_000))
    assert kitchen.has()[1] == {"low": 1.0, "high": 2.0}  # without types a dataclass is a dict
    assert kitchen.range.get() == Range(1.0, 2.0)
    assert kitchen.image.get() == bytes(40_000)

    async def main() -> str:
        await kitchen.mark.aset("awaited", timeout=10)
        return await kitchen.mark.aget()
    assert asyncio.run(main()) == kitchen.has()[2] == "awaited"
    shown = pyzmp.graph().node("kitchen")
    assert shown.parameter("range").value == {"low": 1.0, "high": 2.0}
    assert (shown.parameter("mark").value, shown.parameter("mark").type) == ("awaited", "str")
    assert [each.name for each in shown.parameters if not each.settable] == ["ticks"]
    assert "mark/set" not in pyzmp.services


def test_what_the_node_sets_is_seen_by_all_and_the_last_wins(home: Any) -> None:
    home.start(Thermometer("kitchen"))
    with kitchen.mark.watch(timeout=10) as marks:
        assert next(marks) == "cold-started"
        last = kitchen.write("warm", 500)
        assert last == "warm-499"
        seen = [next(marks)]
        while seen[-1] != last:
            seen.append(next(marks))
    numbers = [int(mark.rpartition("-")[2]) for mark in seen]
    assert numbers == sorted(set(numbers))


def test_sets_of_many_come_to_one_value(home: Any) -> None:
    home.start(Thermometer("kitchen"))

    def sets(who: int) -> None:
        for number in range(5):
            kitchen.mark.set(f"{who}-{number}")
    threads = [threading.Thread(target=sets, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kitchen.mark.get() == kitchen.has()[2]
    assert kitchen.mark.get().endswith("-4")


def test_what_is_refused_changes_nothing(home: Any) -> None:
    home.start(Thermometer("kitchen"))
    with pytest.raises(pyzmp.InvalidCall, match=r"mark.set\(\): argument value: expected str, got int") as raised:
        kitchen.mark.set(3)  # type: ignore[arg-type]
    assert raised.value.executed is False
    with pytest.raises(Refused, match="ticks of 'kitchen' is not settable: its class declares it with settable=False"):
        kitchen.ticks.set(3)
    with pytest.raises(CannotTravel, match=r"image.set\(\): value: .* 49152 bytes at most"):
        kitchen.image.set(bytes(50_000))
    with pytest.raises(ValueError, match="expected a positive, finite number of seconds"):
        kitchen.period.set(-1.0)
    # The node looks too, whatever a caller knows:
    with pytest.raises(pyzmp.InvalidCall, match="expected str, got int"):
        Setting("mark/set", node="kitchen")(3)
    with pytest.raises(ValueError, match="expected a positive, finite number of seconds"):
        Setting("period/set", node="kitchen")(0.0)
    with pytest.raises(pyzmp.RemoteError, match=r"CannotTravel: Thermometer.image: .* 49152 bytes at most"):
        Setting("image/set", node="kitchen")(bytes(50_000))
    assert kitchen.confuse() == "Thermometer.mark: expected str, got int; cold-started"
    assert [kitchen.mark.get(), kitchen.period.get(), kitchen.image.get()] == ["cold-started", 60.0, b""]
    assert kitchen.has()[0] == 60.0


def test_a_timer_follows_its_parameter_at_once(home: Any) -> None:
    home.start(Thermometer("kitchen"))
    began = time.monotonic()
    with kitchen.ticks.watch(timeout=30) as ticks:
        assert next(ticks) == 0
        kitchen.period.set(0.01)  # it waits for a minute otherwise
        assert next(ticks) >= 1
        kitchen.period.set(3600.0)
    assert time.monotonic() - began < 30


def test_each_start_begins_with_what_was_given_before(home: Any) -> None:
    node = home.settle(Thermometer("kitchen"))
    node.mark = "given"
    with kitchen.mark.watch(timeout=10) as marks:
        for _ in range(2):
            with node:
                assert next(marks) == "given-started"
                kitchen.mark.set("else")
                assert next(marks) == "else"
            assert node.mark == "given"


def test_the_starters_copy_of_a_process_is_not_what_is_set(home: Any) -> None:
    node = home.start(Thermometer("kitchen"))
    if home.kind != "process":
        node.mark = "here"
        assert node.mark == "here"
        assert next(mark for mark in kitchen.mark.watch(timeout=10) if mark != "cold-started") == "here"
        assert kitchen.has()[2] == "here"
        return
    with pytest.raises(RuntimeError, match=r"in process \d+; ask it with Thermometer.at\('kitchen'\).mark.get\(\)"):
        _ = node.mark
    with pytest.raises(RuntimeError, match=r"ask it with Thermometer.at\('kitchen'\).mark.set\(...\)"):
        node.mark = "x"
    assert kitchen.mark.get() == "cold-started"


def test_a_node_that_is_not_there_is_named(home: Any) -> None:
    home.start(Thermometer("kitchen"))
    hall = Thermometer.at("kitchens")
    with pytest.raises(pyzmp.UnknownService, match=r"there is no node 'kitchens' in domain .*; did you mean 'kitchen'"):
        hall.mark.get()
    for use in (lambda: hall.mark.set("x"), lambda: asyncio.run(hall.mark.aset("x")),
                lambda: asyncio.run(hall.mark.aget())):
        with pytest.raises(pyzmp.UnknownService, match="there is no node 'kitchens' in domain"):
            use()

    class Other(pyzmp.Node):
        marks = pyzmp.Parameter("")

    with pytest.raises(pyzmp.UnknownService, match="no parameter 'marks' in node 'kitchen'; did you mean 'mark'"):
        Other.at("kitchen").marks.get()
    with pytest.raises(pyzmp.UnknownService, match="no parameter 'marks' in node 'kitchen'"):
        Other.at("kitchen").marks.set("x")


def test_a_node_may_ask_itself_only_without_blocking(home: Any, eventually: Callable[..., None]) -> None:
    home.start(Thermometer("kitchen"))
    with pytest.raises(pyzmp.RemoteError, match="DeadlockError") as raised:
        kitchen.ask_myself()
    assert DeadlockError.__name__ in str(raised.value)
    assert kitchen.aask_myself() == "asked"
    eventually(lambda: kitchen.mark.get() == "asked")  # the node knew it at once


def test_a_callback_hears_of_values_of_every_life(home: Any, eventually: Callable[..., None]) -> None:
    heard: list[str] = []
    with kitchen.mark.watch(heard.append):
        for _ in range(2):
            heard.clear()
            with home.settle(Thermometer("kitchen")):
                eventually(lambda: heard == ["cold-started"])


def test_a_value_of_another_type_is_an_error_of_whoever_reads_it(home: Any) -> None:
    home.start(Thermometer("kitchen"))

    class Other(pyzmp.Node):
        mark = pyzmp.Parameter(3)

    with pytest.raises(pyzmp.RemoteError, match=r"mark of 'kitchen' is not what .*Other.mark promises: .* int"):
        Other.at("kitchen").mark.get()
    with pytest.raises(pyzmp.InvalidCall, match="expected str, got int"):
        Other.at("kitchen").mark.set(4)


def test_a_killed_node_takes_its_parameters_with_it(domain: Any) -> None:
    with Thermometer("kitchen") as node:
        assert kitchen.mark.get() == "cold-started"
        assert node.ident is not None
        os.kill(node.ident, signal.SIGSTOP)  # so that it cannot answer before it is killed
        threading.Timer(0.05, os.kill, (node.ident, signal.SIGKILL)).start()
        with pytest.raises(pyzmp.NodeDied):
            kitchen.mark.set("else", timeout=20)
        pyzmp.graph.wait_for(lambda graph: not graph.parameters, timeout=20)
        with pytest.raises(pyzmp.UnknownService, match="there is no node 'kitchen'"):
            kitchen.mark.get()
