"""The sessions through which a process calls.

A thread that blocks has sessions of its own, up to a limit, since its call then wakes nobody but the
node.  Futures and awaited calls share one session for each loop that they call, on the runtime's
thread, where they travel together.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from pyzmp import asking
from pyzmp.asking import Begun as Begun  # noqa: PLC0414 - it is part of what this module says
from pyzmp.exceptions import NodeDied
from pyzmp.protocol.calls import CALLS, SIZE
from pyzmp.protocol.envelope import Buffer, Credit, End, Flag, Item, size_of
from pyzmp.protocol.outcomes import Ask, Event, Outcome, died, overloaded, whole
from pyzmp.transport.context import Context
from pyzmp.transport.line import Line
from pyzmp.transport.outbox import guarded
from pyzmp.transport.waiters import Deliveries, Waiter, settle

OWN = 64  # sessions of threads' own over sockets that a process has, at most; the rest share
IDLE = 1.0  # seconds after which a thread's own session may be closed to make room for another
LINGER = 1.0  # seconds that one-way calls have to leave when the process ends
ANSWER = 0.25  # and those that have left to be answered for, so that what goes wrong at once is known
ENDED = "pyzmp has ended in this process"

log = logging.getLogger("pyzmp.call")


class Target(msgspec.Struct, frozen=True):
    """A node as a caller reaches it: at ``address``, served by ``loop``; ``shown`` is the address that users see.

    Without an ``address`` it cannot be reached.
    """

    node: str
    address: str
    loop: str
    incarnation: tuple[int, int]
    shown: str
    traits: int = 0  # of the service that is called, bits of `pyzmp.protocol.facts.Trait`


class Sessions:
    """All sessions of this process to nodes.  Used from any thread; the shared ones live on *loop*."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop, caller: str) -> None:
        self.own: set[Line] = set()
        self.futures: set[Future[Any]] = set()  # of the calls that are under way
        self._context, self._loop, self._caller = context, loop, caller
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may post too
        self._local = threading.local()
        self._shared: _Lines = {}
        self._asked: deque[tuple[Target, Ask, Callable[[Event], object], Begun]] = deque()
        self._woken: list[None] = []  # not empty once our thread was woken; another one for each time it looks
        self._closed = False
        self._pauses: set[Callable[[], object]] = set()  # what is called where `later` comes to nothing
        self._posting = 0, 0  # one-way calls that were asked and have not begun, and their bytes
        self._near: dict[asyncio.AbstractEventLoop, _Near] = {}
        self.intakes: dict[asyncio.AbstractEventLoop, Any] = {}  # by which subscriptions come, of each loop

    def line(self, target: Target) -> Line:
        """A new session to *target*'s loop."""
        if not target.address:
            raise ConnectionError("it listens nowhere where it can be reached from other hosts")
        return Line(self._context, target.address, target.loop, self._caller)

    def ask(self, target: Target, ask: Ask) -> Outcome:
        """Make a call and block until its one outcome is there, on a session of this thread's or the shared one."""
        own: _OwnLines | None = getattr(self._local, "lines", None)
        if own is None:
            own = self._local.lines = _OwnLines(self)
        line = own.line(target)
        if line is not None:
            return line.ask(ask)
        waiter, begun = Waiter(), Begun()
        try:
            self._asked.append((target, ask, waiter.settle, begun))
            self._wake()
            return waiter.outcome(ask)
        except BaseException:  # a Ctrl-C
            self.give_up(begun)
            raise

    def reserve(self, line: Line) -> bool:
        """Count *line* among the threads' own; False where there are `OWN` already."""
        with self._lock:
            if len(self.own) >= OWN:
                return False
            self.own.add(line)
            return True

    def submit(self, target: Target, ask: Ask, done: Callable[[Event], object]) -> Begun:
        """Begin a call on the shared session; *done* gets what comes of it, in the runtime's thread."""
        begun = Begun()
        self._asked.append((target, ask, done, begun))
        if not self._woken:
            self._wake()
        return begun

    def post(self, target: Target, ask: Ask) -> None:
        """Make a one-way call.  Raises Overloaded where the window is full; what fails later is logged."""
        line = self._shared.get((target.address, target.loop))
        with self._lock:
            calls, size = self._posting[0] + 1, self._posting[1] + size_of(ask.body, ask.buffers)
            fits = line.fits(calls, size) if line is not None else size <= SIZE or calls == 1
            if calls > CALLS or not (fits or ask.wait):
                raise overloaded(ask, "the window of its session is full of calls that have not ended")
            self._posting = calls, size
        self.submit(target, ask, _not_posted)

    def give_up(self, begun: Begun) -> None:
        """Cancel a call of `submit`: its node is told, and what it says became of the call is the outcome."""
        self._in_loop(begun.cancel)

    def tell(self, begun: Begun, message: Item | End | Credit, buffers: Sequence[Buffer] = ()) -> None:
        """Send what belongs to a stream that was begun by `submit`; the number of its call is filled in."""
        self._in_loop(begun.tell, message, buffers)

    def later(self, seconds: float, callback: Callable[[], object], ended: Callable[[], object]) -> None:
        """Call back in our thread, in so many *seconds*; *ended* instead, where pyzmp ends in this process before."""
        def due() -> None:
            if ended in self._pauses:
                self._pauses.remove(ended)
                callback()
        self._pauses.add(ended)
        self._in_loop(self._loop.call_later, seconds, due)
        if self._closed:
            self._end_pauses()

    def _end_pauses(self) -> None:
        while self._pauses:
            guarded(self._pauses.pop())

    def _in_loop(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the runtime has been closed, and the sessions with it
            self._loop.call_soon_threadsafe(callback, *args)

    def _wake(self) -> None:
        """Have the runtime's thread begin what was asked."""
        woken = self._woken
        try:
            self._loop.call_soon_threadsafe(self._start_asked)
        except RuntimeError:  # the runtime has been closed
            self._end_asked()
        else:
            woken.append(None)  # only now: what is asked meanwhile, by a signal's handler, wakes for itself

    def _end_asked(self) -> None:
        while self._asked:
            _, ask, done, _ = self._asked.popleft()
            guarded(done, whole(ask, died(ask, ENDED, executed=False)))

    async def acall(self, target: Target, ask: Ask) -> Outcome:
        """Make a call and await its one outcome."""
        loop = asyncio.get_running_loop()
        near = self._near.get(loop)
        if near is None:
            near = self._near_to(loop)
        deliveries, lines = near
        future: asyncio.Future[Any] = loop.create_future()
        begun: Begun | None = None
        if target.address.startswith("memory:"):
            line = self._attached(lines, loop, target)
            call = line.start(ask, functools.partial(settle, future))
        else:
            begun = self.submit(target, ask, functools.partial(deliveries.put, future))
        try:
            return await future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            if begun is None:
                line.cancel(call)
            else:
                self.give_up(begun)
            raise

    def _near_to(self, loop: asyncio.AbstractEventLoop) -> _Near:
        """What the calls of *loop* need, made now; what loops that are closed needed is forgotten."""
        near: _Near = Deliveries(loop), {}
        with self._lock:
            known = {**self._near, loop: near}
            self._near = {other: kept for other, kept in known.items() if not other.is_closed()}
        for other, (_, lines) in known.items():
            for line in lines.values() if other.is_closed() else ():
                line.close()
        return near

    def _attached(self, lines: _Lines, loop: asyncio.AbstractEventLoop, target: Target) -> Line:
        """The session to *target*'s loop among *lines*, those that *loop* drives; made now where there is none."""
        place = target.address, target.loop
        line = lines.get(place)
        if line is None or line.ended:
            for ended in [other for other, known in lines.items() if known.ended]:
                del lines[ended]
            line = lines[place] = self.line(target)
            line.attach(loop)
        return line

    def _start_asked(self) -> None:
        self._woken = []  # first: what is asked from now on wakes again
        if self._closed:
            self._end_asked()
        while self._asked:
            asked = target, ask, done, begun = self._asked.popleft()
            try:
                line = self._attached(self._shared, self._loop, target)
            except Exception as error:
                guarded(done, whole(ask, died(ask, f"it cannot be reached: {error}", executed=False)))
            else:
                if ask.bare and self._asked:
                    guarded(asking.start, line, asking.joining(asked, self._asked))
                else:
                    guarded(begun.start, line, ask, done)
            if ask.flags & Flag.ONE_WAY:
                with self._lock:
                    self._posting = self._posting[0] - 1, self._posting[1] - size_of(ask.body, ask.buffers)

    def close_own(self) -> None:
        """Close the calling thread's own sessions."""
        own: _OwnLines | None = getattr(self._local, "lines", None)
        if own is not None:
            own.close()

    async def close_shared(self) -> None:
        """Close the shared sessions, in their loop's thread, once the one-way calls have left; at most `LINGER`.

        Of those that have left it waits for what becomes of them, `ANSWER` at most.  Whatever is under way then
        ends: no future is left without an outcome.
        """
        await _while(lambda: bool(self._asked) or any(line.holds for line in self._shared.values()), LINGER)
        await _while(lambda: any(line.posted and not line.holds for line in self._shared.values()), ANSWER)
        self._closed = True
        for line in list(self._shared.values()):
            line.close()
        intake = self.intakes.get(self._loop)
        if intake is not None:
            intake.close()
        self._end_asked()
        self._end_pauses()

    def close_inherited(self) -> None:
        """In a forked child: fail the futures of the parent's calls, whose callbacks are the parent's."""
        for future in self.futures:
            # A thread of the parent's may have taken the old condition.
            vars(future).update(_condition=threading.Condition(), _done_callbacks=[], _ended=None)
            if not future.done():
                future.set_exception(NodeDied("the process was forked while the call was under way; its outcome goes "
                                              "to the parent", executed=None))

    def is_ours(self) -> bool:
        """Whether this is the process that made them, not a forked child."""
        return self._pid == os.getpid()


class _OwnLines:
    """The sessions that one thread has for itself, closed when the thread ends."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._asked: set[tuple[str, str]] = set()
        self._lines: OrderedDict[tuple[str, str], Line] = OrderedDict()  # the one that was used last stands last
        self._used: dict[tuple[str, str], float] = {}  # and when that was

    def line(self, target: Target) -> Line | None:
        """This thread's own session to *target*'s loop; None where it is to use the shared one.

        Over a socket it gets one with its second call only: many threads call many nodes just once.
        Where the process has no room for more, its least recently used one is closed for it.
        """
        place = target.address, target.loop
        line = self._lines.get(place)
        if line is not None:
            if line.busy:
                return None
            if line.usable():
                self._lines.move_to_end(place)
                self._used[place] = time.monotonic()
                return line
        self._sweep()
        near = target.address.startswith("memory:")
        if not near and (not target.address or place not in self._asked or not self._room()):
            self._asked.add(place)
            return None
        line = self._sessions.line(target)
        try:
            if not near and (line.ended or not self._sessions.reserve(line)):  # no socket, or another thread was faster
                line.close()
                return None
            self._asked.discard(place)
            self._used[place] = time.monotonic()
            self._lines[place] = line
        except BaseException:  # a Ctrl-C
            self._sessions.own.discard(line)
            line.abandon()
            raise
        return line

    def close(self) -> None:
        for place in list(self._lines):
            self._drop(place)

    def _room(self) -> bool:
        """Whether there is room for one more session over a socket.

        Where there is none, the one that this thread has not used for the longest time is closed for it, but
        none that was of use a moment ago: a thread that calls many nodes in turn would only open and close.
        """
        own = self._sessions.own
        if len(own) < OWN:
            return True
        oldest = next((place for place, line in self._lines.items() if line in own and not line.busy), None)
        if oldest is None or time.monotonic() - self._used[oldest] < IDLE:
            return False
        self._drop(oldest)
        return True

    def _drop(self, place: tuple[str, str]) -> None:
        line = self._lines.get(place)
        if line is not None:
            self._sessions.own.discard(line)  # first: a Ctrl-C behind this costs no room
            self._lines.pop(place, None)
            self._used.pop(place, None)
            line.close()

    def _sweep(self) -> None:
        """Forget the sessions that have ended since."""
        for place, line in list(self._lines.items()):
            if not line.busy and not line.usable():
                self._drop(place)
        if len(self._asked) > OWN * OWN:
            self._asked.clear()

    def __del__(self) -> None:
        if self._sessions.is_ours():
            self.close()


async def _while(condition: Callable[[], bool], seconds: float) -> None:
    """Wait while *condition*, at most so many *seconds*."""
    over = time.monotonic() + seconds
    while condition() and time.monotonic() < over:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


_Lines = dict[tuple[str, str], Line]
_Near = tuple[Deliveries, _Lines]


def _not_posted(error: Event) -> None:
    """A one-way call could not be sent."""
    log.warning("a one-way call was lost: %s", error)
