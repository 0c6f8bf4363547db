"""A subscription where it is taken."""

from __future__ import annotations

import pytest

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol.feed import AROUND, SIZE, Bounds
from pyzmp.protocol.inlet import Gap, Inlet


def inlet(length: int = 0, *, life: bytes = b"life", number: int = 0) -> Inlet:
    made = Inlet(Bounds.of(length, SIZE))
    assert made.subscribed(life, number) is None
    return made


def test_a_jump_in_the_numbers_is_a_loss_where_nobody_said_it_was_dropped() -> None:
    taken = inlet(number=3)
    assert taken.published(3, 2) is None
    assert taken.published(8, 1) == Gap(5, 3, dropped=False)
    assert (taken.lost, taken.dropped) == (3, 0)


def test_what_a_full_queue_has_dropped_is_counted_as_that() -> None:
    taken = inlet()
    assert taken.skipped(0, 4) == (Gap(0, 4, dropped=True),)
    assert taken.skipped(6, 1) == (Gap(4, 2, dropped=False), Gap(6, 1, dropped=True))
    assert taken.published(7, 1) is None
    assert (taken.lost, taken.dropped) == (2, 5)


@pytest.mark.parametrize("number", [-1, 0, 4])
def test_what_came_already_is_malformed(number: int) -> None:
    taken = inlet()
    taken.published(0, 5)
    with pytest.raises(MalformedMessage, match="where 5 is the next"):
        taken.published(number, 1)
    with pytest.raises(MalformedMessage, match="where 5 is the next"):
        taken.skipped(number, 1)


def test_a_skip_of_nothing_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="0 messages of a topic"):
        inlet().skipped(0, 0)


def test_a_new_session_of_the_same_feed_tells_what_was_lost_meanwhile() -> None:
    taken = inlet()
    taken.published(0, 5)
    assert taken.since == (b"life", 5)
    assert taken.subscribed(b"life", 5) is None
    assert taken.subscribed(b"life", 9) == Gap(5, 4, dropped=False)
    assert taken.subscribed(b"another", 2) is None
    assert taken.lost == 4
    assert taken.since == (b"another", 2)


def test_who_was_there_before_a_feed_knows_what_was_lost_of_its_beginning() -> None:
    taken = inlet(number=4)
    assert taken.subscribed(b"another", 3, early=True) == Gap(0, 3, dropped=False)
    assert taken.subscribed(b"another", 3, early=True) is None
    assert taken.subscribed(b"a third", 0, early=True) is None
    assert (taken.lost, taken.since) == (3, (b"a third", 0))


def test_the_end_of_a_feed_tells_what_did_not_come_any_more() -> None:
    taken = inlet()
    taken.published(0, 2)
    assert taken.over(2) is None
    assert taken.over(5) == Gap(2, 3, dropped=False)


def test_room_is_told_in_lumps_of_half_a_window() -> None:
    taken = inlet(length=8)  # a window of 4
    taken.published(0, 4)
    assert taken.take(1) is None
    assert taken.take(1) == (2, 2, 2 * (1 + AROUND))
    assert taken.settle() is None
    assert taken.take(1) is None
    assert taken.settle() == (3, 1, 1 + AROUND)
    assert taken.wants() is None


def test_bytes_are_told_in_lumps_too() -> None:
    taken = inlet()
    taken.published(0, 2)
    assert taken.take(10) is None
    assert taken.take(1 << 20) == (2, 2, (1 << 20) + 10 + 2 * AROUND)


def test_without_a_window_one_message_is_granted_to_whoever_waits() -> None:
    taken = inlet(length=1)
    assert taken.wants() == (0, 1, 1)
    assert taken.wants() is None  # it is on its way
    taken.published(0, 1)
    assert taken.wants() is None  # it is here
    assert taken.take(10) is None
    assert taken.settle() == (1, 0, 0)
    assert taken.wants() == (1, 1, 10 + AROUND)
    taken.subscribed(b"life", 1)
    assert taken.wants() == (0, 1, 1)


def test_numbers_that_no_topic_comes_to_are_malformed() -> None:
    far = (1 << 64) - 1
    for number, life in ((far, b"life"), (-1, b"life"), (0, bytes(1000))):
        with pytest.raises(MalformedMessage, match="as the next"):
            inlet().subscribed(life, number)
    with pytest.raises(MalformedMessage, match="of a topic"):
        inlet().published(far, 1)
    with pytest.raises(MalformedMessage, match="of a topic"):
        inlet().skipped(0, far)
    with pytest.raises(MalformedMessage, match="has ended"):
        inlet().over(far)
