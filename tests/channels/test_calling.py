"""One call at its caller, without a network: whom it goes to, what it says, and what its error tells."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.call import Call, serving
from pyzmp.channels.calling import Calling, crossed
from pyzmp.exceptions import CallTimeout, CannotTravel, DeadlockError, InvalidCall, NodeDied, Overloaded, RemoteError
from pyzmp.protocol import codec
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Flag, Lane
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.outcomes import Result
from pyzmp.sessions import Target


class Lamp(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def on(self, n: int = 0) -> str:
        return self.name

    @pyzmp.service(deduplicate=True)
    def once(self) -> None: ...

    @pyzmp.service
    def glow(self) -> Iterator[int]:
        yield 1

    @pyzmp.service(worker=True)
    def burn(self, items: Iterator[int], more: int = 0) -> int:
        return sum(items)


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def target(node: str = "lamp", loop: str = "loop", traits: int = 0) -> Target:
    return Target(node, f"memory://{node}", loop, (1, 2), "", traits)


def gone(node: str, executed: bool | None = False) -> NodeDied:
    return NodeDied(f"{node!r} is gone", service="on", node=node, executed=executed)


def test_what_is_asked_has_the_node_its_incarnation_and_one_deadline() -> None:
    calling = Calling(Lamp.on.with_options(timeout=2), (3,), {})
    first, asked = calling.attempt([target()], blocking=False)
    assert first == target()
    assert (asked.node, asked.service, asked.incarnation, asked.timeout) == ("lamp", "on", (1, 2), 2)
    assert codec.decode(asked.body, asked.buffers) == [[3], {}]
    assert 1.9 < asked.deadline.remaining(time.monotonic()) <= 2
    assert 1.9 < calling.left <= 2
    _, again = calling.attempt([target()], blocking=False)
    assert again.deadline == asked.deadline
    assert again.body is asked.body


def test_a_call_that_may_be_answered_again_has_one_key_for_all_attempts() -> None:
    calling = Calling(Lamp.once, (), {})
    keys = {calling.attempt([target(traits=Trait.DEDUPLICATE)], blocking=False)[1].key for _ in range(3)}
    assert len(keys) == 1
    assert len(keys.pop()) == 16
    assert Calling(Lamp.on, (), {}).attempt([target()], blocking=False)[1].key == b""


def test_another_provider_is_next_and_the_error_tells_of_both() -> None:
    with Lamp("one"), Lamp("two"):
        calling = Calling(Lamp.on, (), {})
        first, _ = calling.attempt(Lamp.on.found(), blocking=False)
        assert calling.again(gone(first.node)) == 0
        second, _ = calling.attempt(Lamp.on.found(), blocking=False)
        assert {first.node, second.node} == {"one", "two"}
        last = gone(second.node)
        assert calling.again(last) is None
        with pytest.raises(NodeDied, match="this was attempt 2; attempt 1 ended with NodeDied") as caught:
            calling.finished(last)
        assert caught.value is last
        assert isinstance(last.__cause__, NodeDied)


def test_what_may_have_run_is_not_made_again() -> None:
    with Lamp("one"), Lamp("two"):
        calling = Calling(Lamp.on, (), {})
        calling.attempt(Lamp.on.found(), blocking=False)
        assert calling.again(gone("one", executed=None)) is None


def test_what_was_taken_from_a_stream_is_not_sent_twice() -> None:
    with Lamp("one"), Lamp("two"):
        calling = Calling(Lamp.burn, (iter([1]),), {})
        _, asked = calling.attempt(Lamp.burn.found(), blocking=False)
        assert asked.flags == Flag.UPSTREAM
        assert codec.decode(asked.body, asked.buffers) == [[None], {}]
        assert calling.again(gone("one")) is None


@pytest.mark.parametrize(("args", "kwargs", "body"), [
    (([1, 2],), {}, [[[1, 2]], {}]), ((iter([]), 5), {}, [[None, 5], {}]),
    ((), {"items": iter([])}, [[], {"items": None}]),
])
def test_one_argument_is_sent_item_by_item_where_it_is_a_stream(args: Any, kwargs: Any, body: Any) -> None:
    for channel in (Lamp.burn, pyzmp.Service("burn")):
        calling = Calling(channel, args, kwargs)  # type: ignore[arg-type]
        _, asked = calling.attempt([target()], blocking=False)
        assert codec.decode(asked.body, asked.buffers) == body
        assert bool(asked.flags & Flag.UPSTREAM) == (calling.source is not None)


def test_a_stream_has_the_room_that_its_caller_gives_it_anew_for_each_attempt() -> None:
    calling = Calling(Lamp.glow, (), {}, Flag.STREAM, 7)
    asks = [calling.attempt([target(traits=Trait.STREAM)], blocking=False)[1] for _ in range(2)]
    assert [ask.incoming.window[0] for ask in asks if ask.incoming] == [7, 7]
    assert asks[0].incoming is not asks[1].incoming
    for channel, flags, traits, text in ((Lamp.glow, 0, Trait.STREAM, "is a stream"),
                                         (Lamp.on, Flag.STREAM, 0, "is no stream")):
        with pytest.raises(InvalidCall, match=text):
            Calling(channel, (), {}, flags).attempt([target(traits=traits)], blocking=False)


def test_what_cannot_travel_or_does_not_fit_is_told_before_anything_leaves() -> None:
    with pytest.raises(InvalidCall, match="argument n"):
        Calling(Lamp.on, ("one",), {}).attempt([target()], blocking=False)
    with pytest.raises(CannotTravel, match=r"on\(\): argument 1\[0\]"):
        Calling(pyzmp.Service("on"), ([threading.Lock()],), {}).attempt([target()], blocking=False)


def test_a_target_that_waits_for_this_call_is_passed_over_or_a_deadlock() -> None:
    call = Call("b", "middle", "caller", Deadline(time.monotonic() + 2), (Lane("loop", "first() of 'a'"),))

    def chosen(*targets: Target) -> Target:
        call.begins()
        return Calling(Lamp.on, (), {}).attempt(targets, blocking=False)[0]
    context = contextvars.copy_context()
    context.run(serving.set, call)
    assert {context.run(chosen, target("a"), target("c", "other")).node for _ in range(4)} == {"c"}
    with pytest.raises(DeadlockError, match=r"first\(\) of 'a'") as caught:
        context.run(chosen, target("a"))
    assert caught.value.circle == ("first() of 'a'",)
    assert caught.value.executed is False
    _, asked = context.run(lambda: (call.begins(), Calling(Lamp.on, (), {}).attempt([target("c", "other")],
                                                                                   blocking=False)))[1]
    assert asked.chain == call.chain
    context.run(call.ends)
    assert context.run(lambda: Calling(Lamp.on, (), {}).attempt([target("a")], blocking=False))[1].chain == ()


def test_a_blocking_call_on_a_loop_with_nodes_names_what_it_holds_up() -> None:
    async def run() -> tuple[Lane, ...]:
        async with Lamp("lamp"):
            return Calling(Lamp.on, (), {}).attempt([target("c", "other")], blocking=True)[1].chain
    (lane,) = asyncio.run(run())
    assert lane.what == "code on a loop with nodes"


def test_a_result_that_is_not_as_promised_is_the_nodes_fault() -> None:
    calling = Calling(Lamp.on, (), {})
    body, buffers = codec.encode("lit")
    assert calling.finished(Result(body, buffers)) == "lit"
    for wrong in (codec.encode(5)[0], b"\xc1"):
        with pytest.raises(RemoteError, match=r"the result of on\(\) is not what it promises"):
            calling.finished(Result(wrong, ()))


def test_a_call_without_a_result_earns_nothing_and_one_with_a_result_does() -> None:
    with Lamp("one"), Lamp("two"):
        service = Lamp.on.with_options(attempts=3)

        def tried() -> bool:
            calling = Calling(service, (), {})
            node = calling.attempt(service.found(), blocking=False)[0].node
            return calling.again(gone(node)) is not None
        assert sum(tried() for _ in range(20)) == 5
        body, buffers = codec.encode("lit")
        for _ in range(11):
            Calling(service, (), {}).finished(Result(body, buffers))
        assert sum(tried() for _ in range(20)) in {1, 2}
        full = Overloaded("full", service="on", node="one")
        patient = Calling(Lamp.on.with_options(wait=True), (), {})
        patient.attempt(Lamp.on.found(), blocking=False)
        assert patient.again(full) is not None  # to wait for a place takes no token


def test_a_timeout_that_crossed_another_call_says_so() -> None:
    error = crossed(CallTimeout("no answer", service="on", node="lamp", executed=None), "off() of 'switch'")
    assert str(error) == "no answer; 'lamp' was itself waiting for off() of 'switch', so neither could answer"
    assert (error.service, error.node, error.executed) == ("on", "lamp", None)


def test_the_request_of_a_stream_carries_nobody_along() -> None:
    for service, chain in ((Lamp.on, (Lane("elsewhere", "who waits"),)), (Lamp.glow, ())):
        outer = Call("lamp", "on", "", Deadline.after(5, time.monotonic()), (Lane("elsewhere", "who waits"),))
        outer.begins()
        token = serving.set(outer)
        try:
            flags = Flag.STREAM if service is Lamp.glow else 0
            calling = Calling(service, (), {}, flags)
            _, ask = calling.attempt([target(traits=Trait.STREAM if flags else 0)], blocking=False)
            assert ask.chain == chain
            with pytest.raises(DeadlockError):  # but to open it, somebody waits now
                calling.attempt([target(loop="elsewhere", traits=Trait.STREAM if flags else 0)], blocking=False)
        finally:
            serving.reset(token)
