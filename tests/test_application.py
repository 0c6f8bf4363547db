"""Running nodes until they are told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.launchers.forkserver import server


@pytest.fixture(scope="module", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's."""
    server.ensure_running()


class Ends(pyzmp.Node):
    """Ends by itself, with the status that it is given, once its gate is open."""

    def __init__(self, name: str, status: int, gate: Path, **options: Any) -> None:
        super().__init__(name, **options)
        self.status, self.gate = status, gate

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self.status if self.gate.exists() else None

    @pyzmp.service
    def open(self) -> None:
        self.gate.touch()


@pytest.mark.parametrize("kind", ["process", "thread", "entity"])
def test_it_returns_when_all_nodes_have_ended(tmp_path: Path, kind: Any) -> None:
    nodes = [Ends(name, 0, tmp_path / "gate", kind=kind) for name in ("one", "two")]
    thread = threading.Thread(target=pyzmp.run, args=nodes)
    thread.start()
    pyzmp.discover(Ends.open, timeout=5, minimum_providers=2)()
    thread.join(10)
    assert not thread.is_alive()
    assert [node.exitcode for node in nodes] == [0, 0]


@pytest.mark.parametrize("kind", ["process", "thread", "entity"])
def test_it_raises_when_a_node_failed_and_stops_the_others(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "gate").touch()
    other = Ends("other", 0, tmp_path / "never", kind=kind)
    with pytest.raises(pyzmp.NodeDied, match=r"'fails' ended by itself with exit code 3") as caught:
        pyzmp.run(other, Ends("fails", 3, tmp_path / "gate", kind=kind))
    assert caught.value.node == "fails"
    assert not other.is_alive()
    assert other.exitcode == 0


def test_a_start_that_fails_stops_those_before() -> None:
    first = pyzmp.Node("same", kind="thread")
    with pytest.raises(pyzmp.PyzmpError, match="already run"):
        pyzmp.run(first, pyzmp.Node("same", kind="entity"))
    assert first.exitcode == 0


def test_the_signals_are_the_programs_own_again(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    (tmp_path / "gate").touch()
    pyzmp.run(Ends("ends", 0, tmp_path / "gate", kind="entity"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


PROGRAM = """
import pyzmp
class Says(pyzmp.Node):
    def on_stop(self):
        print(self.name, flush=True)
    @pyzmp.service
    def hello(self) -> str:
        return self.name
pyzmp.run(Says("one"), Says("two", kind="thread"), Says("three", kind="entity"))
print("over")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_them_in_reverse_order(script: Any, number: int, eventually: Callable[..., None]) -> None:
    (script.folder / "program.py").write_text(PROGRAM)
    process = script.start("program.py", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert len(pyzmp.discover("hello", timeout=10, minimum_providers=3).providers) == 3  # type: ignore[union-attr]
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # as a terminal does it: to the nodes too
    assert (process.communicate(timeout=10)[0], process.returncode) == ("three\ntwo\none\nover\n", 0)


class Signals(pyzmp.Node):
    """Gets a signal while it starts."""

    async def on_start(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()


@pytest.mark.parametrize("kind", ["thread", "entity"])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_signal_ends_a_start_too(monkeypatch: pytest.MonkeyPatch, kind: Any, grouped: bool) -> None:
    monkeypatch.setenv("PYZMP_REGISTRY", "memory")
    before, during, after = pyzmp.Node(kind="thread"), Signals(kind=kind), pyzmp.Node(kind="thread")
    if grouped:
        pyzmp.run(pyzmp.Group("all", [before, pyzmp.Group(None, [during, after])]), pyzmp.Node(kind="thread"))
    else:
        pyzmp.run(before, during, after)
    assert [node.exitcode for node in (before, during, after)] == [0, 1, None]


INTERRUPTED = """
import os, signal, sys, threading
from pyzmp.application import _signals, _Told

def interrupt(frame, event, argument):
    global left
    left -= 1
    if not left:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGTERM)

for moment in range(1, 25):
    told, left = _Told(), moment
    with _signals(told):
        late = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM))
        late.start()
        sys.setprofile(interrupt)
        told.wait()
        sys.setprofile(None)
        late.join()
print("over")
"""


def test_a_signal_is_heard_at_whatever_moment_of_the_waiting_it_comes(script: Any) -> None:
    assert script(INTERRUPTED).out == "over\n"


@pytest.mark.parametrize(("given", "said"), [
    ((), "takes one node or more"), ((pyzmp.Node,), r"write Node\(…\)"), (("greeter",), "got 'greeter'"),
    (([pyzmp.Node("inside-a-list")],), r"got \[<Node 'inside-a-list'"),
])
def test_what_is_no_node_is_refused_before_anything_starts(given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        pyzmp.run(*given)
