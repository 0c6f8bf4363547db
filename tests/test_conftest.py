"""The fixtures find what they are there to find."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HEAD = "import os, socket, subprocess, sys, tempfile, threading, multiprocessing, pytest\n"

LEAKS = {
    "process": "subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)",
    "orphan": "script('import os; os.fork() or __import__(\"time\").sleep(60)')",
    "thread": "threading.Thread(target=threading.Event().wait, args=(30,), daemon=True).start()",
    "socket": "global s; s = socket.socket()",
    "file_descriptor": "os.pipe()",
    "directory": "tempfile.mkdtemp()",
    "socket_file": "s = socket.socket(socket.AF_UNIX); s.bind(str(domain / 'x')); s.close()",
}


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Runs tests with these bodies, under the fixtures of these tests."""
    monkeypatch.setenv("PYZMP_TEST_SCALE", "0.1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def run(mark: str = "", /, **bodies: str) -> pytest.RunResult:
        tests = [f"{mark}\ndef test_{name}(domain, script):\n    {body}\n" for name, body in bodies.items()]
        pytester.makepyfile(HEAD + "\n".join(tests))
        pytester.makeini("[pytest]\nmarkers =\n    leaves\n")
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--confcutdir=/", "-p", "conftest")

    return run


def test_each_leak_fails_its_test(run: Callable[..., pytest.RunResult]) -> None:
    result = run(**LEAKS, nothing="pass")
    result.assert_outcomes(passed=len(LEAKS) + 1, errors=len(LEAKS))
    result.stdout.fnmatch_lines_random([f"*ERROR at teardown of test_{name} *" for name in LEAKS])


def test_what_was_ended_is_no_leak(run: Callable[..., pytest.RunResult]) -> None:
    result = run(ended="subprocess.run([sys.executable, '-c', '']); tempfile.TemporaryDirectory().cleanup();"
                 "multiprocessing.get_context('forkserver').Process().start();"
                 "[child.join() for child in multiprocessing.active_children()]")
    result.assert_outcomes(passed=1)


def test_a_mark_allows_what_is_left_on_purpose(run: Callable[..., pytest.RunResult]) -> None:
    left = {name: LEAKS[name] for name in ("directory", "socket_file")}
    run("@pytest.mark.leaves('files', 'sockets')", **left).assert_outcomes(passed=2)


def test_a_test_has_a_domain_of_its_own(domain: Path) -> None:
    assert os.environ["PYZMP_DIR"] == str(domain)
    assert not list(domain.iterdir())
    assert len(str(domain)) < 40
    assert Path(tempfile.gettempdir()).parent == domain.parent


def test_a_zombie_is_not_alive(run: Callable[..., pytest.RunResult]) -> None:
    run(zombie="os.posix_spawn(sys.executable, [sys.executable, '-c', ''], os.environ)").assert_outcomes(passed=1)


def test_waiting_ends_with_the_condition_and_not_before(eventually: Callable[..., None]) -> None:
    event = threading.Event()
    timer = threading.Timer(0.05, event.set)
    timer.start()
    eventually(event.is_set)
    assert event.is_set()
    timer.join()
    with pytest.raises(AssertionError, match="still not so"):
        eventually(lambda: False, timeout=0.02)


def test_a_script_reports_how_it_ended(script: Callable[..., object]) -> None:
    source = "import sys; print(sys.argv[1:], input()); print('e', file=sys.stderr); sys.exit(3)"
    result = script(source, "a", stdin="in\n")
    assert (result.code, result.out, result.err) == (3, "['a'] in\n", "e\n")  # type: ignore[attr-defined]
    assert 0 < result.seconds < 10  # type: ignore[attr-defined]


def test_a_script_that_hangs_is_ended(script: Callable[..., object]) -> None:
    with pytest.raises(AssertionError, match=r"still running after 0.5 s; it printed:\n +here"):
        script("import time; print('here'); time.sleep(60)", timeout=0.5)


def test_a_strict_script_takes_warnings_for_errors(script: Callable[..., object]) -> None:
    assert script("import warnings; warnings.warn('x')", strict=True).code == 1  # type: ignore[attr-defined]
