"""Files of recorded messages, with nobody who publishes."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyzmp.channels.topic import Topic
from pyzmp.exceptions import MalformedMessage, RecordingError
from pyzmp.protocol import codec
from pyzmp.protocol.recording import Gap, Publisher
from pyzmp.recording.file import Journal, Recorded, Recording

KITCHEN = Publisher("kitchen/reading", "kitchen", "float", b"", ("Thermometer.reading",))
HALL = Publisher("hall/reading", "hall", "float", b"", ("Thermometer.reading",))
ALERTS = Publisher("house/alerts", "alarm", "str")


def put(journal: Journal, publisher: Publisher, number: int, time: float, value: Any) -> None:
    journal.message(publisher, number, time, *codec.encode(value))


def written(path: Path) -> list[int]:
    """A file with a bit of everything; where each of its records ends."""
    ends = []
    with Journal(os.fspath(path)) as journal:
        for step in (lambda: journal.began(99.0),
                     lambda: put(journal, KITCHEN, 0, 100.0, 20.5),
                     lambda: put(journal, HALL, 3, 100.5, 18.0),
                     lambda: journal.gap(KITCHEN, Gap(0, 1, 5, True, 101.0)),
                     lambda: journal.gap(KITCHEN, Gap(0, 6, 1, False, 101.0)),
                     lambda: put(journal, KITCHEN, 7, 101.5, 21.0),
                     lambda: put(journal, ALERTS, 0, 102.0, "warm")):
            step()
            ends.append(path.stat().st_size)  # at once
    return ends


def test_messages_are_read_as_they_were_written(tmp_path: Path) -> None:
    written(tmp_path / "a")
    recording = Recording(tmp_path / "a")
    assert [(m.topic, m.node, m.number, m.time, m.value) for m in recording] == [
        ("kitchen/reading", "kitchen", 0, 100.0, 20.5), ("hall/reading", "hall", 3, 100.5, 18.0),
        ("kitchen/reading", "kitchen", 7, 101.5, 21.0), ("house/alerts", "alarm", 0, 102.0, "warm")]
    assert (recording.first, recording.last, recording.sessions, recording.damage) == (100.0, 102.0, [99.0], None)


def test_it_says_what_there_is_by_topic_with_what_is_missing(tmp_path: Path) -> None:
    written(tmp_path / "a")
    assert Recording(tmp_path / "a").topics() == [
        Recorded("kitchen/reading", "kitchen", "float", 2, 5, 1, 100.0, 101.5),
        Recorded("hall/reading", "hall", "float", 1, 0, 0, 100.5, 100.5),
        Recorded("house/alerts", "alarm", "str", 1, 0, 0, 102.0, 102.0)]


def test_topics_and_times_select_what_is_read(tmp_path: Path) -> None:
    written(tmp_path / "a")
    recording = Recording(tmp_path / "a")
    assert [m.value for m in recording.read("*/reading")] == [20.5, 18.0, 21.0]
    assert [m.value for m in recording.read("house/**", "hall/reading")] == [18.0, "warm"]
    assert [m.value for m in recording.read("cellar/*")] == []
    for wanted in ("kitchen/readin", Topic(float, "kitchen/readin")):
        with pytest.raises(LookupError, match="has no topic 'kitchen/readin'; the nearest is 'kitchen/reading'"):
            recording.read("hall/reading", wanted)
        with pytest.raises(LookupError, match="the nearest is"):
            recording.cut(tmp_path / "b", wanted)
    assert not (tmp_path / "b").exists()
    with pytest.raises(TypeError, match=r"expected a topic, such as Class.reading, .* got 3"):
        recording.read(3)  # type: ignore[call-overload]
    assert [m.value for m in recording.read(start=100.5, end=102.0)] == [18.0, 21.0]


def test_what_is_cut_out_is_a_recording_itself_with_its_gaps(tmp_path: Path) -> None:
    written(tmp_path / "a")
    assert Recording(tmp_path / "a").cut(tmp_path / "b", "kitchen/*", start=100.5) == 1
    cut = Recording(tmp_path / "b")
    assert cut.topics() == [Recorded("kitchen/reading", "kitchen", "float", 1, 5, 1, 101.5, 101.5)]
    assert (cut.sessions, cut.damage) == ([], None)
    with pytest.raises(FileExistsError):
        cut.cut(tmp_path / "b")
    assert cut.cut(tmp_path / "c") == 1
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()


def test_large_arrays_come_back_as_views_of_what_was_read(tmp_path: Path) -> None:
    frame = np.arange(3 << 18, dtype=np.uint8).reshape(512, 512, 3)
    with Journal(os.fspath(tmp_path / "a")) as journal:
        put(journal, KITCHEN, 0, 1.0, {"frame": frame, "text": "x" * 20000, "raw": b"y" * 20000})
        put(journal, KITCHEN, 1, 2.0, frame[::2].T)
    first, second = Recording(tmp_path / "a")
    assert np.array_equal(first.value["frame"], frame)
    assert not first.value["frame"].flags.owndata
    assert (first.value["text"], first.value["raw"]) == ("x" * 20000, b"y" * 20000)
    assert np.array_equal(second.value, frame[::2].T)


def test_a_file_that_was_left_unfinished_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = written(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-1])
    recording = Recording(tmp_path / "a")
    assert recording.damage is not None
    assert recording.damage.unfinished
    with caplog.at_level(logging.INFO, "pyzmp.recording"):
        assert len(list(recording)) == 3
    assert f"at byte {recording.damage.offset}" in caplog.text
    with Journal(os.fspath(tmp_path / "a")) as journal:
        assert journal.cut_off == recording.damage
        assert "goes on" in caplog.text
        put(journal, ALERTS, 0, 102.0, "warm")
    assert (tmp_path / "a").read_bytes() == whole
    assert (tmp_path / "a").stat().st_size == ends[-1]
    with Journal(os.fspath(tmp_path / "a")) as journal:
        assert journal.cut_off is None
        put(journal, KITCHEN, 8, 103.0, 1.0)
    recording = Recording(tmp_path / "a")
    assert (len(list(recording)), len(recording.topics()), recording.damage) == (5, 3, None)


@pytest.mark.parametrize("size", [0, 5])
def test_a_file_without_a_whole_header_is_an_empty_one(size: int, tmp_path: Path) -> None:
    written(tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:size])
    assert list(Recording(tmp_path / "a")) == []
    written(tmp_path / "a")
    assert len(list(Recording(tmp_path / "a"))) == 4


def test_a_damaged_file_is_read_up_to_there_and_not_appended_to(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = written(tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    data[ends[4] + 20] ^= 1
    (tmp_path / "a").write_bytes(data)
    recording = Recording(tmp_path / "a")
    assert [m.value for m in recording] == [20.5, 18.0]
    assert recording.damage is not None
    assert (recording.damage.offset, recording.damage.unfinished) == (ends[4], False)
    assert f"is not read further than at byte {ends[4]}: " in caplog.text
    with pytest.raises(RecordingError, match=f"at byte {ends[4]}: a record is damaged; `pyzmp rec") as caught:
        Journal(os.fspath(tmp_path / "a"))
    assert (caught.value.path, caught.value.offset) == (os.fspath(tmp_path / "a"), ends[4])
    assert (tmp_path / "a").read_bytes() == data
    assert recording.cut(tmp_path / "saved") == 2
    assert Recording(tmp_path / "saved").damage is None


def test_what_is_no_recording_is_neither_read_nor_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a letter")
    with pytest.raises(RecordingError, match="this is no recording"):
        Recording(tmp_path / "a")
    with pytest.raises(RecordingError, match="this is no recording"):
        Journal(os.fspath(tmp_path / "a"))
    assert (tmp_path / "a").read_text() == "a letter"
    with pytest.raises(FileNotFoundError):
        Recording(tmp_path / "b")


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    with (Journal(os.fspath(tmp_path / "a")) as journal,
          pytest.raises(RecordingError, match="is being recorded already")):
        Journal(os.fspath(tmp_path / "a"))
    put(journal := Journal(os.fspath(tmp_path / "a")), KITCHEN, 0, 1.0, 1.0)
    journal.close()
    journal.close()
    assert len(list(Recording(tmp_path / "a"))) == 1


def test_a_value_that_nobody_could_have_published_is_an_error_that_names_it(tmp_path: Path) -> None:
    with Journal(os.fspath(tmp_path / "a")) as journal:
        journal.message(KITCHEN, 4, 1.0, b"\xc1", [])
    with pytest.raises(MalformedMessage, match="message 4 of kitchen/reading of 'kitchen'"):
        list(Recording(tmp_path / "a"))
    assert Recording(tmp_path / "a").topics()[0].messages == 1


@pytest.mark.parametrize("large", [False, True])
def test_where_the_disk_is_full_what_was_written_stays_and_nothing_follows(large: bool, tmp_path: Path) -> None:
    ends = written(tmp_path / "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(os.fspath(tmp_path / "a")) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ends[-1] + 40, hard))  # so much of it fits
        try:
            with pytest.raises(OSError, match="File too large"):
                put(journal, Publisher("new/one", "new"), 0, 103.0, b"x" * (20000 if large else 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(ValueError, match="closed file"):
            put(journal, KITCHEN, 8, 103.0, 1.0)
    assert (tmp_path / "a").stat().st_size == ends[-1]
    recording = Recording(tmp_path / "a")
    assert (len(list(recording)), recording.damage) == (4, None)
