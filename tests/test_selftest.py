"""The self-test itself: that it passes is shown by the command's test; here, that it can fail."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from pyzmp import runtime, selftest
from pyzmp.launchers.forkserver import server
from pyzmp.node import Node


@pytest.fixture(scope="module", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's."""
    server.ensure_running()


def test_every_check_is_told_with_its_time(monkeypatch: pytest.MonkeyPatch, domain: Path) -> None:
    lines: list[str] = []
    fails = selftest._raises(RuntimeError, lambda: selftest._expect(False, "as planted"))
    monkeypatch.setattr(selftest, "_checks", lambda directory: iter(
        [("passes", lambda: None), ("fails", lambda: selftest._expect(False, "as planted"))]))
    assert selftest.run(lines.append) is False
    assert str(fails) == "as planted"
    assert lines[0].endswith("private and writable")
    assert lines[1].endswith("a domain of the self-test's own")
    assert lines[2].startswith("ok ")
    assert lines[2].endswith(" ms  passes")
    assert lines[3].startswith("FAILED ")
    assert lines[3].endswith("fails: RuntimeError: as planted")
    assert lines[4].endswith("nothing is left behind")
    assert lines[5].startswith("4 passed, 1 failed in ")
    assert os.environ["PYZMP_DIR"] == str(domain)


def test_what_a_check_leaves_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    node = Node("pyzmp-forgotten", kind="thread")
    monkeypatch.setattr(selftest, "_checks", lambda directory: iter([("forgets", lambda: node.start() and None)]))
    monkeypatch.setattr(runtime, "reset", lambda: None)
    assert selftest.run(lines.append) is False
    assert "FAILED" in lines[3]
    node.shutdown()
    monkeypatch.undo()
    runtime.reset()


def test_an_expected_error_that_does_not_come_is_a_failure() -> None:
    with pytest.raises(RuntimeError, match="expected KeyError, got 3"):
        selftest._raises(KeyError, lambda: 3)


def test_a_temporary_directory_that_cannot_be_is_told(
        monkeypatch: pytest.MonkeyPatch, domain: Path) -> None:
    lines: list[str] = []
    monkeypatch.setattr(selftest, "_checks", lambda directory: iter([("passes", lambda: None)]))
    (domain / ("x" * 90)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(domain / ("x" * 90)))  # too long for sockets, so another is taken
    assert selftest.run(lines.append) is True
    monkeypatch.setattr(tempfile, "tempdir", str(domain / "missing"))
    assert selftest.run(lines.append) is False
    assert lines[-2].startswith("FAILED ")
    assert "FileNotFoundError" in lines[-2]
    assert lines[-1].startswith("1 passed, 1 failed")
    assert os.environ["PYZMP_DIR"] == str(domain)
