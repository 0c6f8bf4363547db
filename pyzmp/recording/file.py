"""Files of recorded messages: appended to, read and cut."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from difflib import get_close_matches
from math import inf
from typing import Any, NamedTuple, TypeVar, overload

import msgspec
from typing_extensions import Self

from pyzmp.channels.message import Message
from pyzmp.channels.selection import Selection
from pyzmp.channels.topic import Topic
from pyzmp.exceptions import MalformedMessage, RecordingError
from pyzmp.protocol import codec
from pyzmp.protocol import recording as form
from pyzmp.protocol.envelope import Buffer
from pyzmp.protocol.recording import Damage
from pyzmp.protocol.topics import Pattern

T = TypeVar("T")

BLOCK = 1 << 20  # bytes that are read at once

log = logging.getLogger("pyzmp.recording")

_NOBODY = form.Publisher("", "")


def now() -> float:
    """The wall clock, in seconds since 1970."""
    return datetime.now(timezone.utc).timestamp()


def selection(topic: Topic[Any] | str) -> Selection:
    """What *topic*, a full name or a pattern stands for.  Raises TypeError for anything else."""
    if isinstance(topic, str):
        return Selection(topic, Pattern(topic))
    if not isinstance(topic, Topic):
        raise TypeError("expected a topic, such as Class.reading, or the full name or the pattern of topics, such as "
                        f"'kitchen/reading' or 'kitchen/*', got {topic!r}")
    return topic.selection()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence which says that there is no such topic: which of the *known* ones is nearest."""
    near = get_close_matches(name, sorted(set(known)), 1, 0.0)
    return f"; the nearest is {near[0]!r}" if near else "; there is no topic at all"


class Recorded(msgspec.Struct, frozen=True):
    """What a recording has of one topic of one publisher.

    ``messages`` came; ``dropped`` did not, as the recorder was too slow, and ``lost`` neither, for any other reason.
    ``first`` and ``last`` are when the messages were published, in seconds since 1970; both 0.0 where there is none.
    """

    topic: str
    node: str
    text: str
    messages: int
    dropped: int
    lost: int
    first: float
    last: float


class Contents(NamedTuple):
    """All that a look through a whole file says."""

    publishers: list[form.Publisher]
    topics: list[Recorded]
    sessions: list[float]
    damage: Damage | None


class Recording:
    """A file of recorded messages, to be looked into.

    It may be written meanwhile: what is read is what is there at that moment, and what is said of the whole is what
    was there when that was first asked for.  Raises OSError where there is no such file and RecordingError where it is
    none.  What comes before a damage is read, and the damage logged with its offset; `damage` has it too.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with open(self.path, "rb") as file:
            reader = form.Reader()
            reader.feed(file.read(len(form.HEADER)))
        if reader.damage is not None:
            raise broken(self.path, reader.damage)

    def __iter__(self) -> Iterator[Message[Any]]:
        return self.read()

    @overload
    def read(self, topic: Topic[T], /, *, start: float = ..., end: float = ...) -> Iterator[Message[T]]: ...
    @overload
    def read(self, *topics: Topic[Any] | str, start: float = ..., end: float = ...) -> Iterator[Message[Any]]: ...
    def read(self, *topics: Topic[Any] | str, start: float = -inf, end: float = inf) -> Iterator[Message[Any]]:
        """The messages in the order in which they came, of some topics only, or of a time: from *start*, before *end*.

        The values of a `Topic` are what its annotation promises, others as any caller by name gets them: a dataclass
        as a dict.  Raises MalformedMessage or TypeError for a value that is none of that; nothing comes after it.
        Raises LookupError for a topic, given by its name or at one node, that is not in the file; a pattern, or the
        topic of a class, may select nothing.
        """
        self.check(topics)
        return self._messages(Wanted(topics), start, end)

    def _messages(self, wanted: Wanted, start: float, end: float) -> Iterator[Message[Any]]:
        for publisher, record in self.records(wanted, start, end):
            if isinstance(record, form.Message):
                yield _message(publisher, record, wanted(publisher))

    @property
    def publishers(self) -> list[form.Publisher]:
        """Who published what, as it was recorded."""
        return self.contents.publishers

    def topics(self) -> list[Recorded]:
        """What is in the whole file, by topic and publisher, in the order in which they came first."""
        return self.contents.topics

    @property
    def first(self) -> float | None:
        """When the first message was published, in seconds since 1970; None where there is none."""
        return min((topic.first for topic in self.topics() if topic.messages), default=None)

    @property
    def last(self) -> float | None:
        """When the last message was published; None where there is none."""
        return max((topic.last for topic in self.topics() if topic.messages), default=None)

    @property
    def sessions(self) -> list[float]:
        """When each recorder began that wrote into the file.  Nothing says what was published between two of them."""
        return self.contents.sessions

    @property
    def damage(self) -> Damage | None:
        """Up to where the file can be read and why not further: ``offset``, ``reason``, and ``unfinished``.

        The latter where it merely ends in the middle of a message, as it does where the recorder was killed, or
        writes at this moment.
        """
        return self.contents.damage

    @functools.cached_property
    def contents(self) -> Contents:
        """All of that, read once."""
        counts: dict[int, list[Any]] = {}
        sessions: list[float] = []
        reader = form.Reader()
        for record in _records(self.path, reader):
            if isinstance(record, form.Began):
                sessions.append(record.time)
            elif not isinstance(record, form.Publisher):
                _count(counts.setdefault(record.publisher, [0, 0, 0, 0.0, 0.0]), record)
        found = [Recorded(publisher.topic, publisher.node, publisher.text, *counts.get(index, [0, 0, 0, 0.0, 0.0]))
                 for index, publisher in enumerate(reader.publishers)]
        return Contents(reader.publishers, found, sessions, reader.damage)

    def cut(self, path: str | os.PathLike[str], *topics: Topic[Any] | str, start: float = -inf,
            end: float = inf) -> int:
        """Write some of it into another file, as `read` selects it, with what is missing there; how many messages.

        Also what is left of a damaged file is saved so.  Raises FileExistsError where *path* is there already, and
        what `read` raises.
        """
        self.check(topics)
        count = 0
        with Journal(os.fspath(path), fresh=True) as journal:
            for publisher, record in self.records(Wanted(topics), start, end):
                if isinstance(record, form.Message):
                    journal.message(publisher, record.number, record.time, record.body, record.buffers)
                    count += 1
                elif isinstance(record, form.Gap):
                    journal.gap(publisher, record)
                elif start <= record.time < end:
                    journal.began(record.time)
        return count

    def check(self, topics: Sequence[Topic[Any] | str], *, patterns: bool = False) -> None:
        """Raise LookupError, which names the nearest, for a topic that is not in the file; *patterns*: also for these.

        It reads only until all are found.
        """
        wanted = [chosen for chosen in map(selection, topics)
                  if patterns or chosen.node or (chosen.pattern is not None and chosen.pattern.plain)]
        reader, seen = form.Reader(), 0
        records = _records(self.path, reader) if wanted else iter(())
        for _ in records:
            for publisher in reader.publishers[seen:]:
                wanted = [chosen for chosen in wanted if not selects(chosen, publisher)]
            seen = len(reader.publishers)
            if not wanted:
                return
        for chosen in wanted:
            near = nearest(chosen.text, (publisher.topic for publisher in reader.publishers))
            raise LookupError(f"{self.path} has no topic {chosen.text!r}{near}")

    def records(self, wanted: Wanted, start: float = -inf, end: float = inf) -> Iterator[
            tuple[form.Publisher, form.Message | form.Gap | form.Began]]:
        """Messages and what is missing, of the topics that are *wanted* and that time, each with its publisher.

        Also where recorders began; then nobody is the publisher.
        """
        reader = form.Reader()
        for record in _records(self.path, reader):
            if isinstance(record, form.Began):
                yield _NOBODY, record
            elif not isinstance(record, form.Publisher) and not (record.time < start or record.time >= end):
                publisher = reader.publishers[record.publisher]
                if wanted(publisher) is not None:
                    yield publisher, record
        if reader.damage is not None:
            log.log(logging.INFO if reader.damage.unfinished else logging.WARNING,
                    "%s is not read further than %s", self.path, reader.damage)

    def __repr__(self) -> str:
        return f"<Recording {self.path!r}>"


class Journal:
    """A file that is appended to.  Nobody else writes it; what it is given is the system's when it returns.

    ``cut_off`` is what was left of a record at its end, of a recorder that was killed.  Raises RecordingError where
    somebody else writes it, or it is damaged.
    """

    def __init__(self, path: str, *, fresh: bool = False) -> None:
        self.path = path
        self.cut_off: Damage | None = None
        self._file = open(path, "xb+" if fresh else "ab+", buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            self._lock()
            self._writer = form.Writer(self._read())
            if not self._end:
                self._write([form.HEADER])
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordingError(f"{self.path} is being recorded already; let each recorder have a file of its own",
                                 self.path) from None

    def _read(self) -> Sequence[form.Publisher]:
        """The publishers that it has already; what is unfinished at its end is gone then."""
        reader = form.Reader()
        self._file.seek(0)
        while reader.damage is None and (block := self._file.read(BLOCK)):
            reader.feed(block)
        damage, size = reader.end(), self._file.tell()
        if damage is not None and not damage.unfinished:
            raise broken(self.path, damage)
        self._end = reader.offset
        if self._end < size:
            self._file.truncate(self._end)
            self.cut_off = damage
            log.warning("%s goes on %s", self.path, damage)
        return reader.publishers

    def began(self, time: float) -> None:
        self._write(self._writer.began(time))

    def message(self, publisher: form.Publisher, number: int, time: float, body: bytes,
                buffers: Sequence[Buffer]) -> None:
        self._write(self._writer.message(publisher, number, time, body, buffers))

    def gap(self, publisher: form.Publisher, gap: form.Gap) -> None:
        self._write(self._writer.gap(publisher, gap.number, gap.count, dropped=gap.dropped, time=gap.time))

    def _write(self, pieces: Sequence[Buffer]) -> None:
        """Write all pieces; where that fails none of them stays, and nothing more can be written."""
        try:
            self._end += sum([self._write_whole(piece) for piece in pieces])
        except OSError:
            with contextlib.suppress(OSError):  # what is unfinished is cut off by whoever goes on
                self._file.truncate(self._end)
            self._file.close()
            raise

    def _write_whole(self, piece: Buffer) -> int:
        size = len(piece) if type(piece) is bytes else memoryview(piece).nbytes
        written = self._file.write(piece)
        while written < size:  # more than 2 GiB, or the next one will say that the disk is full
            written += self._file.write(memoryview(piece).cast("B")[written:])
        return size

    def close(self) -> None:
        """Have all of it on the disk, and leave it to others."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)  # which a forked child has too
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Wanted:
    """Which publishers are selected, and as what."""

    def __init__(self, topics: Sequence[Topic[Any] | str]) -> None:
        self._selections = [selection(topic) for topic in topics] or [Selection("**")]
        self._known: dict[form.Publisher, Selection | None] = {}

    def __call__(self, publisher: form.Publisher) -> Selection | None:
        if publisher not in self._known:
            self._known[publisher] = next((each for each in self._selections if selects(each, publisher)), None)
        return self._known[publisher]


def selects(wanted: Selection, publisher: form.Publisher) -> bool:
    """Whether a publisher is one of the *wanted*."""
    return ((wanted.pattern is None or wanted.pattern.matches(publisher.topic))
            and (not wanted.mark or wanted.mark in publisher.marks)
            and (not wanted.node or wanted.node == publisher.node))


def _message(publisher: form.Publisher, record: form.Message, wanted: Selection | None) -> Message[Any]:
    where = f"message {record.number} of {publisher.topic} of {publisher.node!r}"
    try:
        value = codec.decode(record.body, record.buffers)
    except MalformedMessage as error:
        raise MalformedMessage(f"{where}: {error}") from error
    if wanted is not None and wanted.type is not None:
        value = wanted.type.convert(value, where)
    return Message(value, publisher.topic, publisher.node, record.number, record.time)


def _count(counts: list[Any], record: form.Message | form.Gap) -> None:
    if isinstance(record, form.Gap):
        counts[1 if record.dropped else 2] += record.count
        return
    counts[3] = min(counts[3], record.time) if counts[0] else record.time
    counts[4] = max(counts[4], record.time) if counts[0] else record.time
    counts[0] += 1


def _records(path: str, reader: form.Reader) -> Iterator[form.Record]:
    with open(path, "rb") as file:
        while reader.damage is None and (block := file.read(BLOCK)):
            yield from reader.feed(block)
    reader.end()


def broken(path: str, damage: Damage) -> RecordingError:
    """A file that nothing can be appended to."""
    way = "; `pyzmp recording cut` saves what comes before" if damage.offset else ""
    return RecordingError(f"{path} is damaged {damage}{way}", path, damage.offset)
