"""Values that arrive one after the other, for ``for`` and ``async for`` alike."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from typing_extensions import Self

from pyzmp.channels.closing import Closing

R_co = TypeVar("R_co", covariant=True)

WINDOW = 1024  # calls of a map that are under way at once


class Stream(Closing, Iterator[R_co], AsyncIterator[R_co]):
    """An iterator that blocks in ``for`` and awaits in ``async for``; leaving its ``with`` closes it.

    Used by one thread or task at a time.
    """

    def __next__(self) -> R_co:
        raise NotImplementedError

    async def __anext__(self) -> R_co:
        raise NotImplementedError

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def close(self) -> None:
        """Give up what has not arrived; the next item is the end."""


class Mapped(Stream[R_co]):
    """The results of many calls, in the order of their arguments, with up to `WINDOW` calls under way.

    An item that failed raises its error in its place, and the next one can still be asked for; so
    does an error of the arguments, which are over then.  A call is begun by *submit*, in a coroutine
    by *asubmit*.
    """

    def __init__(self, submit: Callable[..., Future[R_co]], asubmit: Callable[..., Awaitable[Future[R_co]]],
                 arguments: Iterator[tuple[Any, ...]]) -> None:
        self._submit, self._asubmit = submit, asubmit
        self._window = 1
        self._arguments: Iterator[tuple[Any, ...]] = arguments
        self._futures: deque[Future[R_co]] = deque()
        self._over = False

    def _runs_low(self) -> bool:
        """Whether to begin more calls, twice as many as before: they leave in batches, and the first one soon."""
        low = len(self._futures) <= self._window // 2
        if low:
            self._window = min(2 * self._window, WINDOW)
        return low

    def _take(self) -> tuple[Any, ...] | None:
        """The next arguments, while there is room for their call."""
        if self._over or len(self._futures) >= self._window:
            return None
        try:
            return next(self._arguments)
        except StopIteration:
            pass
        except Exception as error:
            self._futures.append(_failed(error))
        self._over = True
        return None

    def __next__(self) -> R_co:
        if self._runs_low():
            while (arguments := self._take()) is not None:
                try:
                    self._futures.append(self._submit(*arguments))
                except Exception as error:
                    self._futures.append(_failed(error))
        if not self._futures:
            raise StopIteration
        return self._futures.popleft().result()

    async def __anext__(self) -> R_co:
        if self._runs_low():
            while (arguments := self._take()) is not None:
                try:
                    self._futures.append(await self._asubmit(*arguments))
                except Exception as error:
                    self._futures.append(_failed(error))
        if not self._futures:
            raise StopAsyncIteration
        return await asyncio.wrap_future(self._futures.popleft())

    def close(self) -> None:
        self._over = True
        while self._futures:
            self._futures.pop().cancel()


def _failed(error: Exception) -> Future[Any]:
    """The future of a call that could not begin: its error has its place among the results."""
    failed: Future[Any] = Future()
    failed.set_exception(error)
    return failed
