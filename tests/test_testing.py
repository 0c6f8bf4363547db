"""The fixtures for users' tests, used as users use them: by a pytest of their own."""

from __future__ import annotations

import re
from typing import Any

import pytest

HEAD = """\
import os
import threading
import pytest
import pyzmp

class Lamp(pyzmp.Node):
    @pyzmp.service
    def pid(self) -> int:
        return os.getpid()

    @pyzmp.service
    async def wait(self) -> None:
        import asyncio
        await asyncio.sleep(10)

"""


@pytest.fixture
def inside(script: Any) -> Any:
    """Runs tests in a pytest of their own; gives what it printed."""

    def run(body: str) -> str:
        (script.folder / "test_inside.py").write_text(HEAD + body)
        result = script.python("-m", "pytest", "-q", "-p", "pyzmp.testing", "-p", "no:cacheprovider", "-W", "error",
                               "test_inside.py")
        return str(result.out + result.err)

    return run


def test_nodes_are_started_in_a_domain_of_the_tests_own_and_stopped(inside: Any) -> None:
    said = inside("""
seen = []

@pytest.mark.parametrize("kind", ["process", "thread", "entity", None])
def test_one(pyzmp_start, pyzmp_domain, kind):
    lamp = Lamp("lamp")
    pyzmp_start(lamp, Lamp("other"), kind=kind)
    assert lamp.kind == (kind or "process")
    assert len(pyzmp.services["pid"]) == 2
    assert (Lamp.at("lamp").pid() == os.getpid()) == (kind in ("thread", "entity"))
    assert os.environ["PYZMP_DOMAIN"] == pyzmp_domain
    seen.append((pyzmp_domain, os.environ["PYZMP_DIR"], lamp))

def test_two(pyzmp_domain):
    assert pyzmp.discover("pid") is None
    assert len({domain for domain, *_ in seen} | {pyzmp_domain}) == 5
    assert not any(os.path.exists(folder) or lamp.is_alive() for _, folder, lamp in seen)

def test_three():
    assert "PYZMP_DIR" not in os.environ or os.environ["PYZMP_DIR"] not in {folder for _, folder, _ in seen}
""")
    assert "6 passed" in said, said


def test_what_is_left_running_fails_the_test(inside: Any) -> None:
    said = inside("""
@pytest.mark.parametrize("kind", ["process", "entity"])
def test_a_node(pyzmp_domain, kind):
    Lamp("forgotten", kind=kind).start()

def test_a_thread(pyzmp_domain):
    event = threading.Event()
    threading.Thread(target=event.wait, args=(4,), name="forgotten", daemon=True).start()

def test_nothing(pyzmp_domain):
    with Lamp("lamp"):
        assert Lamp.pid() != os.getpid()
""")
    assert "4 passed, 3 errors" in said, said
    assert len(set(re.findall(r"the test left running: (node 'forgotten' \(\w+|thread 'forgotten')", said))) == 3


def test_faults_are_injected_into_processes(inside: Any) -> None:
    said = inside("""
def test_kill(pyzmp_start, pyzmp_faults):
    pyzmp_start(Lamp("lamp"))
    waiting = Lamp.wait.submit()
    pyzmp_faults.kill("lamp")
    with pytest.raises(pyzmp.NodeDied):
        waiting.result(2)

def test_stop_and_go_on(pyzmp_start, pyzmp_faults):
    pyzmp_start(Lamp("lamp"))
    pyzmp_faults.stop("lamp")
    with pytest.raises(pyzmp.CallTimeout):
        Lamp.pid.with_options(timeout=0.1)()
    pyzmp_faults.go_on("lamp")
    assert Lamp.pid()
    pyzmp_faults.stop("lamp")  # goes on when the test ends

def test_wrong(pyzmp_start, pyzmp_faults):
    pyzmp_start(Lamp("lamp"), kind="thread")
    with pytest.raises(ValueError, match="kind='process'"):
        pyzmp_faults.kill("lamp")
    with pytest.raises(LookupError, match=r"no node 'lump'; there are \\['lamp'\\]"):
        pyzmp_faults.stop("lump")
""")
    assert "3 passed" in said, said


def test_a_long_path_of_the_temporary_files_is_no_hindrance(inside: Any, script: Any,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    long = script.folder / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    said = inside("""
def test_one(pyzmp_start):
    pyzmp_start(Lamp("lamp"), kind="thread")
    assert Lamp.pid() == os.getpid()
""")
    assert "1 passed" in said, said
