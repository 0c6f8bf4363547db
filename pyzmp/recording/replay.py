"""Publishing recorded messages again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from math import inf, isfinite
from typing import Any

import msgspec

from pyzmp import runtime
from pyzmp.channels.topic import Topic, patience
from pyzmp.exceptions import DeadlockError, NodeExists
from pyzmp.program import Program
from pyzmp.protocol import recording as form
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.recording import Damage
from pyzmp.protocol.schema import Type
from pyzmp.protocol.topics import check_topic_name
from pyzmp.publisher import Publisher
from pyzmp.recording.file import Recording, Wanted

LEAD = 0.5  # seconds in which subscribers find what is published before it begins, where nothing else is said
DAY = 86400.0  # seconds that are slept at once: more than some hundred years cannot be
TURN = 64  # messages after which a coroutine lets others run

Path = str | os.PathLike[str]
Rename = Mapping[str, str] | Callable[[str], str]


class Replayed(msgspec.Struct, frozen=True):
    """What a replay has done: ``messages`` were published.

    ``missing`` did not come when it was recorded, and ``damage`` is why the rest of the file could not be read.
    """

    messages: int
    missing: int
    damage: Damage | None


def replay(path: Path, *topics: Topic[Any] | str, pace: float | None = 1.0, rename: Rename | None = None,
           start: float = -inf, end: float = inf, longest: float = inf, now: bool = False, subscribers: int = 0,
           lead: float = LEAD, timeout: float | None = None) -> Replayed:
    """Publish what was recorded, in its rhythm, and return when that is done.

    A *pace* of 2 is twice as fast, None as fast as it can be.  No pause is longer than *longest* seconds, and none
    stands for the time between two recorders that wrote into the same file.  *topics*, *start* and *end* select as
    `Recording.read` does.

    Messages have the topic, the node, the type and the time that they were recorded with, so that all who subscribe
    to the original get them: by name, by pattern, by class or at one node.  With *now* their time is that of the
    replay.  They are numbered anew, from 0 and without gaps.  A node that lives keeps its name: what it publishes
    itself cannot be replayed beside it (NodeExists) unless *rename* calls it otherwise, a mapping or a function from
    full names to full names; topics that belong to nobody are then published by this program.

    It begins when each topic has so many *subscribers*, at most *timeout* seconds (TimeoutError), and at the earliest
    *lead* seconds after the topics are there.  Subscribers that do not keep up lose messages as they do with any
    publisher; with ``full="block"`` the replay waits for them, and raises PublishTimeout after *timeout* seconds.
    """
    here = runtime.current()
    if here.holds_up:
        raise DeadlockError("replay() here holds up the loop that runs, with the nodes on it; await areplay(…)")
    player = _Player(here, Recording(path), topics, pace, rename, start, end, longest)
    limit = here.settings.timeout if timeout is None else seconds(timeout)
    here.facts()
    try:
        here.run(player.open())
        for publisher in player.publishers if subscribers else ():
            publisher.wait_for(subscribers, limit)
        _sleep_until(time.monotonic() + lead)
        for due, publisher, message in player.steps():
            _sleep_until(due)
            publisher.put(message.body, message.buffers, None if now else message.time, limit)
    finally:
        here.run(player.close())
    return player.outcome()


async def areplay(path: Path, *topics: Topic[Any] | str, pace: float | None = 1.0, rename: Rename | None = None,
                  start: float = -inf, end: float = inf, longest: float = inf, now: bool = False, subscribers: int = 0,
                  lead: float = LEAD, timeout: float | None = None) -> Replayed:
    """As `replay`, in a coroutine."""
    here = runtime.current()
    player = _Player(here, Recording(path), topics, pace, rename, start, end, longest)
    limit = here.settings.timeout if timeout is None else seconds(timeout)
    await here.alook()
    try:
        await here.arun(player.open())
        for publisher in player.publishers if subscribers else ():
            await publisher.await_for(subscribers, limit)
        await asyncio.sleep(lead)
        for count, (due, publisher, message) in enumerate(player.steps()):
            wait = due - time.monotonic()
            if wait > 0 or count % TURN == 0:
                await asyncio.sleep(wait)
            await publisher.aput(message.body, message.buffers, None if now else message.time, limit)
    finally:
        await here.arun(player.close())
    return player.outcome()


class _Beside(NodeExists):
    """A node that lives is not to be replayed under its name; *topic* is one of those that it publishes."""

    def __init__(self, name: str, owner: str, asker: str, topic: str) -> None:
        super().__init__(name, owner, asker)
        self.args, self.topic = (name, owner, asker, topic), topic

    def __str__(self) -> str:
        return (f"{self.name!r} lives, run by {self.owner}, and a replay does not stand in for it; replay its topics "
                f"under other names, with rename={{{self.topic!r}: 'old/{self.topic}'}}, or --rename "
                f"{self.topic}=old/{self.topic}, or shut it down")


class _Player:
    """One replay: what is to be published when, and by whom."""

    def __init__(self, here: runtime.Runtime, recording: Recording, topics: tuple[Topic[Any] | str, ...],
                 pace: Any, rename: Rename | None, start: float, end: float, longest: Any) -> None:
        self._here, self._program, self._recording = here, Program.of(here), recording
        if pace is not None and not (isinstance(pace, (int, float)) and 0 < pace < inf):
            raise ValueError(f"pace: expected a positive number, or None for as fast as possible, got {pace!r}")
        if not isinstance(longest, (int, float)) or not longest >= 0:
            raise ValueError(f"longest: expected 0 or more seconds, got {longest!r}")
        if not (rename is None or callable(rename) or isinstance(rename, Mapping)):
            raise TypeError("rename: expected a mapping such as {'kitchen/reading': 'old/reading'}, or a function from "
                            f"full names to full names, got {rename!r}")
        recording.check(topics)
        self._pace, self._longest = pace, longest
        self._selected = Wanted(topics), start, end
        self._rename = rename if callable(rename) else lambda name: (rename or {}).get(name, name)
        self._publishers: dict[tuple[str, str], Publisher] = {}  # by topic and node, as they were recorded
        self._stood_in: list[str] = []
        self._messages = self._missing = 0

    @property
    def publishers(self) -> set[Publisher]:
        """All that are published from."""
        return set(self._publishers.values())

    async def open(self) -> None:
        """Have all topics there; in the runtime's thread."""
        wanted = self._selected[0]
        by_node: dict[str, dict[str, form.Publisher]] = {}
        for publisher in self._recording.publishers:
            if wanted(publisher) is not None:
                topic, node = self._called(publisher)
                of_node = by_node.setdefault(node, {})
                known = of_node.get(topic)
                of_node[topic] = publisher if known is None or known.shape == publisher.shape else _untyped(publisher)
        for node, topics in by_node.items():
            await self._open(node, topics)

    async def _open(self, node: str, topics: Mapping[str, form.Publisher]) -> None:
        """Publish what *node* did: in its place, or as this program what belongs to nobody and the node lives."""
        lives = self._here.replica.view.facts.node(node) is not None
        typed = {topic: _type(publisher) for topic, publisher in topics.items()}
        if lives and not any(topic.startswith(f"{node}/") for topic in topics):
            made = {topic: self._program.publisher(topic, kind, 0, patience) for topic, kind in typed.items()}
        else:
            try:
                made = await self._program.stand_in(node, {topic: (typed[topic], publisher.marks)
                                                           for topic, publisher in topics.items()}, patience)
            except NodeExists as error:
                raise _Beside(error.name, error.owner, error.asker, next(iter(topics))) from None
            self._stood_in.append(node)
        for publisher in self._recording.publishers:
            topic, by = self._called(publisher)
            if by == node and topic in made:
                self._publishers[publisher.topic, publisher.node] = made[topic]

    def _called(self, publisher: form.Publisher) -> tuple[str, str]:
        """The topic and the node that what was recorded is replayed as."""
        topic = self._rename(publisher.topic)
        if topic != publisher.topic:  # else it was one, as nodes may be called what topics may not
            check_topic_name(topic)
        own = publisher.topic.startswith(f"{publisher.node}/") and "/" in topic
        return topic, topic.rpartition("/")[0] if own else publisher.node

    async def close(self) -> None:
        """Publish nothing any more, once what waits for subscribers has left."""
        for node in self._stood_in:
            await self._program.stand_down(node, "the replay has ended")

    def steps(self) -> Iterator[tuple[float, Publisher, form.Message]]:
        """What is to be published, and when by the monotonic clock."""
        rhythm = _Rhythm(self._pace, self._longest)
        for publisher, record in self._recording.records(*self._selected):
            if isinstance(record, form.Began):
                rhythm.rest()
            elif isinstance(record, form.Gap):
                self._missing += record.count
            else:
                by = self._publishers[publisher.topic, publisher.node]
                yield rhythm.due(record.time, time.monotonic()), by, record
                self._messages += 1

    def outcome(self) -> Replayed:
        return Replayed(self._messages, self._missing, self._recording.damage)


class _Rhythm:
    """When messages are due that were published at certain times."""

    def __init__(self, pace: float | None, longest: float) -> None:
        self._pace, self._longest = pace, longest
        self._last: tuple[float, float] | None = None  # the latest time, and when that was due

    def rest(self) -> None:
        """What comes next has nothing to do with what was before."""
        self._last = None

    def due(self, time: float, now: float) -> float:
        """When the message of that *time* is due: at once, where the one before it was later."""
        if self._pace is None or not isfinite(time):
            return now
        if self._last is None:
            self._last = time, now
        last, due = self._last
        if time > last:
            self._last = time, due + min((time - last) / self._pace, self._longest)
        return self._last[1]


def _sleep_until(due: float) -> None:
    while (wait := due - time.monotonic()) > 0:
        time.sleep(min(wait, DAY))


def _untyped(publisher: form.Publisher) -> form.Publisher:
    """One that has published several types under the same name."""
    return form.Publisher(publisher.topic, publisher.node, "Any", b"", publisher.marks)


def _type(publisher: form.Publisher) -> Type:
    """What was published, as far as subscribers are asked for it; values are sent as they were."""
    made = Type.of(Any)
    made.text, made.shape = publisher.text or made.text, publisher.shape
    return made
