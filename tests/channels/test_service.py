"""A service as its callers hold it: options, futures, and the spelling of 0.0.17.  Calls are shown with nodes."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.call import Call, serving
from pyzmp.exceptions import CallTimeout, CannotTravel, DeadlockError
from pyzmp.protocol.deadline import Deadline
from pyzmp.registry.replica import Replica
from tests.campaigns.history import SCALE


class Lamp(pyzmp.Node):
    kind = "entity"

    def on_start(self) -> None:
        self.count = 0

    @pyzmp.service
    def on(self, n: int = 0) -> str:
        self.count += 1
        return self.name


def inside(call: Call) -> contextvars.Context:
    """Where code runs that serves *call*."""
    context = contextvars.copy_context()
    context.run(serving.set, call)
    return context


def test_the_options_are_kept_through_copies() -> None:
    service = pyzmp.Service("on").with_options(timeout=2).with_options(wait=True)
    again = service.with_options(timeout=3)
    assert (service._timeout, service._wait, again._timeout, again._wait) == (2.0, True, 3.0, True)


@pytest.mark.parametrize(("args", "kwargs", "shown"), [(3, None, "3"), ("ab", None, "'ab'"), (None, [1], r"\[1\]")])
def test_call_takes_a_tuple_and_a_dict(args: Any, kwargs: Any, shown: str) -> None:
    with pytest.raises(TypeError, match=rf"got {shown}; write service\({shown}\)"):
        pyzmp.Service("on").call(args, kwargs)


def test_a_call_that_waits_for_nobody_ends_as_unknown() -> None:
    pyzmp.configure(registry="memory")
    for ask in (lambda: pyzmp.Service("on").call(send_timeout=50), lambda: pyzmp.Service("on").call(node="lamp"),
                pyzmp.Service("on").with_options(wait=True, timeout=0.05)):
        with pytest.raises(pyzmp.UnknownService):
            ask()


def test_inside_a_call_that_is_spent_nothing_is_called() -> None:
    pyzmp.configure(registry="memory")
    with Lamp("lamp") as lamp:
        context = inside(Call("house", "light", "caller", Deadline(time.monotonic() - 1)))

        async def acall() -> str:
            return await Lamp.on.acall()
        for ask in (Lamp.on, Lamp.on.submit, lambda: asyncio.run(acall()), lambda: next(Lamp.on.map([1]))):
            with pytest.raises(CallTimeout, match=r"on\(\) was not called: nobody waits any more for light") as spent:
                context.run(ask)
            assert spent.value.executed is False
        assert Lamp.on() == "lamp"
        assert lamp.count == 1


def test_to_wait_on_the_loop_that_serves_is_a_deadlock_at_once() -> None:
    pyzmp.configure(registry="memory")

    async def run() -> None:
        async with Lamp("lamp"):
            began = time.monotonic()
            for wait in (Lamp.on, lambda: Lamp.on.submit().result(), lambda: next(Lamp.on.map([1])),
                         lambda: Lamp.on.submit().exception()):
                with pytest.raises(DeadlockError):
                    wait()
            assert time.monotonic() - began < 1 * SCALE
            assert await asyncio.wrap_future(Lamp.on.submit()) == "lamp"
    asyncio.run(run())


def test_a_blocking_call_goes_to_those_that_can_answer_meanwhile() -> None:
    pyzmp.configure(registry="memory")

    async def run() -> None:
        async with Lamp("here"):
            assert [Lamp.on() for _ in range(4)] == ["there"] * 4
            assert {await Lamp.on.acall() for _ in range(4)} == {"here", "there"}
    with Lamp("there"):
        asyncio.run(run())


def test_a_coroutine_never_blocks_to_look_for_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks(*_: object) -> None:
        raise AssertionError("it blocks the loop")
    monkeypatch.setattr(Replica, "look", blocks)
    monkeypatch.setattr(Replica, "wait_until", blocks)
    waiting = pyzmp.Service("on").with_options(wait=True, timeout=0.1)

    async def run() -> None:
        assert await pyzmp.adiscover("on", timeout=0.1) is None
        for service in (waiting, pyzmp.Service("on")):
            with pytest.raises(pyzmp.UnknownService):
                await service.acall()
            with pytest.raises(pyzmp.UnknownService):
                async for _ in service.map([1]):
                    pass
    asyncio.run(run())


def test_waiting_for_a_provider_ends_in_time_where_no_registry_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object, timeout: float, **__: object) -> bool:  # as one that was stopped
        await asyncio.sleep(timeout)
        return False
    monkeypatch.setattr(Replica, "connect", silent)

    async def acall() -> None:
        await pyzmp.Service("on").with_options(wait=True, timeout=0.2).acall()
    for find in (lambda: pyzmp.discover(Lamp.on, timeout=0.2), lambda: asyncio.run(pyzmp.adiscover(Lamp.on, 0.2)),
                 pyzmp.Service("on").with_options(wait=True, timeout=0.2), lambda: asyncio.run(acall())):
        began = time.monotonic()
        with pytest.raises(pyzmp.UnknownService):
            find()
        assert 0.2 <= time.monotonic() - began < 0.6 * SCALE


def test_async_for_over_a_map_waits_for_a_provider_on_the_very_loop() -> None:
    pyzmp.configure(registry="memory")

    async def run() -> list[str]:
        lamp = Lamp("lamp")
        starting = asyncio.create_task(lamp.astart())
        try:
            return [name async for name in Lamp.on.with_options(wait=True).map([1, 2])]
        finally:
            await starting
            await lamp.ashutdown()
    assert asyncio.run(run()) == ["lamp", "lamp"]


@pytest.mark.parametrize(("args", "kwargs", "where"), [
    ((1, threading.Lock()), {}, "argument 2"), (([0, threading.Lock()],), {}, "argument 1[1]"),
    ((), {"b": {"x": threading.Lock()}}, "argument 'b'['x']"),
])
def test_an_argument_that_cannot_travel_is_named_as_the_caller_knows_it(
        args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> None:
    node = pyzmp.Node("keeper", kind="entity")
    node.provides(lambda *values, **others: None, "keep")
    with node, pytest.raises(CannotTravel) as caught:
        pyzmp.Service("keep")(*args, **kwargs)
    assert str(caught.value).startswith(f"keep(): {where}: a value of type lock cannot travel")
