"""Recording topics into a file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from msgspec.structs import replace

from pyzmp import runtime
from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.closing import Closing
from pyzmp.channels.message import Event, Gap, Joined, Message
from pyzmp.channels.opening import Raw
from pyzmp.channels.selection import Selection
from pyzmp.channels.sources import Sources
from pyzmp.channels.subscription import Subscription, asubscribe_to, subscribe_to
from pyzmp.channels.terms import FullQueue, Terms, terms_of
from pyzmp.channels.topic import Topic
from pyzmp.channels.tray import Tray
from pyzmp.protocol import recording as form
from pyzmp.protocol.facts import PublisherFact
from pyzmp.recording.file import Journal, nearest, now, selection, selects

SIZE = 64 << 20  # bytes that wait at each publisher, where nothing else is said
LINGER = 1.0  # seconds in which what was published before `close` is still written, at most
GLANCE = 0.005  # seconds between two looks at whether it has come

log = logging.getLogger("pyzmp.recording")

Place = tuple[str, str]  # the full name of a topic, and the node that publishes it


class Recorder(Closing):
    """Writes what topics publish into a file, until it is closed; made by `record`.

    ``messages`` were written so far, ``dropped`` and ``lost`` are those that did not come; the file has that too.
    ``cut_off`` is what was left at the end of the file by a recorder that was killed, ``error`` why nothing is
    written any more, such as a full disk: what was written until then stays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._journal = Journal(os.fspath(path))
        self.path, self.cut_off = self._journal.path, self._journal.cut_off
        self.messages = self.dropped = self.lost = 0
        self.error: Exception | None = None
        self._lock = threading.Lock()  # each subscription calls in a thread of its own
        self._closed = False
        self._here = runtime.current()
        self._over: Arrivals[None] = Arrivals()
        self._subscriptions: list[Subscription[Any]] = []
        self._publishers: dict[Place, form.Publisher] = {}
        self._early: dict[Place, list[form.Gap]] = {}  # before the first message
        self._by: dict[Place, int] = {}  # the subscription that a topic comes from, where several select it
        self._next: dict[Place, int] = {}  # the number that comes after what was written
        self._wanted: list[Selection] = []
        self._facts: dict[Place, PublisherFact] = {}  # what the graph has said of each, also of those that are gone
        self._looked: dict[int, tuple[PublisherFact, ...]] = {}
        self._unhook: Callable[[], None] = lambda: None
        self._journal.began(now())

    def _attend(self, topics: Sequence[Topic[Any] | str]) -> None:
        """Know from now on what the graph says of those who publish *topics*: before anything of theirs can come."""
        self._wanted = [selection(topic) for topic in topics]
        look = weakref.WeakMethod(self._look)  # it is not kept for what is told to it

        def changed() -> None:
            if method := look():
                method()
        self._unhook = self._here.replica.on_change(changed)
        weakref.finalize(self, self._unhook).atexit = False
        self._look()

    def _look(self) -> None:
        facts = self._here.replica.view.facts
        for which, chosen in enumerate(self._wanted):
            found = facts.selected(name=chosen.pattern, mark=chosen.mark, node=chosen.node)
            if found is not self._looked.get(which):
                self._looked[which] = found
                self._facts.update({(fact.topic, fact.node): fact for fact in found})

    @property
    def unknown(self) -> list[str]:
        """Sentences on the topics that nobody has published so far, each with the nearest that somebody publishes."""
        known = [fact.topic for fact in self._here.replica.view.facts.selected()]
        return [f"nobody publishes {chosen.text!r}{nearest(chosen.text, known)}" for chosen in self._wanted
                if not any(selects(chosen, self._known(place, b"")) for place in list(self._facts))]

    def _known(self, place: Place, shape: bytes) -> form.Publisher:
        """A publisher, with what the graph says of it."""
        topic, node = place
        fact = self._facts.get(place)
        return form.Publisher(topic, node, "" if fact is None else fact.text, shape, () if fact is None else fact.marks)

    def _callbacks(self, which: int) -> tuple[Callable[[Message[Raw]], None], Callable[[Any], None]]:
        """What writes down the messages of subscription number *which*, and what else it tells; in its thread."""
        def came(message: Message[Any]) -> None:
            self._write(which, message)

        def happened(event: Any) -> None:
            if isinstance(event, Future):  # of `_catch_up`
                event.set_result(None)
            else:
                self._write(which, event)
        return came, happened

    def _write(self, which: int, what: Message[Raw] | Event) -> None:
        place = what.topic, what.node
        with self._lock:
            if self._closed or self.error is not None or self._by.setdefault(place, which) != which:
                return
            try:
                if isinstance(what, Message):
                    self._take(place, what)
                elif isinstance(what, Gap):
                    self._miss(place, what)
                elif isinstance(what, Joined) and place in self._publishers:  # perhaps it is of another class now
                    self._publishers[place] = self._known(place, self._publishers[place].shape)
                return
            except Exception as error:
                self._fail(error)
        for subscription in list(self._subscriptions):  # what is not written is not to count as received
            subscription.close()

    def _take(self, place: Place, message: Message[Raw]) -> None:
        value, publisher = message.value, self._publishers.get(place)
        if publisher is None or publisher.shape != value.shape:
            publisher = self._publishers[place] = self._known(place, value.shape)
            self._write_early(place, publisher)
        self._journal.message(publisher, message.number, message.time, value.body, value.buffers)
        self._next[place] = message.number + 1
        self.messages += 1

    def _miss(self, place: Place, gap: Gap) -> None:
        """Write a gap down; one before the first message of a publisher with that, which tells its type."""
        missing = form.Gap(0, gap.number, gap.count, gap.dropped, now())
        publisher = self._publishers.get(place)
        if publisher is None:
            self._early.setdefault(place, []).append(missing)
        else:
            self._journal.gap(publisher, missing)
        self._next[place] = gap.number + gap.count
        self.dropped += gap.count * gap.dropped
        self.lost += gap.count * (not gap.dropped)

    def _write_early(self, place: Place, publisher: form.Publisher) -> None:
        for gap in self._early.pop(place, ()):
            self._journal.gap(publisher, gap)

    def _fail(self, error: Exception) -> None:
        log.error("%s: nothing more is recorded, after %d messages: %s", self.path, self.messages, error)
        self.error = error
        self._over.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is written any more, as it was closed or has an ``error``; whether that is so.

        At most *timeout* seconds.
        """
        with contextlib.suppress(TimeoutError):
            self._over.take(threading.TIMEOUT_MAX if timeout is None else timeout)
            self._over.put(None)  # for whoever else waits
        return self._closed or self.error is not None

    def close(self) -> None:
        """Record no more, and have all of it on the disk.  Raises the ``error``, where there is one.

        What was published before is written first, as far as it comes within a second; what does not is a gap.  On
        a running loop it does not wait for that: use `aclose`.
        """
        reached: Mapping[Place, int] = {}
        try:
            if self._waits and asyncio._get_running_loop() is None:
                reached = self._here.run(self._catch_up())
            for subscription in self._subscriptions:
                subscription.close()
        finally:
            self._end(reached)

    async def aclose(self) -> None:
        """As `close`, in a coroutine."""
        reached: Mapping[Place, int] = {}
        try:
            if self._waits:
                reached = await self._here.arun(self._catch_up())
            for subscription in self._subscriptions:
                await subscription.aclose()
        finally:
            self._end(reached)

    @property
    def _waits(self) -> bool:
        """Whether something may be on its way."""
        return not self._closed and self.error is None and self._here.is_ours() and not self._here.closed

    async def _catch_up(self) -> dict[Place, int]:
        """Have written what was published before this; in the runtime's thread.

        Gives what number each topic has come to; what is written by then may have come further, or not so far.
        """
        over, reached = time.monotonic() + LINGER, dict[Place, int]()
        for which, subscription in enumerate(self._subscriptions):
            mine = subscription._sources
            if mine is None:
                continue
            for (node, topic), (life, number) in (await _positions(self._here, subscription, over)).items():
                place, source = (topic, node), mine._sources.get((node, topic))
                if source and source.inlet.since[0] == life and self._by.setdefault(place, which) == which:
                    while source.inlet.since[1] < number and source.stands and time.monotonic() < over:  # noqa: ASYNC110
                        await asyncio.sleep(GLANCE)
                    self._next.setdefault(place, source.inlet.since[1])
                    reached[place] = number
            if not mine.closed:
                written = Future[None]()  # once it is given back, so is all that came before it
                mine._loop.call_soon_threadsafe(mine._sink.put, written)
                await asyncio.wait([asyncio.wrap_future(written)], timeout=over - time.monotonic())
        return reached

    def _end(self, reached: Mapping[Place, int]) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._unhook()
            self._over.put(None)
            try:
                if self.error is None:
                    for place, number in reached.items():
                        if number > self._next[place]:
                            self._miss(place, Gap(*place, self._next[place], number - self._next[place], False))
                    for place in list(self._early):
                        self._write_early(place, self._known(place, b""))
            finally:
                self._journal.close()
        if self.error is not None:
            raise self.error

    def __repr__(self) -> str:
        return f"<Recorder {self.path!r}, {self.messages} messages{', closed' if self._closed else ''}>"


def record(path: str | os.PathLike[str], *topics: Topic[Any] | str, full: FullQueue = "drop_oldest",
           length: int | None = None, size: int = SIZE, history: int = 0) -> Recorder:
    """Write every message of *topics*, full names, patterns or channels, into a file until the `Recorder` is closed.

    What is published after this has returned, and before `Recorder.close`, is in the file, or a gap in it says what
    is not.  A message is the operating system's before it counts as received: where this process is killed, only the
    one that it was writing is lost.  A file that is there is appended to.

    Publishers are not held up: what this cannot take in time waits at the publisher, in a queue of *size* bytes (64
    MiB) and *length* messages, and what that does when it is full is *full*, as of any subscription.  With
    ``"block"`` publishers wait, and nothing is dropped.  *history* messages from before are wanted, where publishers
    keep some.

    Raises OSError where the file cannot be written, and RecordingError where it is no recording, is damaged, or is
    recorded into already.
    """
    recorder = _recorder(path, topics, full, length, size, history)
    try:
        for which, topic in enumerate(topics):
            came, happened = recorder._callbacks(which)
            recorder._subscriptions.append(subscribe_to(_anything(topic), came, on_event=happened, raw=True, full=full,
                                                        length=length, size=size, history=history))
    except BaseException:
        recorder.close()
        raise
    return recorder


async def arecord(path: str | os.PathLike[str], *topics: Topic[Any] | str, full: FullQueue = "drop_oldest",
                  length: int | None = None, size: int = SIZE, history: int = 0) -> Recorder:
    """As `record`, in a coroutine."""
    recorder = _recorder(path, topics, full, length, size, history)
    try:
        for which, topic in enumerate(topics):
            came, happened = recorder._callbacks(which)
            recorder._subscriptions.append(await asubscribe_to(
                _anything(topic), came, on_event=happened, raw=True, full=full, length=length, size=size,
                history=history))
    except BaseException:
        await recorder.aclose()
        raise
    return recorder


def _recorder(path: str | os.PathLike[str], topics: Sequence[Topic[Any] | str], *terms: Any) -> Recorder:
    if not topics:
        raise TypeError("record() wants at least one topic; '**' stands for all")
    terms_of(*terms)
    for topic in topics:
        selection(topic)  # before a file is made
    recorder = Recorder(path)
    recorder._attend(topics)
    return recorder


def _anything(topic: Topic[Any] | str) -> Any:
    """What *topic* stands for, whatever it publishes."""
    return replace(selection(topic), type=None)


async def _positions(here: runtime.Runtime, subscription: Subscription[Any],
                     over: float) -> dict[tuple[str, str], tuple[bytes, int]]:
    """How far those have come who publish to a *subscription*: what a new one would begin with, by node and topic."""
    latest = Terms(length=1, latest=True)  # of which nothing is sent
    probe = Sources(here, asyncio.get_running_loop(), subscription._selection, latest, Tray())
    probe.begin()
    try:
        await asyncio.wait([asyncio.wrap_future(probe.opened)], timeout=over - time.monotonic())
        return {place: source.inlet.since for place, source in probe._sources.items() if source.stands}
    finally:
        probe.close()
