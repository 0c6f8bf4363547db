"""``pyzmp record``, ``pyzmp replay`` and ``pyzmp recording``, as a user gives them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pyzmp
from pyzmp import cli
from pyzmp.protocol import codec
from pyzmp.protocol.recording import Gap, Publisher
from pyzmp.recording import Recording
from pyzmp.recording.file import Journal
from tests.campaigns.history import SCALE

ALERTS = pyzmp.Topic(str, "house/alerts")
KITCHEN = Publisher("kitchen/reading", "kitchen", "float")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [*map(str, arguments)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recording of three messages, a second apart, and a gap."""
    with Journal(os.fspath(tmp_path / "a")) as journal:
        journal.began(99.0)
        for number in range(3):
            journal.message(KITCHEN, number, 100.0 + number, *codec.encode(float(number)))
        journal.gap(KITCHEN, Gap(0, 3, 7, True, 102.0))
    return tmp_path / "a"


def damage(path: Path) -> int:
    """Damage the last record; where it begins."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\xff")
    found = Recording(path).damage
    assert found is not None
    return found.offset


def test_record_writes_until_it_is_told_to_end(script: Any, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with script.start("-m", "pyzmp", "record", "a", "house/*", stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
            try:
                assert process.stdout.readline() == "recording into a; Ctrl-C ends it\n"
                ALERTS.wait_for_subscribers(timeout=10 * SCALE)
                for _ in range(5000):
                    ALERTS.publish("warm")
                process.send_signal(number)
                assert process.communicate(timeout=20 * SCALE) == ("5000 messages, 0 dropped, 0 lost\n", "")
                assert process.returncode == 0
            finally:
                process.kill()
    assert [message.value for message in Recording(tmp_path / "a")] == 10000 * ["warm"]


def test_record_tells_what_it_found_unfinished_and_refuses_what_is_damaged(path: Path, script: Any) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    found = Recording(path).damage
    with script.start("-m", "pyzmp", "record", "a", "**", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            process.terminate()
            _, error = process.communicate(timeout=20 * SCALE)
        finally:
            process.kill()
    assert f"a was left unfinished {found}" in error
    assert "nobody publishes '**'; there is no topic at all\n" in error
    assert process.returncode == 0
    path.write_bytes(whole)
    offset = damage(path)
    result = run("record", path, "**")
    assert result.exit_code == 1
    assert result.output == (f"Error: {path} is damaged at byte {offset}: a record is damaged; `pyzmp recording cut` "
                             "saves what comes before\n")


def test_list_says_what_there_is(path: Path) -> None:
    result = run("recording", "list", path)
    assert result.exit_code == 0
    first, second = result.output.splitlines()
    assert re.fullmatch(rf"{path}: recorded 19\d\d-.*:\d\d\.000.*", first)
    assert re.fullmatch(r"  kitchen/reading of kitchen \(float\): 3 messages, 7 dropped, .*:40\.000.* to .*:42\.000.*",
                        second)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    result = run("recording", "list", path)
    assert (result.exit_code, "is not read further than at byte" in result.output) == (0, True)
    path.write_bytes(whole)
    offset = damage(path)
    result = run("recording", "list", path)
    assert result.exit_code == 1
    assert f"{path} is not read further than at byte {offset}: " in result.output
    assert "3 messages" in result.output


def test_cut_writes_a_part(path: Path, tmp_path: Path) -> None:
    result = run("recording", "cut", path, tmp_path / "b", "--from", "1", "--to", "2", "--topic", "kitchen/*")
    assert (result.exit_code, result.output) == (0, "1 messages\n")
    assert [message.value for message in Recording(tmp_path / "b")] == [1.0]
    assert run("recording", "cut", path, tmp_path / "b").exit_code == 1
    for command in (("recording", "cut", path, tmp_path / "c"), ("replay", path)):
        result = run(*command, "--topic", "hall/*")
        assert (result.exit_code, result.output) == (
            1, f"Error: {path} has no topic 'hall/*'; the nearest is 'kitchen/reading'\n")
    assert run("recording", "cut", path, tmp_path / "d", "--to", "1970-01-01T00:01:41+00:00").output == "1 messages\n"
    damage(path)
    result = run("recording", "cut", path, tmp_path / "e")
    assert result.exit_code == 1
    assert [message.value for message in Recording(tmp_path / "e")] == [0.0, 1.0, 2.0]


def test_replay_publishes_and_says_what_was_missing(path: Path) -> None:
    result = run("replay", path, "--pace", "max", "--lead", "0")
    assert (result.exit_code, result.output) == (0, "3 messages; 7 were missing in the recording\n")
    result = run("replay", path, "--pace", "10", "--rename", "kitchen/reading=old/reading", "--from", "1", "--to", "3",
                 "--lead", "0")
    assert (result.exit_code, result.output) == (0, "2 messages; 7 were missing in the recording\n")
    damage(path)
    result = run("replay", path, "--pace", "1000", "--lead", "0")
    assert result.exit_code == 1
    assert "3 messages\n" in result.output
    assert "is not read further" in result.output


def test_replay_ends_when_it_is_told_to(path: Path, script: Any, eventually: Any) -> None:
    with script.start("-m", "pyzmp", "replay", "a", "--pace", "1e-300", "--lead", "0") as process:
        try:
            eventually(lambda: "kitchen" in {node.name for node in pyzmp.graph().nodes}, 20)
            process.terminate()
            assert process.wait(20 * SCALE) == 0
        finally:
            process.kill()
    eventually(lambda: "kitchen" not in {node.name for node in pyzmp.graph().nodes})


@pytest.mark.parametrize(("arguments", "said"), [
    (("replay", "no"), "there is no file 'no'"), (("record", "no/b", "c"), "there is no directory 'no'"),
    (("recording", "cut", "a", "letter"), "the file 'letter' is there already"),
    (("recording", "list", "a/b"), "a/b: Not a directory"),
    (("replay", "a", "--pace", "fast"), "expected a positive number"),
    (("replay", "a", "--pace", "0"), "positive"), (("replay", "a", "--rename", "x"), "expected OLD=NEW"),
    (("replay", "a", "--rename", "hall=b"), "has no topic 'hall'"), (("replay", "a", "--longest", "nan"), "longest"),
    (("replay", "a", "--from", "nan"), "neither seconds nor"), (("record", "b", "c", "--size", "9" * 20), "--size"),
    (("replay", "a", "--from", "noon"), "neither seconds nor a time"), (("record", "b"), "TOPIC"),
    (("record", "b", "a//b"), "level"), (("recording", "list", "letter"), "this is no recording"),
    (("recording", "cut", "letter", "b"), "this is no recording"), (("recording", "cut", "a"), "OUT"),
    (("replay", "a", "--subscribers", "2", "--timeout", "0.05"), "has 0 subscribers and not 2")])
def test_what_cannot_be_done_is_told_in_one_line(
        arguments: tuple[str, ...], said: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    Path("letter").write_text("Dear")
    result = run(*arguments)
    assert result.exit_code in {1, 2}
    assert said in result.output
    assert "Traceback" not in result.output
    assert not Path("b").exists()
