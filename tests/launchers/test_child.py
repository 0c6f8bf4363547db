"""What runs in a child: signals, the watch on the parent, errors, the title."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyzmp.launchers.base import Control, Handle, end
from pyzmp.launchers.process import ProcessLauncher

PARENT = """
import os, signal, sys, time
from pyzmp.launchers.process import ProcessLauncher

def child(control):
    control.ready(os.getpid())
    {behaviour}

def nested(control):
    handle = ProcessLauncher("{method}").launch(child, name="inner")
    control.ready((os.getpid(), handle.wait_ready(10)))
    {behaviour}

handles = [ProcessLauncher("{method}").launch(body, name="n") for body in (child, child, nested)]
print([handle.wait_ready(10) for handle in handles], flush=True)
{ending}
"""


def launch(body: Any, start_method: str | None = None, name: str = "n") -> Handle:
    return ProcessLauncher(start_method).launch(body, name=name)


def until_stopped(control: Control) -> int:
    control.ready(os.getpid())
    control.wait_stop()
    return 4


def deaf(control: Control) -> None:
    control.ready(os.getpid())
    time.sleep(100)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _mask(pid: int, kind: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(kind)), 16)


def test_sigterm_drains_the_body_and_then_kills_the_process(start_method: str, tmp_path: Path) -> None:
    def body(control: Control) -> int:
        control.ready()
        control.wait_stop()
        (tmp_path / "drained").touch()
        return 0

    handle = launch(body, start_method)
    handle.wait_ready(20)
    handle.terminate()
    assert handle.join(5)
    assert handle.exitcode == -signal.SIGTERM
    assert (tmp_path / "drained").exists()


def test_a_second_sigterm_is_final_and_sigkill_always(eventually: Callable[..., None]) -> None:
    handle = launch(deaf)
    pid = handle.wait_ready(20)
    handle.terminate()
    handlers = "SigCgt"
    eventually(lambda: not _mask(pid, handlers) & 1 << signal.SIGTERM - 1)
    handle.terminate()
    assert handle.join(5)
    assert handle.exitcode == -signal.SIGTERM
    handle = launch(deaf)
    handle.wait_ready(20)
    handle.kill()
    assert handle.join(5)
    assert handle.exitcode == -signal.SIGKILL


def test_what_a_terminal_sends_to_all_is_ignored_in_a_child(start_method: str) -> None:
    handle = launch(until_stopped, start_method)
    pid = handle.wait_ready(20)
    for number in (signal.SIGINT, signal.SIGHUP):
        assert _mask(pid, "SigIgn") & 1 << number - 1
    assert not _mask(pid, "SigBlk") & 1 << signal.SIGINT - 1
    end([handle], 5, 1, 1)


@pytest.mark.parametrize("behaviour", ["control.wait_stop()", "time.sleep(100)"])
def test_children_do_not_outlive_a_killed_parent(start_method: str, behaviour: str, script: Any,
                                                 eventually: Callable[..., None]) -> None:
    source = PARENT.format(behaviour=behaviour, method=start_method, ending="time.sleep(100)")
    program = script.start("-c", source, stdout=subprocess.PIPE)
    with program:
        a, b, (c, d) = eval(program.stdout.readline())
        program.kill()
        program.wait()
        eventually(lambda: all(map(gone, (a, b, c))), 1.0)
        eventually(lambda: gone(d), 1.0)  # its parent was a child


def test_an_error_after_readiness_is_printed_and_the_exit_code_is_1(start_method: str, script: Any) -> None:
    result = script(f"""
from pyzmp.launchers.process import ProcessLauncher
def body(control):
    control.ready()
    raise KeyError("later")
handle = ProcessLauncher("{start_method}").launch(body, name="kitchen")
handle.wait_ready(10)
handle.join()
print(handle.exitcode)
""")
    assert (result.code, result.out) == (0, "1\n")
    assert result.err.startswith("'kitchen' failed\nTraceback")
    assert result.err.rstrip().endswith("KeyError: 'later'")


def test_the_title_of_the_process_is_its_name(start_method: str) -> None:
    pytest.importorskip("setproctitle")
    handle = launch(until_stopped, start_method, name="my kitchen")
    assert Path(f"/proc/{handle.wait_ready(20)}/cmdline").read_bytes().rstrip(b"\0") == b"my kitchen"
    end([handle], 5, 1, 1)
