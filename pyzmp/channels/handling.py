"""What has come, in the hands of a function of a node's: called on the node's own loop, one message after the other."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import length_hint
from typing import Any

from pyzmp.channels.expecting import is_async
from pyzmp.channels.failing import Failing
from pyzmp.channels.message import Event
from pyzmp.channels.opening import Opening
from pyzmp.protocol.batch import Batch

TURN = 0.002  # seconds for which messages are handled before the loop's other business has its turn
AT_ONCE = 1024  # messages between two looks at the clock, at most


class Handling:
    """Gives what comes to *handler* of *node*, in order, on *loop* and in *context*; `pyzmp.subscribing.Sink`.

    What the handler raises is logged and counted.  *acknowledge* is called when something was taken, and *wants*
    when there is nothing more to take.
    """

    hungry = True
    asked = False

    def __init__(self, node: str, loop: asyncio.AbstractEventLoop, context: contextvars.Context, opening: Opening,
                 handler: Callable[[Any], Any], *, messages: bool,
                 on_event: Callable[[Event], object] | None) -> None:
        self._failing, self._events = Failing(), Failing()
        self.acknowledge: Callable[[], object] = lambda: None
        self.wants: Callable[[], object] = lambda: None
        self._node, self._loop, self._context, self._opening = node, loop, context, opening
        self._handler, self._on_event = handler, on_event
        self._messages = messages
        self._counted: tuple[int, Batch | None] = 0, None  # what was handled before, and what is being: at one stroke
        self._items: deque[Batch | Event] = deque()
        self._batch: Batch | None = None
        self._values: Any = iter(())
        self._busy = self._closed = False
        self._chunk = 1
        self._awaits = is_async(handler)
        self._said: Any = None  # by a plain function, to be awaited as the first thing
        self._task: asyncio.Task[None] | None = None

    @property
    def failed(self) -> int:
        """How often the handler has raised."""
        return self._failing.count

    @property
    def received(self) -> int:
        """How many messages were handled."""
        count, batch = self._counted
        return count + (batch.taken if batch is not None else 0)

    def put(self, item: Any) -> None:
        """Handle what has come, now or once what came before is handled."""
        if item is None or self._closed:
            return
        self._items.append(item)
        if not self._busy:
            self._busy, self.hungry = True, False
            self._go_on()

    def stop(self) -> None:
        """Begin with nothing more; any thread may ask for that."""
        self._closed = True

    def close(self) -> asyncio.Task[None] | None:
        """Handle nothing more; a coroutine that runs is cancelled, unless it asks for this, and given back."""
        self._closed = True
        self._items.clear()
        self._values = iter(())
        self._failing.tell_rest()
        self._events.tell_rest()
        said, self._said = self._said, None
        if inspect.iscoroutine(said):  # not begun yet
            said.close()
        task = self._task
        if task is None or task is asyncio.current_task(self._loop):
            return None
        task.cancel()
        return task

    def _over(self) -> bool:  # at any moment
        return self._closed

    def _go_on(self) -> None:
        if self._awaits:
            self._task = self._context.run(self._loop.create_task, self._handle_all())
        else:
            self._context.run(self._handle)

    # Inline.

    def _handle(self) -> None:
        """Handle what is there, for a moment."""
        over = time.monotonic() + TURN
        while self._next():
            self._handle_chunk()
            if self._awaits or time.monotonic() > over:
                self._loop.call_soon(self._go_on)
                break

    def _handle_chunk(self) -> None:
        """Handle some messages: twice as many as before, as long as they take little time."""
        handler, begun = self._handler, time.monotonic()
        for value in islice(self._values, self._chunk):
            if self._closed:  # by the handler itself
                break
            try:
                said = handler(value)
                if said is not None and inspect.isawaitable(said):
                    self._awaits, self._said = True, said  # such as a lambda's over an async function
                    break
            except BaseException as error:  # also SystemExit: it would end the loop, and all nodes that share it
                self._raised(error)
        quick = time.monotonic() - begun < TURN / 4
        self._chunk = min(2 * self._chunk, AT_ONCE) if quick else 1

    # In a coroutine.

    async def _handle_all(self) -> None:
        """Handle what is there, and what comes meanwhile."""
        over = time.monotonic() + TURN
        said, self._said = self._said, None
        await self._handle_one(lambda _: said, None)
        while self._next():
            for value in self._values:
                if self._closed:
                    break
                await self._handle_one(self._handler, value)
                if time.monotonic() > over:
                    await asyncio.sleep(0)
                    over = time.monotonic() + TURN

    async def _handle_one(self, handler: Callable[[Any], Any], value: Any) -> None:
        try:
            said = handler(value)
            if said is not None and inspect.isawaitable(said):
                await said
        except GeneratorExit:  # the loop was closed over it
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._over():
                raise
            self._raised(error)

    # Both.

    def _next(self) -> bool:
        """Come to the next message; False where there is none."""
        while not self._closed:
            if self._batch is not None:
                if length_hint(self._values):
                    return True
                self._end(self._batch)
            if not self._items:
                break
            item = self._items.popleft()
            if isinstance(item, Batch):
                opened = self._opening.messages(item) if self._messages else self._opening.values(item)[0]
                self._values, self._batch = item.begin(opened, held=True), item
                self._counted = self._counted[0], item
            elif self._on_event is not None:
                self._call(self._on_event, item)
        self._busy, self._task = False, None
        if not self._closed:
            self.hungry = True
            self.wants()
        return False

    def _end(self, batch: Batch) -> None:
        batch.end()
        self._counted, self._batch = (self._counted[0] + batch.taken, None), None
        self.acknowledge()

    def _call(self, callback: Callable[[Event], object], event: Event) -> None:
        try:
            callback(event)
        except BaseException as error:
            shown = f"the callback {callback!r} of {self._node!r}, for events,"
            self._events.raised(event, shown, error)
            self._pass_on(error)

    def _raised(self, error: BaseException) -> None:
        if self._batch is not None:
            shown = f"the handler {getattr(self._handler, '__qualname__', self._handler)} of {self._node!r}"
            self._failing.raised(self._batch.source, shown, error)
        self._pass_on(error)

    def _pass_on(self, error: BaseException) -> None:
        """Raise a Ctrl-C of the user's, whom the loop of the main thread belongs to; it goes on where that does."""
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            self._loop.call_soon(self._go_on)
            raise error
