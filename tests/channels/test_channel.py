"""What all services are for their callers: whose turn it is, how long a call may take, and how handles are copied."""

from __future__ import annotations

import contextvars
import pickle
import time
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels.call import Call, serving
from pyzmp.exceptions import CallTimeout, UnknownService
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.facts import Trait
from pyzmp.sessions import Target


class Lamp(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def on(self, n: int = 0) -> str:
        return self.name

    @pyzmp.service(idempotent=True, timeout=2)
    def read(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def inside(call: Call) -> contextvars.Context:
    """Where code runs that serves *call*."""
    context = contextvars.copy_context()
    context.run(serving.set, call)
    return context


def serves(left: float) -> Call:
    return Call("house", "light", "caller", Deadline(time.monotonic() + left))


def targets(*names: str) -> list[Target]:
    return [Target(name, f"memory://{name}", name, (0, 1), "") for name in names]


def test_a_call_may_take_its_timeout_that_of_the_declaration_or_the_default() -> None:
    assert Lamp.on.limit() == 5
    assert Lamp.read.limit() == 2
    assert Lamp.read.with_options(timeout=3).limit() == 3


def test_who_has_left_is_not_found_any_more_and_who_has_come_is() -> None:
    service = Lamp.read.with_options()
    with Lamp("one"):
        assert [target.node for target in service.found()] == ["one"]
        with Lamp("two"):
            assert {target.node for target in service.found()} == {"one", "two"}
            service.node = "two"
            assert [target.node for target in service.found()] == ["two"]
        assert service.found() == []
        service.node = None
        assert [target.node for target in service.found()] == ["one"]
    assert service.found() == []


def test_inside_a_call_there_is_what_it_has_left() -> None:
    assert 1.9 < inside(serves(2)).run(Lamp.on.limit) <= 2
    assert inside(serves(2)).run(Lamp.on.with_options(timeout=1).limit) == 1
    with pytest.raises(CallTimeout, match=r"on\(\) was not called: nobody waits any more for light\(\)") as late:
        inside(serves(-1)).run(Lamp.on.limit)
    assert late.value.executed is False


def test_what_a_service_left_behind_is_not_bound_by_its_call() -> None:
    call = serves(-1)
    call.ends()
    assert inside(call).run(Lamp.on.limit) == 5


def test_turns_go_round_and_choosing_again_is_none() -> None:
    service, three = pyzmp.Service("on"), targets("a", "b", "c")
    first = [service.turn(three).node for _ in range(6)]
    assert first[:3] == first[3:]
    assert set(first) == {"a", "b", "c"}
    chosen = service.turn(three)
    for _ in range(3):
        assert service.turn(three, again=True) == chosen
    assert service.turn(three).node == first[(first.index(chosen.node) + 1) % 3]
    with pytest.raises(UnknownService):
        service.turn([])


def test_options_do_not_touch_what_they_were_asked_of() -> None:
    service = pyzmp.Service("on").with_options(timeout=2).with_options(wait=True).with_options(attempts=4)
    again = service.with_options(timeout=3)
    assert [(each.limit(), each.waits, each._attempts) for each in (service, again)] == [(2.0, True, 4), (3.0, True, 4)]
    policy = service.policy(targets("a")[0], waits=True)
    assert (policy.attempts, policy.idempotent, policy.deduplicates, policy.wait) == (4, False, False, True)
    assert Lamp.read.policy(targets("a")[0], waits=False).idempotent
    by_name = Target("a", "", "a", (0, 1), "", Trait.DEDUPLICATE)
    assert pyzmp.Service("read").policy(by_name, waits=False).deduplicates


@pytest.mark.parametrize(("options", "error"), [
    ({"timeout": 0}, ValueError), ({"timeout": -1}, ValueError), ({"timeout": float("nan")}, ValueError),
    ({"timeout": float("inf")}, ValueError), ({"timeout": "1"}, TypeError), ({"timeout": True}, TypeError),
    ({"attempts": 0}, ValueError), ({"attempts": -1}, ValueError), ({"attempts": 1.5}, TypeError),
    ({"attempts": True}, TypeError), ({"attempts": "2"}, TypeError),
])
def test_options_are_checked_where_they_are_given(options: dict[str, Any], error: type[Exception]) -> None:
    for service in (Lamp.on, pyzmp.Service("on")):
        with pytest.raises(error, match=next(iter(options))):
            service.with_options(**options)


def test_a_handle_travels_without_what_it_knows_of_this_process() -> None:
    with Lamp("lamp"):
        service = Lamp.at("lamp").on.with_options(timeout=3)
        assert service() == "lamp"
        copied = pickle.loads(pickle.dumps(service))
        assert (copied.name, copied.node, copied.limit()) == ("on", "lamp", 3)
        assert copied() == "lamp"


def test_providers_are_looked_up_again_only_when_the_graph_has_changed() -> None:
    with Lamp("one"):
        known = Lamp.on.found()
        assert Lamp.on.found() is known
        with Lamp("two"):
            assert {target.node for target in Lamp.on.found()} == {"one", "two"}
        assert [target.node for target in Lamp.on.seen()] == ["one"]


def test_renaming_a_handle_makes_it_another_service() -> None:
    with Lamp("lamp"):
        service = pyzmp.Service("on")
        assert len(service.found()) == 1
        service.name = "nothing"
        assert not service.found()
        assert repr(service) == "<Service nothing(...)>"
    assert not runtime.current().facts().services()
