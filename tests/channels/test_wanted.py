"""What may be waited for, and where; that it is found when it comes is shown with the graph."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels.graph import Graph
from pyzmp.exceptions import DeadlockError, RegistryUnavailable


class Lamp(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def on(self) -> bool:
        return True

    @pyzmp.service
    def waits(self, name: str) -> str:
        return pyzmp.graph.wait_for(name, timeout=10).node(name).name


class Shade(pyzmp.Node):
    kind = "thread"

    def on_start(self) -> None:
        self.lamp = pyzmp.graph.wait_for("lamp", timeout=10).node("lamp")


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def _wait(what: Any, **options: Any) -> Graph:
    return pyzmp.graph.wait_for(what, **options)


def _await(what: Any, **options: Any) -> Graph:
    async def main() -> Graph:
        return await pyzmp.graph.await_for(what, **options)
    return asyncio.run(main())


both = pytest.mark.parametrize("wait", [_wait, _await])


class Asynchronous:
    async def __call__(self, graph: Graph) -> bool:
        return False


@both
def test_an_async_condition_is_refused(wait: Callable[..., Graph]) -> None:
    async def condition(graph: Graph) -> bool:
        return False
    for what in (condition, Asynchronous(), functools.partial(condition)):
        with pytest.raises(TypeError, match="is async; a condition is a plain function of a graph"):
            wait(what, timeout=10)


@both
def test_many_are_wanted_of_services_only(wait: Callable[..., Graph]) -> None:
    for what in ("lamp", lambda graph: True):
        with pytest.raises(TypeError, match="providers: 3 of what"):
            wait(what, providers=3, timeout=10)


@both
def test_what_cannot_be_looked_up_is_not_there_yet(wait: Callable[..., Graph]) -> None:
    with pytest.raises(TimeoutError, match=r"not hold in domain .* known\): there is no node 'lamp' among") as raised:
        wait(lambda graph: graph.node("lamp"), timeout=0.02)
    assert isinstance(raised.value.__cause__, LookupError)
    lamp = Lamp("lamp")
    starting = threading.Thread(target=lamp.start)
    starting.start()
    assert wait(lambda graph: graph.node("lamp").service("on"), timeout=10).node("lamp").name == "lamp"
    starting.join()
    lamp.shutdown()


def test_where_nodes_would_be_held_up_nobody_blocks() -> None:
    async def main() -> None:
        async with Lamp("lamp"):
            assert "lamp" in pyzmp.graph.wait_for("lamp", timeout=10)
            assert await Lamp.at("lamp").waits.acall("lamp") == "lamp"
            with pytest.raises(DeadlockError, match=r"wait here for 'hall' .*; write await pyzmp.graph.await_for"):
                pyzmp.graph.wait_for("hall", timeout=10)
            with pytest.raises(pyzmp.RemoteError, match="DeadlockError"):
                await Lamp.at("lamp").waits.acall("hall")
            with pyzmp.graph.watch() as graphs:
                assert "lamp" in next(graphs)
                with pytest.raises(DeadlockError, match=r"a change of the graph holds up .*; iterate in async for"):
                    next(graphs)
        with pytest.raises(TimeoutError):
            pyzmp.graph.wait_for("hall", timeout=0.02)
    asyncio.run(main())


def test_a_node_may_wait_for_another_before_it_serves() -> None:
    shade, lamp = Shade("shade"), Lamp("lamp")
    starting = threading.Thread(target=shade.start)
    starting.start()
    pyzmp.graph.wait_for("shade", timeout=10)
    with lamp:
        starting.join()
        assert shade.lamp.name == "lamp"
        shade.shutdown()


@both
def test_the_end_of_the_runtime_ends_it(wait: Callable[..., Graph]) -> None:
    errors: list[Exception] = []
    looked = threading.Event()

    def waits() -> None:
        try:
            wait(lambda graph: looked.set(), timeout=60)
        except Exception as error:
            errors.append(error)
    thread = threading.Thread(target=waits)
    thread.start()
    assert looked.wait(10)
    runtime.reset()
    thread.join(10)
    assert isinstance(errors[0], RegistryUnavailable)
    assert "pyzmp has ended in this process while it waited for <function" in str(errors[0])
    assert not runtime.in_use()
