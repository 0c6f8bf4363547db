"""A topic at its publisher, and together with those who take it."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.feed import AROUND, BATCH, BATCH_SIZE, MANY, SIZE, WINDOW, Bounds, Feed, Full, Outlet, Run, Skip
from pyzmp.protocol.inlet import Gap, Inlet

LIFE = b"life"
POLICIES = (Full.DROP_OLDEST, Full.DROP_NEWEST, Full.BLOCK)
Sent = list[tuple[Outlet, list[Run | Skip]]]


def subscribed(feed: Feed, full: int = Full.DROP_OLDEST, *, length: int = 0, size: int = 1 << 20, history: int = 0,
               since: tuple[bytes, int] = (b"", 0)) -> Outlet:
    return feed.subscribe(full, Bounds.of(length, size), history, since)


def publish(feed: Feed, *bodies: bytes) -> Sent:
    for body in bodies:
        feed.publish(float(feed.next), body)
    return feed.flush()


def numbers(sent: list[Run | Skip]) -> list[int]:
    """The numbers of the messages that are sent; those of the dropped ones are negative, less one."""
    found: list[int] = []
    for each in sent:
        if isinstance(each, Run):
            found.extend(range(each.number, each.number + len(each.bodies)))
        else:
            found.extend(-1 - number for number in range(each.number, each.number + each.count))
    return found


def test_whoever_has_room_gets_the_very_same_run() -> None:
    feed = Feed(LIFE)
    outlets = [subscribed(feed) for _ in range(3)]
    for outlet in outlets:
        assert outlet.grant(0, MANY, WINDOW) == []
    sent = publish(feed, b"a", b"b")
    assert [outlet for outlet, _ in sent] == outlets
    first = sent[0][1][0]
    assert first == Run(0, [0.0, 1.0], [b"a", b"b"])
    assert all(runs == [first] and runs[0] is first for _, runs in sent)


def test_a_feed_gathers_until_there_is_enough() -> None:
    feed = Feed(LIFE)
    assert [feed.publish(0.0, b"x") for _ in range(BATCH)] == [False] * (BATCH - 1) + [True]
    assert feed.gathers
    assert feed.next == BATCH
    assert feed.flush() == []
    assert not feed.gathers
    assert feed.publish(0.0, bytes(BATCH_SIZE))


def test_what_has_buffers_travels_alone() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed)
    outlet.grant(0, MANY, WINDOW)
    feed.publish(0.0, b"x")
    with pytest.raises(ValueError, match="flush what was gathered before it first"):
        feed.publish(0.0, b"y", [b"large"])
    feed.flush()
    assert feed.publish(1.0, b"y", [b"large"])
    assert feed.flush() == [(outlet, [Run(1, [1.0], [b"y"], [b"large"])])]


def test_what_has_buffers_leaves_a_queue_alone_too() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed)
    publish(feed, b"a", b"b")
    feed.publish(2.0, b"c", [b"large"])
    feed.flush()
    publish(feed, b"d")
    assert [len(run.bodies) for run in outlet.grant(0, MANY, WINDOW) if isinstance(run, Run)] == [2, 1, 1]


def test_one_who_has_no_room_keeps_nobody_else_waiting() -> None:
    feed = Feed(LIFE)
    slow, quick = subscribed(feed), subscribed(feed)
    quick.grant(0, MANY, WINDOW)
    sent = {id(outlet): numbers(runs) for outlet, runs in publish(feed, b"a", b"b")}
    assert sent == {id(slow): [], id(quick): [0, 1]}


@pytest.mark.parametrize(("full", "told"), [
    (Full.DROP_OLDEST, [-1, -2, -3, 3, 4]), (Full.DROP_NEWEST, [0, 1, -3, -4, -5])])
def test_a_full_queue_drops_by_its_rule_and_tells_in_order(full: int, told: list[int]) -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed, full, length=3)  # one with the subscriber, two here
    publish(feed, *(b"%d" % number for number in range(5)))
    sent = outlet.grant(0, 5, WINDOW)
    assert numbers(sent) == told
    assert outlet.account.dropped == 3


def test_what_was_dropped_at_the_end_is_told_though_nothing_follows() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed, Full.DROP_NEWEST, length=1)
    publish(feed, b"a", b"b", b"c")
    assert numbers(outlet.grant(0, 1, 1)) == [0, -2, -3]


def test_the_latest_is_what_waits_for_whoever_asks() -> None:
    feed = Feed(LIFE)
    outlet, inlet = subscribed(feed, length=1), Inlet(Bounds.of(1, 1 << 20))
    inlet.subscribed(LIFE, outlet.start)
    publish(feed, b"a", b"b", b"c")
    told = inlet.wants()
    assert told is not None
    assert numbers(outlet.grant(*told)) == [-1, -2, 2]
    assert publish(feed, b"d", b"e") == [(outlet, [])]


def test_bytes_bound_a_queue_as_well_as_messages_do() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed, size=2 * (100 + AROUND))
    publish(feed, *(bytes(100) for _ in range(5)))
    assert numbers(outlet.grant(0, MANY, WINDOW)) == [-1, -2, -3, 3, 4]


def test_a_message_larger_than_the_queue_waits_alone() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed, size=10)
    publish(feed, b"a", bytes(1000))
    assert numbers(outlet.grant(0, MANY, WINDOW)) == [-1, 1]


def test_a_message_larger_than_the_room_travels_alone() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed)
    publish(feed, bytes(1000), bytes(1000))
    assert numbers(outlet.grant(0, 10, 1)) == [0]
    assert numbers(outlet.grant(1, 1, 1000)) == []
    assert numbers(outlet.grant(1, 0, 1000)) == [1]


def test_who_blocks_has_room_until_his_queue_is_full() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed, Full.BLOCK, length=2)
    assert feed.has_room(1)
    publish(feed, b"a")
    assert not feed.has_room(1)
    outlet.grant(0, 1, WINDOW)
    assert feed.has_room(1)
    feed.end(outlet)
    assert feed.has_room(1)


@pytest.mark.parametrize(("keep", "history", "expected"), [
    (0, 3, [5]), (1, 0, [5]), (1, 1, [4, 5]), (3, 2, [3, 4, 5]), (3, 9, [2, 3, 4, 5])])
def test_late_joiners_get_what_is_kept_without_hole_or_repeat(keep: int, history: int, expected: list[int]) -> None:
    feed = Feed(LIFE, keep)
    publish(feed, *(b"%d" % number for number in range(5)))
    outlet = subscribed(feed, history=history)
    assert outlet.start == expected[0]
    sent = outlet.grant(0, MANY, WINDOW)
    (_, more), = publish(feed, b"5")
    assert numbers([*sent, *more]) == expected


def test_history_is_delivered_though_it_is_longer_than_the_queue() -> None:
    feed = Feed(LIFE, 9)
    publish(feed, *(b"%d" % number for number in range(9)))
    outlet = subscribed(feed, length=2, history=9)
    assert numbers(outlet.grant(0, MANY, WINDOW)) == list(range(9))


def test_who_was_there_before_a_feed_gets_all_of_it_while_it_is_young() -> None:
    feed = Feed(LIFE, 2, young=True)
    publish(feed, *(b"%d" % number for number in range(5)))
    outlet = feed.subscribe(Full.DROP_OLDEST, Bounds.of(0, SIZE), early=True)
    assert numbers(outlet.grant(0, MANY, WINDOW)) == [0, 1, 2, 3, 4]
    assert subscribed(feed, history=9).start == 3
    assert subscribed(feed).start == 5
    feed.grow()
    assert feed.subscribe(Full.DROP_OLDEST, Bounds.of(0, SIZE), early=True).start == 3


def test_a_young_feed_keeps_no_more_than_its_size() -> None:
    feed = Feed(LIFE, young=True)
    publish(feed, *(bytes(SIZE // 4) for _ in range(9)))
    assert feed.subscribe(Full.DROP_OLDEST, Bounds.of(0, SIZE), early=True).start == 6


@pytest.mark.parametrize(("since", "start"), [((LIFE, 4), 4), ((LIFE, 1), 3), ((LIFE, 6), 6), ((b"other", 4), 6),
                                              ((LIFE, 99), 6)])
def test_who_comes_back_goes_on_where_he_was_as_far_as_is_kept(since: tuple[bytes, int], start: int) -> None:
    feed = Feed(LIFE, 3)
    publish(feed, *(b"%d" % number for number in range(6)))
    outlet = subscribed(feed, since=since)
    assert outlet.start == start
    assert numbers(outlet.grant(0, MANY, WINDOW)) == list(range(start, 6))


def test_what_was_not_acknowledged_is_lost_with_the_subscription() -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed, Full.DROP_NEWEST, length=8)
    outlet.grant(0, 4, WINDOW)
    publish(feed, *(b"x" for _ in range(10)))
    outlet.grant(2, 0, 0)
    assert outlet.account.waiting == 10 - 2 - outlet.account.dropped
    account = feed.end(outlet)
    assert (account.offered, account.taken, account.dropped, account.waiting) == (10, 2, 2, 0)
    assert account.lost == 6
    assert feed.outlets == []


@pytest.mark.parametrize("grant", [(-1, 1, 1), (3, 1, 1), (0, 1, 1), (2, -1, 0), (2, 0, -1), (2, 1 << 60, 0)])
def test_a_grant_that_cannot_be_is_malformed(grant: tuple[int, int, int]) -> None:
    feed = Feed(LIFE)
    outlet = subscribed(feed)
    outlet.grant(0, 2, WINDOW)
    publish(feed, b"a", b"b", b"c")
    outlet.grant(1, 0, 0)
    with pytest.raises(MalformedMessage, match="are said to be taken"):
        outlet.grant(*grant)
    assert outlet.account.taken == 1


class Topic(RuleBasedStateMachine):
    """A publisher and a subscriber, with a connection that keeps order, takes its time, and may be cut."""

    @initialize(full=st.sampled_from(POLICIES), length=st.integers(0, 5), size=st.integers(1, 600),
                keep=st.integers(0, 4), history=st.integers(0, 4), others=st.integers(0, 2), early=st.integers(0, 5))
    def open(self, full: int, length: int, size: int, keep: int, history: int, others: int, early: int) -> None:
        self.feed = Feed(LIFE, keep)
        for _ in range(others):  # who never takes anything
            subscribed(self.feed, length=3)
        publish(self.feed, *(b"early" for _ in range(early)))
        self.full, self.bounds, self.keep = full, Bounds.of(length, size), keep
        self.inlet = Inlet(self.bounds)
        self.taken: list[int] = []
        self.gaps: list[Gap] = []
        self.before = 0  # what the sessions that were cut had offered
        self.join(history)
        self.start = self.outlet.start
        assert self.start == early - min(history, keep, early)

    def join(self, history: int = 0) -> None:
        self.outlet = self.feed.subscribe(self.full, self.bounds, history, self.inlet.since)
        self.down: deque[Run | Skip] = deque()
        self.up: deque[tuple[int, int, int]] = deque()
        self.here: deque[tuple[int, int]] = deque()  # number and bytes of what has come and was not taken
        gap = self.inlet.subscribed(LIFE, self.outlet.start)
        self.gaps.extend([gap] if gap else [])
        if self.bounds.window:
            self.up.append((0, self.bounds.window, self.bounds.window_size))

    def send(self, sent: list[Run | Skip]) -> None:
        self.down.extend(sent)

    @rule(count=st.integers(1, 7), size=st.integers(0, 200))
    def publishes(self, count: int, size: int) -> None:
        for _ in range(count):
            if self.full == Full.BLOCK:
                self.flush()
                if not self.feed.has_room(size + AROUND):
                    return
            self.feed.publish(float(self.feed.next), bytes(size))

    @rule(size=st.integers(0, 200))
    def publishes_large(self, size: int) -> None:
        self.flush()
        if self.full != Full.BLOCK or self.feed.has_room(size + AROUND):
            self.feed.publish(float(self.feed.next), b"", [bytes(size)])
            self.flush()

    @rule()
    def flush(self) -> None:
        for outlet, sent in self.feed.flush():
            if outlet is self.outlet:
                self.send(sent)

    @precondition(lambda self: self.up)
    @rule()
    def a_grant_comes(self) -> None:
        self.send(self.outlet.grant(*self.up.popleft()))

    @precondition(lambda self: self.down)
    @rule()
    def something_comes(self) -> None:
        came = self.down.popleft()
        if isinstance(came, Skip):
            self.gaps.extend(self.inlet.skipped(came.number, came.count))
            return
        assert list(came.times) == [float(number) for number in range(came.number, came.number + len(came.bodies))]
        gap = self.inlet.published(came.number, len(came.bodies))
        self.gaps.extend([gap] if gap else [])
        for number, body in enumerate(came.bodies, came.number):
            self.here.append((number, len(body) + sum(map(len, came.buffers))))

    @rule()
    def takes(self) -> None:
        told = None
        if self.here:
            number, size = self.here.popleft()
            self.taken.append(number)
            told = self.inlet.take(size)
        if told is None and not self.here:
            told = self.inlet.wants()
        self.up.extend([told] if told else [])

    @rule()
    def acknowledges(self) -> None:
        told = self.inlet.settle()
        self.up.extend([told] if told else [])

    @rule()
    def is_cut(self) -> None:
        """What was on its way is gone, and what had come is taken: it is here."""
        while self.here:
            number, size = self.here.popleft()
            self.taken.append(number)
            self.inlet.take(size)
        account = self.feed.end(self.outlet)
        assert account.taken + account.dropped + account.lost == account.offered
        self.flush()
        self.join()

    @invariant()
    def nothing_comes_twice_or_out_of_order(self) -> None:
        seen = [*self.taken, *(number for number, _ in self.here)]
        assert seen == sorted(set(seen))

    @invariant()
    def every_number_is_taken_or_told_to_be_missing(self) -> None:
        missing = [number for gap in self.gaps for number in range(gap.number, gap.number + gap.count)]
        seen = [*self.taken, *(number for number, _ in self.here), *missing]
        assert sorted(seen) == list(range(self.start, self.start + len(seen)))
        assert self.inlet.received == len(self.taken)
        assert self.inlet.dropped == sum(gap.count for gap in self.gaps if gap.dropped)
        assert self.inlet.lost == sum(gap.count for gap in self.gaps if not gap.dropped)

    @invariant()
    def the_publisher_keeps_account(self) -> None:
        account = self.outlet.account
        assert account.taken + account.dropped + account.waiting + account.lost == account.offered
        assert account.offered == self.feed.number - self.outlet.start
        assert account.waiting >= 0

    @invariant()
    def the_queue_is_bounded(self) -> None:
        queue = self.outlet._queue
        assert len(queue) <= max(self.bounds.queue, self.keep)
        assert self.outlet._queued == sum(entry.size for entry in queue)
        on_the_way = len(self.here) + sum(len(run.bodies) for run in self.down if isinstance(run, Run))
        assert on_the_way <= max(1, self.bounds.window)

    @invariant()
    def who_blocks_loses_nothing_but_by_a_cut(self) -> None:
        if self.full == Full.BLOCK:
            assert self.outlet.dropped == 0

    def teardown(self) -> None:
        """Once it is quiet all that was offered is accounted for at both ends."""
        if not hasattr(self, "feed"):
            return
        self.flush()
        for _ in range(10_000):
            self.takes()
            if self.down:
                self.something_comes()
            if self.up:
                self.a_grant_comes()
            elif not self.here and not self.down:
                self.acknowledges()
                if not self.up:
                    break
        account, inlet = self.outlet.account, self.inlet
        assert account.waiting == 0
        assert account.offered == account.taken + account.dropped
        assert inlet.received + inlet.dropped + inlet.lost == self.feed.number - self.start


TestTopic = Topic.TestCase
TestTopic.settings = settings(max_examples=300, stateful_step_count=60)
