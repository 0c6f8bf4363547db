"""Every example runs, ends by itself with success in a bounded time, prints something, and complains about nothing.

An example is a file of the folder, or a folder in it with a ``main.py`` and the modules that this imports.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyzmp

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted([*FOLDER.glob("*.py"), *(folder / "main.py" for folder in FOLDER.iterdir() if folder.is_dir())])
FILES = sorted(FOLDER.rglob("*.py"))
LINES = 60


@pytest.fixture(autouse=True)
def _in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.mark.parametrize("example", SCRIPTS, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_an_example_runs(example: Path, script: Any) -> None:
    result = script.python(str(example), timeout=30, env={"PYTHONWARNINGS": "error"})
    assert (result.code, result.err) == (0, ""), result.out + result.err
    assert result.out


@pytest.mark.parametrize("example", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_an_example_is_small_and_says_what_it_shows(example: Path) -> None:
    text = example.read_text()
    assert len(text.splitlines()) <= LINES
    assert text.startswith('"""')


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(r"^\| \[\w+\]\(([\w./]+)\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.relative_to(FOLDER).as_posix() for path in SCRIPTS]
    assert listed


def test_the_documentation_shows_every_example_as_it_is() -> None:
    page = (FOLDER.parent / "docs" / "examples.md").read_text()
    shown = re.findall(r"^```\{literalinclude\} \.\./examples/(\S+)$", page, re.MULTILINE)
    assert sorted(shown) == [path.relative_to(FOLDER).as_posix() for path in FILES]


def test_the_log_stream_follows_a_file_through_rotation_and_truncation(
        script: Any, tmp_path: Path, eventually: Callable[..., None]) -> None:
    log, said = tmp_path / "app.log", tmp_path / "said"
    log.write_text("one alpha\nanother beta\n")
    with said.open("w") as file:
        process = script.start(str(FOLDER / "log_stream" / "main.py"), str(log), "--only", "alpha", stdout=file,
                               stderr=file)
    try:
        counts, counted = (pyzmp.discover(name, timeout=20) for name in ("counts", "counted"))
        assert counts is not None
        assert counted is not None
        eventually(lambda: counted() == 1, 20)
        with log.open("a") as file:
            file.write("two alpha\nalphab")
            file.flush()
            eventually(lambda: counted() == 2, 20)
            log.rename(tmp_path / "app.log.1")
            file.write("et\nthree alpha")  # into what was rotated, and it ends without a newline
        log.write_text("four alpha\n")
        eventually(lambda: counted() == 5, 20)
        log.write_text("alpha\n")  # which truncates
        eventually(lambda: counted() == 6, 20)
        assert counts() == {"alpha": 5, "alphabet": 1, "one": 1, "two": 1, "three": 1, "four": 1}
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "Traceback" not in said.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
