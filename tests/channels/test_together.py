"""Many calls that are made at once by a map."""

from __future__ import annotations

import asyncio

import pytest

import pyzmp
from pyzmp.channels.together import Many
from pyzmp.exceptions import DeadlockError


class Adder(pyzmp.Node):
    """Adds."""

    @pyzmp.service
    def add(self, a: int, b: int) -> int:
        return a + b

    @pyzmp.service
    async def own(self) -> str:
        try:
            return str(list(Adder.add.map([1, 2], [3, 4])))
        except DeadlockError as error:
            return type(error).__name__


def test_calls_are_made_at_once_where_their_arguments_fit() -> None:
    with Adder("adder"):
        assert isinstance(Adder.add._together([(1, 2), (3, 4)]), Many)  # type: ignore[attr-defined]
        large = [(1 << 70, 2), (3, 4)]
        assert list(Adder.add.map(*zip(*large, strict=True))) == [sum(pair) for pair in large]
        with pytest.raises(pyzmp.InvalidCall):
            Adder.add._together([(1, 2), (3, "4")])  # type: ignore[attr-defined]


def test_results_can_be_awaited_and_taken_in_turn() -> None:
    async def collect() -> list[int]:
        mapped = Adder.add.map(range(5000), range(5000))
        return [await anext(mapped) for _ in range(10)] + [value async for value in mapped]
    with Adder("adder"):
        assert asyncio.run(collect()) == [2 * number for number in range(5000)]


def test_to_wait_for_ones_own_loop_is_a_deadlock_at_once() -> None:
    with Adder("adder"):
        assert Adder.own() == "DeadlockError"
