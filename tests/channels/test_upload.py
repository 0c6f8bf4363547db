"""What a caller sends item by item, here over sessions that the test drives itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.calling import Calling
from pyzmp.channels.future import CallFuture
from pyzmp.channels.upload import Upload, feed
from pyzmp.exceptions import CallTimeout, Cancelled, NodeDied
from pyzmp.protocol import codec
from pyzmp.protocol.envelope import Credit, End, Item, Parcel
from pyzmp.protocol.outcomes import Ask, Event, Result
from pyzmp.sessions import Begun, Sessions, Target
from tests.campaigns.history import SCALE

TARGET = Target("bucket", "memory://bucket", "loop", (0, 1), "")
DONE = Result(b"")


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


class Wire:
    """Notes what is sent; what is sent may bring an answer."""

    def __init__(self, answer: Callable[[Any], Event | None] = lambda message: None) -> None:
        self.events: Arrivals[Event | None] = Arrivals()
        self.sent: list[Any] = []
        self.given_up = 0
        self._answer = answer

    def tell(self, begun: Begun, message: Any, buffers: Any = ()) -> None:
        self.sent.append(message)
        event = self._answer(message)
        if event is not None:
            self.events.put(event)

    def give_up(self, begun: Begun) -> None:
        self.given_up += 1

    def values(self) -> list[Any]:
        return [codec.decode(message.body) for message in self.sent if isinstance(message, Item)]


def credit(items: int, size: int = 1 << 20) -> Parcel:
    return Parcel(Credit(1, items, size))


def upload(wire: Wire, source: Any, timeout: float = 5.0) -> tuple[Upload, Ask]:
    calling = Calling(pyzmp.Service("fill").with_options(timeout=timeout), (iter([]),), {})
    _, ask = calling.attempt([TARGET], blocking=False)
    calling.source = source
    made = Upload(calling, Begun(), wire.events)
    made._sessions = wire  # type: ignore[assignment]
    return made, ask


async def agen(items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


def run(made: Upload, ask: Ask, how: str, patience: float = 0.1) -> Any:
    return made.run(ask, patience) if how == "thread" else asyncio.run(made.arun(ask, patience))


@pytest.fixture(params=["thread", "loop"])
def how(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


def after_end(message: Any) -> Event | None:
    return DONE if isinstance(message, End) else None


def test_items_are_numbered_and_the_end_follows_the_last(how: str) -> None:
    wire = Wire(after_end)
    wire.events.put(credit(10))
    assert run(*upload(wire, range(3)), how) is DONE
    assert [message.number for message in wire.sent[:-1]] == [0, 1, 2]
    assert wire.values() == [0, 1, 2]
    assert isinstance(wire.sent[-1], End)
    assert wire.given_up == 0


def test_nothing_is_taken_from_the_source_without_credit(how: str) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number
    wire = Wire(lambda message: DONE if isinstance(message, Item) and message.number == 3 else None)
    threading.Timer(0.05, lambda: wire.events.put(credit(2))).start()
    threading.Timer(0.1, lambda: taken.append(-1) or wire.events.put(credit(2))).start()
    assert run(*upload(wire, source()), how) is DONE
    assert taken[:5] == [0, 1, -1, 2, 3]
    assert wire.values() == [0, 1, 2, 3]


def test_an_async_source_is_iterated_on_the_loop() -> None:
    wire = Wire(after_end)
    wire.events.put(credit(10))
    assert run(*upload(wire, agen(range(3))), "loop") is DONE
    assert wire.values() == [0, 1, 2]


def test_an_outcome_ends_it_before_the_source_does(how: str) -> None:
    wire = Wire(lambda message: DONE if isinstance(message, Item) and message.number == 4 else None)
    wire.events.put(credit(1000))
    assert run(*upload(wire, iter(int, 1)), how) is DONE
    assert len(wire.sent) <= 1000
    died = NodeDied("gone", service="fill", node="bucket")
    wire = Wire()
    wire.events.put(died)
    assert run(*upload(wire, range(10)), how) is died
    assert wire.sent == []


def test_an_error_of_the_source_gives_the_call_up(how: str) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("mine")
    for source in (broken(), 5):
        wire = Wire()
        wire.events.put(credit(10))
        made, ask = upload(wire, source)
        told: list[BaseException] = []
        made._failed = told.append
        with pytest.raises((KeyError, TypeError)) as caught:
            run(made, ask, how)
        assert wire.given_up == 1
        assert told == [caught.value]


def test_a_call_that_is_never_answered_ends_all_the_same(how: str) -> None:
    wire = Wire()
    wire.events.put(credit(10))
    began = time.monotonic()
    outcome = run(*upload(wire, range(3), 0.1), how, 0.05)
    assert isinstance(outcome, CallTimeout)
    assert 0.15 <= time.monotonic() - began < 0.5 * SCALE


def test_on_a_loop_a_source_that_stalls_holds_up_nothing() -> None:
    ended: list[str] = []

    async def stalls() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(60)
        finally:
            ended.append("closed")
    wire = Wire(lambda message: DONE)
    wire.events.put(credit(10))
    assert run(*upload(wire, stalls()), "loop") is DONE
    assert ended == ["closed"]


def test_one_that_was_cancelled_before_is_not_begun_and_one_cancelled_meanwhile_is_given_up(
        monkeypatch: pytest.MonkeyPatch) -> None:
    future: CallFuture[Any] = CallFuture(lambda outcome: outcome)
    given_up: list[Begun] = []

    def submit(self: Sessions, target: Target, ask: Ask, done: Callable[[Event], object]) -> Begun:
        future.cancel()
        done(DONE)
        return Begun()
    monkeypatch.setattr(Sessions, "submit", submit)
    monkeypatch.setattr(Sessions, "give_up", lambda self, begun: given_up.append(begun))
    calling = Calling(pyzmp.Service("fill"), (iter([]),), {})
    _, ask = calling.attempt([TARGET], blocking=False)
    assert feed(calling, TARGET, ask, future) is DONE
    assert len(given_up) == 1
    outcome = feed(calling, TARGET, ask, future)
    assert isinstance(outcome, Cancelled)
    assert outcome.executed is False
    assert len(given_up) == 1
