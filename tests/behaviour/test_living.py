"""How nodes start, run and end, wherever they live."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

import pyzmp
from pyzmp.exceptions import AddressInUse, InvalidAddress, NodeExists, RegistryUnavailable, StartError
from tests.campaigns.history import SCALE


class Diary(pyzmp.Node):
    """Writes down what happens to it, where its owner can read it."""

    def __init__(self, name: str, book: Path, **options: Any) -> None:
        super().__init__(name, **options)
        self.book = book

    def write(self, line: str) -> None:
        with self.book.open("a") as file:
            file.write(line + "\n")

    @pyzmp.service
    def read(self) -> list[str]:
        return self.book.read_text().split()


class Hooked(Diary):
    def on_start(self) -> None:
        self.write("start")

    def on_stop(self) -> None:
        self.write("stop")


class AsyncHooked(Diary):
    async def on_start(self) -> None:
        await asyncio.sleep(0)
        self.write("start")

    async def on_stop(self) -> None:
        await asyncio.sleep(0)
        self.write("stop")


class Pid(pyzmp.Node):
    @pyzmp.service
    def pid(self) -> int:
        return os.getpid()

    @pyzmp.service
    async def slow(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return os.getpid()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "book"


def test_its_life(place: Any) -> None:
    node = place.settle(Pid("pid"))
    assert (node.is_alive(), node.has_started(), node.exitcode, node.shutdown()) == (False, False, None, None)
    address = node.start()
    assert address
    assert pyzmp.services["pid"] == [("pid", address)]
    assert (Pid.pid() == os.getpid()) == (place.kind != "process")
    assert (node.is_alive(), node.has_started(), node.exitcode) == (True, True, None)
    assert node.shutdown() == 0
    assert (node.is_alive(), node.has_started(), node.exitcode, node.shutdown()) == (False, True, 0, 0)
    assert pyzmp.discover("pid") is None


@pytest.mark.parametrize("cls", [Hooked, AsyncHooked])
def test_the_hooks_run_in_the_node_before_and_after_it_serves(home: Any, book: Path, cls: type[Diary]) -> None:
    node = home.start(cls("diary", book))
    assert cls.read() == ["start"]
    assert node.shutdown() == 0
    assert book.read_text().split() == ["start", "stop"]


def test_the_context_is_entered_before_the_start_and_left_before_the_stop_returns(home: Any, book: Path) -> None:
    @contextlib.contextmanager
    def context(*args: int, **kwargs: int) -> Iterator[tuple[str, str]]:
        with book.open("a") as file:
            file.write(f"enter {args} {kwargs}\n")
        yield "one", "two"
        with book.open("a") as file:
            file.write("leave\n")

    def target(*args: Any, timedelta: float, **kwargs: Any) -> None:
        with book.open("a") as file:
            file.write(f"turn {args} {kwargs}\n")

    node = home.settle(pyzmp.Node("context", None, context, target, (3,), {"four": 4}))
    node.start()
    assert book.read_text().startswith("enter (3,) {'four': 4}\n")
    node.shutdown()
    lines = book.read_text().splitlines()
    assert lines[-1] == "leave"
    assert set(lines[1:-1]) <= {"turn ('one', 'two', 3) {'four': 4}"}


class Ticker(pyzmp.Node):
    def on_start(self) -> None:
        self.ticks: list[float] = []
        self.aticks = 0
        self.deltas: list[float] = []

    @pyzmp.every(0.02)
    def tick(self) -> None:
        self.ticks.append(time.monotonic())
        if len(self.ticks) == 2:
            raise RuntimeError("this one is logged, and the timer goes on")

    @pyzmp.every(0.02)
    async def atick(self) -> None:
        self.aticks += 1

    @pyzmp.service
    def seen(self) -> list[Any]:
        return [self.ticks, self.aticks]


def test_timers_keep_their_rhythm(home: Any, eventually: Callable[..., None]) -> None:
    home.start(Ticker("ticker"))
    eventually(lambda: len(Ticker.seen()[0]) >= 6 and Ticker.seen()[1] >= 6)
    ticks = Ticker.seen()[0]
    periods = (ticks[-1] - ticks[0]) / 0.02
    assert periods > len(ticks) - 1.5


class Updated(pyzmp.Node):
    turns: tuple[float, ...] = ()

    def update(self, *args: Any, timedelta: float, **kwargs: Any) -> Any:
        self.turns = (*self.turns, timedelta)
        self.last = time.monotonic()
        return kwargs.get("limit") == len(self.turns) or None

    @pyzmp.service
    def seen(self) -> list[Any]:
        return list(self.turns)


def test_update_runs_every_100_ms_and_after_a_turn_with_calls(home: Any, eventually: Callable[..., None]) -> None:
    home.start(Updated("updated"))
    assert len(Updated.seen()) < 3
    for _ in range(50):
        Updated.seen()
    many = len(Updated.seen())
    assert many > 5
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 0.12)  # nobody calls meanwhile
    assert max(Updated.seen()) > 0.09
    assert all(0 <= delta < 1 for delta in Updated.seen())


def test_an_idle_update_is_called_every_100_ms(home: Any, eventually: Callable[..., None]) -> None:
    node = home.start(Updated("updated", kwargs={"limit": 4}))
    began = time.monotonic()
    node.join(10)
    assert 0.2 < time.monotonic() - began < 1.5 * SCALE
    assert node.exitcode == 1  # what it returned: True
    eventually(lambda: pyzmp.discover("seen") is None)


def test_what_update_returns_ends_the_node_and_is_its_exit_code(home: Any) -> None:
    node = home.start(pyzmp.Node("three", loop_target=lambda timedelta: 3))
    node.join(10)
    assert (node.exitcode, node.shutdown(), node.is_alive()) == (3, 3, False)


def test_an_update_that_raises_ends_the_node_with_1(home: Any) -> None:
    def fail(timedelta: float) -> None:
        raise ValueError("spilled")
    node = home.start(pyzmp.Node("fails", loop_target=fail))
    node.join(10)
    assert node.exitcode == 1


def test_an_update_replaced_on_the_instance_counts(home: Any) -> None:
    node = pyzmp.Node("replaced")
    node.update = lambda **_: 7  # type: ignore[method-assign]
    home.start(node).join(10)
    assert node.exitcode == 7


# -- again ---------------------------------------------------------------------------------------------------------


def test_started_again_it_has_the_same_address_and_is_found(home: Any) -> None:
    node = home.settle(Pid("pid"))
    address = node.start()
    first = Pid.pid()
    assert node.start() == address  # a running one is shut down first
    assert (Pid.pid() == first) == (home.kind != "process")
    node.shutdown()
    assert pyzmp.discover("pid") is None
    assert node.start() == address
    assert Pid.pid()
    node.shutdown()


def test_over_tcp_it_is_restarted_under_the_same_port(home: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = home.settle(Pid("pid"))
    node._socket_bind = f"tcp://127.0.0.1:{port}"
    for _ in range(3):
        assert node.start() == f"tcp://127.0.0.1:{port}"
        assert Pid.pid()
    node.shutdown()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_killed_and_restarted_it_is_found_again_also_while_a_forked_child_lives(
        transport: str, domain: Path, eventually: Callable[..., None]) -> None:
    class Parent(Pid):
        @pyzmp.service
        def fork(self) -> int:
            child = os.fork()
            if not child:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.pause()
                os._exit(0)
            return child

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = Parent("parent", None if transport == "ipc" else f"tcp://127.0.0.1:{port}")
    address = node.start()
    child = Parent.fork()
    try:
        waiting = Parent.slow.submit(10)
        assert Parent.pid() == node.ident
        began = time.monotonic()
        os.kill(node.ident, signal.SIGKILL)  # type: ignore[arg-type]
        error = waiting.exception(5)
        assert isinstance(error, pyzmp.NodeDied)
        assert error.executed is None
        assert time.monotonic() - began < 0.5 * SCALE
        node.join(5)
        assert node.exitcode == -signal.SIGKILL
        eventually(lambda: pyzmp.discover("pid") is None)
        assert Path(f"/proc/{child}").exists()
        again = Parent("parent", node._socket_bind)
        assert again.start() == address
        assert Parent.pid() == again.ident
        again.shutdown()
    finally:
        os.kill(child, signal.SIGKILL)


def test_killed_it_can_be_started_at_once(eventually: Callable[..., None]) -> None:
    node = Pid("pid")
    address = node.start()
    os.kill(Pid.pid(), signal.SIGKILL)
    node.join(5)
    assert node.start() == address
    assert Pid.pid() == node.ident
    assert node.shutdown() == 0


def test_terminated_it_drains_and_dies_of_the_signal() -> None:
    node = Pid("pid")
    node.start()
    running = Pid.slow.submit(0.2 * SCALE)
    assert Pid.pid() == node.ident
    node.terminate()
    assert running.result(5) == node.ident
    node.join(5)
    assert node.exitcode == -signal.SIGTERM


# -- what goes wrong at the start ------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing_context() -> Iterator[None]:
    raise ValueError("the context is closed")
    yield


class FailsInHook(pyzmp.Node):
    def on_start(self) -> None:
        raise ValueError("the hook is bent")


class FailsInAsyncHook(pyzmp.Node):
    async def on_start(self) -> None:
        raise ValueError("the hook is bent")


@pytest.mark.parametrize(("make", "text"), [
    (lambda: pyzmp.Node("fails", context_manager=failing_context), "the context is closed"),
    (lambda: FailsInHook("fails"), "the hook is bent"),
    (lambda: FailsInAsyncHook("fails"), "the hook is bent"),
], ids=["context", "hook", "async hook"])
def test_a_start_that_fails_raises_at_once_with_the_traceback(home: Any, make: Callable[[], pyzmp.Node],
                                                              text: str) -> None:
    node = home.settle(make())
    began = time.monotonic()
    with pytest.raises(ValueError, match=text) as caught:
        node.start()
    assert time.monotonic() - began < 3 * SCALE
    if home.kind == "process":
        cause = caught.value.__cause__
        assert isinstance(cause, pyzmp.RemoteError)
        assert f'raise ValueError("{text}")' in cause.traceback_text
    assert not node.is_alive()
    assert not node.has_started()
    assert node.exitcode == 1
    with Pid("fails", kind="thread"):  # the name is free again
        assert Pid.pid()


def test_a_constructor_that_fails_in_the_child_is_told(script: Any) -> None:
    result = script("""
        import pyzmp
        class Fails(pyzmp.Node):
            def __setstate__(self, state):
                raise ValueError("cannot be rebuilt")
        try:
            Fails("fails").start()
        except ValueError as error:
            print(error, "__setstate__" in error.__cause__.traceback_text)
    """.replace("\n        ", "\n"))
    assert (result.out, result.err) == ("cannot be rebuilt True\n", "")


@pytest.mark.parametrize(("address", "error"), [
    ("nonsense", InvalidAddress), ("tcp://127.0.0.1", InvalidAddress), ("tcp://127.0.0.1:notaport", InvalidAddress),
    ("udp://127.0.0.1:4000", InvalidAddress), ("ipc:///nowhere/at/all", OSError),
    ("ipc://" + "x" * 200, InvalidAddress),
    ("tcp://127.0.0.1:4000#nokey", InvalidAddress),
])
def test_a_bad_address_is_told_by_the_start(home: Any, address: str, error: type[Exception]) -> None:
    node = home.settle(Pid("pid"))
    node._socket_bind = address
    with pytest.raises(error) as caught:
        node.start()
    assert address in str(caught.value) or "bytes" in str(caught.value)
    assert not node.is_alive()


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:*", "tcp://*:*"])
def test_beyond_loopback_a_node_is_encrypted(domain: Path, address: str) -> None:
    with Pid("pid", socket_bind=address) as node:
        [(_, shown)] = Pid.pid.providers
        assert re.fullmatch(r"tcp://0\.0\.0\.0:\d+#.{40}", shown)
        assert Pid.pid() == node.ident  # this process has the keys of the domain
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.LINGER, 0)
            monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                                                  | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED)
            stranger.connect(shown.partition("#")[0])
            assert monitor.poll(5000)
            assert recv_monitor_message(monitor)["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED
            stranger.disable_monitor()
            monitor.close()


def test_beyond_loopback_nobody_listens_without_keys() -> None:
    pyzmp.configure(registry="memory")  # which has no directory, and so no keys
    with pytest.raises(InvalidAddress, match="anybody who reaches this port"):
        Pid("pid", kind="thread", socket_bind="tcp://0.0.0.0:*").start()


def test_beyond_loopback_in_the_clear_only_who_says_so_in_so_many_words(home: Any) -> None:
    node = home.settle(Pid("pid"))
    node._socket_bind, node._insecure = "tcp://0.0.0.0:*", True
    with node:
        assert Pid.pid()


def test_a_port_that_is_taken_is_told_by_the_start(home: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        node = home.settle(Pid("pid"))
        node._socket_bind = address
        with pytest.raises(AddressInUse, match=address):
            node.start()
    assert not node.is_alive()
    assert node.start() == address
    node.shutdown()


@pytest.mark.parametrize("kind", ["process", "thread", "entity"])
@pytest.mark.parametrize("directory", ["a file", "/proc/not writable"])
def test_a_directory_that_cannot_be_used_is_told_by_the_start(
        kind: Any, directory: str, domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (domain / "a file").touch()
    monkeypatch.setenv("PYZMP_DIR", str(domain / directory))
    node = Pid("pid", kind=kind)
    with pytest.raises(RegistryUnavailable, match=f"{directory}.*PYZMP_DIR"):
        node.start()
    assert not node.is_alive()


@pytest.mark.parametrize("kinds", [("process", "process"), ("process", "thread"), ("entity", "process"),
                                   ("thread", "entity"), ("entity", "entity")], ids="-".join)
def test_a_name_that_is_taken_is_refused_with_both_owners(kinds: tuple[Any, Any]) -> None:
    first, second = (Pid("pid", kind=kind) for kind in kinds)
    with first:
        with pytest.raises(NodeExists) as caught:
            second.start()
        text = str(caught.value)
        assert "'pid' is already run by" in text
        assert f"pid {Pid.pid()}" in text
        assert text.count("Pid") >= 2
        assert "PYZMP_DOMAIN" in text
        assert not second.is_alive()
        assert Pid.at("pid").pid()


def test_a_name_that_another_program_has_taken_is_refused_too(script: Any) -> None:
    with Pid("pid", kind="thread"):
        result = script("import pyzmp\nclass Oven(pyzmp.Node): ...\nOven('pid').start()\n")
        assert result.code == 1
        assert f"NodeExists: 'pid' is already run by pid {os.getpid()} as Pid; pid " in result.err
        assert "as Oven asked for it" in result.err
        assert Pid.pid() == os.getpid()


def test_a_start_that_takes_too_long_is_false_and_leaves_nothing(home: Any) -> None:
    class Slow(pyzmp.Node):
        async def on_start(self) -> None:
            await asyncio.sleep(20)

    node = home.settle(Slow("slow"))
    began = time.monotonic()
    assert node.start(timeout=0.2) is False
    assert time.monotonic() - began < 2 * SCALE
    assert not node.has_started()
    assert not node.is_alive()


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind of 'x'.*'process', 'thread' or 'entity'.*'fiber'"):
        pyzmp.Node("x", kind="fiber").start()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a\nb", 3, "x" * 256])
def test_a_name_that_cannot_be_one_is_refused(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        pyzmp.Node(name)


def test_with_the_registry_in_memory_a_process_is_refused() -> None:
    pyzmp.configure(registry="memory")
    with pytest.raises(StartError, match=r"'pid' is a process.*thread or an entity"):
        Pid("pid").start()


def test_what_cannot_be_sent_to_a_process_is_named_with_the_way_out() -> None:
    node = Pid("pid")
    node.device = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(StartError, match=r"cannot start 'pid': attribute 'device' .*lock.*on_start") as caught:
        node.start()
    assert isinstance(caught.value, TypeError)
    with Pid("forked", start_method="fork") as forked:
        assert Pid.pid() == forked.ident


def test_an_unrelated_interpreter_finds_it() -> None:
    with Pid("pid") as node:
        program = "import pyzmp; print(pyzmp.discover('pid', timeout=5)())"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"{node.ident}\n"
