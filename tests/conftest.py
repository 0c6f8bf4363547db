"""What every test gets: a domain of its own, a look at what it leaves behind, and one way to wait."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import multiprocessing.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SCALE = float(os.environ.get("PYZMP_TEST_SCALE", "1"))  # makes all waits longer on a slow machine
SLOW = re.compile(r"^Executing <.*> took [0-9.]+ seconds\n", re.MULTILINE)  # asyncio's, of a machine with much to do
GRACE = 3.0  # seconds in which what a test stopped may go on ending

# Child processes find the modules of the tests by name.  At the end, so that an installed pyzmp comes first.
sys.path.append(str(ROOT))


def eventually(condition: Callable[[], object], timeout: float = 5.0) -> bool:
    """Wait until *condition* is true; False when *timeout* seconds did not make it so.  The one place that polls."""
    end = time.monotonic() + timeout * SCALE
    while not condition():
        if time.monotonic() > end:
            return bool(condition())
        time.sleep(0.005)
    return True


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., None]:
    """``eventually(condition, timeout=5)`` waits until the condition is true, else it fails the test."""

    def wait(condition: Callable[[], object], timeout: float = 5.0) -> None:
        assert eventually(condition, timeout), f"still not so after {timeout:g} s"

    return wait


def fresh_runtime() -> None:
    """End the runtime of this process, where one was made; the next test makes its own."""
    if "pyzmp.runtime" in sys.modules:
        sys.modules["pyzmp.runtime"].reset()


# -- what is alive: read from /proc, so a system without one is not looked at --------------------------------------

# Started once for the whole process, by whichever test needs them first, and ended with it: what forks children of
# pyzmp's, what forks those of the standard library, and what removes shared memory that was forgotten.
SHARED_PROCESSES = ("pyzmp.launchers.forkserver", "multiprocessing.forkserver", "multiprocessing.resource_tracker")
LIFELINES = [  # module, object and attribute with the descriptor that keeps each of them alive
    ("pyzmp.launchers.forkserver", "server", "_forkserver_alive_fd"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_alive_fd"),
    ("multiprocessing.resource_tracker", "_resource_tracker", "_fd"),
]
SHARED_THREADS = ("pytest_timeout",)  # watches the time of one test
SHARED_FILES = ("/dev/", "/proc/")  # random numbers, and the look at the descriptors itself
REGISTRY = "registry"  # what a registry's files are called; it is the domain's, and ended with the test


class Process(NamedTuple):
    pid: int
    parent: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def pids() -> set[int]:
    """The numbers of all processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def processes(known: AbstractSet[int] = frozenset()) -> list[Process]:
    """Every living process but those *known*; one in state Z has ended and only waits to be asked for its status."""
    return [process for pid in pids() - known if (process := _process(pid)) is not None]


def _process(pid: int) -> Process | None:
    with contextlib.suppress(OSError):
        state, parent = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:2]
        if state not in (b"Z", b"X"):
            command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
            return Process(pid, int(parent), command or "?")
    return None


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 17)
    finally:
        os.close(descriptor)


def is_below(process: Process, root: int) -> bool:
    """Whether *process* was started by the process *root*, or by one that is below it."""
    above: Process | None = process
    while above is not None and above.parent != root:
        above = _process(above.parent)
    return above is not None


def members(folder: Path, known: AbstractSet[int] = frozenset()) -> set[Process]:
    """The living processes of the domain in *folder*, also those whose parent is gone, but those *known*."""
    mark = f"PYZMP_DIR={folder}\0".encode()
    found = set()
    for process in processes(known):
        with contextlib.suppress(OSError):
            if process.pid != os.getpid() and mark in _read(f"/proc/{process.pid}/environ") + b"\0":
                found.add(process)
    return found


def shared(process: Process) -> bool:
    """Whether *process* is the forkserver or the resource tracker itself, and not a child of theirs."""
    return process.parent == os.getpid() and any(name in process.command for name in SHARED_PROCESSES)


def open_files() -> dict[int, str]:
    """Number and target of every open file descriptor of this process."""
    found = {}
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if not target.startswith(SHARED_FILES):
                found[int(entry.name)] = target
    return found


def sockets(folder: Path) -> set[str]:
    """The sockets in *folder* but for a registry's, which may be ended at any moment."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")
            if not path.name.startswith(REGISTRY) and _is_socket(path)}


def _is_socket(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISSOCK(path.lstat().st_mode)
    return False


class Snapshot:
    """What was alive and open when the test began."""

    def __init__(self, domain: Path, scratch: Path) -> None:
        self.domain, self.scratch = domain, scratch
        self.pids = pids()
        self.threads = set(threading.enumerate())
        self.files = open_files()

    def new_processes(self) -> set[Process]:
        mine = members(self.domain, self.pids)
        mine |= {process for process in processes(self.pids) if is_below(process, os.getpid())}
        return {process for process in mine if not shared(process)}

    def new_threads(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate()
                if thread not in self.threads and not thread.name.startswith(SHARED_THREADS)]

    def new_files(self) -> list[str]:
        new = open_files().items() - self.files.items()
        return [f"descriptor {number} ({target})" for number, target in sorted(new) if number not in lifelines()]

    def leaks(self, allowed: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
        """One line for everything that the test left behind."""
        found = [str(process) for process in self.new_processes()]
        found += [f"thread {thread.name}" for thread in self.new_threads()]
        found += self.new_files()
        if "sockets" not in allowed:
            found += [f"socket {name}" for name in sockets(self.domain)]
        if "files" not in allowed:
            found += [f"{path.name} in the folder for temporary files" for path in self.scratch.iterdir()]
        if found:
            gc.collect()  # what waits in a cycle is ended; the warning it gives then fails the test where it should
        return found


def lifelines() -> set[int | None]:
    """The descriptors that keep the shared processes alive."""
    owners = [(getattr(sys.modules.get(module), name, None), attribute) for module, name, attribute in LIFELINES]
    return {getattr(owner, attribute, None) for owner, attribute in owners}


@pytest.fixture(scope="session", autouse=True)
def _folders_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make what is made once for all tests, so that no single test seems to leave it behind."""
    tmp_path_factory.getbasetemp()
    multiprocessing.util.get_temp_dir()


@pytest.fixture(autouse=True)
def domain(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The directory of a domain that is the test's own; fails the test when something is left of it afterwards.

    That is a process, thread, socket, file descriptor, or a file in the folder for temporary files.  The mark
    ``leaves`` names what a test leaves behind on purpose.
    """
    home = Path(tempfile.mkdtemp(prefix="pz"))  # short: the path of a socket has 107 bytes at most
    folder, scratch = home / "d", home / "t"
    folder.mkdir(mode=0o700)
    scratch.mkdir()
    before = Snapshot(folder, scratch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYZMP_DIR", str(folder))
        patch.setenv("PYZMP_DOMAIN", home.name)
        patch.delenv("PYZMP_REGISTRY", raising=False)
        patch.setenv("TMPDIR", str(scratch))
        patch.setattr(tempfile, "tempdir", str(scratch))
        try:
            yield folder
            fresh_runtime()
            allowed = {kind for mark in request.node.iter_markers("leaves") for kind in mark.args}
            eventually(lambda: "sockets" in allowed or not sockets(folder), GRACE)  # a registry sweeps
            _end_registry(folder, before)
            eventually(lambda: not before.leaks(allowed), GRACE)
            left = before.leaks(allowed)
        finally:
            for process in before.new_processes():
                _signal(process, signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


def _end_registry(folder: Path, before: Snapshot) -> None:
    """End the domain's registry, which outlives its last member by a few seconds on purpose; its own tests ask it."""
    for process in members(folder, before.pids):
        if "pyzmp.registry.process" in process.command:
            _signal(process, signal.SIGKILL)


def _signal(process: Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


# -- programs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """How a program ended: its exit code (negative for a signal), what it printed, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Script:
    """Runs programs with the interpreter of the tests, in a folder of their own."""

    folder: Path

    def __call__(self, source: str, *argv: str, name: str = "program.py", **options: object) -> Result:
        """Save *source* as *name* and run it; the options are those of `python`."""
        (self.folder / name).write_text(source)
        return self.python(name, *argv, **options)  # type: ignore[arg-type]

    def python(self, *argv: str, stdin: str = "", timeout: float = 20.0, strict: bool = False,
               env: dict[str, str] | None = None) -> Result:
        """Run ``python *argv`` and wait for its end, at most *timeout* seconds; then the test fails.

        *strict* makes warnings errors and switches the interpreter's development mode on.
        """
        began = time.monotonic()
        # Files and not pipes: a process that the program left behind would keep a pipe open.
        with (self.folder / ".out").open("w+") as out, (self.folder / ".err").open("w+") as err:
            process = self.start(*argv, stdin=stdin, strict=strict, env=env, stdout=out, stderr=err)
            try:
                code: int | None = process.wait(timeout * SCALE)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            said = SLOW.sub("", _text(err)) if strict else _text(err)
            result = Result(-9 if code is None else code, _text(out), said, time.monotonic() - began)
        assert code is not None, f"still running after {timeout:g} s; it printed:\n{result.out}{result.err}"
        return result

    def start(self, *argv: str, stdin: str = "", strict: bool = False, env: dict[str, str] | None = None,
              **options: object) -> subprocess.Popen[str]:
        """Start ``python *argv`` in a session of its own, and return it at once; the test ends it."""
        given = self.folder / ".in"
        given.write_text(stdin)
        more = ["-X", "dev", "-W", "error"] if strict else []
        with given.open() as file:
            return subprocess.Popen([sys.executable, *more, *argv], cwd=self.folder, env=self.environment(env),
                                    stdin=file, text=True, start_new_session=True, **options)  # type: ignore[call-overload, no-any-return]

    @staticmethod
    def environment(more: dict[str, str] | None = None) -> dict[str, str]:
        """The environment of the programs: ours, and pyzmp found where the tests found it."""
        found = importlib.util.find_spec("pyzmp")
        places = [str(Path(place).parent) for place in (found and found.submodule_search_locations) or ()]
        path = {"PYTHONPATH": str(ROOT)} if str(ROOT) in places else {}
        return {**os.environ, "PYTHONUNBUFFERED": "1", **path, **(more or {})}


def _text(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    return file.read()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """``script(source, *argv)`` runs a program in a process of its own and returns its code, out, err and seconds."""
    return Script(tmp_path)
