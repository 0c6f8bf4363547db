"""What is gathered of a topic before it is offered."""

from __future__ import annotations

from typing import Any

import pytest

from pyzmp.gathering import Gathering
from pyzmp.protocol import codec
from pyzmp.protocol.feed import BATCH, BATCH_SIZE, FEW
from pyzmp.protocol.schema import Type


def gathered(type: Any, *values: Any) -> Gathering:
    made = Gathering(Type.of(type))
    for at, value in enumerate(values):
        made.pending += (float(at), value)
    return made


def test_values_are_taken_together_in_order_with_their_times() -> None:
    (times, bodies), = gathered(int, 1, 2**70, 3)._taken()
    assert list(times) == [0.0, 1.0, 2.0]
    assert [codec.decode(body) for body in bodies] == [1, 2**70, 3]


def test_one_that_is_encoded_already_stands_among_the_others() -> None:
    some = gathered(int, 1)
    some._gather(1.0, codec.encode({"a": (1, 2)})[0])
    assert [[codec.decode(body) for body in bodies] for _, bodies in some._taken()] == [[1, {"a": (1, 2)}]]


@pytest.mark.parametrize("count", [BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_no_more_is_taken_together_than_may_travel_together(count: int) -> None:
    some = gathered(int, *range(count))
    taken = [bodies for _, bodies in some._taken()]
    assert all(len(bodies) <= BATCH for bodies in taken)
    assert [codec.decode(body) for bodies in taken for body in bodies] == list(range(count))
    assert some.pending == []


def test_large_ones_travel_with_few_others_and_small_ones_with_many_again() -> None:
    some = gathered(bytes, *[bytes(1000)] * BATCH)
    taken = [bodies for _, bodies in some._taken()]
    assert sum(map(len, taken)) == BATCH
    assert all(bodies.size <= BATCH_SIZE for bodies in taken)
    assert some._most == 2 * FEW
    for _ in range(10):
        some.pending += (0.0, b"x") * FEW
        list(some._taken())
    assert some._most == 2 * BATCH


def test_one_who_is_careful_gathers_nothing_and_who_may_be_held_up_a_few() -> None:
    some = gathered(int)
    assert int in some.quick
    some._weigh(careful=True, few=True)
    assert not some.quick
    some._weigh(careful=False, few=True)
    assert (int in some.quick, some._most) == (True, 2 * FEW)
    some.pending += (0.0, 1) * FEW
    list(some._taken())
    assert some._most == 2 * FEW


def test_what_is_gathered_waits_for_as_long_as_it_took_to_send_what_came_before_and_not_for_ever() -> None:
    some = gathered(int)
    assert some.since == some.due == 0.0
    some._in_a_moment(began=0.0)  # long ago
    assert 0 < some.due - some.since < 0.01
    some._in_a_moment(began=some.since + 1e9)  # the clock was set back
    assert 0 < some.due - some.since < 0.001


def test_of_few_it_is_their_number_that_counts() -> None:
    some = gathered(int)
    some._weigh(careful=False, few=True)
    some.pending += (0.0, 1)
    assert not some._may_wait()  # nobody will have it leave
    some._in_a_moment(began=0.0)
    assert some._may_wait()
    some.pending += (0.0, 1) * (FEW - 1)
    assert not some._may_wait()
