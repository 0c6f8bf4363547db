"""A call at its node: answered once, and its streams, with a caller that only notes what it is sent."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from pyzmp.channels.call import Call
from pyzmp.exceptions import Cancelled, CannotTravel, MalformedMessage
from pyzmp.guest import Provided
from pyzmp.pending import Incoming, Outgoing, Pending, arguments
from pyzmp.protocol import codec, failure
from pyzmp.protocol.calls import Callee
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Code, Credit, End, Failure, Flag, Hello, Item, Opened, Parcel, Reply, Request
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.kept import Kept, Standing
from pyzmp.protocol.schema import Signature


class Caller:
    """Stands for a `Peer`."""

    def __init__(self, name: str = "caller") -> None:
        self.hello = Hello(b"", name)
        self.sent: list[Any] = []

    def send(self, message: Any, buffers: Any = ()) -> None:
        if sum(map(len, buffers)) > 1 << 30:
            raise CannotTravel("message", "the value", "it is too large")
        self.sent.append(message)


def pending(caller: Caller, call: int = 1, *, flags: int = 0, key: bytes = b"", body: bytes = b"1234") -> Pending:
    made = Pending(caller, Callee(), Request(call, "node", "service", 1.0, body, flags=flags, key=key), ())  # type: ignore[arg-type]
    assert made.callee.take(call, made.size)
    return made


def provided(function: Callable[..., Any], traits: int = 0) -> Provided:
    return Provided("service", function, Signature.of(function, drop_first=False), traits=traits)


def test_a_call_is_answered_once() -> None:
    caller = Caller()
    call = pending(caller)
    call.refuse(Code.REFUSED, "not now")
    call.answer(Reply(1, b""))
    call.raised(ValueError("late"))
    (sent,) = caller.sent
    assert isinstance(sent, Failure)
    assert (sent.call, sent.code, sent.text, sent.executed) == (1, Code.REFUSED, "not now", False)
    assert not call.callee.open


def test_an_answer_that_cannot_travel_is_the_services_error() -> None:
    class Fussy(Caller):
        def send(self, message: Any, buffers: Any = ()) -> None:
            if isinstance(message, Reply):
                raise CannotTravel("message", "the value", "it is too large")
            super().send(message, buffers)
    caller = Fussy()
    pending(caller).answer(Reply(1, b""))
    (sent,) = caller.sent
    assert (sent.code, sent.executed) == (Code.RAISED, True)
    assert "too large" in str(failure.rebuild(sent.body))


def test_a_one_way_call_gives_its_place_back_and_its_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caller = Caller("somebody")
    with caplog.at_level(logging.ERROR, "pyzmp.node"):
        pending(caller, flags=Flag.ONE_WAY).answer(Reply(1, b""))
        assert caplog.messages == []
        pending(caller, 2, flags=Flag.ONE_WAY).raised(ValueError("spilled"))
        pending(caller, 3, flags=Flag.ONE_WAY).refuse(Code.REFUSED, "not now")
    assert caller.sent == [Credit(0, 1, 4)] * 3
    assert [line.rpartition("failed: ")[2] for line in caplog.messages] == ["ValueError: spilled", "not now"]
    assert all("service() of 'node' by process somebody" in line for line in caplog.messages)


def joined(kept: Kept[Any, Any], *calls: Pending) -> list[Any]:
    for call in calls:
        call.kept = kept
    return [kept.begin(call.key, call, 0.0) for call in calls]


def test_a_call_that_comes_again_gets_the_answer_of_the_first_under_its_own_number() -> None:
    kept: Kept[Any, Any] = Kept()
    callers = [Caller(), Caller()]
    first, again = pending(callers[0], 1, key=b"k"), pending(callers[1], 7, key=b"k")
    assert joined(kept, first, again) == [Standing.FRESH, Standing.RUNNING]
    first.begun = True
    first.answer(Reply(1, b"done"))
    assert [caller.sent for caller in callers] == [[Reply(1, b"done")], [Reply(7, b"done")]]
    later = pending(callers[1], 8, key=b"k")
    ((message, _),) = joined(kept, later)
    later.reply(message)
    assert callers[1].sent[-1] == Reply(8, b"done")


def test_what_was_not_begun_is_not_kept() -> None:
    kept: Kept[Any, Any] = Kept()
    caller = Caller()
    first, again = pending(caller, 1, key=b"k"), pending(caller, 2, key=b"k")
    joined(kept, first, again)
    first.refuse(Code.OVERLOADED, "full")
    assert [message.call for message in caller.sent] == [1, 2]
    assert joined(kept, pending(caller, 3, key=b"k")) == [Standing.FRESH]


def test_the_answer_is_kept_also_where_its_first_caller_is_gone() -> None:
    kept: Kept[Any, Any] = Kept()
    caller = Caller()
    first = pending(caller, 1, key=b"k")
    joined(kept, first)
    first.begun = True
    first.raised(ValueError("on purpose"))
    ((message, _),) = joined(kept, pending(caller, 2, key=b"k"))
    assert message.code == Code.RAISED
    assert not first.callee.open


@pytest.mark.parametrize("value", [None, 5, [], [[]], [[], {}, 1], [{}, []], [[], {1: 2}], "args", [1, {}], [[], []]])
def test_arguments_are_a_list_and_a_map_of_names(value: Any) -> None:
    request = Request(1, "node", "service", 1.0, codec.encode(value)[0])
    with pytest.raises(MalformedMessage):
        arguments(request, ())
    with pytest.raises(MalformedMessage):
        arguments(Request(1, "node", "service", 1.0, b"\xc1"), ())
    good = Request(1, "node", "service", 1.0, codec.encode([[1], {"a": 2}])[0])
    assert arguments(good, ()) == ([1], {"a": 2})


# -- streams -------------------------------------------------------------------------------------------------------


def numbers() -> Iterator[int]: ...  # type: ignore[empty-body]


async def asum(items: AsyncIterator[int]) -> int: ...  # type: ignore[empty-body]


def outgoing(caller: Caller) -> tuple[Outgoing, Pending, Call]:
    call = pending(caller, flags=Flag.STREAM)
    served = Call("node", "service", "caller", Deadline(time.monotonic() + 5))
    return Outgoing(call, provided(numbers, Trait.STREAM), served), call, served


def test_items_leave_as_there_is_room_and_are_numbered() -> None:
    async def run() -> None:
        caller = Caller()
        out, _, _ = outgoing(caller)
        out.opened()

        async def give() -> None:
            for number in range(5):
                await out.put(number)
        giving = asyncio.create_task(give())
        await asyncio.sleep(0)
        assert caller.sent == [Opened(1)]
        for granted, sent in ((2, 2), (1, 3), (10, 5)):
            out.grant(Credit(1, granted, 1000))
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(caller.sent) == 1 + sent
        await giving
        assert [message.number for message in caller.sent[1:]] == list(range(5))
        for wrong, error in (("five", TypeError), (threading.Lock(), TypeError)):
            with pytest.raises(error):
                await out.put(wrong)
        with pytest.raises(MalformedMessage):
            out.grant(Credit(1, -1))
    asyncio.run(run())


def test_once_begun_no_deadline_ends_a_stream() -> None:
    async def run() -> None:
        out, _, served = outgoing(Caller())
        assert served.remaining <= 5
        out.opened()
        assert served.remaining == float("inf")
    asyncio.run(run())


def test_a_thread_that_waits_for_room_hears_of_it_and_of_the_end() -> None:
    async def run() -> None:
        caller = Caller()
        out, _, served = outgoing(caller)
        ended: list[Any] = []

        def give() -> None:
            try:
                for number in range(100):
                    out.put_from_thread(number)
            except BaseException as error:
                ended.append(error)
        thread = threading.Thread(target=give)
        thread.start()
        out.grant(Credit(1, 3, 1000))
        while len(caller.sent) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert thread.is_alive()
        served.cancel()
        out.wake()
        await asyncio.to_thread(thread.join)
        assert isinstance(ended[0], Cancelled)
        assert len(caller.sent) == 3
    asyncio.run(run())


def test_an_item_of_a_call_that_was_answered_goes_nowhere() -> None:
    async def run() -> None:
        caller = Caller()
        out, call, _ = outgoing(caller)
        out.grant(Credit(1, 3, 1000))
        call.answer(End(1))
        await out.put(1)
        assert caller.sent == [End(1)]
    asyncio.run(run())


def test_what_a_service_takes_arrives_converted_counted_and_in_order() -> None:
    async def run() -> None:
        caller = Caller()
        call = pending(caller, flags=Flag.UPSTREAM)
        incoming = Incoming(call, provided(asum))
        assert caller.sent == [Credit(1, 256, 1 << 20)]
        bodies = [codec.encode(number)[0] for number in range(128)]
        for number, body in enumerate(bodies):
            incoming.arrived(Parcel(Item(1, number, body)))
        incoming.arrived(Parcel(Item(1, 5, bodies[5])))  # again
        with pytest.raises(RuntimeError, match="iterate them with async for"):
            next(incoming)
        assert [await anext(incoming) for _ in range(128)] == list(range(128))
        await asyncio.sleep(0)
        assert caller.sent[1:] == [Credit(1, 128, sum(map(len, bodies)))]
        incoming.arrived(Parcel(End(1)))
        assert [number async for number in incoming] == []
    asyncio.run(run())


@pytest.mark.parametrize(("item", "error"), [
    (Item(1, 1, codec.encode(1)[0]), "item 1 of a stream, where item 0 is the next"),
    (Item(1, 0, b"\xc1"), "the bytes are no value"), (Item(1, 0, codec.encode("one")[0]), "expected int, got str"),
])
def test_an_item_that_cannot_be_is_the_streams_error(item: Item, error: str) -> None:
    async def run() -> None:
        incoming = Incoming(pending(Caller(), flags=Flag.UPSTREAM), provided(asum))
        incoming.arrived(Parcel(item))
        with pytest.raises(Exception, match=error):
            await anext(incoming)
        assert [number async for number in incoming] == []
    asyncio.run(run())


@pytest.mark.parametrize("last", [End(1), Item(1, 7, b"")])
def test_what_comes_behind_the_end_of_a_stream_is_not_kept(last: Item | End) -> None:
    async def run() -> None:
        incoming = Incoming(pending(Caller(), flags=Flag.UPSTREAM), provided(asum))
        for message in (last, End(1), Item(1, 0, codec.encode(1)[0]), Item(1, 9, b"")) * 100:
            incoming.arrived(Parcel(message))
        assert len(incoming._items) == 1
    asyncio.run(run())


def test_a_service_that_waits_for_more_hears_that_its_caller_is_gone() -> None:
    async def run() -> None:
        incoming = Incoming(pending(Caller(), flags=Flag.UPSTREAM), provided(asum))
        taking = asyncio.create_task(anext(incoming))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        incoming.given_up()
        with pytest.raises(Cancelled, match="has given the call up, and sends no more"):
            await taking
        incoming.close()
        assert [number async for number in incoming] == []
    asyncio.run(run())
