"""Both ends of one stream: what may be sent, and what has come."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.streams import MAX_CREDIT, WINDOW_ITEMS, WINDOW_SIZE, Inflow, Outflow

LARGEST = 40


class Stream(RuleBasedStateMachine):
    """Both ends with a channel in each direction, which keeps order and takes its time."""

    @initialize(items=st.integers(1, 9), size=st.integers(1, 2 * LARGEST))
    def open(self, items: int, size: int) -> None:
        self.outflow, self.inflow = Outflow(), Inflow(items, size)
        self.window = items, size
        self.credits = deque([self.inflow.window])
        self.items: deque[tuple[int, int]] = deque()
        self.arrived: deque[int] = deque()  # and not consumed yet
        self.sent = self.came = 0
        assert not self.outflow.room

    @precondition(lambda self: self.outflow.room)
    @rule(size=st.integers(0, LARGEST))
    def send(self, size: int) -> None:
        number = self.outflow.take(size)
        assert number == self.sent
        self.sent += 1
        self.items.append((number, size))

    @precondition(lambda self: self.credits)
    @rule()
    def credit_comes(self) -> None:
        self.outflow.grant(*self.credits.popleft())

    @precondition(lambda self: self.items)
    @rule()
    def item_comes(self) -> None:
        number, size = self.items.popleft()
        assert number == self.came
        assert self.inflow.arrived(number, size)
        self.came += 1
        self.arrived.append(size)

    @precondition(lambda self: self.came)
    @rule(data=st.data())
    def item_comes_again(self, data: st.DataObject) -> None:
        assert not self.inflow.arrived(data.draw(st.integers(0, self.came - 1)), LARGEST)

    @rule(ahead=st.integers(1, 5))
    def item_comes_too_early(self, ahead: int) -> None:
        with pytest.raises(MalformedMessage, match=f"item {self.came + ahead} of a stream, where item {self.came} is"):
            self.inflow.arrived(self.came + ahead, 1)

    @precondition(lambda self: self.arrived)
    @rule()
    def consume(self) -> None:
        credit = self.inflow.consumed(self.arrived.popleft())
        if credit is not None:
            self.credits.append(credit)

    @rule()
    def settle(self) -> None:
        while self.items or self.arrived or self.credits:
            while self.credits:
                self.credit_comes()
            while self.items:
                self.item_comes()
            while self.arrived:
                self.consume()
        assert self.outflow.room, "the sender may go on once all is consumed"

    @invariant()
    def the_window_holds(self) -> None:
        outstanding = [*self.arrived, *(size for _, size in self.items)]
        items, size = self.window
        assert len(outstanding) <= items
        assert not outstanding or sum(outstanding[:-1]) < size, "beyond the window by one item at most"

    def teardown(self) -> None:
        self.settle()


TestStream = Stream.TestCase


def test_nothing_may_be_sent_before_credit_came() -> None:
    with pytest.raises(ValueError, match="no room for item 0: 0 items and 0 bytes are left"):
        Outflow().take(1)


@pytest.mark.parametrize(("items", "size"), [(1, 0), (0, 1)])
def test_credit_of_one_kind_alone_makes_no_room(items: int, size: int) -> None:
    outflow = Outflow()
    outflow.grant(items, size)
    assert not outflow.room


def test_an_item_larger_than_the_window_goes_alone() -> None:
    outflow, inflow = Outflow(), Inflow(8, 10)
    outflow.grant(*inflow.window)
    assert inflow.arrived(outflow.take(1000), 1000)
    assert not outflow.room
    credit = inflow.consumed(1000)
    assert credit == (1, 1000)
    outflow.grant(*credit)
    assert outflow.room


def test_credit_is_given_back_in_lumps_of_half_a_window() -> None:
    inflow = Inflow()
    assert inflow.window == (WINDOW_ITEMS, WINDOW_SIZE)
    for number in range(WINDOW_ITEMS):
        assert inflow.arrived(number, 1)
    half = WINDOW_ITEMS // 2
    assert [inflow.consumed(1) for _ in range(WINDOW_ITEMS)] == 2 * [*[None] * (half - 1), (half, half)]


@pytest.mark.parametrize(("items", "size"), [(-1, 5), (5, -1), (MAX_CREDIT + 1, 5), (5, MAX_CREDIT + 1)])
def test_a_credit_that_cannot_be_is_malformed(items: int, size: int) -> None:
    outflow = Outflow()
    with pytest.raises(MalformedMessage, match=f"a credit of {items} items and {size} bytes"):
        outflow.grant(items, size)
    outflow.grant(MAX_CREDIT, MAX_CREDIT)
    assert outflow.room, "and what comes after it counts alone"


@pytest.mark.parametrize(("window", "sizes"), [((2, 100), (1, 1, 1)), ((100, 10), (9, 1, 1)), ((100, 10), (99, 1))])
def test_an_item_beyond_what_was_granted_is_malformed(window: tuple[int, int], sizes: tuple[int, ...]) -> None:
    inflow = Inflow(*window)
    for number, size in enumerate(sizes[:-1]):
        assert inflow.arrived(number, size)
    left = window[0] - len(sizes) + 1, window[1] - sum(sizes[:-1])
    with pytest.raises(MalformedMessage, match=f"beyond what was granted: {left[0]} items and {left[1]} bytes"):
        inflow.arrived(len(sizes) - 1, sizes[-1])


def test_an_item_with_a_negative_number_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="item -1 of a stream, where item 0 is the next"):
        Inflow().arrived(-1, 1)


@pytest.mark.parametrize("window", [(0, 1), (1, 0), (-1, 1), (MAX_CREDIT + 1, 1), (1, MAX_CREDIT + 1)])
def test_a_window_that_could_let_nothing_pass_is_refused(window: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a window of"):
        Inflow(*window)


def test_no_field_is_written_by_both_threads_of_the_receiving_end() -> None:
    written: dict[str, set[str]] = {"arrived": set(), "consumed": set()}

    class Watched(Inflow):
        now = ""

        def __setattr__(self, name: str, value: object) -> None:
            written.setdefault(Watched.now, set()).add(name)
            super().__setattr__(name, value)

    inflow = Watched(2, 100)
    for number in range(3):
        Watched.now = "arrived"
        assert inflow.arrived(number, 60)
        Watched.now = "consumed"
        assert inflow.consumed(60) == (1, 60)
    assert all(written.values())
    assert not written["arrived"] & written["consumed"]
