"""Many threads that call many nodes within the default limit of descriptors; and addresses where nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pyzmp
from pyzmp.channels.service import Service
from pyzmp.sessions import Target
from tests.campaigns.history import SCALE, judge

LIMIT = 1024  # the soft limit of descriptors that systems give
REACHED = 4.5  # seconds in which a caller knows that an address does not answer, at most

PROVIDERS = """
import sys, pyzmp

class Bulb(pyzmp.Node):
    @pyzmp.service
    def shine(self, thread: int, turn: int) -> list[int]:
        return [int(self.name.partition("-")[2]), thread, turn]

first, count = map(int, sys.argv[1:])
pyzmp.run(*(Bulb(f"bulb-{number}", kind="thread") for number in range(first, first + count)))
"""

CALLER = """
import os, resource, sys, threading
threads, nodes, rounds, limit = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
import pyzmp

assert len(pyzmp.discover("shine", timeout=30, minimum_providers=nodes).providers) == nodes
faults, most, barrier = [], [], threading.Barrier(threads)

def used():
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return limit

def ask(thread):
    bulbs = [pyzmp.discover(f"bulb-{number}/shine") for number in range(nodes)]
    barrier.wait()
    for turn in range(rounds):
        for number in range(nodes):
            try:
                value = bulbs[number](thread, turn)
            except Exception as error:
                value = repr(error)
            if value != [number, thread, turn]:
                faults.append(f"thread {thread} asked bulb-{number} in turn {turn}, and got {value}")
        most.append(used())

running = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
for thread in running:
    thread.start()
for thread in running:
    thread.join()
print(len(most) * nodes, "calls;", len(pyzmp.runtime.current().sessions.own), "sessions of threads' own;", max(most),
      "descriptors at most")
print(*faults[:10], sep="\\n", end="")
sys.exit(bool(faults))
"""


@contextmanager
def crowd(script: Any, processes: int, each: int) -> Iterator[None]:
    """So many processes with so many nodes *each*, every one with a loop and an address of its own."""
    (script.folder / "providers.py").write_text(PROVIDERS)
    running = [script.start("providers.py", str(number * each), str(each)) for number in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        codes = [process.wait(20 * SCALE) for process in running]
    assert codes == [0] * processes


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("processes", "each", "rounds"), [
    (2, 25, 2), pytest.param(5, 10, 200, marks=pytest.mark.slow), pytest.param(50, 1, 50, marks=pytest.mark.slow)])
def test_eight_threads_call_fifty_nodes_within_the_default_limit_of_descriptors(
        processes: int, each: int, rounds: int, script: Any) -> None:
    nodes = processes * each
    with crowd(script, processes, each):
        began = time.monotonic()
        result = script(CALLER, "8", str(nodes), str(rounds), str(LIMIT), name="caller.py", timeout=200)
        print(f"\n8 threads, {nodes} nodes in {processes} processes, a limit of {LIMIT}: {result.out.strip()}; "
              f"{time.monotonic() - began:.1f} s")
    assert result.code == 0, result.out + result.err
    assert result.out.startswith(f"{8 * nodes * rounds} calls;"), "too few calls: invalid"


class Lamp(pyzmp.Node):
    @pyzmp.service
    def shine(self) -> int:
        return os.getpid()


class Aimed(Service[[], int]):
    """The service of one target, whatever the graph says."""

    def __init__(self, target: Target) -> None:
        super().__init__("shine")
        self._aim, self._timeout = target, 8.0

    def found(self) -> Sequence[Target]:
        return [self._aim]

    seen = found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Silent:
    """Takes connections and never says a word, or hangs up at once."""

    def __init__(self, path: Path | None, *, closes: bool) -> None:
        self.socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.socket.bind(str(path) if path else ("127.0.0.1", 0))
        self.socket.listen()
        self.address = f"ipc://{path}" if path else f"tcp://127.0.0.1:{self.socket.getsockname()[1]}"
        self._closes, self._path = closes, path
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        while True:
            try:
                taken = self.socket.accept()[0]
            except OSError:
                return
            if self._closes:
                taken.close()
            else:
                self._taken.append(taken)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for end in (self.socket, *self._taken):
            end.close()
        if self._path:
            self._path.unlink()


@pytest.fixture
def places(domain: Path) -> Iterator[dict[str, Target]]:
    """Where nobody answers, and why."""
    with ExitStack() as stack:
        other = stack.enter_context(Lamp("other"))
        stopped = {scheme: Lamp(f"stopped-{scheme}", address) for scheme, address in (
            ("ipc", None), ("tcp", "tcp://127.0.0.1:*"))}
        killed = Lamp("killed")
        for node in (*stopped.values(), killed):
            node.start()
        there = {node.name: Lamp.at(node.name).shine.found()[0] for node in (other, killed, *stopped.values())}
        os.kill(killed.ident, signal.SIGKILL)  # type: ignore[arg-type]
        killed.join(5)
        with socket.socket(socket.AF_UNIX) as gone:  # those of killed nodes are removed sooner or later
            gone.bind(str(domain / "stale"))
            gone.listen()
        for node in stopped.values():
            os.kill(node.ident, signal.SIGSTOP)  # type: ignore[arg-type]
            stack.callback(node.join, 5)
            stack.callback(os.kill, node.ident, signal.SIGKILL)  # type: ignore[arg-type]
        ends = {f"{word}, {scheme}": Silent(domain / word if scheme == "ipc" else None, closes=closes)
                for scheme in ("ipc", "tcp") for word, closes in (("mute", False), ("closing", True))}
        for end in ends.values():
            stack.callback(end.close)
        nobody = there["killed"]
        stack.callback((domain / "stale").unlink)
        yield {
            "absent, ipc": replace(nobody, address=f"ipc://{domain}/nowhere"),
            "absent, tcp": replace(nobody, address=f"tcp://127.0.0.1:{free_port()}"),
            "stale": replace(nobody, address=f"ipc://{domain}/stale"),
            "killed": nobody,
            "another loop's": replace(nobody, address=there["other"].address),
            "another life's": replace(there["other"], incarnation=(1, 1)),
            "another node's": replace(there["other"], node="nobody"),
            "stopped, ipc": there["stopped-ipc"],
            "stopped, tcp": there["stopped-tcp"],
            **{name: replace(nobody, address=end.address) for name, end in ends.items()},
        }


def ways(service: Aimed, *, waits: bool) -> dict[str, Callable[[], object]]:
    """Each way to call; with its second call a thread has a session of its own, too long where each of them *waits*."""
    def twice() -> object:
        with contextlib.suppress(pyzmp.CallError):
            return service()
        return service()
    return {"blocking" if waits else "blocking twice": service if waits else twice,
            "future": lambda: service.submit().result(), "awaited": lambda: asyncio.run(service.acall())}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_an_address_where_nobody_answers_ends_the_call_which_did_not_run(
        rounds: int, places: dict[str, Target]) -> None:
    told: list[tuple[str, str, float, object]] = []

    def ask(place: str, way: str, call: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            outcome = call()
        except Exception as error:
            outcome = error
        told.append((place, way, time.monotonic() - began, outcome))

    for _ in range(rounds):
        running = [threading.Thread(target=ask, args=(place, way, call)) for place, target in places.items()
                   for way, call in ways(Aimed(target), waits=place.startswith(("stopped", "mute"))).items()]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    print()
    for place in places:
        ended = [(seconds, type(outcome).__name__) for where, _, seconds, outcome in told if where == place]
        print(f"{place:>16}: {', '.join(sorted({kind for _, kind in ended}))} after {min(ended)[0]:.3f} to "
              f"{max(ended)[0]:.3f} s")
    judge([f"{place}, {way}: {outcome!r} (executed {getattr(outcome, 'executed', '-')}) after {seconds:.2f} s"
           for place, way, seconds, outcome in told
           if getattr(outcome, "executed", None) is not False or seconds > REACHED * SCALE])
    assert len(told) > 20 * rounds
