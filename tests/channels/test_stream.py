"""Values that arrive one after the other: the results of a map, here of futures without nodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from pyzmp.channels.stream import WINDOW, Mapped


class Submitted:
    """Futures that end when they are told to."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.futures: list[Future[Any]] = []
        self.both = asyncio.Event()
        self.at_once = at_once

    def __call__(self, value: Any) -> Future[Any]:
        if value == "refused":
            raise ValueError("refused")
        future: Future[Any] = Future()
        if self.at_once:
            future.set_result(value)
        self.futures.append(future)
        if len(self.futures) == 2:
            self.both.set()
        return future


def mapped_over(submitted: Submitted, arguments: Iterator[tuple[Any, ...]]) -> Mapped[Any]:
    async def asubmit(value: Any) -> Future[Any]:
        await asyncio.sleep(0)
        return submitted(value)
    return Mapped(submitted, asubmit, arguments)


def numbers(count: int) -> Iterator[tuple[int]]:
    return ((n,) for n in range(count))


def test_results_come_in_the_order_of_their_arguments() -> None:
    submitted = Submitted(at_once=False)
    mapped = mapped_over(submitted, iter([("a",), ("b",)]))

    async def collect() -> list[Any]:
        return [value async for value in mapped]

    async def answer() -> list[Any]:
        collecting = asyncio.create_task(collect())
        await asyncio.wait_for(submitted.both.wait(), 5)
        for future, value in zip(reversed(submitted.futures), "ba", strict=True):
            future.set_result(value)
        return await collecting
    assert asyncio.run(answer()) == ["a", "b"]


def test_more_and_more_calls_are_under_way_up_to_the_window() -> None:
    submitted = Submitted()
    mapped = mapped_over(submitted, numbers(10 * WINDOW))
    ahead = []
    for number in range(10 * WINDOW):
        assert next(mapped) == number
        ahead.append(len(submitted.futures) - number)
    assert ahead[0] <= 2
    assert all(ahead[number] <= 4 * number + 2 for number in range(WINDOW))
    assert max(ahead) == WINDOW
    with pytest.raises(StopIteration):
        next(mapped)


def test_an_error_of_the_arguments_has_its_place_too() -> None:
    def arguments() -> Iterator[tuple[Any]]:
        yield from ((1,), (2,), (3,))
        raise KeyError("of the arguments")

    def collect() -> list[Any]:
        mapped, seen = mapped_over(Submitted(), arguments()), []
        while True:
            try:
                seen.append(next(mapped))
            except StopIteration:
                return seen
            except KeyError as error:
                seen.append(str(error))

    async def acollect() -> list[Any]:
        mapped, seen = mapped_over(Submitted(), arguments()), []
        while True:
            try:
                seen.append(await mapped.__anext__())
            except StopAsyncIteration:
                return seen
            except KeyError as error:
                seen.append(str(error))
    assert collect() == asyncio.run(acollect()) == [1, 2, 3, "'of the arguments'"]


def test_a_call_that_cannot_begin_fails_in_its_place() -> None:
    mapped = mapped_over(Submitted(), iter([(1,), ("refused",), (3,)]))
    assert next(mapped) == 1
    with pytest.raises(ValueError, match="refused"):
        next(mapped)
    assert list(mapped) == [3]


def test_closing_it_cancels_what_is_under_way() -> None:
    submitted = Submitted(at_once=False)
    with mapped_over(submitted, numbers(5)) as mapped:
        threading.Timer(0.01, lambda: submitted.futures[0].set_result(0)).start()
        assert next(mapped) == 0
    assert [future.cancelled() for future in submitted.futures] == [False, True]
    assert list(mapped) == []

    async def close() -> list[Any]:
        async with mapped_over(Submitted(), numbers(5)) as other:
            pass
        return [value async for value in other]
    assert asyncio.run(close()) == []
