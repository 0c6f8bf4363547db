"""``pyzmp bench``, started as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LINE = re.compile(r"(.+?) +([\d.]+) +([\d.]+) +([\d.]+) times as fast as raw pyzmq")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The folder for temporary files of a program; it has to be empty in the end."""
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        yield Path(folder)
        assert not list(Path(folder).iterdir())


def test_it_prints_a_ratio_for_each_work(script: Any, temporary: Path) -> None:
    result = script.python("-m", "pyzmp", "bench", "--rounds", "1", strict=True, env={"TMPDIR": str(temporary)})
    assert (result.code, result.err) == (0, "")
    head, *lines, last = result.out.splitlines()
    assert " ".join(head.split()) == "microseconds for one, the median of alternating rounds pyzmp raw pyzmq"
    assert last.startswith("measured in ")
    found = [LINE.fullmatch(line) for line in lines]
    assert [match and match[1] for match in found] == [
        "a blocking call over ipc", "calls as futures, 1,000 in flight", "calls by map",
        "a message of 100 bytes published to one subscriber"]
    for match in found:
        assert match is not None
        assert abs(float(match[3]) / float(match[2]) - float(match[4])) < 0.1 * float(match[4]) + 0.01


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
def test_it_is_stopped_and_leaves_nothing_behind(script: Any, temporary: Path, number: int, group: bool) -> None:
    process = script.start("-m", "pyzmp", "bench", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           env={"TMPDIR": str(temporary)})
    head = process.stdout.readline()
    assert head.startswith("microseconds")
    (os.killpg if group else os.kill)(process.pid, number)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "measured" not in out
    assert error.split() == ["Aborted!"]


def test_no_rounds_are_refused(script: Any) -> None:
    result = script.python("-m", "pyzmp", "bench", "--rounds", "0")
    assert result.code == 2
    assert "--rounds" in result.err
