"""Both ends of calls over one session: its window, its messages in whatever order, and what is left in the tables.

That the promises about calls hold for many sessions together is shown in test_call_contract.py.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyzmp.exceptions import (
    CallError,
    CallTimeout,
    Cancelled,
    MalformedMessage,
    NodeDied,
    Overloaded,
    Refused,
    RemoteError,
)
from pyzmp.protocol import calls
from pyzmp.protocol.calls import SLACK, Callee, Caller, Ended
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Code, Credit, End, Flag, Item, Message, Opened, Parcel, Reply, Request
from pyzmp.protocol.outcomes import Ask, Outcome, Result, refuse
from pyzmp.protocol.streams import Inflow

CALLS, SIZE = 3, 10


def ask(at: float = 10.0, size: int = 1, **options: Any) -> Ask:
    return Ask("kitchen", "celsius", b"x" * size, (), Deadline(at), 5.0, **options)


def stream(**options: Any) -> Ask:
    return ask(flags=Flag.STREAM, incoming=Inflow(2, 100), **options)


def opened(caller: Caller[str], what: Ask, token: str = "token") -> int:
    """Open a call that can be sent; its number."""
    request = caller.open(what, token, 0.0)
    assert request is not None
    return request.call


def told(caller: Caller[Any], message: Message) -> Any:
    """What a message brings; None where it is counted as astray."""
    before = caller.stray
    found = caller.receive(Parcel(message))
    assert (found is None) == (caller.stray == before + 1)
    return found


class Window(RuleBasedStateMachine):
    """One session with a small window, beside a list of what was sent and not answered, and one of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.caller: Caller[int] = Caller(CALLS, SIZE)
        self.now, self.count = 0.0, 0
        self.asks: dict[int, Ask] = {}
        self.under_way: dict[int, int] = {}  # sizes of calls that the node has not answered
        self.posts: dict[int, int] = {}
        self.waiting: deque[int] = deque()
        self.outcomes: Counter[int] = Counter()

    def fits(self, size: int) -> bool:
        there = [*self.under_way.values(), *self.posts.values()]
        return not there or (len(there) < CALLS and sum(there) + size <= SIZE)

    def leaves(self, request: Request) -> None:
        what = self.asks[request.call]
        assert self.fits(len(what.body))
        assert request.remaining == what.deadline.remaining(self.now)
        (self.posts if what.flags & Flag.ONE_WAY else self.under_way)[request.call] = len(what.body)

    def note(self, call: int, outcome: Outcome) -> None:
        self.outcomes[call] += 1
        assert self.outcomes[call] == 1
        sent = call in self.under_way
        assert not isinstance(outcome, CallError) or outcome.executed is (None if sent else False)

    def room(self) -> None:
        """Calls that wait leave in order, as many as have a place now."""
        for request, what, call in self.caller.ready(self.now):
            assert call == self.waiting.popleft() == request.call
            assert what is self.asks[call]
            self.leaves(request)
        assert not self.waiting or not self.fits(len(self.asks[self.waiting[0]].body))

    @rule(size=st.integers(0, 12), timeout=st.sampled_from([0.5, 5.0]), wait=st.booleans(), post=st.booleans())
    def open(self, size: int, timeout: float, wait: bool, post: bool) -> None:
        what = ask(self.now + timeout, size, wait=wait, flags=Flag.ONE_WAY * post)
        assert self.caller.fits(1, size) == self.fits(size)
        free = not self.waiting and self.fits(size)
        if not free and not wait:
            with pytest.raises(Overloaded, match="which fills its window") as caught:
                self.caller.open(what, 0, self.now)
            assert caught.value.executed is False
            return
        self.count += 1
        self.asks[self.count] = what
        request = self.caller.open(what, self.count, self.now)
        assert self.caller.last == self.count
        assert (request is not None) == free
        if request is None:
            self.waiting.append(self.count)
        else:
            self.leaves(request)

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 9))
    def answer(self, which: int) -> None:
        call = sorted(self.under_way)[which % len(self.under_way)]
        found = told(self.caller, Reply(call, b"r"))
        assert (found is None) == (self.outcomes[call] == 1), "late, its place is free all the same"
        if found is not None:
            self.note(*found)
        del self.under_way[call]
        assert told(self.caller, Reply(call, b"r")) is None
        self.room()

    @precondition(lambda self: self.posts)
    @rule(which=st.integers(0, 9))
    def post_ends(self, which: int) -> None:
        size = self.posts.pop(sorted(self.posts)[which % (len(self.posts))])
        stray = self.caller.stray
        assert self.caller.receive(Parcel(Credit(0, 1, size))) is None
        assert self.caller.stray == stray
        self.room()

    @precondition(lambda self: self.asks)
    @rule(back=st.integers(0, 9))
    def cancel(self, back: int) -> None:
        call = max(1, self.count - back)
        waits, ended = call in self.waiting, self.caller.cancel(call)
        if waits:
            assert isinstance(ended, Ended)
            assert isinstance(ended.outcome, Cancelled)
            assert (ended.call, ended.token, ended.tell) == (call, call, False)
            self.waiting.remove(call)
            self.note(call, ended.outcome)
            self.room()
        else:
            assert ended is (call in self.under_way and not self.outcomes[call]), "it goes on until it is answered"

    @rule(passed=st.sampled_from([0.1, 1.0, 6.0]))
    def expire(self, passed: float) -> None:
        self.now += passed
        due = {call for call in [*self.waiting, *self.under_way]
               if not self.outcomes[call] and self.asks[call].deadline.at <= self.now}
        ended = self.caller.expire(self.now)
        assert {each.call for each in ended} == due
        for call, token, outcome, tell in ended:
            assert call == token
            assert isinstance(outcome, CallTimeout)
            assert tell == (call in self.under_way)
            self.note(call, outcome)
        self.waiting = deque(call for call in self.waiting if call not in due)
        self.room()

    @rule(call=st.integers(-5, 1 << 40).filter(lambda call: not 1 <= call <= 10_000))
    def strays(self, call: int) -> None:
        for message in (Reply(call, b""), End(call), Opened(call), Item(call, 0, b""), Credit(call, 1 << 40, 1)):
            assert told(self.caller, message) is None

    @rule()
    def end(self) -> None:
        due = {call for call in [*self.waiting, *self.under_way] if not self.outcomes[call]}
        ended = self.caller.end("killed", sent=True)
        assert {each.call for each in ended} == due
        for each in ended:
            assert isinstance(each.outcome, NodeDied)
            self.note(each.call, each.outcome)
        self.under_way, self.posts, self.waiting = {}, {}, deque()

    @invariant()
    def the_tables_hold_what_is_open_and_nothing_else(self) -> None:
        due = [call for call in [*self.waiting, *self.under_way] if not self.outcomes[call]]
        assert len(self.caller) == len(due)
        assert self.caller.waiting >= len(self.waiting)
        assert self.caller.posted == len(self.posts)
        assert self.caller.used == len(self.under_way) + len(self.posts)
        assert self.caller._used == sum(self.under_way.values()) + sum(self.posts.values())
        assert self.caller.next_deadline() == min((self.asks[call].deadline.at for call in due), default=None)
        assert all(self.caller.sent(call) == (call in self.under_way) for call in due)

    def teardown(self) -> None:
        self.end()
        assert (len(self.caller), self.caller.used, self.caller._used, self.caller.waiting) == (0, 0, 0, 0)
        assert all(self.outcomes[call] == 1 for call, what in self.asks.items() if not what.flags)


Window.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestWindow = Window.TestCase


def test_answered_calls_behind_one_that_stays_open_leave_the_table() -> None:
    caller: Caller[str] = Caller()
    opened(caller, ask(1.0), "slow")
    for _ in range(10 * SLACK):
        assert told(caller, Reply(opened(caller, ask()), b"")) is not None
    assert len(caller._order) <= SLACK + 3
    assert [each.token for each in caller.expire(1.0)] == ["slow"]


@pytest.mark.parametrize(("sent", "executed"), [(True, None), (False, False)])
def test_a_lost_call_says_whether_it_may_have_run(sent: bool, executed: bool | None) -> None:
    caller: Caller[str] = Caller()
    opened(caller, ask(1.0))
    opened(caller, ask(9.0))
    outcomes: list[Any] = [each.outcome for each in (*caller.expire(1.0, sent=sent), *caller.end("killed", sent=sent))]
    assert [type(outcome) for outcome in outcomes] == [CallTimeout, NodeDied]
    assert [outcome.executed for outcome in outcomes] == [executed, executed]


@pytest.mark.parametrize(("sent", "used"), [(True, 1), (False, 0)])
def test_a_late_call_keeps_its_place_where_its_node_may_hear_of_it(sent: bool, used: int) -> None:
    caller: Caller[str] = Caller()
    call = opened(caller, ask(1.0))
    assert [each.tell for each in caller.expire(1.0, sent=sent)] == [True]
    assert caller.used == used
    assert told(caller, Reply(call, b"")) is None
    assert caller.used == caller._used == 0


def test_a_large_call_travels_alone() -> None:
    caller: Caller[str] = Caller(CALLS, SIZE)
    call = opened(caller, ask(size=SIZE + 5))
    assert not caller.fits(1, 0)
    assert caller.open(ask(size=SIZE + 5, wait=True), "waits", 0.0) is None
    assert not caller.ready(0.0)
    assert told(caller, Reply(call, b"")) is not None
    assert [token for _, _, token in caller.ready(0.0)] == ["waits"]


@pytest.mark.parametrize(("count", "size", "fits"), [
    (2, 9, True), (3, 1, False), (1, 10, False), (2, 10, False)])
def test_several_calls_fit_where_all_of_them_do(count: int, size: int, fits: bool) -> None:
    caller: Caller[str] = Caller(CALLS, SIZE)
    opened(caller, ask())
    assert caller.fits(count, size) is fits


def test_the_window_is_what_the_node_grants() -> None:
    caller: Caller[str] = Caller(1, SIZE)
    opened(caller, ask())
    assert not caller.fits(1, 0)
    caller.window(2, 0)
    opened(caller, ask(size=SIZE - 1))
    with pytest.raises(Overloaded, match=r"2 calls of this session with 10 bytes .* \(2 calls, 10 bytes\)"):
        caller.open(ask(), "third", 0.0)


def test_nobody_overtakes_a_call_that_waits() -> None:
    caller: Caller[str] = Caller(CALLS, SIZE)
    first = opened(caller, ask(size=6))
    assert caller.open(ask(size=6, wait=True), "large", 0.0) is None
    assert caller.open(ask(size=1, wait=True), "small", 0.0) is None
    assert not caller.ready(0.0)
    assert told(caller, Reply(first, b"")) is not None
    assert [token for _, _, token in caller.ready(3.0)] == ["large", "small"]


@pytest.mark.parametrize("flags", [0, Flag.ONE_WAY])
def test_a_call_that_cannot_be_sent_leaves_nothing(flags: int) -> None:
    caller: Caller[str] = Caller(CALLS, SIZE)
    caller.drop(opened(caller, ask(size=99, flags=flags)))
    assert (len(caller), caller.used, caller._used, caller.posted) == (0, 0, 0, 0)
    assert caller.next_deadline() is None
    assert caller.fits(3, SIZE)


@pytest.mark.parametrize("credit", [Credit(0, 3, 1), Credit(0, 0, 1), Credit(0, -1, 1), Credit(1, 1, 1)])
def test_a_credit_for_more_posts_than_there_are_is_astray(credit: Credit) -> None:
    caller: Caller[str] = Caller()
    for _ in range(2):
        opened(caller, ask(flags=Flag.ONE_WAY))
    assert told(caller, credit) is None
    assert caller.posted == caller.used == 2


def test_posts_end_in_any_order_and_with_the_last_one_all_bytes_are_free() -> None:
    caller: Caller[str] = Caller(CALLS, SIZE)
    for size in (1, 7, 2):
        opened(caller, ask(size=size, flags=Flag.ONE_WAY))
    for credit, used in ((Credit(0, 1, 7), 3), (Credit(0, 1, -5), 3), (Credit(0, 1, 0), 0)):
        assert caller.receive(Parcel(credit)) is None
        assert caller._used == used
    assert caller.used == caller.posted == caller.stray == 0


# -- streams --------------------------------------------------------------------------------------------------------

def test_a_stream_is_opened_gives_items_and_ends() -> None:
    caller: Caller[str] = Caller()
    call = opened(caller, stream())
    for message in (Opened(call), Item(call, 0, b"a"), Item(call, 1, b"b")):
        assert told(caller, message) == ("token", Parcel(message))
    assert caller.next_deadline() is None
    assert not caller.expire(99.0), "from its beginning on it may take as long as it likes"
    assert told(caller, End(call)) == ("token", Result(b""))
    assert (len(caller), caller.used) == (0, 0)


def test_a_stream_whose_first_item_has_come_has_begun() -> None:
    caller: Caller[str] = Caller()
    call = opened(caller, stream())
    assert told(caller, Item(call, 0, b"a")) is not None
    assert not caller.expire(99.0)
    assert told(caller, Opened(call)) is None
    [ended] = caller.end("killed", sent=True)
    assert isinstance(ended.outcome, NodeDied)
    assert ended.outcome.executed is True


def test_an_item_that_comes_twice_is_dropped_and_a_hole_ends_the_stream() -> None:
    caller: Caller[str] = Caller()
    call = opened(caller, stream())
    assert told(caller, Item(call, 0, b"a")) is not None
    assert told(caller, Item(call, 0, b"a")) is None
    token, error = told(caller, Item(call, 2, b"c"))
    assert token == "token"
    assert type(error) is RemoteError
    assert (error.type_name, error.executed) == ("MalformedMessage", True)
    assert "item 2 of a stream, where item 1 is the next" in str(error)
    assert (len(caller), caller.used) == (0, 1), "until the node has answered"
    assert told(caller, End(call)) is None
    assert caller.used == caller._used == 0


def test_an_item_beyond_the_credit_ends_the_stream() -> None:
    caller: Caller[str] = Caller()
    call = opened(caller, stream())
    for number in range(2):
        assert told(caller, Item(call, number, b"")) is not None
    assert "beyond what was granted" in str(told(caller, Item(call, 2, b""))[1])


def test_the_credit_of_an_upload_comes_to_its_caller() -> None:
    caller: Caller[str] = Caller()
    call = opened(caller, ask(flags=Flag.UPSTREAM))
    assert told(caller, Credit(call, 2, 10)) == ("token", Parcel(Credit(call, 2, 10)))
    assert told(caller, Reply(call, b"r")) == ("token", Result(b"r"))


@pytest.mark.parametrize(("what", "kinds"), [
    (ask(), (End, Opened, lambda call: Item(call, 0, b""), lambda call: Credit(call, 1, 1))),
    (stream(), (lambda call: Reply(call, b""), lambda call: Credit(call, 1, 1))),
    (ask(flags=Flag.UPSTREAM), (End, Opened, lambda call: Item(call, 0, b"")))])
def test_messages_of_the_wrong_kind_are_counted_and_dropped(what: Ask, kinds: tuple[Any, ...]) -> None:
    caller: Caller[str] = Caller()
    call = opened(caller, what)
    for kind in kinds:
        assert told(caller, kind(call)) is None
    assert isinstance(told(caller, refuse(call, Code.REFUSED, "no"))[1], Refused), "and it is open still"


def test_nothing_can_come_for_a_call_that_was_not_sent() -> None:
    caller: Caller[str] = Caller(1, SIZE)
    opened(caller, ask())
    assert caller.open(ask(wait=True), "waits", 0.0) is None
    assert told(caller, Reply(caller.last, b"")) is None
    assert (len(caller), caller.waiting, caller.used) == (2, 1, 1)


# -- the node's end ---------------------------------------------------------------------------------------------------

@given(st.lists(st.integers(-3, 10), max_size=30))
def test_no_call_starts_twice(numbers: list[int]) -> None:
    callee = Callee()
    started = [call for call in numbers if callee.fresh(Request(call, "n", "s", 1.0, b""))]
    assert len(set(started)) == len(started)
    assert started == sorted(started)
    assert callee.repeated == len(numbers) - len(started)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=12))
def test_what_goes_beyond_the_window_is_told(came: list[tuple[int, bool]]) -> None:
    callee, there = Callee(), dict[int, int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "CALLS", CALLS)
        patch.setattr(calls, "SIZE", SIZE)
        for call, (size, answered) in enumerate(came, 1):
            fits = not there or (len(there) < CALLS and sum(there.values()) + size <= SIZE)
            assert callee.take(call, size) == fits
            there[call] = size
            if answered or not fits:
                assert callee.answer(call)
                assert not callee.answer(call), "once"
                del there[call]
            assert callee.open == there


@pytest.mark.parametrize("credit", [Credit(1, -1, 0), Credit(1, 1, -5), Credit(1, 1 << 50, 1)])
def test_credit_that_cannot_be_is_the_peers_fault_also_before_the_call_begins(credit: Credit) -> None:
    callee = Callee()
    callee.take(1, 0)
    with pytest.raises(MalformedMessage, match="a credit of"):
        callee.hand(1, Parcel(credit))


def test_credit_that_comes_before_its_call_begins_is_kept_for_it() -> None:
    callee, taken = Callee(), list[Parcel]()
    callee.take(1, 0)
    for credit in (Credit(1, 2, 10), Credit(1, 1, 5), Credit(2, 9, 9)):
        callee.hand(credit.call, Parcel(credit))
    callee.hand(1, Parcel(Item(1, 0, b"")))  # sent without credit
    callee.listen(1, taken.append)
    assert taken == [Parcel(Credit(1, 3, 15))]
    for message in (Item(1, 0, b"a"), Credit(1, 1, 1), End(1)):
        callee.hand(1, Parcel(message))
    assert [parcel.message for parcel in taken[1:]] == [Item(1, 0, b"a"), Credit(1, 1, 1), End(1)]
    assert callee.answer(1)
    callee.hand(1, Parcel(End(1)))
    assert len(taken) == 4
    callee.take(2, 0)
    callee.hand(2, Parcel(Credit(2, 1, 1)))
    assert callee.answer(2)
    assert not [*callee._credit, *callee._streams, *callee.open], "nothing is left of either"


def test_who_leaves_stops_what_runs_for_him_alone() -> None:
    callee, stopped = Callee(), list[int]()
    for call in (1, 2, 3):
        callee.take(call, 0)
        callee.running[call] = lambda call=call: stopped.append(call)  # type: ignore[misc]
    callee.lasting.add(2)
    callee.answer(3)
    for stop in callee.leave():
        stop()
    assert stopped == [1]
    assert not callee.leave()
    assert callee.answer(2)
    assert not callee.lasting
    assert not callee.running
