"""All code in the documentation is run.

Each page, README.md and docs/*.md, is one test. Its fenced blocks are run in order, in one folder, each as a program
of its own:

- `python` is run; where a block ``output`` follows, it is what the program prints, and else anything may be printed.
- `python` after ``<!-- file: NAME -->`` is saved under that name, for the programs after it.
- `console` is a list of commands, each after ``$ ``, followed by what it prints.
- `console` after ``<!-- background -->`` is started, goes on until the page ends, and is stopped as Ctrl-C does it.
- `console` after ``<!-- not run: REASON -->`` is for reading.

A line ``...`` in what is printed stands for any lines. Other languages are not code. A program that does not end with
success, prints something else, or writes a warning fails the page.
"""

from __future__ import annotations

import difflib
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import pytest

from pyzmp.protocol import envelope

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<fence>```+)(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "console", "output", "text", "json", "toml", "ini", "{eval-rst}", "{toctree}",
             "{literalinclude}"}
STOP = 10.0  # seconds that a program in the background may take to end


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    mark: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(1 + text.count("\n", 0, match.start("fence")), match["language"].strip(), match["mark"] or "",
                  match["text"]) for match in BLOCK.finditer(text)]


def fits(expected: str, printed: str) -> bool:
    """Whether *printed* is *expected*, where a line ``...`` of the latter stands for any lines, or none."""
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", expected, flags=re.MULTILINE)]
    return re.fullmatch("(?:.*\n)*".join(parts), printed) is not None


class Page:
    """Runs the blocks of one page."""

    def __init__(self, script: Any) -> None:
        self.script = script
        self.background: list[subprocess.Popen[str]] = []

    def run(self, found: list[Block]) -> None:
        """Run all blocks in order, then stop what goes on in the background."""
        try:
            for block, after in zip_longest(found, found[1:]):
                self.block(block, after.text if after is not None and after.language == "output" else None)
        finally:
            ends = [self.stop(process) for process in self.background]
        assert all(code == 0 for code, _ in ends), f"stopped by Ctrl-C, the background ended with {ends}"

    def block(self, block: Block, expected: str | None) -> None:
        kind = (block.language, block.mark.partition(":")[0])
        if kind == ("python", "file"):
            (self.script.folder / block.mark.partition(":")[2].strip()).write_text(block.text)
        elif kind == ("python", ""):
            name = f"line_{block.line}.py"
            (self.script.folder / name).write_text(block.text)
            self.command(block, ["python", name], expected)
        elif kind == ("console", ""):
            for command, printed in commands(block):
                self.command(block, command, printed)
        elif kind == ("console", "background"):
            self.background += [self.start(command) for command, _ in commands(block)]
        else:
            assert block.language != "python", f"line {block.line}: python with an unknown mark {block.mark!r}"
            assert kind[1] in {"", "not run"}, f"line {block.line}: unknown mark {block.mark!r}"

    def command(self, block: Block, command: list[str], expected: str | None) -> None:
        result = self.script.python(*interpreted(command), timeout=30, env={"PYTHONWARNINGS": "error"})
        where = f"line {block.line}: {shlex.join(command)}"
        assert result.code == 0, f"{where} ended with {result.code}:\n{result.out}{result.err}"
        assert not result.err, f"{where} complained:\n{result.err}"
        if expected is not None and not fits(expected, result.out):
            lines = difflib.unified_diff(expected.splitlines(), result.out.splitlines(), "page", "printed", lineterm="")
            pytest.fail(f"{where} printed something else:\n" + "\n".join(lines))

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        started: subprocess.Popen[str] = self.script.start(
            *interpreted(command), env={"PYTHONWARNINGS": "error"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return started

    @staticmethod
    def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            out, _ = process.communicate(timeout=STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        return process.returncode, out


def commands(block: Block) -> list[tuple[list[str], str]]:
    """The commands of a console block, each with what it prints."""
    head, *rest = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not head, f"line {block.line}: a console block begins with a command"
    return [(shlex.split(part.partition("\n")[0]), part.partition("\n")[2]) for part in rest]


def interpreted(command: list[str]) -> list[str]:
    """The arguments of the interpreter for a command; `pyzmp` is run as ``python -m pyzmp``."""
    program, *argv = command
    assert program in {"python", "pyzmp"}, f"a page runs python and pyzmp only, not {program}"
    return argv if program == "python" else ["-m", "pyzmp", *argv]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, script: Any) -> None:
    Page(script).run(blocks(page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(blocks(text))
    assert {block.language.partition(" ")[0] for block in blocks(text)} <= LANGUAGES


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "README.md"], ids=str)
def test_a_link_within_the_repository_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_page_on_the_wire_format_lists_the_messages_as_they_are() -> None:
    text = (ROOT / "docs" / "wire-format.md").read_text()
    listed = re.findall(r"^\| (\d+) \| (\w+) \| (.*) \|$", text, re.MULTILINE)
    assert [(int(number), kind, re.findall(r"`(\w+)`", fields)) for number, kind, fields in listed] == [
        (kind.__struct_config__.tag, kind.__name__, list(kind.__struct_fields__))
        for kind in get_args(envelope.Message)]


# -- the mechanism itself ------------------------------------------------------------------------------------------

GOOD = """
<!-- file: there.py -->
```python
x = 3
```

<!-- background -->
```console
$ python -c "import signal; signal.signal(signal.SIGINT, lambda *_: exit(0)); open('up', 'w'); signal.pause()"
```

```python
import pathlib, there
while not pathlib.Path("up").exists():
    pass
print("a"); print(there.x); print("z")
```

```output
a
...
z
```

```console
$ python -c "print('q')"
q
$ python -c ""
```
"""

BAD = {
    "a program that fails": ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
    "other output": ("```python\nprint(1)\n```\n\n```output\n2\n```\n", "printed something else"),
    "more output": ("```console\n$ python -c 'print(1); print(2)'\n1\n```\n", "printed something else"),
    "a warning": ("```python\nimport sys\nprint('careful', file=sys.stderr)\n```\n", "complained"),
    "python that is not run": ("<!-- not run: lazy -->\n```python\nx\n```\n", "unknown mark"),
    "another program": ("```console\n$ ls\n```\n", "python and pyzmp only"),
    "a background that fails": ("<!-- background -->\n```console\n$ python -c 'exit(1)'\n```\n", "background ended"),
}


def test_a_page_that_is_right_passes(script: Any) -> None:
    found = blocks(GOOD)
    assert [(block.language, block.mark) for block in found] == [
        ("python", "file: there.py"), ("console", "background"), ("python", ""), ("output", ""), ("console", "")]
    Page(script).run(found)


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=BAD)
def test_a_page_that_is_wrong_fails(text: str, sentence: str, script: Callable[..., Any]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=sentence):
        Page(script).run(blocks(text))
