"""Subscriptions, as those who made them hold them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pyzmp import runtime
from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.call import ending_here, running_node
from pyzmp.channels.expecting import IN_THREADS, callback_for, is_async, refuse_awaitable, wants_messages
from pyzmp.channels.failing import Failing
from pyzmp.channels.message import Event, Message
from pyzmp.channels.messages import Messages
from pyzmp.channels.opening import Opening
from pyzmp.channels.selection import Selection
from pyzmp.channels.sources import Sources
from pyzmp.channels.stream import Stream
from pyzmp.channels.terms import FullQueue, Terms, terms_of
from pyzmp.channels.tray import Tray
from pyzmp.exceptions import DeadlockError, NodeDied
from pyzmp.protocol.batch import Batch
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.feed import SIZE, Bounds

__all__ = ["FullQueue", "Subscription", "asubscribe_to", "subscribe_to"]

T = TypeVar("T")

log = logging.getLogger("pyzmp.topic")


class Subscription(Stream[T]):
    """What the publishers of a topic publish, one after the other: for ``for`` or ``async for``.

    One consumer at a time.  With a *timeout* each wait ends after so many seconds in TimeoutError, and it can be
    asked again.  It ends by `close`, by leaving its ``with``, with the node whose code made it, with pyzmp at the end
    of the interpreter, or, unless it has a callback, when nobody holds it any more.  In a forked child one of the
    parent's raises NodeDied, behind what the parent was taking together with the last value.
    """

    def __init__(self, here: runtime.Runtime, selection: Selection, terms: Terms, *, timeout: float | None = None,
                 on_event: Callable[[Event], object] | None = None, raw: bool = False) -> None:
        self._over = True  # until it is made
        self._here, self._what, self._terms = here, selection.text, terms
        self._timeout = None if timeout is None else seconds(timeout)
        self._on_event = on_event
        self._opening = Opening(selection.type, raw=raw)
        self._tray = Tray()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sources: Sources | None = None
        self._selection = selection
        self._values: Iterator[Any] = iter(())
        self._batch: Batch | None = None
        self._numbers: Sequence[int] = ()
        self._times: Sequence[float] = ()
        self._failing, self._events = Failing(), Failing()
        self._counted: tuple[int, Batch | None] = 0, None  # what was taken before, and what is being: at one stroke
        bounds = Bounds.of(terms.length, terms.size)
        self._lump = bounds.window // 4, bounds.window_size // 4
        self._waits = not bounds.window  # for each message
        self._untold = 0, 0
        self._held = False
        self._thread: threading.Thread | None = None
        self._called: Arrivals[None] = Arrivals()  # something, once no callback is called any more
        self._over = False

    # What became of it.

    @property
    def received(self) -> int:
        """How many messages were taken."""
        count, batch = self._counted
        return count + (batch.taken if batch is not None else 0)

    @property
    def dropped(self) -> int:
        """How many messages its full queues have dropped."""
        return self._sources.dropped if self._sources is not None else 0

    @property
    def lost(self) -> int:
        """How many messages were lost on their way, or could not be read."""
        return (self._sources.lost if self._sources is not None else 0) + self._opening.unreadable

    @property
    def failed(self) -> int:
        """How often its callback has raised."""
        return self._failing.count

    @property
    def publishers(self) -> list[str]:
        """The nodes, and programs, that have confirmed it and are there."""
        return self._sources.publishers if self._sources is not None and not self._over else []

    # Iterating.

    def __next__(self) -> T:
        for value in self._values:
            return value  # type: ignore[no-any-return]
        self._prepare()
        until = time.monotonic() + (threading.TIMEOUT_MAX / 2 if self._timeout is None else self._timeout)
        while not self._over:
            for value in self._values:
                return value  # type: ignore[no-any-return]
            if not len(self._tray.arrivals):
                self._idle()
                self._check_deadlock()
            try:
                item = self._tray.arrivals.take(until - time.monotonic())
            except TimeoutError:
                raise self._late() from None
            self._came(item)
        raise StopIteration

    async def __anext__(self) -> T:
        for value in self._values:
            return value  # type: ignore[no-any-return]
        self._prepare()
        until = time.monotonic() + (threading.TIMEOUT_MAX / 2 if self._timeout is None else self._timeout)
        while not self._over:
            for value in self._values:
                return value  # type: ignore[no-any-return]
            if not len(self._tray.arrivals):
                self._idle()
            try:
                item = await self._tray.arrivals.atake(until - time.monotonic())
            except TimeoutError:
                raise self._late() from None
            self._came(item)
        raise StopAsyncIteration

    def messages(self) -> Stream[Message[T]]:
        """The same, with who has published each, its number and when: for ``for`` or ``async for``."""
        return Messages(self)

    def message(self, value: Any) -> Message[T]:
        """The value that was just taken, as a message."""
        batch = self._batch
        assert batch is not None
        place = batch.place
        return Message(value, batch.source.topic, batch.source.node, self._numbers[place], self._times[place])

    def _prepare(self) -> None:
        """What came together was taken."""
        if not self._here.is_ours():
            self._over = True
            raise NodeDied(f"the process was forked while it was subscribed to {self._what}; what comes goes to the "
                           "parent", executed=None)
        if self._held and self._thread is not threading.current_thread():
            raise TypeError(f"{self!r} calls a function with what comes; one that is iterated has none")
        batch = self._batch
        if batch is not None and not batch.begun:
            self._open(batch)
        elif batch is not None:
            self._took(batch)

    def _took(self, batch: Batch) -> None:
        batch.end()
        taken = batch.taken
        self._counted, self._batch = (self._counted[0] + taken, None), None
        count, size = self._untold = self._untold[0] + taken, self._untold[1] + batch.size
        if self._tray.asked or count >= self._lump[0] or size >= self._lump[1]:
            self._tell()

    def _tell(self) -> None:
        """Have the publishers hear of what was taken."""
        self._untold, self._tray.asked = (0, 0), False
        if self._sources is not None:
            self._post(self._sources.acknowledge)

    def _idle(self) -> None:
        """There is nothing to take."""
        if self._waits and self._sources is not None:
            self._tray.hungry = True
            self._post(self._sources.wants)

    def _came(self, item: Batch | Event | None) -> None:
        """Take what has come."""
        if isinstance(item, Batch):
            self._batch = item  # first: after a Ctrl-C in what follows it is opened again
            self._counted = self._counted[0], item
            self._open(item)
        elif item is None:
            self._over = self._over or self._here.closed
        elif self._on_event is not None:
            self._call(self._on_event, item)

    def _open(self, batch: Batch) -> None:
        self._tray.hungry = False
        values, self._numbers, self._times = self._opening.values(batch)
        self._values = batch.begin(values, held=self._held)
        if self._tray.asked:
            self._tell()
        if self._over:  # meanwhile, by another thread
            self._values = iter(())
        elif not values:
            self._took(batch)

    def _late(self) -> TimeoutError:
        nobody = self._sources.nobody() if self._sources is not None else ""
        return TimeoutError(f"nothing has come of {self._what} for {self._timeout:g} s{'; ' * bool(nobody)}{nobody}")

    def _check_deadlock(self) -> None:
        """Raise DeadlockError where to block would hold up the only loops that something could come from."""
        if self._sources is None or asyncio._get_running_loop() is None:
            return
        loops = self._sources.loops
        if self._here.in_own_thread or (loops and all(map(self._here.runs, loops))):
            raise DeadlockError(f"to wait here for a message of {self._what} blocks the very loop that is to publish "
                                "it; iterate in async for, or with await anext(…)")

    # With a callback, in a thread of its own.

    def call(self, callback: Callable[[Any], object]) -> None:
        """Have *callback* called with each value or message, until `close`."""
        self._held = True  # until the callback has ended with each
        self._thread = threading.Thread(target=self._calls, args=(callback, wants_messages(callback)), daemon=True,
                                        name="pyzmp-subscription")
        self._thread.start()

    def _calls(self, callback: Callable[[Any], object], messages: bool) -> None:
        try:
            for value in self.messages() if messages else self:
                batch = self._batch
                try:
                    refuse_awaitable(callback(value), callback)
                except BaseException as error:  # also an exit: it would end what goes on until it is closed
                    if batch is not None:
                        self._failing.raised(batch.source, f"the callback {callback!r}", error)
        except Exception:
            log.exception("a subscription to %s has ended", self._what)
        finally:
            self._failing.tell_rest()
            self._events.tell_rest()
            self._called.put(None)

    def _call(self, callback: Callable[[Event], object], event: Event) -> None:
        try:
            callback(event)
        except BaseException as error:
            if not (self._held or isinstance(error, Exception)):
                raise  # to whoever iterates; a thread of our own would end, and nobody would know
            self._events.raised(event, f"the callback {callback!r} for events", error)

    # Its life.

    async def begin(self) -> Sources:
        """Look for publishers; in the runtime's thread."""
        return self._begin()

    def _begin(self) -> Sources:
        self._loop = self._here.loop
        self._sources = sources = Sources(self._here, self._loop, self._selection, self._terms, self._tray)
        if not self._over:  # a Ctrl-C may have ended it meanwhile
            sources.begin()
        return sources

    def close(self) -> None:
        """End it, and whoever waits in it; no callback begins any more.

        It waits for a callback that runs, unless that calls it.  On a running loop it does not wait: use `aclose`.
        """
        self._finish()
        if (thread := self._other_thread()) is not None and not asyncio._get_running_loop():
            thread.join()

    async def aclose(self) -> None:
        """As `close`, in a coroutine."""
        self._finish()
        if self._other_thread() is not None:
            await self._called.atake(threading.TIMEOUT_MAX)
            self._called.put(None)  # for whoever else closes it

    def _other_thread(self) -> threading.Thread | None:
        """The thread that its callback may be called in just now, unless it is this one."""
        thread = self._thread
        return thread if thread is not None and thread.is_alive() and thread is not threading.current_thread() else None

    def _finish(self) -> None:
        self._over, self._values = True, iter(())
        if self._here.is_ours():
            if self._sources is not None:
                self._post(self._sources.close)
            self._tray.put(None)

    def _post(self, callback: Callable[[], object]) -> None:
        """Call back in the runtime's thread, which may have ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._finish()

    def __repr__(self) -> str:
        number = len(self.publishers)
        shown = ["closed" if self._over else f"{number} publisher{'s' * (number != 1)}", f"{self.received} received"]
        shown += [f"{count} {name}" for name in ("dropped", "lost", "failed") if (count := getattr(self, name))]
        return f"<Subscription to {self._what}: {', '.join(shown)}>"


def subscribe_to(selection: Selection, callback: Callable[[Any], object] | None = None, *,
                 timeout: float | None = None, full: FullQueue = "drop_oldest", length: int | None = None,
                 size: int = SIZE, history: int = 0, on_event: Callable[[Event], object] | None = None,
                 raw: bool = False) -> Subscription[Any]:
    """Subscribe to what *selection* selects.

    It waits until the publishers that are known have confirmed, at most as long as a call may take, and raises
    TopicMismatch where all of them refuse the type.  On a loop with nodes it does not wait.  With *raw* values are
    not decoded.
    """
    selection = callback_for(selection, callback, on_event, timeout)
    listening = _listening()
    if listening is not None and callback is not None:
        terms = terms_of(full, length, size, history, who=listening.name, events=on_event is not None)
        return listening.subscribe(selection, callback, terms, on_event, raw)  # type: ignore[no-any-return]
    made = _made(selection, callback, timeout, full, length, size, history, on_event, raw)
    here = made._here
    if here.holds_up:
        here.replica.seek()
    else:
        here.facts()
    try:
        sources = made._begin() if here.in_own_thread else here.run(made.begin())
        if not here.holds_up:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                sources.opened.result(here.settings.timeout)
            sources.check_opened(here.settings.timeout)
        made._post(sources.told)
        return _begun(made, callback)
    except BaseException:
        made.close()
        raise


async def asubscribe_to(selection: Selection, callback: Callable[[Any], object] | None = None, *,
                        timeout: float | None = None, full: FullQueue = "drop_oldest", length: int | None = None,
                        size: int = SIZE, history: int = 0, on_event: Callable[[Event], object] | None = None,
                        raw: bool = False) -> Subscription[Any]:
    """As `subscribe_to`, in a coroutine; it always waits."""
    selection = callback_for(selection, callback, on_event, timeout)
    listening = _listening()
    if listening is not None and callback is not None:
        terms = terms_of(full, length, size, history, who=listening.name, events=on_event is not None)
        return await listening.asubscribe(selection, callback, terms, on_event, raw)  # type: ignore[no-any-return]
    made = _made(selection, callback, timeout, full, length, size, history, on_event, raw)
    here = made._here
    await here.alook()
    try:
        sources = await here.arun(made.begin())
        await asyncio.wait([asyncio.wrap_future(sources.opened)], timeout=here.settings.timeout)
        sources.check_opened(here.settings.timeout)
        made._post(sources.told)
        return _begun(made, callback)
    except BaseException:
        made._finish()
        raise


def _listening() -> Any:
    """The listening half of the node whose code runs here."""
    life = getattr(running_node.get(), "_life", None)
    listening = getattr(life, "listening", None)
    return listening if listening is not None and listening.lives else None


def _made(selection: Selection, callback: Callable[[Any], object] | None, timeout: float | None, full: str,
          length: int | None, size: int, history: int, on_event: Callable[[Event], object] | None,
          raw: bool) -> Subscription[Any]:
    terms = terms_of(full, length, size, history, events=on_event is not None)
    if callback is not None and is_async(callback):
        raise TypeError(f"subscribe() to {selection.text}: {callback!r} is async, and {IN_THREADS}")
    return Subscription(runtime.current(), selection, terms, timeout=timeout, on_event=on_event, raw=raw)


def _begun(made: Subscription[Any], callback: Callable[[Any], object] | None) -> Subscription[Any]:
    if callback is not None:
        made.call(callback)
        if made._sources is not None:
            made._post(made._sources.warn)
    ends = ending_here.get()
    if ends is not None:
        ends.add(made)
    return made
