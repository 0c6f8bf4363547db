"""Following a state as it changes: by a callback, in ``for`` and in ``async for``."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from pyzmp import runtime
from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.call import ending_here
from pyzmp.channels.closing import Closing
from pyzmp.exceptions import DeadlockError, PyzmpError
from pyzmp.protocol.deadline import seconds

T = TypeVar("T")

# What is the state now, unless it is still the one that was seen: something to tell it by, and what makes its value.
Look = Callable[[runtime.Runtime, Any], tuple[Any, Callable[[], T]] | None]

log = logging.getLogger("pyzmp.watch")


class Watch(Closing, Generic[T]):
    """A state as it is now, and then after each change: for ``for`` or ``async for``, one consumer at a time.

    It is always the latest: whoever is slow misses what was in between, and nothing piles up.  It ends by
    `close`, by leaving its ``with``, when nobody holds it any more, or with pyzmp at the end of the interpreter.
    With a *timeout*, in seconds, TimeoutError is raised when nothing has changed for so long; it can be asked
    again.  DeadlockError where *deadlocks* says that to block in this thread would keep the change from coming.
    """

    def __init__(self, what: str, look: Look[T], timeout: float | None = None, *,
                 deadlocks: Callable[[runtime.Runtime], bool] = lambda here: here.holds_up) -> None:
        self._what, self._look, self._deadlocks = what, look, deadlocks
        self._timeout = None if timeout is None else seconds(timeout)
        self._seen: Any = None
        self._signal: Arrivals[None] = Arrivals()
        self._here: runtime.Runtime | None = None
        self._end: Callable[[], None] = lambda: None
        self._looked = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._called: Arrivals[None] = Arrivals()  # something, once no callback is called any more

    def call(self, callback: Callable[[T], object]) -> Self:
        """Have *callback* called with each state, in a thread of its own, until `close`.  What it raises is logged.

        Made by the code of a node, it ends with the node.
        """
        if not callable(callback):
            raise TypeError(f"watch() of {self._what}: expected a function to call, got {callback!r}")
        if self._timeout is not None:
            raise TypeError(f"watch() of {self._what}: a timeout is for iterating, a callback is called when there is "
                            "something to say; leave one of the two out")
        self._follow()  # here, so that its errors are the caller's
        thread = threading.Thread(target=self._calls, args=(callback,), name="pyzmp-watch", daemon=True)
        thread.start()
        self._thread = thread
        node_end = ending_here.get()
        if node_end is not None:
            node_end.add(self)
        return self

    def _calls(self, callback: Callable[[T], object]) -> None:
        try:
            while (state := self._next()) is not None:
                try:
                    callback(state[0])
                except BaseException:  # also an exit: it would end the watch, which goes on until it is closed
                    log.exception("the callback %r of a watch of %s raised", callback, self._what)
        finally:
            self._called.put(None)

    def _next(self) -> tuple[T] | None:
        """The next state for a callback, in a tuple; None at the end, which is also where it cannot be had."""
        while True:
            try:
                state = next(self)
                return None if self._is_closed() else (state,)
            except StopIteration:
                return None
            except Exception as error:
                if self._is_over():
                    return None
                log.exception("a watch of %s for a callback raised", self._what)
                if not isinstance(error, PyzmpError):  # those are of one state, or told once
                    return None

    def close(self) -> None:
        """End it, and whoever waits in it; no callback begins any more.

        It waits for a callback that runs, unless that calls it.  On a running loop it does not wait: use `aclose`.
        """
        self._finish()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and not asyncio._get_running_loop():
            thread.join()

    async def aclose(self) -> None:
        """As `close`, in a coroutine."""
        self._finish()
        if self._thread is not None and self._thread is not threading.current_thread():
            await self._called.atake(threading.TIMEOUT_MAX)
            self._called.put(None)  # for whoever else closes it

    def _finish(self) -> None:
        self._closed = True
        self._end()
        self._signal.put(None)

    # Iterating.

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> T:
        here = self._follow()
        if here is not None and not self._looked:
            self._looked = True
            here.facts()
        over = self._until()
        while (here := self._follow()) is not None:
            found = self._look(here, self._seen)
            if found is not None:
                return self._new(*found)
            if self._deadlocks(here):
                raise DeadlockError(f"to wait here for a change of {self._what} holds up the loop that runs here, with "
                                    "the nodes on it; iterate in async for, or with await anext(…)")
            try:
                self._signal.take(over - time.monotonic())
            except TimeoutError:
                raise self._late() from None
        raise StopIteration

    async def __anext__(self) -> T:
        here = self._follow()
        if here is not None and not self._looked:
            self._looked = True
            await here.alook()
        over = self._until()
        while (here := self._follow()) is not None:
            found = self._look(here, self._seen)
            if found is not None:
                return self._new(*found)
            try:
                await self._signal.atake(over - time.monotonic())
            except TimeoutError:
                raise self._late() from None
        raise StopAsyncIteration

    def _follow(self) -> runtime.Runtime | None:
        """The runtime that tells of changes, which is another one in a forked child; None once this is over."""
        if self._is_over():
            return None
        here = self._here
        if here is None or not here.is_ours():
            self._end()
            here, self._looked = runtime.current(), False
            signal = self._signal = Arrivals()
            self._here, self._end = here, here.replica.attend(
                lambda: None if len(signal) else signal.put(None), endless=True)
            if self._is_closed():  # meanwhile, by another thread
                self._end()
        return here

    def _is_closed(self) -> bool:
        return self._closed

    def _is_over(self) -> bool:
        """Whether it is closed, or its runtime is."""
        return self._closed or (self._here is not None and self._here.is_ours() and self._here.closed)

    def _until(self) -> float:
        return time.monotonic() + (threading.TIMEOUT_MAX / 2 if self._timeout is None else self._timeout)

    def _new(self, seen: Any, make: Callable[[], T]) -> T:
        self._seen = seen  # before what may raise, which is raised once then
        return make()

    def _late(self) -> TimeoutError:
        return TimeoutError(f"{self._what} has not changed for {self._timeout:g} s")

    # Ending.

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        return f"<Watch of {self._what}{', closed' if self._closed else ''}>"
