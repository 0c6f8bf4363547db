"""Values that arrive one after the other: the results of a map, here of futures without nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from pyzmp.channels.stream import WINDOW, Mapped


class Submitted:
    """Futures that end when they are told to."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.futures: list[Future[Any]] = []
        self.at_once = at_once

    def __call__(self, value: Any) -> Future[Any]:
        if value == "refused":
            raise ValueError("refused")
        future: Future[Any] = Future()
        if self.at_once:
            future.set_result(value)
        self.futures.append(future)
        return future


def numbers(count: int) -> Iterator[tuple[int]]:
    return ((n,) for n in range(count))


def test_results_come_in_the_order_of_their_arguments() -> None:
    submitted = Submitted(at_once=False)
    mapped = Mapped(submitted, iter([("a",), ("b",), ("c",)]))

    async def collect() -> list[Any]:
        return [value async for value in mapped]

    async def answer() -> list[Any]:
        collecting = asyncio.create_task(collect())
        await asyncio.sleep(0)
        for future, value in zip(reversed(submitted.futures), "cba", strict=True):
            future.set_result(value)
        return await collecting
    assert asyncio.run(answer()) == ["a", "b", "c"]


def test_so_many_calls_are_under_way_and_no_more() -> None:
    submitted = Submitted()
    mapped = Mapped(submitted, numbers(10 * WINDOW))
    assert next(mapped) == 0
    assert len(submitted.futures) == WINDOW
    assert list(mapped) == list(range(1, 10 * WINDOW))
    with pytest.raises(StopIteration):
        next(mapped)


def test_a_call_that_cannot_begin_fails_in_its_place() -> None:
    mapped = Mapped(Submitted(), iter([(1,), ("refused",), (3,)]))
    assert next(mapped) == 1
    with pytest.raises(ValueError, match="refused"):
        next(mapped)
    assert list(mapped) == [3]


def test_closing_it_cancels_what_is_under_way() -> None:
    submitted = Submitted(at_once=False)
    with Mapped(submitted, numbers(5)) as mapped:
        first = mapped._next()
    assert first is submitted.futures[0]
    assert [future.cancelled() for future in submitted.futures] == [False, True, True, True, True]
    assert list(mapped) == []

    async def close() -> list[Any]:
        async with Mapped(Submitted(), numbers(5)) as other:
            pass
        return [value async for value in other]
    assert asyncio.run(close()) == []
