"""A stream at its caller, where what arrives is put in by hand."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

import pyzmp
from pyzmp.channels.streaming import Streamed, StreamService
from pyzmp.exceptions import CallTimeout, DeadlockError, NodeDied, RemoteError
from pyzmp.protocol import codec
from pyzmp.protocol.envelope import Item, Opened, Parcel
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.outcomes import Result
from pyzmp.runtime import Runtime
from pyzmp.sessions import Begun, Sessions, Target
from tests.campaigns.history import SCALE

TARGET = Target("tap", "memory://tap", "loop", (0, 1), "", Trait.STREAM)


class Tap(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def numbers(self, upto: int = 3) -> Iterator[int]:
        yield from range(upto)


class Wire:
    """The sessions of this process, without a network."""

    def __init__(self) -> None:
        self.done: list[Callable[[Any], object]] = []
        self.told: list[Any] = []
        self.given_up: list[Begun] = []
        self.at_once: list[Any] = []

    def submit(self, target: Target, ask: Any, done: Callable[[Any], object]) -> Begun:
        self.done.append(done)
        self.ask = ask
        for event in self.at_once:
            done(event)
        return Begun()

    def tell(self, begun: Begun, message: Any, buffers: Any = ()) -> None:
        self.told.append(message)

    def give_up(self, begun: Begun) -> None:
        self.given_up.append(begun)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    pyzmp.configure(registry="memory")
    made = Wire()
    for name in ("submit", "tell", "give_up"):
        method = getattr(made, name)
        monkeypatch.setattr(Sessions, name, lambda self, *args, method=method: method(*args))
    monkeypatch.setattr(StreamService, "found", lambda self: [TARGET])
    monkeypatch.setattr(StreamService, "seen", lambda self: [TARGET])
    return made


def item(number: int, value: Any = None) -> Parcel:
    return Parcel(Item(1, number, codec.encode(number if value is None else value)[0]))


OPENED, END = Parcel(Opened(1)), Result(b"")


def test_nothing_is_asked_before_the_first_iteration(wire: Wire) -> None:
    items = Tap.numbers(2)
    assert isinstance(items, Streamed)
    assert wire.done == []
    wire.at_once = [OPENED, item(0), item(1), END]
    assert list(items) == [0, 1]
    assert len(wire.done) == 1
    assert wire.given_up == []


def test_what_was_taken_is_granted_again_in_lumps(wire: Wire) -> None:
    wire.at_once = [OPENED, *(item(number) for number in range(20)), END]
    assert list(Tap.numbers.with_options(window=8)()) == list(range(20))
    assert wire.ask.incoming.window[0] == 8
    assert [message.items for message in wire.told] == [4] * 5


def test_closing_gives_the_call_up_once_and_only_where_it_was_made(wire: Wire) -> None:
    with Tap.numbers(2) as unused:
        pass
    assert list(unused) == []
    wire.at_once = [OPENED, item(0)]
    with Tap.numbers(2) as items:
        assert next(items) == 0
    items.close()
    assert len(wire.given_up) == 1
    assert list(items) == []
    wire.at_once = [OPENED, END]
    with Tap.numbers(2) as items:
        assert list(items) == []
    assert len(wire.given_up) == 1


def test_one_that_nobody_holds_is_closed(wire: Wire) -> None:
    wire.at_once = [OPENED, item(0), item(1)]
    gc.disable()
    try:
        for number in Tap.numbers():
            assert number == 0
            break

        async def leave() -> None:
            async for _ in Tap.numbers():
                break
        asyncio.run(leave())
    finally:
        gc.enable()
    assert len(wire.given_up) == 2


def test_an_item_that_is_not_as_promised_closes_the_stream(wire: Wire) -> None:
    wire.at_once = [OPENED, item(0), item(1, "one"), item(2)]
    items = Tap.numbers()
    assert next(items) == 0
    with pytest.raises(RemoteError, match="is not what it promises"):
        next(items)
    assert len(wire.given_up) == 1
    assert list(items) == []


def test_an_error_before_it_has_begun_is_tried_again_and_after_that_is_its_end(wire: Wire,
                                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(TARGET, node="other")
    monkeypatch.setattr(StreamService, "found", lambda self: [TARGET, other])
    monkeypatch.setattr(StreamService, "seen", lambda self: [TARGET, other])
    gone = [NodeDied("gone", service="numbers", node=name, executed=False) for name in "ab"]
    items = Tap.numbers()
    wire.at_once = [gone[0]]
    threading.Timer(0.05, lambda: [wire.done[-1](event) for event in (OPENED, item(0), gone[1])]).start()

    def submit(self: Any, target: Target, ask: Any, done: Any) -> Begun:
        begun = wire.submit(target, ask, done)
        wire.at_once = []
        return begun
    monkeypatch.setattr(Sessions, "submit", submit)
    assert next(items) == 0
    assert len(wire.done) == 2
    with pytest.raises(NodeDied):
        next(items)
    assert len(wire.done) == 2
    assert list(items) == []


def test_a_wait_ends_the_stream_where_a_timeout_was_given(wire: Wire) -> None:
    for events, executed in (([], None), ([OPENED], True)):
        for ask in (next, lambda items: asyncio.run(items.__anext__())):
            wire.at_once, items = events, Tap.numbers.with_options(timeout=0.05)()
            began = time.monotonic()
            with pytest.raises(CallTimeout) as caught:
                ask(items)  # type: ignore[operator]
            assert 0.05 <= time.monotonic() - began < 0.5 * SCALE
            assert caught.value.executed is executed
            assert list(items) == []
    assert len(wire.given_up) == 4


def test_a_wait_that_is_cancelled_leaves_the_stream_as_it_was(wire: Wire) -> None:
    wire.at_once = [OPENED]

    async def run() -> list[int]:
        items = Tap.numbers()
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(items.__anext__(), 0.01)
        for event in (item(0), item(1), END):
            wire.done[0](event)
        return [number async for number in items]
    assert asyncio.run(run()) == [0, 1]
    assert wire.given_up == []


def test_by_name_a_stream_has_the_options_of_the_handle(wire: Wire) -> None:
    named = pyzmp.Service("numbers", node="tap").with_options(timeout=3, attempts=2, wait=True)
    service = StreamService.of(named)
    assert (service.name, service.node, service.limit()) == ("numbers", "tap", 3)
    assert (service.waits, service._attempts) == (True, 2)
    assert service()._patience == 3  # type: ignore[attr-defined]


def test_to_block_on_the_loop_that_gives_the_items_ends_the_stream(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.at_once = [OPENED, item(0), item(1)]
    items = Tap.numbers()
    assert next(items) == 0
    monkeypatch.setattr(Runtime, "runs", lambda self, loop: loop == "loop")
    assert next(items) == 1  # it is there
    with pytest.raises(DeadlockError, match="blocks the very loop") as caught:
        next(items)
    assert caught.value.executed is True
    assert len(wire.given_up) == 1
    assert list(items) == []


def test_in_a_forked_child_a_stream_is_the_parents(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (next, lambda items: asyncio.run(items.__anext__())):
        wire.at_once = [OPENED, item(0), item(1)]
        items, left = Tap.numbers(), Tap.numbers()
        assert next(items) == next(left) == 0
        with monkeypatch.context() as forked:
            forked.setattr(Runtime, "is_ours", lambda self: False)
            with pytest.raises(NodeDied, match="forked") as caught:
                ask(items)  # type: ignore[operator]
            assert caught.value.executed is None
            assert list(items) == []
            left.close()
    assert wire.given_up == []
