"""Ctrl-C in a terminal, and SIGTERM, at any moment of the life of a program with nodes."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.campaigns.history import SCALE, judge

ENDS = 7.0 * SCALE  # seconds after the signal in which the program, and all that it started, has ended

NODES = """
import contextlib, sys, time
def reached(what):
    sys.stdout.write(f"{what} {time.monotonic()}\\n")
    sys.stdout.flush()
import pyzmp

class Adder(pyzmp.Node):
    @pyzmp.service
    def add(self, a: int, b: int = 1) -> int:
        return a + b

    @pyzmp.every(0.02)
    def ask(self) -> None:
        if self.name == "three":
            with contextlib.suppress(pyzmp.CallError):  # the other may have gone already
                Adder.at("one").add.submit(1)

one, two, three = Adder("one"), Adder("two"), Adder("three", kind="thread")
reached("imported")
"""

PLAIN = NODES + """
with one, two, three:
    reached("started")
    for number in range(200):
        assert Adder.at("one").add(number) == Adder.at("two").add(number) == Adder.at("three").add(number)
        assert Adder.add.submit(number).result() == number + 1
    reached("called")
reached("stopped")
"""

RUN = NODES + """
import signal, threading
def call():
    for number in range(200):
        with contextlib.suppress(pyzmp.CallError):
            Adder.add(number)
    reached("called")
    for node in (one, two, three):
        node.shutdown()

def when_started():
    if pyzmp.discover("add", timeout=20, minimum_providers=3):
        reached("started")
        call()
threading.Thread(target=when_started, daemon=True).start()
pyzmp.run(one, two, three)
reached("stopped")
"""

KINDS = "plain", "run"
PHASES = "begun", "imported", "started", "called", "stopped"  # each is what the program has reached when it begins

# The session's leader, as a user's shell is: it has the terminal, outlives the program, and says how that ended.
LEADER = """
exec 0<>"$1"
trap : INT
cd "$2"
sh -c 'echo $$; exec "$0" "$1" >out 2>err' "$3" "$4"
echo $?
exec >&-
while :; do read line && exit; done
"""


@dataclass
class Life:
    """One life of the program, with a signal *delay* seconds behind the begin of a phase, in a domain of its own."""

    home: Path
    kind: str
    phase: str = ""  # none: without a signal
    delay: float = 0.0
    number: int = 0
    began: float = 0.0
    seconds: float = 0.0  # that it took, from the signal where there was one
    code: int = 0
    when: str = ""  # the phase in which the signal came
    left: list[str] = field(default_factory=list)

    def run(self) -> Life:
        for folder in ("d", "tmp"):
            (self.home / folder).mkdir(parents=True, mode=0o700)
        (self.home / "program.py").write_text(PLAIN if self.kind == "plain" else RUN)
        environment = {**os.environ, "PYZMP_DIR": str(self.home / "d"), "PYZMP_DOMAIN": "d",
                       "TMPDIR": str(self.home / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path),
                       "PYTHONDONTWRITEBYTECODE": "1"}
        end, terminal = os.openpty()
        try:
            with subprocess.Popen(["sh", "-c", LEADER, "sh", os.ttyname(terminal), str(self.home), sys.executable,
                                   "program.py"], env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, start_new_session=True) as leader:
                try:
                    self._interrupt(leader, end)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(leader.pid, signal.SIGKILL)
        finally:
            os.close(terminal)
            os.close(end)
        return self

    def _interrupt(self, leader: subprocess.Popen[bytes], end: int) -> None:
        report = leader.stdout
        assert report is not None
        program, self.began = int(report.readline()), time.monotonic()
        if self.phase:
            soon(lambda: self.phase in self.reached() or select.select([report], [], [], 0)[0], 3 * ENDS)
            time.sleep(self.delay)
            self.when = list(self.reached())[-1]
            if self.number == signal.SIGINT:
                os.write(end, b"\x03")
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(program, self.number)
        told = time.monotonic()
        ready = select.select([report], [], [], 3 * ENDS)[0]
        self.seconds = time.monotonic() - told
        self.code = int(report.readline() or -1) if ready else -1
        soon(lambda: not running(leader.pid, self.home), ENDS - self.seconds)
        self.left = [*running(leader.pid, self.home), *(f"file {path.name}" for path in (self.home / "tmp").iterdir())]

    def reached(self) -> dict[str, float]:
        """The phases that it has reached, and when."""
        said = (self.home / "out").read_text().split() if (self.home / "out").exists() else []
        return {"begun": self.began, **dict(zip(said[::2], map(float, said[1::2]), strict=False))}

    def expected(self) -> set[int]:
        """The exit codes that are right, as a shell shows them: 128 + signal where it died of one."""
        died = {128 + self.number}
        if self.when == "begun":  # Python itself was starting; and msgspec can die of a KeyboardInterrupt
            return died | ({1, 128 + signal.SIGSEGV} if self.number == signal.SIGINT else set())
        if self.kind == "run" and self.when == "started":  # its work is to wait for the signal
            return {0}
        over = {0} if "stopped" in self.reached() else set()  # all was done when the signal came
        return died | over | ({0} if self.kind == "run" else set())

    def faults(self) -> list[str]:
        found = []
        if self.code not in self.expected():
            found.append(f"{self}: exit code {self.code}, expected one of {self.expected()}: {self._errors()}")
        if self.seconds > ENDS:
            found.append(f"{self}: ended after {self.seconds:.1f} s")
        found += [f"{self}: left {what}" for what in self.left]
        return found

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"{self.kind} program, {name} {self.delay:.4f} s after it was {self.phase}, when {self.when}"

    def _errors(self) -> str:
        return (self.home / "err").read_text()[-2000:]

    @property
    def last_words(self) -> str:
        return (self._errors().strip().splitlines() or [""])[-1][:100]


def soon(condition: Callable[[], object], timeout: float) -> None:
    """Wait until *condition* is true, at most *timeout* seconds; what is so then is looked at afterwards."""
    over = time.monotonic() + timeout
    while not condition() and time.monotonic() < over:
        time.sleep(0.001)


def running(leader: int, home: Path) -> list[str]:
    """The processes of a session or a domain, but its leader and the registry, which is the domain's own."""
    mark, found = f"PYZMP_DIR={home / 'd'}\0".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            member = int(session) == leader or mark in (entry / "environ").read_bytes() + b"\0"
            if member and state not in "ZX" and int(entry.name) != leader and "pyzmp.registry.process" not in command:
                found.append(f"process {entry.name} ({command.strip()[:80]})")
    return found


def remains(home: Path) -> list[str]:
    """What is in the domain's directory that no registry of later would need: sockets; and its registry, if it runs."""
    found = [str(path.relative_to(home)) for path in (home / "d").rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    mark = f"PYZMP_DIR={home / 'd'}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes() + b"\0":
                found.append(f"process {entry.name}")
    return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_program_that_is_interrupted_ends_in_time_with_the_right_code_and_leaves_nothing(
        count: int, domain: Path, chance: random.Random) -> None:
    homes = domain.parent / "lives"
    try:
        lengths = usual(homes)
        cases = [(kind, phase, number) for kind in KINDS for phase in PHASES
                 for number in (signal.SIGINT, signal.SIGTERM)] * (count // 20 + 1)
        lives = [Life(homes / str(turn), kind, phase, chance.uniform(0, lengths[kind, phase]), number)
                 for turn, (kind, phase, number) in enumerate(chance.sample(cases, count))]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Life.run, lives))
        soon(lambda: not any(remains(life.home) for life in lives), 10 * SCALE)
        left = [f"{life}: {what} stays there" for life in lives for what in remains(life.home)]
        codes = Counter((life.kind, signal.Signals(life.number).name, life.when, life.code, life.last_words)
                        for life in lives)
        print(f"\n{count} signals, and the program ended after {max(life.seconds for life in lives):.2f} s at most")
        for (kind, name, when, code, words), times in sorted(codes.items()):
            print(f"  {times:3} x {kind:5} {name:7} when it was {when:8}: exit code {code:3} {words}")
        judge([fault for life in lives for fault in life.faults()] + left)
        assert len({(life.kind, life.when) for life in lives}) > 2, "all at the same moment: invalid"
    finally:
        shutil.rmtree(homes, ignore_errors=True)


def usual(homes: Path) -> dict[tuple[str, str], float]:
    """How long each phase of each program lasts, undisturbed but for the other."""
    with ThreadPoolExecutor(2) as pool:
        lives = list(pool.map(Life.run, [Life(homes / kind, kind) for kind in KINDS]))
    found: dict[tuple[str, str], float] = {}
    for life in lives:
        assert (life.code, life.left, tuple(life.reached())) == (0, [], PHASES), life.last_words
        moments = [*life.reached().values(), life.began + life.seconds]
        found |= {(life.kind, phase): moments[turn + 1] - moments[turn] for turn, phase in enumerate(PHASES)}
    return found
