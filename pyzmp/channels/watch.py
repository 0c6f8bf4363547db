"""Following a state as it changes: by a callback, in ``for`` and in ``async for``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from pyzmp import runtime
from pyzmp.channels.arrivals import Arrivals
from pyzmp.protocol.deadline import seconds

T = TypeVar("T")

# What is the state now, unless it is still the one that was seen: something to tell it by, and what makes its value.
Look = Callable[[runtime.Runtime, Any], tuple[Any, Callable[[], T]] | None]

log = logging.getLogger("pyzmp.watch")


class Watch(Generic[T]):
    """A state as it is now, and then after each change: for ``for`` or ``async for``, one consumer at a time.

    It is always the latest: whoever is slow misses what was in between, and nothing piles up.  It ends by
    `close`, by leaving its ``with``, or when nobody holds it any more.  With a *timeout*, in seconds,
    TimeoutError is raised when nothing has changed for so long; it can be asked again.
    """

    def __init__(self, what: str, look: Look[T], timeout: float | None = None) -> None:
        self._what, self._look = what, look
        self._timeout = None if timeout is None else seconds(timeout)
        self._seen: Any = None
        self._signal: Arrivals[None] = Arrivals()
        self._here: runtime.Runtime | None = None
        self._end: Callable[[], None] = lambda: None
        self._closed = False

    def call(self, callback: Callable[[T], object]) -> Self:
        """Have *callback* called with each state, in a thread of its own, until `close`.  What it raises is logged."""
        if self._timeout is not None:
            raise TypeError(f"watch() of {self._what}: a timeout is for iterating, a callback is called when there is "
                            "something to say; leave one of the two out")
        threading.Thread(target=self._calls, args=(callback,), name="pyzmp-watch", daemon=True).start()
        return self

    def _calls(self, callback: Callable[[T], object]) -> None:
        while True:
            try:
                callback(next(self))
            except StopIteration:
                if self._closed:
                    return
                log.exception("the callback %r of a watch of %s raised", callback, self._what)
            except BaseException:  # also an exit: it would end the watch, which goes on until it is closed
                log.exception("the callback %r of a watch of %s raised", callback, self._what)

    def close(self) -> None:
        """End it, and whoever waits in it; no callback begins any more."""
        self._closed = True
        self._end()
        self._signal.put(None)

    # Iterating.

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._follow():
            runtime.current().facts()
        over = self._over()
        while not self._closed:
            found = self._look(runtime.current(), self._seen)
            if found is not None:
                return self._new(*found)
            self._follow()
            try:
                self._signal.take(over - time.monotonic())
            except TimeoutError:
                raise self._late() from None
        raise StopIteration

    async def __anext__(self) -> T:
        if self._follow():
            await runtime.current().alook()
        over = self._over()
        while not self._closed:
            found = self._look(runtime.current(), self._seen)
            if found is not None:
                return self._new(*found)
            self._follow()
            try:
                await self._signal.atake(over - time.monotonic())
            except TimeoutError:
                raise self._late() from None
        raise StopAsyncIteration

    def _follow(self) -> bool:
        """Be told of changes by the runtime of this process, which is another one in a forked child; whether it is."""
        here = runtime.current()
        if self._closed or self._here is here:
            return False
        self._end()
        signal = self._signal = Arrivals()
        self._here, self._end = here, here.replica.attend(lambda: None if len(signal) else signal.put(None))
        if self._is_closed():  # meanwhile, by another thread
            self._end()
        return True

    def _is_closed(self) -> bool:
        return self._closed

    def _over(self) -> float:
        return time.monotonic() + (threading.TIMEOUT_MAX / 2 if self._timeout is None else self._timeout)

    def _new(self, seen: Any, make: Callable[[], T]) -> T:
        self._seen = seen  # before what may raise, which is raised once then
        return make()

    def _late(self) -> TimeoutError:
        return TimeoutError(f"{self._what} has not changed for {self._timeout:g} s")

    # Ending.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        return f"<Watch of {self._what}{', closed' if self._closed else ''}>"
