"""Several nodes at once, and in order, within one time."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest

import pyzmp
from pyzmp.together import AT_ONCE, LEAST, Until, all_of, at_once, batches, in_turn, raise_of


class One(pyzmp.Node):
    pass


class Other(pyzmp.Node):
    pass


def test_neighbours_that_are_processes_of_one_class_belong_together() -> None:
    nodes = [One(), One(), Other(), One(), One(kind="thread"), One(kind="thread"), Other(), Other()]
    assert batches(nodes) == [nodes[:2], [nodes[2]], [nodes[3]], [nodes[4]], [nodes[5]], nodes[6:]]
    assert batches([]) == []


def test_not_too_many_belong_together() -> None:
    assert [len(batch) for batch in batches(One() for _ in range(2 * AT_ONCE + 3))] == [AT_ONCE, AT_ONCE, 3]


def test_all_are_called_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    assert sorted(at_once([functools.partial(barrier.wait, 10)] * 3)) == [0, 1, 2]


def test_what_they_raise_is_what_they_came_to() -> None:
    def fail() -> None:
        raise SystemExit(3)
    first, second = at_once([fail, lambda: 4])
    assert (type(first), second) == (SystemExit, 4)
    assert [type(error) for error in at_once([lambda: 1 // 0])] == [ZeroDivisionError]
    with pytest.raises(SystemExit):  # of a single one, as of a Ctrl-C
        at_once([fail])


def test_coroutines_run_at_the_same_time_too() -> None:
    async def main() -> list[object]:
        event = asyncio.Event()

        async def tells() -> None:
            event.set()

        async def fails() -> None:
            raise ValueError
        return await all_of([event.wait(), tells(), fails()])
    *rest, error = asyncio.run(main())
    assert (rest, type(error)) == ([True, None], ValueError)


def test_the_first_error_is_raised() -> None:
    raise_of([None, 0])
    with pytest.raises(KeyError):
        raise_of([None, KeyError(), ValueError()])


def test_when_the_time_is_over_all_that_are_left_come_at_once() -> None:
    nodes = [One(kind="thread"), One(), One(), Other()]
    assert list(in_turn(nodes, Until(None))) == [(nodes[:1], None), (nodes[1:3], None), (nodes[3:], None)]
    assert [batch for batch, _ in in_turn(nodes, Until(10.0))] == batches(nodes)
    assert list(in_turn(nodes, Until(LEAST / 2))) == [(nodes, LEAST)]
    assert list(in_turn([], Until(LEAST / 2))) == []


def test_a_time_is_shared() -> None:
    until = Until(10.0)
    assert 4.0 < until.share(2) <= 5.0  # type: ignore[operator]
    assert 9.0 < until.left(3.0) <= 10.0
    assert Until(LEAST / 100).share(2) == Until(LEAST / 100).left(3.0) == LEAST
    assert (Until(None).share(2), Until(None).left(3.0)) == (None, 3.0)
    with pytest.raises(ValueError, match="timeout"):
        Until(0)
