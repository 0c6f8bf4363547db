"""Values that arrive one after the other, for ``for`` and ``async for`` alike."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from typing_extensions import Self

R_co = TypeVar("R_co", covariant=True)

WINDOW = 1024  # calls of a map that are under way at once


class Stream(Iterator[R_co], AsyncIterator[R_co]):
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

    async def aclose(self) -> None:
        """As `close`, in a coroutine."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Mapped(Stream[R_co]):
    """The results of many calls, in the order of their arguments, with up to `WINDOW` calls under way.

    An item that failed raises its error in its place; the next one can still be asked for.
    """

    def __init__(self, submit: Callable[..., Future[R_co]], arguments: Iterator[tuple[Any, ...]]) -> None:
        self._submit = submit
        self._arguments: Iterator[tuple[Any, ...]] = arguments
        self._futures: deque[Future[R_co]] = deque()
        self._over = False

    def _next(self) -> Future[R_co] | None:
        # Refilled by halves, so that calls leave in batches and not each behind its predecessor's result.
        if not self._over and len(self._futures) <= WINDOW // 2:
            while len(self._futures) < WINDOW:
                arguments = next(self._arguments, None)
                if arguments is None:
                    self._over = True
                    break
                self._futures.append(_begun(self._submit, arguments))
        return self._futures.popleft() if self._futures else None

    def __next__(self) -> R_co:
        future = self._next()
        if future is None:
            raise StopIteration
        return future.result()

    async def __anext__(self) -> R_co:
        future = self._next()
        if future is None:
            raise StopAsyncIteration
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._over = True
        while self._futures:
            self._futures.pop().cancel()


def _begun(submit: Callable[..., Future[R_co]], arguments: tuple[Any, ...]) -> Future[R_co]:
    """A call's future, also where the call could not begin: its error has its place among the results."""
    try:
        return submit(*arguments)
    except Exception as error:
        failed: Future[R_co] = Future()
        failed.set_exception(error)
        return failed
