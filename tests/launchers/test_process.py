"""Bodies in processes: what is carried there, how it ends, and that nothing is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyzmp.exceptions import NodeExists, RemoteError, StartError
from pyzmp.launchers.base import Control, Handle, NotReady, end
from pyzmp.launchers.process import ProcessLauncher
from pyzmp.launchers.shipping import Unsendable
from tests.campaigns.history import SCALE


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


def test_a_body_is_ready_stops_when_asked_and_its_status_is_the_exit_code(start_method: str) -> None:
    handle = launch(until_stopped, start_method)
    assert handle.wait_ready(20) == handle.ident != os.getpid()
    assert handle.is_alive()
    assert handle.exitcode is None
    assert not handle.join(0.01)
    handle.request_stop()
    assert handle.join(5)
    assert handle.exitcode == 4


def test_an_error_before_readiness_is_raised_here_with_the_childs_traceback(start_method: str) -> None:
    def body(control: Control) -> None:
        raise LookupError("no camera")

    handle = launch(body, start_method)
    with pytest.raises(LookupError, match="no camera") as caught:
        handle.wait_ready(20)
    assert type(caught.value) is LookupError
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "in body" in str(caught.value.__cause__)
    assert handle.join(5)
    assert handle.exitcode == 1


def test_an_error_of_pyzmps_before_readiness_keeps_its_type_and_facts() -> None:
    def body(control: Control) -> None:
        raise NodeExists("kitchen", "pid 1", "pid 2")

    handle = launch(body)
    with pytest.raises(NodeExists, match="'kitchen' is already run by pid 1") as caught:
        handle.wait_ready(20)
    assert caught.value.name == "kitchen"
    assert handle.join(5)


@pytest.mark.parametrize(("how", "code"), [("os._exit(3)", 3), ("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9)])
def test_a_child_that_ends_before_it_is_ready_is_a_start_error(how: str, code: int) -> None:
    def body(control: Control) -> None:
        exec(how, {"os": os, "sys": sys})

    handle = launch(body)
    with pytest.raises(StartError, match=f"'n' ended with exit code {code} before it was ready"):
        handle.wait_ready(20)


def test_a_child_that_takes_long_is_not_ready_and_can_be_waited_for_again() -> None:
    def body(control: Control) -> None:
        assert control.wait_stop(20)
        control.ready("late")

    handle = launch(body)
    with pytest.raises(NotReady):
        handle.wait_ready(0.01)
    handle.request_stop()
    assert handle.wait_ready(20) == "late"
    assert handle.join(5)


def test_the_child_sees_directory_environment_path_and_argv_as_they_are_now(
        start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "only_here"
    folder.mkdir()
    (folder / "module_for_the_child.py").write_text("def body(control):\n    control.ready(__file__)\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYZMP_TEST_NOW", "now")

    def body(control: Control) -> None:
        import module_for_the_child

        control.ready((module_for_the_child.__file__, os.getcwd(), os.environ["PYZMP_TEST_NOW"], sys.argv))

    handle = launch(body, start_method)
    assert handle.wait_ready(20) == (str(folder / "module_for_the_child.py"), str(folder), "now", sys.argv)
    assert handle.join(5)


class Camera:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def body(self, control: Control) -> None:
        control.ready(sorted(self.__dict__))


def test_a_working_directory_that_is_gone_does_not_matter(script: Any) -> None:
    # A fresh interpreter of 3.13 cannot import socket there, so that nothing new can be started.
    methods = ["fork"] if sys.version_info[:2] == (3, 13) else ["forkserver", "spawn", "fork"]
    result = script(f"""
import os, tempfile
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
from pyzmp.launchers.process import ProcessLauncher
def body(control):
    control.ready("fine")
for method in {methods}:
    print(ProcessLauncher(method).launch(body, name="n").wait_ready(10))
""")
    assert (result.code, result.out, result.err) == (0, "fine\n" * len(methods), "")


def test_no_descriptor_is_left_by_a_start_and_stop(start_method: str) -> None:
    def cycle() -> int:
        handle = launch(until_stopped, start_method)
        handle.wait_ready(20)
        end([handle], 5, 1, 1)
        return len(os.listdir("/proc/self/fd"))

    first = cycle()
    assert {cycle() for _ in range(3)} == {first}


def test_no_descriptor_is_left_by_a_start_that_failed(start_method: str) -> None:
    def fail(control: Control) -> None:
        raise KeyError

    def cycle() -> int:
        handle = launch(fail, start_method)
        with pytest.raises(KeyError):
            handle.wait_ready(20)
        assert handle.join(5)
        if start_method != "fork":
            with pytest.raises(Unsendable):
                launch(Camera(lock=threading.Lock()).body, start_method)
        return len(os.listdir("/proc/self/fd"))

    first = cycle()
    assert {cycle() for _ in range(3)} == {first}


def test_many_threads_may_wait_while_another_one_ends_it(start_method: str) -> None:
    for _ in range(3):
        handle, codes = launch(until_stopped, start_method), []

        def wait(handle: Handle = handle, codes: list[Any] = codes) -> None:
            codes.append((handle.join(10), handle.exitcode))

        threads = [threading.Thread(target=wait) for _ in range(8)]
        handle.wait_ready(20)
        for thread in threads:
            thread.start()
        handle.request_stop()
        for thread in threads:
            thread.join(10)
        assert codes == [(True, 4)] * 8


def test_a_start_method_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="start_method: expected one of 'fork', 'spawn', 'forkserver', got 'threads'"):
        ProcessLauncher("threads")
    monkeypatch.setenv("PYZMP_START_METHOD", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        ProcessLauncher()


def test_the_environment_chooses_the_start_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYZMP_START_METHOD", "fork")
    handle = launch(Camera(device=threading.Lock()).body)
    assert handle.wait_ready(20) == ["device"]
    assert handle.join(5)


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


@pytest.mark.parametrize("behaviour", ["control.wait_stop()", "time.sleep(100)"])
def test_what_still_runs_when_the_interpreter_exits_is_ended(start_method: str, behaviour: str, script: Any,
                                                             eventually: Callable[..., None]) -> None:
    strict = start_method != "fork"  # forking a process with threads warns in development mode
    result = script(PARENT.format(behaviour=behaviour, method=start_method, ending=""), strict=strict)
    a, b, (c, d) = eval(result.out)
    assert (result.code, result.err) == (0, "")
    assert result.seconds < 3.5
    assert all(map(gone, (a, b, c)))
    eventually(lambda: gone(d), 1.0)


def test_a_forked_child_does_not_end_what_its_parent_started(start_method: str, script: Any) -> None:
    ending = """
import multiprocessing
multiprocessing.get_context("fork").Process(target=print, args=("hello",)).run()
for _ in range(2):
    if (pid := os.fork()) == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
other = multiprocessing.get_context("fork").Process(target=os.getpid)
other.start()
other.join()
print([handle.is_alive() for handle in handles])
"""
    result = script(PARENT.format(behaviour="control.wait_stop()", method=start_method, ending=ending))
    assert result.out.splitlines()[-1] == "[True, True, True]"
    assert (result.code, result.err) == (0, "")


def test_a_child_that_does_not_read_is_stopped_all_the_same(eventually: Callable[..., None]) -> None:
    handle = launch(until_stopped)
    pid = handle.wait_ready(20)
    os.kill(pid, signal.SIGSTOP)
    telling = threading.Thread(target=handle.tell, args=(bytes(1 << 20),))
    telling.start()
    eventually(handle._sending.locked)  # type: ignore[attr-defined]
    began = time.monotonic()
    end([handle], 0.05, 0.05, 5.0)
    assert time.monotonic() - began < 2 * SCALE
    assert handle.exitcode == -signal.SIGKILL
    telling.join(5)
    assert not telling.is_alive()


def test_a_child_that_has_not_read_for_long_holds_up_no_request() -> None:
    handle = launch(until_stopped)
    os.kill(handle.wait_ready(20), signal.SIGSTOP)
    for _ in range(3):
        handle.tell(bytes(60_000))
    began = time.monotonic()
    end([handle], 0.05, 0.05, 5.0)
    assert time.monotonic() - began < 2 * SCALE
    assert handle.exitcode == -signal.SIGKILL


def test_a_stop_comes_after_what_is_still_being_told(eventually: Callable[..., None]) -> None:
    handle = launch(until_stopped)
    pid = handle.wait_ready(20)
    os.kill(pid, signal.SIGSTOP)
    telling = threading.Thread(target=handle.tell, args=(bytes(1 << 20),))
    telling.start()
    eventually(handle._sending.locked)  # type: ignore[attr-defined]
    handle.request_stop()
    os.kill(pid, signal.SIGCONT)
    assert handle.join(5)
    assert handle.exitcode == 4
    telling.join(5)
