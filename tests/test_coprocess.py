"""A restartable process with a loop, as programs for pyzmp 0.0.17 expect it."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyzmp.coprocess import CoProcess
from pyzmp.exceptions import RemoteError, StartError
from pyzmp.launchers.forkserver import server
from tests.campaigns.history import SCALE


@pytest.fixture(scope="session", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's."""
    server.ensure_running()


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def start_method(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def queue() -> Iterator[Any]:
    """What the child puts into it, the test gets."""
    queue = multiprocessing.get_context("forkserver").SimpleQueue()
    yield queue
    queue.close()


class Counter(CoProcess):
    """Adds up in the child, and ends with the sum."""

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(**options)
        self.limit, self.sum = limit, 0

    def task(self, *args: Any, **kwargs: Any) -> Any:
        self.sum += 1
        return self.sum if self.sum == self.limit else None


def quiet(**kwargs: Any) -> None:
    time.sleep(0.001)


def test_without_a_name_it_gets_a_uuid() -> None:
    assert str(uuid.UUID(CoProcess().name)) != str(uuid.UUID(CoProcess().name))
    assert CoProcess("kitchen").name == "kitchen"


def test_before_the_start_nothing_is_known() -> None:
    process = CoProcess("kitchen")
    assert (process.exitcode, process.ident, process.shutdown(), process.has_started()) == (None, None, None, False)
    assert not process.is_alive()
    process.join()
    process.terminate()
    assert repr(process) == "<CoProcess 'kitchen' process not started>"


def test_its_life(start_method: str) -> None:
    process = CoProcess("kitchen", start_method=start_method)
    assert process.start()
    assert process.is_alive()
    assert process.has_started()
    assert process.exitcode is None
    assert process.ident != os.getpid()
    assert repr(process) == f"<CoProcess 'kitchen' process running pid {process.ident}>"
    assert process.shutdown() == 0
    assert process.shutdown() == 0
    assert process.exitcode == 0
    assert not process.is_alive()
    assert repr(process) == "<CoProcess 'kitchen' process stopped with exit code 0>"


def test_the_target_is_not_given_the_coprocess_but_args_kwargs_and_timedelta(start_method: str, queue: Any) -> None:
    def target(*args: Any, **kwargs: Any) -> int:
        queue.put((args, kwargs))
        return 0

    with CoProcess(target=target, args=(1, "two"), kwargs={"three": 3}, start_method=start_method) as process:
        process.join(10)
    args, kwargs = queue.get()
    assert args == (1, "two")
    assert kwargs.pop("timedelta") >= 0
    assert kwargs == {"three": 3}


def test_a_subclass_overrides_task_and_its_attributes_are_seen(start_method: str) -> None:
    process = Counter(42, start_method=start_method)
    process.sum = 40
    process.start()
    process.join(10)
    assert process.exitcode == 42
    assert process.sum == 40


@pytest.mark.parametrize(("status", "code"), [(0, 0), (3, 3), (True, 1), (False, 0), (256 + 7, 7)])
def test_what_the_target_returns_ends_the_loop_and_is_the_exit_code(status: Any, code: int) -> None:
    process = CoProcess(target=lambda timedelta: status)
    process.start()
    process.join(10)
    assert process.exitcode == process.shutdown() == code


def test_a_status_that_is_no_int_is_printed_and_means_1(script: Any) -> None:
    result = script("""
import pyzmp.coprocess
process = pyzmp.coprocess.CoProcess(target=lambda **kwargs: "out of paper")
process.start()
process.join()
print(process.exitcode)
""")
    assert (result.code, result.out, result.err) == (0, "1\n", "out of paper\n")


def test_the_target_is_called_at_least_once_even_when_shut_down_at_once(queue: Any) -> None:
    for number in range(5):
        process = CoProcess(target=lambda number, **kwargs: queue.put(number), args=(number,))
        process.start()
        assert process.shutdown() == 0
        assert queue.get() == number
        while not queue.empty():
            queue.get()


def test_timedelta_is_the_time_since_the_last_call(queue: Any) -> None:
    def target(timedelta: float) -> int | None:
        queue.put((time.monotonic(), timedelta))
        time.sleep(0.02)
        return None if timedelta < 0.02 or (calls.append(1) or len(calls)) < 8 else 0

    calls: list[int] = []
    CoProcess(target=target).run()
    told = [queue.get() for _ in range(9)]
    for (before, _), (now, timedelta) in itertools.pairwise(told):
        assert timedelta == pytest.approx(now - before, abs=0.005)


@contextlib.contextmanager
def marks(folder: Path, value: Any = None) -> Iterator[Any]:
    (folder / "entered").touch()
    yield value
    (folder / "left").touch()


@pytest.mark.parametrize(("value", "front"), [(None, ()), (1, (1,)), ((1, 2), (1, 2)), ([1, 2], ([1, 2],)), ((), ())])
def test_what_the_context_manager_yields_comes_first(value: Any, front: Any, queue: Any, tmp_path: Path) -> None:
    def target(*args: Any, **kwargs: Any) -> int:
        queue.put(args)
        return 0

    with CoProcess(context_manager=marks, target=target, args=(tmp_path, value)):
        pass
    assert queue.get() == (*front, tmp_path, value)


def test_the_context_is_entered_before_start_returns_and_left_before_shutdown_does(
        start_method: str, tmp_path: Path) -> None:
    process = CoProcess(context_manager=marks, target=lambda *args, **kwargs: quiet(), args=(tmp_path,),
                        start_method=start_method)
    process.start()
    assert [path.name for path in tmp_path.iterdir()] == ["entered"]
    process.shutdown()
    assert {path.name for path in tmp_path.iterdir()} == {"entered", "left"}


def test_the_context_gets_the_keyword_arguments_too(queue: Any) -> None:
    @contextlib.contextmanager
    def context(*args: Any, **kwargs: Any) -> Iterator[None]:
        queue.put((args, kwargs))
        yield

    with CoProcess(context_manager=context, target=lambda *a, **k: 0, args=(1,), kwargs={"b": 2}):
        assert queue.get() == ((1,), {"b": 2})


def test_a_child_that_fails_while_starting_makes_start_raise_its_error(start_method: str) -> None:
    @contextlib.contextmanager
    def context() -> Iterator[None]:
        raise OSError("no camera")
        yield

    process = CoProcess(context_manager=context, start_method=start_method)
    with pytest.raises(OSError, match="no camera") as caught:
        process.start(timeout=20)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert not process.is_alive()
    assert not process.has_started()
    assert process.exitcode == 1


def test_a_timeout_error_of_the_childs_own_is_not_taken_for_ours() -> None:
    @contextlib.contextmanager
    def context() -> Iterator[None]:
        raise TimeoutError("the camera was silent")
        yield

    with pytest.raises(TimeoutError, match="camera"):
        CoProcess(context_manager=context).start(timeout=20)


@contextlib.contextmanager
def slow() -> Iterator[None]:
    time.sleep(100)
    yield


def test_start_gives_false_when_its_time_is_over_and_leaves_nothing(start_method: str) -> None:
    process = CoProcess(context_manager=slow, start_method=start_method)
    began = time.monotonic()
    assert process.start(timeout=0.3) is False
    assert time.monotonic() - began < 3 * SCALE
    assert not process.is_alive()
    assert not process.has_started()


def test_start_raises_after_its_longest_time_where_no_timeout_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyzmp.coprocess.START", 0.2)
    process = CoProcess("kitchen", context_manager=slow)
    with pytest.raises(StartError, match=r"'kitchen' was not ready within 0.2 s of its start"):
        process.start()
    assert not process.is_alive()


def test_start_on_a_running_instance_starts_it_again(start_method: str) -> None:
    process = CoProcess(target=quiet, start_method=start_method)
    process.start()
    first = process.ident
    assert first is not None
    assert process.start()
    assert process.ident != first
    assert not Path(f"/proc/{first}").exists()
    assert process.shutdown() == 0


def test_a_stopped_one_can_be_started_again() -> None:
    process = Counter(2)
    for _ in range(3):
        assert process.start()
        process.join(10)
        assert process.exitcode == 2


def test_a_target_that_does_not_end_is_terminated_and_killed_within_the_timeout(start_method: str) -> None:
    process = CoProcess(target=lambda **kwargs: time.sleep(100), start_method=start_method)
    process.start()
    began = time.monotonic()
    assert process.shutdown(timeout=0.5) == -signal.SIGKILL
    assert time.monotonic() - began < 0.8 * SCALE


def test_shutdown_without_join_only_asks() -> None:
    process = CoProcess(target=lambda **kwargs: time.sleep(0.2))
    process.start()
    assert process.shutdown(join=False) is None
    process.join()
    assert process.exitcode == 0


def test_terminate_is_sigterm(start_method: str) -> None:
    process = CoProcess(target=quiet, start_method=start_method)
    process.start()
    process.terminate()
    process.join(10)
    assert process.exitcode == process.shutdown() == -signal.SIGTERM


def test_a_killed_one_is_noticed() -> None:
    process = CoProcess(target=quiet)
    process.start()
    assert process.ident is not None
    os.kill(process.ident, signal.SIGKILL)
    process.join(10)
    assert not process.is_alive()
    assert process.shutdown() == -signal.SIGKILL


def test_an_exception_of_the_target_gives_the_exit_code_1(capfd: pytest.CaptureFixture[str]) -> None:
    process = CoProcess("kitchen", target=lambda **kwargs: 1 / 0)
    process.start()
    process.join(10)
    assert process.shutdown() == 1
    assert "'kitchen' failed" in capfd.readouterr().err


def test_with_starts_what_does_not_run_and_leaves_what_does() -> None:
    with CoProcess(target=quiet) as process:
        pid = process.ident
        with process:
            assert process.ident == pid
        assert process.exitcode == 0
    assert process.shutdown() == 0


def test_name_daemon_and_authkey_are_set_before_the_start(start_method: str, queue: Any) -> None:
    def target(**kwargs: Any) -> int:
        me = multiprocessing.current_process()
        queue.put((me.name, me.daemon, bytes(me.authkey)))
        return 0

    process = CoProcess(target=target, start_method=start_method)
    assert process.authkey == multiprocessing.current_process().authkey
    assert process.daemon is False
    process.name, process.daemon, process.authkey = "kitchen", True, b"secret"
    with process:
        assert queue.get() == ("kitchen", True, b"secret")
    assert process.authkey == b"secret"


@pytest.mark.parametrize(("attribute", "value"), [("name", "hall"), ("daemon", True), ("authkey", b"secret")])
def test_what_is_set_before_the_start_cannot_be_set_later(attribute: str, value: Any) -> None:
    with CoProcess("kitchen") as process, pytest.raises(RuntimeError, match=f"'kitchen' runs; set its {attribute}"):
        setattr(process, attribute, value)


def test_run_loops_in_the_calling_thread_with_the_context_around_it(tmp_path: Path) -> None:
    seen: list[Any] = []

    def target(*args: Any, **kwargs: Any) -> Any:
        seen.append((threading.get_ident(), args))
        return "over" if len(seen) == 3 else None

    process = CoProcess(context_manager=marks, target=target, args=(tmp_path, 5))
    assert process.run() == "over"
    assert seen == [(threading.get_ident(), (5, tmp_path, 5))] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"entered", "left"}


def test_arguments_of_run_replace_those_of_the_constructor() -> None:
    seen: list[Any] = []
    process = CoProcess(target=lambda *args, **kwargs: seen.append((args, kwargs.pop("timedelta") and kwargs)) or 0,
                        args=(1,), kwargs={"a": 1})
    assert process.run(2, b=2) == 0
    assert process.run() == 0
    assert [args for args, _ in seen] == [(2,), (1,)]


def test_shutdown_from_another_thread_stops_run(eventually: Callable[..., None]) -> None:
    process = CoProcess(target=quiet)
    status: list[Any] = []
    thread = threading.Thread(target=lambda: status.append(process.run()))
    thread.start()
    eventually(process.is_alive)
    with pytest.raises(RuntimeError, match="runs already"):
        process.run()
    assert process.shutdown() == 0
    thread.join(10)
    assert status == [0]
    assert not process.is_alive()
    assert process.shutdown() == 0
    assert process.start()
    assert process.shutdown() == 0


def test_the_loop_itself_can_shut_down() -> None:
    class Once(CoProcess):
        def task(self, *args: Any, **kwargs: Any) -> None:
            self.shutdown()

    assert Once().run() == 0
    process = Once()
    process.start()
    process.join(10)
    assert process.exitcode == 0


def test_it_is_pickled_without_its_process() -> None:
    with Counter(10**9, name="kitchen") as process:
        copy = pickle.loads(pickle.dumps(process))
        assert (copy.name, copy.limit, copy.is_alive(), copy.shutdown()) == ("kitchen", 10**9, False, None)
        assert process.is_alive()


def test_a_forked_child_has_nothing_to_do_with_it() -> None:
    with CoProcess(target=quiet) as process:
        if (pid := os.fork()) == 0:
            os._exit((process.shutdown() is not None) + 2 * process.is_alive())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert process.is_alive()


def test_threads_may_start_and_shut_down_as_they_like() -> None:
    process = CoProcess(target=quiet)
    errors: list[BaseException] = []

    def toss(action: Callable[[], Any]) -> None:
        for _ in range(5):
            try:
                action()
            except StartError:  # another thread shut it down before it was ready
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=toss, args=(action,)) for action in (process.start, process.shutdown) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    process.shutdown()
    assert not errors
    assert not process.is_alive()


def test_what_cannot_be_sent_is_named_and_fork_carries_it() -> None:
    process = Counter(1, name="cam")
    process.device = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"cannot start 'cam': attribute 'device' \(lock\) cannot be sent to a process; "
                                        "open it in the context manager"):
        process.start()
    assert not process.is_alive()
    process = Counter(1, name="cam", start_method="fork")
    process.device = threading.Lock()  # type: ignore[attr-defined]
    assert process.start()
    process.join(10)
    assert process.exitcode == 1


# -- programs without a guard ---------------------------------------------------------------------------------------

PROGRAM = """
import dataclasses, time
from pyzmp.coprocess import CoProcess

print("main runs")

@dataclasses.dataclass
class Options:
    pause: float = 0.001

OPTIONS = Options()

class Worker(CoProcess):
    def task(self, *args, **kwargs):
        assert isinstance(self.options, Options)
        time.sleep(OPTIONS.pause)

def forever(**kwargs):
    time.sleep(OPTIONS.pause)

worker = Worker("worker")
worker.options = Options()
worker.start()
left = CoProcess(target=forever)
left.start()
print(worker.shutdown(), left.is_alive())
"""


@pytest.mark.parametrize(("way", "method"), [
    *((way, "forkserver") for way in ("script", "-c", "-m package.module", "-m package")),
    ("script", "spawn"), ("-m package.module", "spawn"), ("script", "fork"),
])
def test_a_program_needs_no_guard_and_its_main_is_never_run_again(way: str, method: str, script: Any) -> None:
    env = {"PYZMP_START_METHOD": method}
    strict = method != "fork"
    if way == "script":
        result = script(PROGRAM, env=env, strict=strict)
    elif way == "-c":
        result = script.python("-c", PROGRAM, env=env, strict=strict)
    else:
        (script.folder / "package").mkdir()
        (script.folder / "package" / "__init__.py").touch()
        (script.folder / "package" / f"{'module' if 'module' in way else '__main__'}.py").write_text(PROGRAM)
        result = script.python(*way.split(), env=env, strict=strict)
    assert (result.code, result.out, result.err) == (0, "main runs\n0 True\n", "")
    assert result.seconds < 3


def test_it_works_in_a_repl(script: Any) -> None:
    lines = PROGRAM.replace("\n\nclass", "\nclass").replace("\n\ndef", "\n\ndef")
    result = script.python("-q", "-", stdin=lines)
    assert (result.code, result.out, result.err) == (0, "main runs\n0 True\n", "")
    result = script.python("-i", "-q", stdin=lines)
    assert result.code == 0
    assert "0 True\n" in result.out
    assert "Error" not in result.err
    assert result.seconds < 3


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_ctrl_c_reaches_the_parent_only(method: str, script: Any) -> None:
    source = PROGRAM + """
try:
    print("up", flush=True)
    time.sleep(50)
except KeyboardInterrupt:
    print(left.is_alive(), left.shutdown())
"""
    program = script.start("-c", source, env={"PYZMP_START_METHOD": method}, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    with program:
        while program.stdout.readline() != "up\n":
            pass
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait(10) == 0
        assert (program.stdout.read(), program.stderr.read()) == ("True 0\n", "")
