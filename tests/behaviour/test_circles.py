"""Calls that wait for each other: a circle of held-up loops is told at once, and any other one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import CallTimeout, DeadlockError
from tests.campaigns.history import SCALE


class Link(pyzmp.Node):
    """Passes a call on along a route: node names with how each is to call the next, such as ``inline``."""

    def on_start(self) -> None:
        self.caught: list[Any] = []

    def _step(self, route: list[list[str]]) -> Any:
        return getattr(Link.at(route[0][0]), route[0][1])

    @pyzmp.service
    def inline(self, route: list[list[str]]) -> list[str]:
        if not route:
            return [self.name]
        try:
            return [self.name, *self._step(route)(route[1:])]
        except DeadlockError as error:
            self.caught.append([str(error), list(error.circle), error.executed, error.service, error.node])
            raise

    @pyzmp.service(worker=True)
    def worked(self, route: list[list[str]]) -> list[str]:
        return [self.name, *(self._step(route)(route[1:]) if route else [])]

    @pyzmp.service
    async def awaited(self, route: list[list[str]]) -> list[str]:
        return [self.name, *(await self._step(route).acall(route[1:]) if route else [])]

    @pyzmp.service
    async def detached(self, route: list[list[str]]) -> list[str]:
        """Awaits a task of its own, which might go on without it."""
        async def ask() -> list[str]:
            return await self._step(route).acall(route[1:])  # type: ignore[no-any-return]
        return [self.name, *await asyncio.create_task(ask())]

    @pyzmp.service(worker=True)
    def submitted(self, route: list[list[str]]) -> list[str]:
        return [self.name, *self._step(route).submit(route[1:]).result()]

    @pyzmp.service
    def said(self) -> list[Any]:
        return self.caught


@pytest.fixture(params=["process", "thread"])  # entities of one process share a loop
def links(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "thread":
        pyzmp.configure(registry="memory")
    with Link("a", kind=request.param), Link("b", kind=request.param), Link("c", kind=request.param):
        yield


def route(*steps: str) -> list[list[str]]:
    return [step.split(".") for step in steps]


def deadlocked(start: str, *steps: str) -> Exception:
    began = time.monotonic()
    with pytest.raises(pyzmp.RemoteError, match="DeadlockError") as caught:
        getattr(Link.at("a"), start)(route(*steps))
    assert time.monotonic() - began < 1 * SCALE
    return caught.value


def test_a_circle_of_inline_services_is_a_deadlock_told_at_once(links: None) -> None:
    error = deadlocked("inline", "b.inline", "a.inline")
    assert isinstance(error, pyzmp.RemoteError)
    assert not isinstance(error, DeadlockError)  # it is not this call that closed a circle
    assert error.executed is True
    assert error.nodes == ("b", "a")
    circle = "would close a circle: inline() of 'a', which waits for inline() of 'b'"
    assert f"a call of inline() of 'a' {circle}" in str(error)
    (caught,) = Link.at("b").said()
    text, circle, executed, service, node = caught
    assert circle == ["inline() of 'a'", "inline() of 'b'"]
    assert (executed, service, node) == (False, "inline", "a")
    assert "make that async, or worker=True" in text
    assert Link.at("a").said() == []  # there it came as what a service of another node raised
    assert Link.at("a").inline([]) == ["a"]


def test_a_circle_through_three_nodes_is_one_too(links: None) -> None:
    deadlocked("inline", "b.inline", "c.inline", "a.inline")
    (caught,) = Link.at("c").said()
    assert caught[1] == ["inline() of 'a'", "inline() of 'b'", "inline() of 'c'"]


def test_the_circle_begins_where_it_is_closed(links: None) -> None:
    deadlocked("inline", "b.inline", "c.inline", "b.inline")
    (caught,) = Link.at("c").said()
    assert caught[1] == ["inline() of 'b'", "inline() of 'c'"]


def test_a_circle_through_an_async_service_in_between_is_still_one(links: None) -> None:
    deadlocked("inline", "b.awaited", "a.inline")  # a's loop waits for b, however b waits
    deadlocked("inline", "b.worked", "a.inline")
    deadlocked("inline", "b.awaited", "c.awaited", "a.awaited")


@pytest.mark.parametrize("start", ["awaited", "worked", "detached", "submitted"])
def test_a_circle_that_holds_up_no_loop_is_answered(links: None, start: str) -> None:
    for back in ("inline", "awaited", "worked"):
        for middle in ("inline", "awaited", "worked", "submitted"):
            assert getattr(Link.at("a"), start)(route(f"b.{middle}", f"a.{back}")) == ["a", "b", "a"]
    assert getattr(Link.at("a"), start)(route("b.inline", "c.inline", "a.inline")) == ["a", "b", "c", "a"]


def test_calls_that_only_meet_close_no_circle(links: None) -> None:
    assert Link.at("a").inline(route("b.inline", "c.inline")) == ["a", "b", "c"]
    assert Link.at("a").inline(route("b.awaited", "b.inline")) == ["a", "b", "b"]


def test_what_a_detached_task_awaits_is_ended_by_the_deadline_only(links: None) -> None:
    began = time.monotonic()
    with pytest.raises((CallTimeout, pyzmp.RemoteError)) as caught:
        Link.at("a").inline.with_options(timeout=0.3)(route("b.detached", "a.inline"))
    assert "DeadlockError" not in str(caught.value)
    assert 0.3 <= time.monotonic() - began < 0.8 * SCALE
    assert Link.at("a").inline([]) == ["a"]


class Mirror(pyzmp.Node):
    @pyzmp.service
    def own(self) -> int:
        return Mirror.at(self.name).one()

    @pyzmp.service
    def via(self) -> int:
        return Mirror.at(self.name).one.submit().result()

    @pyzmp.service
    def one(self) -> int:
        return 1

    @pyzmp.service
    async def awaited(self) -> int:
        return await Mirror.at(self.name).one.acall()

    @pyzmp.service
    def plainly(self) -> int:
        return self.one()


def test_an_inline_service_cannot_wait_for_its_own_node(home: Any) -> None:
    home.start(Mirror("mirror"))
    began = time.monotonic()
    for service in (Mirror.own, Mirror.via):
        with pytest.raises(pyzmp.RemoteError, match="DeadlockError") as caught:
            service()
        assert "acall" in str(caught.value)
    assert time.monotonic() - began < 1 * SCALE
    assert Mirror.awaited() == Mirror.plainly() == 1


class Pair(pyzmp.Node):
    @pyzmp.service
    def any(self) -> str:
        return Pair.who()

    @pyzmp.service
    def who(self) -> str:
        return self.name


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_it_asks_others_that_can_answer(kind: Any) -> None:
    with Pair("one", kind=kind), Pair("two", kind=kind):
        assert [Pair.at("one").any() for _ in range(4)] == ["two"] * 4


class Clock(pyzmp.Node):
    """Calls the other one from a timer."""

    def __init__(self, name: str, other: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.other = other

    def on_start(self) -> None:
        self.ended: list[list[Any]] = []
        self.when = float("inf")

    @pyzmp.every(0.02)
    def tick(self) -> None:
        left = self.when - time.monotonic()
        if left > 0.1:
            return
        time.sleep(max(0.0, left))  # both loops are held up before one of them asks the other
        self.when, began, error = float("inf"), time.monotonic(), None
        try:
            Clock.at(self.other).slow.with_options(timeout=0.4)()
        except Exception as caught:
            error = caught
        self.ended.append([type(error).__name__, str(error), time.monotonic() - began])

    @pyzmp.service
    def slow(self) -> None:
        time.sleep(0.1)

    @pyzmp.service
    def begin(self, when: float) -> None:
        self.when = when

    @pyzmp.service
    async def said(self) -> list[list[Any]]:
        return self.ended


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_two_nodes_that_call_each_other_from_timers_end_at_their_deadlines(kind: Any, eventually: Any) -> None:
    with Clock("tick", "tock", kind=kind), Clock("tock", "tick", kind=kind):
        when = time.monotonic() + 0.3
        for name in ("tick", "tock"):
            Clock.at(name).begin(when)
        for name, other in (("tick", "tock"), ("tock", "tick")):
            eventually(Clock.at(name).said)
            ((error, text, took),) = Clock.at(name).said()
            assert error == "CallTimeout"
            assert 0.3 <= took < 0.9
            assert f"slow() of '{other}' gave no answer in 0.4 s" in text
            assert f"'{other}' was itself waiting for slow() of '{name}', so neither could answer" in text
