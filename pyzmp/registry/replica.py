"""What one process knows of the graph, kept up to date by the registry, and what it tells the registry.

A `Replica` lives on one asyncio loop; lookups in its ``view`` and waiting may be done from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from pyzmp.exceptions import PyzmpError, RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.protocol.facts import Fact, Key, Position
from pyzmp.protocol.following import Following
from pyzmp.protocol.graph import View
from pyzmp.registry.announcer import Announcer
from pyzmp.registry.domain import BEAT, is_gone
from pyzmp.registry.finder import START, Finder, Link, Place
from pyzmp.transport.outbox import guarded

FIRST_LOOK = 1.0  # seconds that a process waits for its first snapshot, at most
SILENCE = 3.0  # seconds without a beat after which a registry counts as lost
_GLANCE = 0.05, 0.2  # seconds between two looks while no registry is there: somebody waits, or follows what changes
_PAUSES = 0.01, 1.0  # seconds before connecting again: the first, doubled up to the last
_FAREWELL = 0.5  # seconds that the registry has to answer a member that leaves

T = TypeVar("T")
log = logging.getLogger("pyzmp.registry")


class Replica:
    """The graph as *member*, this process, knows it, from the registries that *finder* finds.

    ``view`` is always there; while no registry can be reached it keeps what was last known, and
    ``stale_since`` (monotonic seconds, else None) says so.  ``trouble`` says why, as far as is known, and
    ``refusal`` is the error's text where the registry has sent this process away.

    Made before *loop* runs or in its thread, which alone may use what does not say otherwise.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, member: facts.Member, finder: Finder,
                 domain: str = "") -> None:
        self.member = member
        self.stale_since: float | None = time.monotonic()
        self.trouble = self.refusal = ""
        self.closed = False  # or about to be: whoever waits ends
        self._loop, self._finder = loop, finder
        self.view = View()
        self._announcer = Announcer(member, loop, self._say, self.view.reached, domain)
        self._following = Following(self.view, member.id, self._say, self._announcer.introduce, domain)
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self.address = ""  # of the registry that is followed, or was
        self._ended: asyncio.Future[str] = loop.create_future()
        self._left: asyncio.Future[str] = loop.create_future()
        self._heard = 0.0  # when the registry said something last, on the loop's clock
        self._wanted = asyncio.Event()
        self._lookers: list[asyncio.Future[bool]] = []
        self._callbacks: dict[object, Callable[[], object]] = {}  # changed at one stroke, by finalisers too
        self._waiting: dict[object, bool] = {}  # whether without end

    # -- for any thread --------------------------------------------------------------------------------------------

    @property
    def following(self) -> bool:
        """Whether the view is complete and kept up to date by a registry."""
        return self.stale_since is None

    def look(self, timeout: float = FIRST_LOOK) -> bool:
        """Bring the view up to date if a registry is there; False where none is.  Not in the loop's own thread.

        At once when one is followed; else waits for a snapshot, for *timeout* seconds at most.
        """
        return self.following or self._looking(timeout).result()

    async def alook(self, timeout: float = FIRST_LOOK) -> bool:
        """As `look`, on any loop."""
        return self.following or await asyncio.wrap_future(self._looking(timeout))

    def _looking(self, timeout: float) -> Future[bool]:
        return asyncio.run_coroutine_threadsafe(self.connect(start=False, timeout=timeout), self._loop)

    def seek(self) -> None:
        """Have a registry looked for, where none is followed; it does not wait."""
        if not self.following:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._want)

    def on_change(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have *callback* called, in the loop's thread, after each change of the view; returns what ends that."""
        key = object()
        self._callbacks[key] = callback

        def end() -> None:
            self._callbacks.pop(key, None)

        return end

    def attend(self, wake: Callable[[], object], *, endless: bool = False) -> Callable[[], None]:
        """As `on_change`, and until that ends a registry is looked for wherever none is followed.

        Ever more rarely, up to once a second, for those who attend *endless*.  Also called when this is closed.
        """
        key, unhook = object(), self.on_change(wake)
        self._waiting[key] = endless

        def end() -> None:
            unhook()
            self._waiting.pop(key, None)

        self.seek()
        return end

    def wait_until(self, predicate: Callable[[View], T], timeout: float | None) -> T:
        """Block until *predicate* holds for the view; what it said last, which is false when the time ran out.

        Or when this was closed.  Wakes on the change itself.  The predicate runs in the calling thread, which is not
        the loop's.
        """
        over = None if timeout is None else time.monotonic() + timeout
        changed = threading.Event()
        with self._attention(changed.set):
            while True:
                changed.clear()
                said = predicate(self.view)
                left = None if over is None else over - time.monotonic()
                if said or self._is_closed() or (left is not None and left <= 0):
                    return said
                changed.wait(left)
                if self._is_closed():  # a predicate may not be looked at any more
                    return said

    async def await_until(self, predicate: Callable[[View], T], timeout: float | None) -> T:
        """As `wait_until`, on any loop."""
        loop = asyncio.get_running_loop()
        over = None if timeout is None else loop.time() + timeout
        changed = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, whoever waited there
                loop.call_soon_threadsafe(changed.set)

        with self._attention(wake):
            while True:
                changed.clear()
                said = predicate(self.view)
                left = None if over is None else over - loop.time()
                if said or self._is_closed() or (left is not None and left <= 0):
                    return said
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), left)
                if self._is_closed():
                    return said

    def _is_closed(self) -> bool:  # at any moment, by another thread
        return self.closed

    @contextlib.contextmanager
    def _attention(self, wake: Callable[[], object]) -> Iterator[None]:
        """Attend, as a context."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.attend(wake))
            yield

    # -- for the loop's thread -------------------------------------------------------------------------------------

    async def connect(self, *, start: bool, timeout: float = START) -> bool:
        """Follow the domain's registry; True once the view is complete.

        *start*: take part in the domain, and start a registry where none is; raises
        RegistryUnavailable where that fails or takes longer than *timeout* seconds.  Without it
        only look, and return False where no registry is there or it does not answer in time.
        """
        if start and not self._following.takes_part:
            self._following.take_part()
        if self.following:
            return True
        looker: asyncio.Future[bool] = self._loop.create_future()
        self._lookers = [*(other for other in self._lookers if not other.done()), looker]
        self._want()
        try:
            return await asyncio.wait_for(looker, timeout)
        except asyncio.TimeoutError as error:
            if not start:
                return False
            raise self._unanswered(timeout) from error

    async def announce(self, new: Iterable[Fact], timeout: float = START) -> Position:
        """Put facts of this process into the graph; where they are, in this process's view too, when it returns.

        All of them or none.  What is announced in one turn of the loop travels together.  Raises
        NodeExists where the name of a node is taken, AnnouncementRefused for another process's facts
        and those that cannot be read, RegistryUnavailable where no registry can be had in *timeout* seconds:
        the next one does not hear of what was new then, but of another value of what was announced before.
        """
        return await self._settled(self._announcer.announce(new), timeout)

    async def withdraw(self, keys: Iterable[Key], timeout: float = START) -> Position:
        """Take facts of this process out of the graph, a node with its services, and out of this process's view.

        Raises RegistryUnavailable where no registry can be had in *timeout* seconds; the next one
        will not hear of them either.
        """
        return await self._settled(self._announcer.withdraw(keys), timeout)

    async def close(self) -> None:
        """Leave: withdraw what this process owns, and end the connection.  Nothing is left afterwards."""
        self.closed = True
        error = RegistryUnavailable("the connection to the registry was closed by this process")
        if self._announcer.close(error):
            # What is sent right before the end of a connection may be overtaken by the news of the end.
            await asyncio.wait({self._left, self._ended}, timeout=_FAREWELL, return_when=asyncio.FIRST_COMPLETED)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._finder.close()
        self._report(error)
        self._changed()  # for those who wait

    def close_inherited(self) -> None:
        """In a forked child: close the descriptors of locks and pipes, and leave what they mean to the parent."""
        self._finder.close_inherited()

    async def _settled(self, asked: asyncio.Future[Position], timeout: float) -> Position:
        over = self._loop.time() + timeout
        try:
            if not self._following.takes_part or not self.following:
                await self.connect(start=True, timeout=timeout)
            return await asyncio.wait_for(asked, max(0.0, over - self._loop.time()))
        except asyncio.TimeoutError as error:
            self._announcer.give_up(asked)
            raise self._unanswered(timeout) from error
        except (RegistryUnavailable, asyncio.CancelledError):
            self._announcer.give_up(asked)
            raise

    def _want(self) -> None:
        self._wanted.set()
        if self._task is None and not self.closed:
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        """Find a registry, follow it until that ends, and again."""
        pause, deaf, since = _PAUSES[0], "", 0.0
        while True:
            place = await self._find()
            if place is None:
                await self._rest(pause)
            else:
                if place.address != deaf:
                    deaf, since = place.address, self._loop.time()
                began = self._loop.time()
                if await self._follow(place):
                    deaf = ""
                    if self._loop.time() > began + BEAT:  # else it would come and go for ever, and at once
                        pause = _PAUSES[0]
                        continue
                elif self._following.takes_part and self._loop.time() > since + SILENCE - BEAT:
                    self._following.above = max(self._following.above, place.counter)  # its lock is all it has
                await asyncio.sleep(pause * (0.5 + os.urandom(1)[0] / 510))  # apart from the others that wait
            pause = min(2 * pause, _PAUSES[1])

    async def _find(self) -> Place | None:
        self._wanted.clear()
        try:
            place = await self._finder.find(self._following.above, start=self._following.takes_part)
        except Exception as error:  # one attempt is lost, and not all later ones
            self._broken(self._finder.place, error)
            return None
        if place is None:
            self._bury()
            self._report(False)
        return place

    async def _rest(self, pause: float) -> None:
        """Nothing to follow: wait until it is worth another look."""
        waiting = list(self._waiting.copy().values())
        glance = min(pause, _GLANCE[all(waiting)]) if waiting else pause if self._following.takes_part else None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), glance)

    def _bury(self) -> None:
        """Where no registry is and every member is known to be gone, so is the graph."""
        members = [fact for fact in self.view.facts.all() if isinstance(fact, facts.Member)]
        if members and all(is_gone(member) for member in members):
            self.view.forget()
            self._changed()

    async def _follow(self, place: Place) -> bool:
        """Follow the registry at *place* until the session ends; False where it never answered."""
        self._ended, self._heard = self._loop.create_future(), self._loop.time()
        self._following.open()
        self.address = place.address
        try:
            self._link = link = place.open(self._received, self._over)
        except Exception as error:  # as above
            self._broken(place.address, error)
            return False
        ticking = self._loop.create_task(self._tick())
        try:
            reason = await self._ended
            log.debug("%s: %s", place.address, reason)
            self.trouble = f"{place.address}: {reason}"
            if self._following.failed(place.address, reason):
                self.refusal = f"the registry at {place.address} cannot be followed: {reason}"
                self._report(RegistryUnavailable(self.refusal))
                self._changed()  # for those who wait
            return self._following.greeted
        finally:
            ticking.cancel()
            self._announcer.interrupt()
            link.close()
            self._link, self._following.greeted = None, False
            if self.stale_since is None:
                self.stale_since = time.monotonic()
                self._changed()

    def _broken(self, where: str, error: Exception) -> None:
        if not isinstance(error, PyzmpError | OSError):
            log.error("the registry at %s cannot be followed", where, exc_info=error)
            error = RegistryUnavailable(f"the registry at {where} cannot be followed: {error!r}")
        self.trouble = str(error)
        self._report(error)

    def _unanswered(self, timeout: float) -> RegistryUnavailable:
        why = f" (the last attempt: {self.trouble})" if self.trouble else ""
        return RegistryUnavailable(f"no registry answered within {timeout:g} s; looked at {self._finder.place}{why}")

    async def _tick(self) -> None:
        """End the session after too long a silence; a process that was stopped does not blame the registry."""
        while (due := self._heard + SILENCE) > self._loop.time():  # seldom: each look wakes an idle process up
            await asyncio.sleep(due - self._loop.time())
            if self._loop.time() > due + BEAT:  # what has come meanwhile is not read yet
                self._heard = self._loop.time()
        self._following.silent()
        self._over(f"the registry was silent for {SILENCE:g} s")

    def _over(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    def _received(self, message: facts.Message) -> None:
        self._heard = self._loop.time()
        if isinstance(message, facts.Beat):
            self._hear(message)
        elif isinstance(message, facts.Snapshot | facts.Commit):
            if self._following.learn(message, time.monotonic()):
                self._announcer.learn(
                    message.puts if isinstance(message, facts.Commit) else self.view.facts.all())
                self._changed()
        elif isinstance(message, facts.Settled) and message.id:
            self._announcer.settle(message)
        elif not self._left.done():
            self._left.set_result("left")

    def _hear(self, beat: facts.Beat) -> None:
        try:
            said = self._following.hear(beat, time.monotonic())
        except RegistryUnavailable as error:
            self._report(RegistryUnavailable(f"{self.address}: {error}"))
            self._over(str(error))
            return
        if isinstance(said, str):
            self._over(said)
        elif said:
            self._complete()

    def _complete(self) -> None:
        self._announcer.review(self.view.facts.node)
        if self.stale_since is not None:
            self.stale_since, self.trouble, self.refusal = None, "", ""
            self._changed()
        self._report(True)

    def _changed(self) -> None:
        self._announcer.arrive()
        for callback in self._callbacks.copy().values():
            guarded(callback)  # the others are to be told nevertheless

    def _report(self, found: bool | Exception) -> None:
        """Answer all who wait for a connection."""
        lookers, self._lookers = self._lookers, []
        for looker in (one for one in lookers if not one.done()):
            if isinstance(found, bool):
                looker.set_result(found)
            else:
                looker.set_exception(found)
                looker.exception()  # whoever waits may be gone with the process

    def _say(self, message: facts.Message) -> None:
        if self._link is not None:
            self._link.say(message)
