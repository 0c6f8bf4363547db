"""Calls that come together: each has its own outcome, context and turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime

mark: ContextVar[str] = ContextVar("mark", default="none")


class Sorter(pyzmp.Node):
    """Services that do not treat all arguments alike."""

    def on_start(self) -> None:
        self.begun: list[Any] = []
        self.calls: list[Any] = []

    @pyzmp.service
    def sort(self, value: int) -> Any:
        self.begun.append(value)
        if value % 10 == 3:
            raise ValueError(value)
        if value % 10 == 5:
            return b"x" * 100_000
        return value if value % 10 != 7 else self.later(value)

    async def later(self, value: int) -> int:
        return -value

    @pyzmp.service
    def marked(self, name: str) -> tuple[str, str]:
        before = mark.get()
        mark.set(name)
        self.calls.append(pyzmp.current_call())
        return before, name

    @pyzmp.service
    def said(self) -> list[int]:
        return self.begun

    @pyzmp.service
    def distinct(self) -> int:
        assert all(call.over for call in self.calls)
        return len(set(map(id, self.calls)))

    @pyzmp.service
    def hold(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    @pyzmp.service
    def lazily(self, value: int) -> Any:
        return self.later(value)

    @pyzmp.service
    def half(self, value: float) -> float:
        return value / 2


def outcome(value: int) -> Any:
    return {3: str(value), 5: b"x" * 100_000, 7: -value}.get(value % 10, value)


@pytest.mark.parametrize("how", ["map", "futures"])
def test_what_is_special_about_one_of_them_is_so_for_that_one_only(how: str) -> None:
    with Sorter("sorter"):
        mapped = Sorter.sort.map(range(200))
        futures = [Sorter.sort.submit(value) for value in range(200)] if how == "futures" else []
        for value in range(200):
            take = futures[value].result if futures else mapped.__next__
            if value % 10 == 3:
                with pytest.raises(ValueError, match=str(value)) as raised:
                    take()
                assert isinstance(raised.value.__cause__, pyzmp.RemoteError)
            else:
                assert take() == outcome(value)


def test_arguments_that_are_converted_are_so_for_each() -> None:
    with Sorter("sorter"):
        assert list(Sorter.half.map([1, 2.0, 3, True - 0])) == [0.5, 1.0, 1.5, 0.5]
        by_name = pyzmp.discover("half", timeout=5)
        assert by_name is not None
        mapped = by_name.map([1, 2, "three", 4, 5])
        assert [next(mapped), next(mapped)] == [0.5, 1.0]
        with pytest.raises(pyzmp.InvalidCall, match="argument value") as refused:
            next(mapped)
        assert refused.value.executed is False
        assert list(mapped) == [2.0, 2.5]


def test_each_has_a_context_of_its_own() -> None:
    with Sorter("sorter"):
        assert list(Sorter.marked.map(map(str, range(300)))) == [("none", str(number)) for number in range(300)]
        assert Sorter.distinct() == 300


def test_one_of_them_can_be_cancelled_before_its_turn(eventually: Any) -> None:
    with Sorter("sorter"):
        Sorter.said()
        held = Sorter.hold.submit(0.3)
        futures = [Sorter.sort.submit(value) for value in (10, 20, 30, 40)]
        assert futures[2].cancel()
        held.result()
        assert [futures[place].result() for place in (0, 1, 3)] == [10, 20, 40]
        eventually(lambda: futures[2].executed is False)
        assert Sorter.said() == [10, 20, 40]


def test_a_map_that_is_left_begins_no_more() -> None:
    with Sorter("sorter"):
        with Sorter.hold.map([0.01] * 500) as mapped:
            next(mapped)
        Sorter.said()


def test_a_map_goes_to_all_providers_in_turn() -> None:
    with Sorter("one"), Sorter("two"), Sorter("three"):
        assert list(Sorter.sort.map([10] * 300)) == [10] * 300
        counts = [len(Sorter.at(name).said()) for name in ("one", "two", "three")]
        assert sum(counts) == 300
        assert max(counts) - min(counts) <= 2


def test_what_is_begun_of_them_ends_with_their_deadline() -> None:
    with Sorter("sorter"):
        Sorter.said()
        futures = [Sorter.hold.with_options(timeout=0.4, attempts=1).submit(0.25) for _ in range(4)]
        assert futures[0].result() is None
        errors = [future.exception() for future in futures[1:]]
        assert all(isinstance(error, pyzmp.CallTimeout) for error in errors)
        assert len(set(map(id, errors))) == 3


def occupied() -> tuple[int, int]:
    """What occupies the entity ``sorter``, in calls and bytes."""
    (host,) = runtime.current().hosts.values()
    return host._waiting.occupied("sorter")  # type: ignore[no-any-return]


@pytest.fixture
def entity() -> Iterator[None]:
    pyzmp.configure(registry="memory")
    with Sorter("sorter", kind="entity"):
        yield


@pytest.mark.usefixtures("entity")
def test_one_that_goes_on_holds_its_place_until_it_ends(eventually: Any) -> None:
    assert list(Sorter.lazily.map(range(100))) == [-value for value in range(100)]
    assert [next(iter(Sorter.sort.map([7]))), *Sorter.sort.map([1, 7, 2])] == [-7, 1, -7, 2]
    eventually(lambda: occupied() == (0, 0))


@pytest.mark.usefixtures("entity")
def test_those_that_are_all_cancelled_hold_no_place(eventually: Any) -> None:
    Sorter.said()
    held = [Sorter.hold.submit(0.03) for _ in range(12)]
    waiting = [Sorter.sort.submit(0) for _ in range(100)]
    for future in waiting:
        future.cancel()
    eventually(lambda: all(future.executed is False for future in waiting))
    assert occupied()[0] <= len(held)
    assert not held[-1].done()
    for future in held:
        future.cancel()
    eventually(lambda: occupied() == (0, 0))


@pytest.mark.usefixtures("entity")
def test_when_the_last_of_them_was_answered_nothing_is_kept_of_them(eventually: Any) -> None:
    assert list(Sorter.sort.map([0] * 500)) == [0] * 500
    (host,) = runtime.current().hosts.values()
    eventually(lambda: not host._together._open)
