"""A node process that nobody calls, beside a bare process with as many connections and the same heartbeats.

What wakes them up is counted by the system, which knows how often each thread has gone to sleep.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from crowd import connected
from harness import QUICK, compare, world

import pyzmp

CONNECTIONS = 50
SECONDS = 0.3 if QUICK else 4.0
BARE = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.heartbeat_ivl, socket.heartbeat_timeout = 1000, 3000
socket.bind(sys.argv[1])
print("ready", flush=True)
socket.recv()
"""


class Quiet(pyzmp.Node):
    """Does nothing."""


def slept(pid: int) -> dict[str, int]:
    """How often each thread of a process has gone to sleep by itself."""
    found: dict[str, int] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        said = dict(line.split(":") for line in (task / "status").read_text().splitlines())
        kind = "main" if task.name == str(pid) else "watch or runtime" if "ZMQ" not in said["Name"] else "ZeroMQ's"
        found[f"{kind} thread {task.name}"] = int(said["voluntary_ctxt_switches"])
    return found


def computed(pid: int) -> float:
    """Seconds for which the threads of a process have run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def wakes(pid: int) -> Callable[[], float]:
    """A candidate: how often a second a process is woken up."""
    def run() -> float:
        before = sum(slept(pid).values())
        time.sleep(SECONDS)
        return (sum(slept(pid).values()) - before) / SECONDS
    return run


def busy(pid: int) -> Callable[[], float]:
    """A candidate: the share of one core that it takes, in percent."""
    def run() -> float:
        before = computed(pid)
        time.sleep(SECONDS)
        return (computed(pid) - before) / SECONDS * 100
    return run


def threads(pid: int) -> None:
    """Print which threads wake up."""
    before = slept(pid)
    time.sleep(SECONDS)
    for name, count in slept(pid).items():
        if count > before.get(name, 0):
            print(f"  of these {name:30} {(count - before.get(name, 0)) / SECONDS:8.1f} 1/s")


if __name__ == "__main__":
    with world() as folder, Quiet("quiet") as node:
        address = f"ipc://{folder}/bare"
        bare = subprocess.Popen([sys.executable, "-c", BARE, address], stdout=subprocess.PIPE)
        assert bare.stdout is not None
        bare.stdout.readline()
        context = zmq.Context()
        for _ in range(CONNECTIONS):
            socket = context.socket(zmq.DEALER)
            socket.heartbeat_ivl, socket.heartbeat_timeout, socket.linger = 1000, 3000, 0
            socket.connect(address)
        at, pid = str(node.start()), node.ident or 0
        with connected(at, CONNECTIONS):
            time.sleep(1)
            compare(f"wake-ups with {CONNECTIONS} idle connections", "1/s",
                    {"bare ROUTER": wakes(bare.pid), "pyzmp node": wakes(pid)}, rounds=3)
            threads(pid)
            compare("the share of a core that it takes then", "%",
                    {"bare ROUTER": busy(bare.pid), "pyzmp node": busy(pid)}, rounds=3)
        context.destroy()
        bare.kill()
        bare.wait()
        bare.stdout.close()
