"""Services that give many values, as their callers hold them, and the streams that they give."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from typing_extensions import Self

from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.call import serving
from pyzmp.channels.calling import Calling
from pyzmp.channels.channel import Channel, Declared, count
from pyzmp.channels.stream import Stream
from pyzmp.channels.upload import Upload
from pyzmp.exceptions import CallTimeout, DeadlockError, InvalidCall, NodeDied
from pyzmp.protocol.envelope import Credit, Flag, Item, Parcel, size_of
from pyzmp.protocol.outcomes import Ask, Event, Part, Result, timed_out
from pyzmp.protocol.streams import Inflow
from pyzmp.sessions import Begun, Target
from pyzmp.transport.waiters import SLACK

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class StreamService(Channel[P, R_co]):
    """A service that gives many values, for its callers, as `Service`.

    Calling it gives a `Stream` at once; the call is made by the first iteration, in ``for`` or in
    ``async for``.  Its timeout bounds how long the service may take to begin.  Afterwards each item is
    waited for without end, unless a timeout was given by `with_options`, or the stream is iterated in a
    service: then not longer than that service's caller waits.
    """

    def __init__(self, name: str, *, node: str | None = None, declared: Callable[[], Declared] | None = None) -> None:
        super().__init__(name, node=node, declared=declared)
        self._window = 0

    @classmethod
    def of(cls, service: Channel[P, Any]) -> StreamService[P, Any]:
        """The same service, which turned out to be a stream."""
        return cls(service.name, node=service.node, declared=service._declaration)._like(service)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stream[R_co]:
        """The stream of what the service gives; nothing happens before it is iterated."""
        return Streamed(self, args, kwargs, patience=self._timeout, window=self._window)

    if not TYPE_CHECKING:  # to type checkers there is nothing of the kind
        def __getattr__(self, name: str) -> Any:
            if name in ("submit", "acall", "post", "map"):
                raise AttributeError(f"{self.name}() is a stream: iterate over it, in for or in async for")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def with_options(self, *, timeout: float | None = None, attempts: int | None = None, wait: bool | None = None,
                     window: int | None = None) -> Self:
        """As `Service.with_options`, for the beginning of a stream; *timeout* bounds each wait for an item as well.

        *window* is how many items may be on their way, or wait to be taken, 256 by default; beyond
        that, and beyond 1 MiB, the service waits.
        """
        other = self._with(timeout=timeout, attempts=attempts, wait=wait)
        if window is not None:
            other._window = Inflow(count(window, "window")).window[0]
        return other


class Streamed(Stream[R_co]):
    """What a service gives, one after the other.

    The call is made by the first iteration.  An error ends the stream; so does `close`, after which the
    service is told to end: its generator is closed.  A stream that nobody holds any more is closed too.
    In a forked child a stream of the parent's raises NodeDied, and to close it does nothing.
    """

    def __init__(self, channel: Channel[Any, Any], args: Sequence[Any], kwargs: dict[str, Any], *,
                 patience: float | None = None, window: int = 0) -> None:
        self._channel, self._args, self._kwargs = channel, args, kwargs
        self._patience, self._window = patience, window
        self._events: Arrivals[Event] = Arrivals()
        self._calling: Calling | None = None
        self._begun: Begun | None = None
        self._asked: Ask | None = None
        self._loop = ""  # where the service runs
        self._opened = False
        self._over = False
        self._sending: asyncio.Task[None] | None = None  # held, so that it goes on

    # Iterating.

    def __next__(self) -> R_co:
        while not self._over:
            self._check_process()
            if self._begun is None:
                calling = self._call()
                self._open(*calling.attempt(calling.looked(), blocking=True))
            if not len(self._events):
                self._check_waiting()
            try:
                event = self._events.take(self._waits())
            except TimeoutError:
                raise self._late() from None
            found = self._handled(event)
            if isinstance(found, tuple):
                return found[0]  # type: ignore[no-any-return]
            if found:
                time.sleep(found)
        raise StopIteration

    async def __anext__(self) -> R_co:
        while not self._over:
            self._check_process()
            if self._begun is None:
                calling = self._call()
                self._open(*calling.attempt(await calling.alooked(), blocking=False))
            try:
                event = await self._events.atake(self._waits())
            except TimeoutError:
                raise self._late() from None
            found = self._handled(event)
            if isinstance(found, tuple):
                return found[0]  # type: ignore[no-any-return]
            if found:
                await asyncio.sleep(found)
        raise StopAsyncIteration

    def _call(self) -> Calling:
        if self._calling is None:
            self._calling = Calling(self._channel, self._args, self._kwargs, Flag.STREAM, self._window)
        return self._calling

    def _open(self, target: Target, ask: Ask) -> None:
        """Make an attempt."""
        calling = self._call()
        self._asked, self._loop = ask, target.loop
        sessions = calling.here.sessions
        if calling.source is not None and not hasattr(calling.source, "__iter__") and not asyncio._get_running_loop():
            raise InvalidCall(f"{ask.service}(): an async iterable can be sent by a coroutine only; iterate over the "
                              "stream in async for", service=ask.service, node=target.node)
        if calling.source is None:
            self._begun = sessions.submit(target, ask, self._events.put)
            return
        upload: Arrivals[Event | None] = Arrivals()
        self._begun = sessions.submit(target, ask, functools.partial(_sorted, self._events, upload))
        sending = Upload(calling, self._begun, upload, functools.partial(_failed, self._events))
        # Neither of them holds this stream, which is closed where nobody else does.
        if hasattr(calling.source, "__aiter__"):
            self._sending = asyncio.get_running_loop().create_task(_asend(sending, ask))
        else:
            threading.Thread(target=_send, args=(sending, ask), name="pyzmp-upload", daemon=True).start()

    def _handled(self, event: Event) -> tuple[Any] | float:
        """The item that *event* brings, in a tuple; or how long to wait before going on.  Raises the stream's error."""
        assert self._calling is not None
        assert self._begun is not None
        if isinstance(event, Parcel):
            message = event.message
            self._opened = True
            if not isinstance(message, Item) or self._calling.incoming is None:
                return 0.0
            credit = self._calling.incoming.consumed(size_of(message.body, event.buffers))
            if credit is not None:
                self._calling.here.sessions.tell(self._begun, Credit(0, *credit))
            try:
                return (self._calling.value(message.body, event.buffers),)
            except Exception:
                self.close()
                raise
        assert not isinstance(event, Part)
        pause = None if isinstance(event, Result) or self._opened else self._calling.again(event)
        if pause is not None:
            self._begun = None
            return pause
        self._over = True
        if isinstance(event, Result):
            return 0.0
        self._calling.finished(event)
        return 0.0

    def _check_process(self) -> None:
        """Raise NodeDied in a forked child: what arrives goes to the parent."""
        if self._calling is not None and not self._calling.here.is_ours():
            self._over = True
            raise NodeDied(f"the process was forked while the stream of {self._channel.name}() was under way; what is "
                           "left of it goes to the parent", service=self._channel.name, executed=None)

    def _check_waiting(self) -> None:
        """Raise DeadlockError where to block would hold up the loop that gives the next item, or hands it on."""
        assert self._calling is not None
        if self._calling.here.runs(self._loop):
            self.close()
            raise DeadlockError(f"to wait here for the next item of {self._channel.name}() blocks the very loop that "
                                "is to give it; iterate in async for, or with await anext(…)",
                                service=self._channel.name, executed=True if self._opened else None)

    def _waits(self) -> float:
        """How long to wait for what comes next."""
        assert self._calling is not None
        if not self._opened:
            return self._calling.left + SLACK
        outer = serving.get()
        left = outer.remaining if outer is not None and not outer.over else math.inf
        return left if self._patience is None else min(self._patience, left)

    def _late(self) -> CallTimeout:
        """Nothing came in time, which ends the stream."""
        assert self._asked is not None
        self.close()
        ask = self._asked
        if not self._opened:
            return timed_out(ask, sent=True)
        return CallTimeout(f"{ask.service}() of {ask.node!r} gave no further item in time; its stream is closed",
                           service=ask.service, node=ask.node, executed=True)

    # Ending.

    def close(self) -> None:
        """Give up what has not arrived: the service is told to end, and its generator is closed."""
        over, self._over = self._over, True
        if not over and self._begun is not None and self._calling is not None and self._calling.here.is_ours():
            self._calling.here.sessions.give_up(self._begun)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self.close()

    def __repr__(self) -> str:
        return f"<Stream of {self._channel.name}()>"


def _send(sending: Upload, ask: Ask) -> None:
    with contextlib.suppress(BaseException):  # the stream was told
        sending.run(ask, math.inf)


async def _asend(sending: Upload, ask: Ask) -> None:
    with contextlib.suppress(Exception):  # the stream was told
        await sending.arun(ask, math.inf)


def _failed(events: Arrivals[Event], error: BaseException) -> None:
    """What is sent could not be had: that is how the stream ends."""
    events.put(error if isinstance(error, Exception) else RuntimeError(f"what was sent ended by {error!r}"))


def _sorted(events: Arrivals[Event], upload: Arrivals[Event | None], event: Event) -> None:
    """Hand an event to those whom it concerns: credit to what is sent, the end to both."""
    if isinstance(event, Parcel) and isinstance(event.message, Credit):
        upload.put(event)
        return
    events.put(event)
    if not isinstance(event, Parcel):
        upload.put(event)
