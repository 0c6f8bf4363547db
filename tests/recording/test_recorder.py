"""Recording what nodes and programs publish; also by a process that is killed in the middle of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels.message import Gap as Missed
from pyzmp.channels.message import Message
from pyzmp.channels.opening import Raw
from pyzmp.exceptions import RecordingError
from pyzmp.protocol import codec
from pyzmp.protocol.recording import Began, Gap
from pyzmp.protocol.schema import Type
from pyzmp.recording import Recording, arecord, record
from pyzmp.recording.file import Journal, Wanted
from tests.campaigns.history import SCALE

ALERTS = pyzmp.Topic(str, "house/alerts")
LOAD = pyzmp.Topic(np.ndarray, "load/frames")


class Thermometer(pyzmp.Node):
    kind = "thread"
    reading = pyzmp.Topic(float, keep=3)

    @pyzmp.service
    def publish(self, *values: float) -> None:
        for value in values:
            self.reading.publish(value)


def test_it_writes_what_is_published_with_what_it_was(tmp_path: Path, eventually: Any) -> None:
    with Thermometer("kitchen"), Thermometer("hall"):
        with record(tmp_path / "a", Thermometer.reading, "house/**") as recorder:
            Thermometer.at("kitchen").publish(20.5, 21)
            Thermometer.at("hall").publish(18.0)
            ALERTS.wait_for_subscribers(timeout=10)
            ALERTS.publish("warm")
            eventually(lambda: recorder.messages == 4)
        ALERTS.publish("not recorded")
    recording = Recording(tmp_path / "a")
    assert sorted((m.topic, m.number, m.value) for m in recording if m.topic != "house/alerts") == [
        ("hall/reading", 0, 18.0), ("kitchen/reading", 0, 20.5), ("kitchen/reading", 1, 21)]
    assert [m.value for m in recording.read("house/*")] == ["warm"]
    assert [m.value for m in recording.read(Thermometer.at("kitchen").reading)] == [20.5, 21]
    assert {(each.topic, each.text, each.shape, each.marks) for each in recording.publishers} == {
        ("kitchen/reading", "float", Type.of(float).shape, ("Thermometer.reading",)),
        ("hall/reading", "float", Type.of(float).shape, ("Thermometer.reading",)),
        ("house/alerts", "str", Type.of(str).shape, ())}
    assert (len(recording.sessions), recording.damage) == (1, None)


def test_what_several_topics_select_is_written_once_and_a_file_goes_on(tmp_path: Path, eventually: Any) -> None:
    with Thermometer("kitchen"):
        for wanted in (1, 2):
            with record(tmp_path / "a", "kitchen/*", Thermometer.reading, "**", history=3) as recorder:
                Thermometer.publish(float(wanted))
                eventually(lambda: recorder.messages == wanted)  # noqa: B023
                assert recorder.cut_off is None
    recording = Recording(tmp_path / "a")
    assert [(m.number, m.value) for m in recording] == [(0, 1.0), (0, 1.0), (1, 2.0)]
    assert (len(recording.sessions), len(recording.topics())) == (2, 1)


@pytest.mark.parametrize("options", [{"length": 2}, {"full": "latest"}, {"full": "drop_newest", "length": 1}])
def test_what_a_full_queue_drops_is_a_gap_in_the_file(
        options: dict[str, Any], tmp_path: Path, eventually: Any) -> None:
    with Thermometer("kitchen"), record(tmp_path / "a", "kitchen/reading", **options) as recorder:
        Thermometer.publish(*map(float, range(1000)))
        eventually(lambda: recorder.messages + recorder.dropped == 1000)
    assert recorder.dropped > 0
    topic, = Recording(tmp_path / "a").topics()
    assert (topic.messages, topic.dropped, topic.lost) == (recorder.messages, recorder.dropped, recorder.lost)
    assert sessions(tmp_path / "a") == [(recorder.messages, list(range(1000)))]
    values = [m.value for m in Recording(tmp_path / "a")]
    assert values == sorted(values)
    assert (values[-1] == 999.0) == ("newest" not in options.get("full", ""))


def test_with_block_nothing_is_dropped(tmp_path: Path, eventually: Any) -> None:
    with Thermometer("kitchen"), record(tmp_path / "a", "kitchen/reading", full="block", length=2) as recorder:
        Thermometer.publish(*map(float, range(100)))
        eventually(lambda: recorder.messages == 100)
    assert [m.number for m in Recording(tmp_path / "a")] == list(range(100))


def meter(type: Any) -> Any:
    """A class of nodes that publish something."""
    class Meter(pyzmp.Node):
        kind = "thread"
        reading = pyzmp.Topic(type)

        @pyzmp.service
        def publish(self, value: Any) -> None:
            self.reading.publish(value)
    return Meter


def test_a_node_that_is_started_anew_is_recorded_in_its_new_life(tmp_path: Path, eventually: Any) -> None:
    with record(tmp_path / "a", "kitchen/*") as recorder:
        for written, (kind, value) in enumerate([(float, 1.5), (int, 2)], 1):
            cls = meter(kind)
            with cls("kitchen"):
                eventually(lambda: recorder._subscriptions[0].publishers)
                cls.publish(value)
                eventually(lambda: recorder.messages == written)  # noqa: B023
            eventually(lambda: not recorder._subscriptions[0].publishers)
    assert [(m.number, m.value) for m in Recording(tmp_path / "a")] == [(0, 1.5), (0, 2)]
    assert [each.text for each in Recording(tmp_path / "a").publishers] == ["float", "int"]


def test_a_gap_before_the_first_message_of_a_publisher_stands_before_it(tmp_path: Path) -> None:
    with record(tmp_path / "a", "nobody/*") as recorder:
        came, happened = recorder._callbacks(0)
        happened(Missed("nobody/a", "nobody", 4, 3, True))
        came(Message(Raw(*codec.encode(1.5), b"shape"), "nobody/a", "nobody", 7, 100.0))
        happened(Missed("nobody//b", "nobody", 0, 2, False))  # whatever others announce
        assert (recorder.messages, recorder.dropped, recorder.lost) == (1, 3, 2)
    assert sessions(tmp_path / "a") == [(1, [4, 5, 6, 7, 0, 1])]
    assert [each.shape for each in Recording(tmp_path / "a").publishers] == [b"shape", b""]


class Box(pyzmp.Node):
    """Records by itself."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__("box", **options)
        self.path = path

    async def on_start(self) -> None:
        self.recorders = [record(f"{self.path}-1", "kitchen/*"), await arecord(f"{self.path}-2", Thermometer.reading)]

    async def on_stop(self) -> None:
        self.recorders[0].close()
        await self.recorders[1].aclose()

    @pyzmp.service
    def messages(self) -> list[int]:
        return [recorder.messages for recorder in self.recorders]


@pytest.mark.parametrize("kind", ["process", "thread", "entity"])
def test_a_node_may_record(kind: str, tmp_path: Path, eventually: Any) -> None:
    with Thermometer("kitchen", kind=kind), Box(str(tmp_path / "a"), kind=kind):
        Thermometer.publish(1.0, 2.0)
        eventually(lambda: Box.messages() == [2, 2])
    for name in ("a-1", "a-2"):
        recording = Recording(tmp_path / name)
        assert [m.value for m in recording] == [1.0, 2.0]
        assert (len(recording.publishers), recording.damage) == (1, None)


@pytest.mark.parametrize("topics", [["kitchen/reading"], ["**", "kitchen/*"]])
def test_what_was_published_before_the_end_is_in_the_file(topics: list[str], tmp_path: Path) -> None:
    with Thermometer("kitchen"):
        Thermometer.publish(-1.0)
        with record(tmp_path / "a", *topics) as recorder:
            Thermometer.publish(*map(float, range(5000)))
        assert (recorder.messages, recorder.dropped, recorder.lost) == (5000, 0, 0)
    assert [message.value for message in Recording(tmp_path / "a")] == list(range(5000))


def test_what_could_not_be_written_before_the_end_is_a_gap(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    monkeypatch.setattr("pyzmp.recording.recorder.LINGER", 0.2)
    with Thermometer("kitchen"):
        recorder = record(tmp_path / "a", "kitchen/*")
        closing = threading.Thread(target=recorder.close)
        with recorder._lock:  # so writing takes very long
            Thermometer.publish(*map(float, range(100)))
            closing.start()
            eventually(lambda: recorder._subscriptions[0]._over)
        closing.join()
    assert sessions(tmp_path / "a") == [(recorder.messages, list(range(100)))]
    assert recorder.lost > 0


def test_a_file_is_free_again_where_a_child_was_forked_meanwhile(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with Journal(os.fspath(tmp_path / "a")):
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
    Journal(os.fspath(tmp_path / "a")).close()
    os.close(writer)
    os.waitpid(child, 0)


def test_who_published_is_known_also_once_he_is_gone(tmp_path: Path, eventually: Any) -> None:
    with record(tmp_path / "a", "*/reading") as recorder:
        with Thermometer("kitchen"):
            eventually(lambda: recorder._facts)
        eventually(lambda: not runtime.current().replica.view.facts.selected())
        recorder._callbacks(0)[0](Message(Raw(*codec.encode(1.5), b"shape"), "kitchen/reading", "kitchen", 0, 1.0))
    publisher, = Recording(tmp_path / "a").publishers
    assert (publisher.text, publisher.marks) == ("float", ("Thermometer.reading",))


def test_it_says_what_nobody_published(tmp_path: Path) -> None:
    with Thermometer("kitchen"), record(tmp_path / "a", "*/reading", "kitchen/readin") as recorder:
        assert recorder.unknown == ["nobody publishes 'kitchen/readin'; the nearest is 'kitchen/reading'"]


def test_in_coroutines(tmp_path: Path) -> None:
    async def main() -> None:
        async with Thermometer("kitchen", kind="entity"), await arecord(tmp_path / "a", "kitchen/*"):
            await Thermometer.publish.acall(1.0, 2.0)
    asyncio.run(main())
    assert [m.value for m in Recording(tmp_path / "a")] == [1.0, 2.0]


def test_a_disk_that_is_full_ends_it_and_disturbs_nobody(
        tmp_path: Path, eventually: Any, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Thermometer("kitchen"):
        recorder = record(tmp_path / "a", Thermometer.reading)
        Thermometer.publish(1.0)
        eventually(lambda: recorder.messages == 1)
        assert not recorder.wait(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "a").stat().st_size + 50, hard))
        try:
            Thermometer.publish(*[2.0] * 100)
            assert recorder.wait(10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(recorder.error, OSError)
        eventually(lambda: not Thermometer.at("kitchen").reading.accounts()[0].waiting)
        assert Thermometer.at("kitchen").reading.accounts()[0].ended
        with pytest.raises(OSError, match="File too large"):
            recorder.close()
        recorder.close()
        with record(tmp_path / "a", Thermometer.reading) as again:
            Thermometer.publish(3.0)
            eventually(lambda: again.messages == 1)
    assert "nothing more is recorded" in caplog.text
    values = [m.value for m in Recording(tmp_path / "a")]
    assert (values[0], values[-1]) == (1.0, 3.0)
    assert len(values) - 2 == recorder.messages - 1
    assert Recording(tmp_path / "a").damage is None


def test_what_cannot_be_recorded_is_told_before_a_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="at least one topic"):
        record(tmp_path / "a")
    for none in (3, Thermometer):
        with pytest.raises(TypeError, match=r"expected a topic, such as Class.reading"):
            record(tmp_path / "a", none)  # type: ignore[arg-type]
    for wrong in ("a//b", "a/x**"):
        with pytest.raises(ValueError, match="level"):
            record(tmp_path / "a", wrong)
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError):
        record(tmp_path / "no" / "a", "**")
    with pytest.raises(ValueError, match="full"):
        record(tmp_path / "a", "**", full="never")  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    with record(tmp_path / "a", "**") as recorder, pytest.raises(RecordingError, match="is being recorded already"):
        record(tmp_path / "a", "**")
    assert repr(recorder) == f"<Recorder {str(tmp_path / 'a')!r}, 0 messages, closed>"


RECORDS = """
import sys
from pyzmp.recording import record
with record(sys.argv[1], "load/*", full=sys.argv[2], size=1 << 20) as recorder:
    print(recorder.cut_off, flush=True)
    recorder.wait()
"""


def publish_until(over: threading.Event) -> None:
    """Publish frames, small and large ones, each full of its own number."""
    for number in itertools.count():
        if over.is_set():
            break
        LOAD.publish(np.full(40_000 if number % 3 else 4, number, dtype=np.int64))
        if not LOAD.subscribers:
            over.wait(0.001)


@pytest.fixture
def load() -> Iterator[None]:
    """Somebody publishes as fast as he can, from a thread."""
    over = threading.Event()
    thread = threading.Thread(target=publish_until, args=(over,))
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("full", ["drop_oldest", "block"])
@pytest.mark.usefixtures("load")
def test_what_a_killed_recorder_had_acknowledged_is_in_the_file_and_the_next_one_goes_on(
        full: str, tmp_path: Path, script: Any, eventually: Any) -> None:
    path, before = tmp_path / "a", b""
    (tmp_path / "records.py").write_text(RECORDS)
    for times in range(2):
        unfinished = path.exists() and Recording(path).damage is not None
        with script.start("records.py", str(path), full, stdout=subprocess.PIPE) as process:
            try:
                assert (process.stdout.readline() != "None\n") == unfinished
                size = path.stat().st_size
                eventually(lambda: path.stat().st_size > size + 3_000_000, 20)  # noqa: B023 - in the middle of it
            finally:
                os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: len(LOAD.accounts()) == times + 1 and not LOAD.subscribers, 20)  # noqa: B023
        data, damage = path.read_bytes(), Recording(path).damage
        assert data.startswith(before)
        assert damage is None or damage.unfinished
        before = data if damage is None else data[:damage.offset]
    for account, (messages, covered) in zip(LOAD.accounts(), sessions(path), strict=True):
        assert covered == list(range(covered[0], covered[0] + len(covered)))  # without a hole
        assert account.received <= messages <= account.offered - account.dropped
    assert all((message.value == message.number).all() for message in Recording(path))


def test_what_a_publisher_knows_to_be_received_is_in_the_file_whenever_the_recorder_is_killed(
        tmp_path: Path, script: Any, eventually: Any) -> None:
    (tmp_path / "records.py").write_text(RECORDS)
    with script.start("records.py", str(tmp_path / "a"), "block", stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            LOAD.wait_for_subscribers(timeout=20 * SCALE)
            for number in range(10):
                LOAD.publish(np.full(2, number))
            eventually(lambda: LOAD.accounts()[0].received == 10, 20)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert [message.number for message in Recording(tmp_path / "a")] == list(range(10))


def sessions(path: Path) -> list[tuple[int, list[int]]]:
    """Of each recorder that wrote, how many messages, and the numbers of all that it wrote or knew to be missing."""
    found: list[tuple[int, list[int]]] = []
    for _, entry in Recording(path).records(Wanted([])):
        if isinstance(entry, Began):
            found.append((0, []))
        else:
            messages, covered = found[-1]
            count = entry.count if isinstance(entry, Gap) else 1
            covered += range(entry.number, entry.number + count)
            found[-1] = messages + (not isinstance(entry, Gap)), covered
    return found
