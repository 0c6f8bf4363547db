"""The pyzmp command, started as a user starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyzmp.version import __version__

LIMIT = 15.0  # seconds that the self-test may take


def test_without_arguments_it_tests_itself(script: Any) -> None:
    result = script.python("-m", "pyzmp", timeout=25, env={"PYZMP_REGISTRY": "tcp://127.0.0.1:1"})  # not asked
    assert (result.code, result.err) == (0, "")
    *checks, last = result.out.splitlines()
    assert len(checks) > 15
    assert all(line.startswith("ok ") and " ms  " in line for line in checks)
    assert last.startswith(f"{len(checks)} passed, 0 failed in ")
    assert result.seconds < LIMIT
    for kind in ("entity", "thread", "process"):
        assert any(f"  {kind}: " in line for line in checks)
    for transport in ("memory", "inproc", "ipc", "tcp", "tcp with CURVE"):
        assert any(line.endswith(f" over {transport}") for line in checks)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_says_what_it_does(script: Any, option: str) -> None:
    result = script.python("-m", "pyzmp", option)
    assert result.code == 0
    assert "Without a command it tests itself" in " ".join(result.out.split())


def test_version(script: Any) -> None:
    result = script.python("-m", "pyzmp", "--version")
    assert (result.code, result.out) == (0, f"pyzmp, version {__version__}\n")


@pytest.mark.parametrize("argument", ["--nonsense", "nonsense"])
def test_what_it_does_not_know_is_an_error(script: Any, argument: str) -> None:
    result = script.python("-m", "pyzmp", argument)
    assert result.code == 2
    assert "nonsense" in result.err


def test_a_self_test_that_fails_says_so_and_exits_with_1(script: Any, domain: Path) -> None:
    (domain / "file").touch()
    result = script.python("-m", "pyzmp", env={"PYZMP_DIR": str(domain / "file")}, timeout=25)
    assert result.code == 1
    failed = [line for line in result.out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "the directory of the user's own domain" in failed[0]
    assert str(domain / "file") in failed[0]
    assert " 1 failed in " in result.out.splitlines()[-1]
