"""Values that arrive one after the other, for ``for`` and ``async for`` alike."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Protocol, TypeVar

from typing_extensions import Self

from pyzmp.channels.closing import Closing
from pyzmp.protocol.runs import SCALARS

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

WINDOW = 3072  # calls of a map that are under way at once
SOON = 0.001  # seconds after which a call leaves, though more arguments could be taken


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


class Several(Protocol[T]):
    """Calls that were begun together: their results, in order."""

    def __len__(self) -> int:
        """How many results were not taken."""

    def take(self) -> Sequence[T] | Future[T]:
        """The next results, or the future of the next one that is none yet.  Blocks until there is one."""

    async def atake(self) -> Sequence[T] | Future[T]:
        """As `take`, in a coroutine."""

    def cancel(self) -> object:
        """Give up what has not arrived."""


class Mapped(Stream[R_co]):
    """The results of many calls, in the order of their arguments, with up to `WINDOW` calls under way.

    An item that failed raises its error in its place, and the next one can still be asked for; so
    does an error of the arguments, which are over then.  Calls are begun by *together* where that can
    be, else one by one by *submit*; in a coroutine by *atogether* and *asubmit*.  Where the arguments are not
    *still*, to take one may change those that were taken before: a call is begun first that has such.
    """

    def __init__(self, submit: Callable[..., Future[R_co]], asubmit: Callable[..., Awaitable[Future[R_co]]],
                 arguments: Iterator[tuple[Any, ...]],
                 together: Callable[[Sequence[Any]], Several[R_co] | None] | None = None,
                 atogether: Callable[[Sequence[Any]], Awaitable[Several[R_co] | None]] | None = None, *,
                 still: bool = False) -> None:
        self._submit, self._asubmit, self._together, self._atogether = submit, asubmit, together, atogether
        self._window, self._still = 1, still
        self._arguments: Iterator[tuple[Any, ...]] = arguments
        self._under_way: deque[Future[R_co] | Several[R_co]] = deque()
        self._left = 0  # calls of those whose results were not taken
        self._ready: Iterator[R_co] = iter(())
        self._over = False
        self._error: Exception | None = None  # of the arguments

    def _more(self) -> Iterator[list[tuple[Any, ...]]]:
        """The arguments to begin calls for; twice as many as before: they leave in batches, and the first one soon."""
        if self._over or self._left > self._window // 2:
            return
        self._window = min(2 * self._window, WINDOW)
        while not self._over and self._left < self._window:
            found: list[tuple[Any, ...]] = []
            try:
                self._over = self._take(found, self._window - self._left)
            except Exception as error:
                self._over = True
                self._error = error
            yield found

    def _take(self, found: list[tuple[Any, ...]], room: int) -> bool:
        """Take arguments that may be packed later; whether these are the last."""
        taken, over = islice(self._arguments, room), time.monotonic() + SOON
        if self._still:
            found.extend(taken)
            return len(found) < room
        for row in taken:
            found.append(row)
            if not SCALARS.issuperset(map(type, row)) or time.monotonic() > over:
                return False
        return len(found) < room

    def _began(self, begun: Future[R_co] | Several[R_co], calls: int = 1) -> None:
        self._under_way.append(begun)
        self._left += calls

    def _first(self) -> Future[R_co] | Several[R_co] | None:
        """What gives the next result; None where there is none."""
        if not self._under_way and self._error is not None:
            error, self._error = self._error, None
            self._began(_failed(error))
        return self._under_way[0] if self._under_way else None

    def __next__(self) -> R_co:
        for value in self._ready:
            return value
        for arguments in self._more():
            several = None
            if self._together is not None and len(arguments) > 1:
                with contextlib.suppress(Exception):  # it comes again where it belongs
                    several = self._together(arguments)
            if several is not None:
                self._began(several, len(arguments))
            for each in arguments if several is None else ():
                try:
                    self._began(self._submit(*each))
                except Exception as error:
                    self._began(_failed(error))
        first = self._first()
        if first is None:
            raise StopIteration
        return self._given(first.take() if not isinstance(first, Future) else first).result()

    async def __anext__(self) -> R_co:
        for value in self._ready:
            return value
        for arguments in self._more():
            several = None
            if self._atogether is not None and len(arguments) > 1:
                with contextlib.suppress(Exception):  # it comes again where it belongs
                    several = await self._atogether(arguments)
            if several is not None:
                self._began(several, len(arguments))
            for each in arguments if several is None else ():
                try:
                    self._began(await self._asubmit(*each))
                except Exception as error:
                    self._began(_failed(error))
        first = self._first()
        if first is None:
            raise StopAsyncIteration
        return await asyncio.wrap_future(self._given(await first.atake() if not isinstance(first, Future) else first))

    def _given(self, given: Future[R_co] | Sequence[R_co]) -> Future[R_co]:
        """The next result as a future; the others that have come with it are kept ready."""
        first = self._under_way[0]
        if isinstance(first, Future) or not len(first):
            self._under_way.popleft()
        if isinstance(given, Future):
            self._left -= 1
            return given
        self._left -= len(given)
        self._ready = iter(given)
        ready: Future[R_co] = Future()
        ready.set_result(next(self._ready))
        return ready

    def close(self) -> None:
        self._over, self._error = True, None
        self._ready = iter(())
        while self._under_way:
            self._under_way.pop().cancel()


def _failed(error: Exception) -> Future[Any]:
    """The future of a call that could not begin: its error has its place among the results."""
    failed: Future[Any] = Future()
    failed.set_exception(error)
    return failed
