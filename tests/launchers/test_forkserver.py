"""The process that children are forked from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyzmp.launchers.base import Control, Handle, end
from pyzmp.launchers.forkserver import server
from pyzmp.launchers.process import ProcessLauncher


def launch(body: Any, start_method: str | None = None, name: str = "n") -> Handle:
    return ProcessLauncher(start_method).launch(body, name=name)


def until_stopped(control: Control) -> int:
    control.ready(os.getpid())
    control.wait_stop()
    return 4


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_forkserver_that_died_is_replaced(eventually: Callable[..., None]) -> None:
    handle = launch(until_stopped)
    child = handle.wait_ready(20)
    old = server._forkserver_pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    eventually(lambda: gone(old))
    assert handle.is_alive()
    assert not gone(child)
    other = launch(until_stopped)
    assert other.wait_ready(20) == other.ident
    end([other, handle], 5, 1, 1)
    assert (other.exitcode, handle.exitcode) == (4, 255)
    assert gone(child)
    # What belongs to the process and not to this test.
    server.restart()


def test_its_children_use_it_for_theirs() -> None:
    def inner(control: Control) -> None:
        control.ready(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[1])

    def outer(control: Control) -> None:
        control.ready(launch(inner).wait_ready(20))

    handle = launch(outer)
    assert int(handle.wait_ready(20)) == server._forkserver_pid
    assert handle.join(5)


def test_it_has_loaded_what_its_starter_has() -> None:
    def body(control: Control) -> None:
        control.ready({"pyzmp.launchers.process", "asyncio", "zmq", "cloudpickle"} - set(sys.modules))

    handle = launch(body)
    assert handle.wait_ready(20) == set()
    assert handle.join(5)


def test_it_takes_its_socket_with_it(script: Any, tmp_path: Path, eventually: Callable[..., None]) -> None:
    program = script.start("-c", """
import os, time
from pyzmp.launchers.forkserver import server
server.ensure_running()
print(server._forkserver_address, flush=True)
time.sleep(100)
""", stdout=subprocess.PIPE)
    with program:
        address = Path(program.stdout.readline().strip())
        assert address.exists()
        program.kill()
    eventually(lambda: not address.parent.exists())
