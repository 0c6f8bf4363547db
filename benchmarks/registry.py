"""What the registry costs: a change until all see it, joining, looking up, and doing nothing."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import zmq
from harness import QUICK, compare
from harness import count as many

import pyzmp
from pyzmp import runtime
from pyzmp.protocol import facts

PROCESS = 50 << 20  # bytes of memory that a watching process takes, at most
APART = 0.1  # seconds between two changes


class Cell(pyzmp.Node):
    """One of many."""

    kind = "entity"

    @pyzmp.service
    def double(self, value: int) -> int:
        """Twice the value."""
        return 2 * value


def share(values: list[float], part: float) -> float:
    """The value below which *part* of the *values* are."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def spent(pid: int) -> float:
    """Seconds of processor time that a process has used: the clock that clock_getcpuclockid(3) gives."""
    return time.clock_gettime((~pid << 3) | 2)


# -- what runs in processes of their own -----------------------------------------------------------------------------


def echo(address: str) -> None:
    """The raw server: sends everything back."""
    server = zmq.Context().socket(zmq.ROUTER)
    server.bind(address)
    while True:
        server.send_multipart(server.recv_multipart())


def watch(address: str, number: str) -> None:
    """Take part with one node; tell when changes came, those of the graph and the raw ones, when asked to."""
    context = zmq.Context()
    raw, told = context.socket(zmq.SUB), context.socket(zmq.PUSH)
    raw.subscribe(b"")
    raw.connect(f"{address}-pub")
    told.connect(f"{address}-told")
    seen: list[float] = []
    last: list[Any] = [()]

    def look() -> None:
        now = time.monotonic_ns()
        tick = replica.view.facts.node("tick")
        if tick is not None and tick.labels != last[0]:
            last[0] = tick.labels
            seen.extend((now - int(value)) / 1e6 for key, value in tick.labels if key == "at")
    replica = runtime.current().replica
    with Cell(f"watch-{number}"):
        replica.on_change(look)
        told.send(b"ready")
        while (message := raw.recv()) != b"end":
            if message == b"tell":
                told.send(json.dumps(seen).encode())
                seen.clear()
            else:
                seen.append((time.monotonic_ns() - int(message[:20])) / 1e6)
    context.destroy(linger=1000)


def join(count: str) -> None:
    """A fresh process's first look; print its milliseconds, and the bytes that each fact takes."""
    here = runtime.current()
    gc.collect()
    before, began = resident(), time.perf_counter()
    known = len(here.facts().all())
    took = (time.perf_counter() - began) * 1e3
    if known < int(count):
        raise ValueError(f"{known} facts are known of {count}, after {took:.0f} ms")
    print(took, (resident() - before) / known)


ROLES: dict[str, Callable[..., None]] = {"echo": echo, "watch": watch, "join": join}


def begin(role: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Run one of the roles in a new interpreter."""
    return subprocess.Popen([sys.executable, __file__, role, *map(str, arguments)], text=True, **options)


@contextlib.contextmanager
def running(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """Have the processes ended afterwards, by force where they do not end by themselves."""
    try:
        yield
        for process in processes:
            process.wait(30)
    finally:
        for process in processes:
            process.kill()
            process.wait()


# -- what is measured ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ticking() -> Iterator[tuple[facts.NodeFact, Callable[[], None]]]:
    """A node without anything behind it, as it is announced; and what announces a change of it, and waits for that."""
    here = runtime.current()
    node = facts.NodeFact("tick", here.member.id, "", (), "entity", here.member.host, here.member.pid, "Tick")
    here.run(here.replica.announce([node]))
    known = here.facts().node("tick")
    if known is None:
        raise ValueError("what was announced is not there")

    def change() -> None:
        at = ("at", str(time.monotonic_ns()))
        here.run(here.replica.announce([msgspec.structs.replace(known, labels=(at,))]))
    yield known, change
    here.run(here.replica.withdraw([node.key]))


def size(node: facts.NodeFact) -> int:
    """Bytes of a commit that changes it."""
    changed = msgspec.structs.replace(node, labels=(("at", str(time.monotonic_ns())),))
    return len(facts.encode(facts.Commit(facts.Position(facts.Epoch(1, "0" * 16), 1000), 999, (changed,))))


def round_trips(address: str, count: int = 300) -> None:
    """An announcement until it is in the own view, beside a raw message there and back."""
    with ticking() as (node, change), zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        message = bytes(size(node))
        dealer.connect(f"{address}-echo")

        def raw() -> None:
            dealer.send(message)
            dealer.recv()
        candidates = {"raw DEALER/ROUTER": raw, "pyzmp, announced and in the own view": change}
        compare(f"a change of one fact, {len(message)} bytes, there and back", "µs",
                {name: lambda one=one: timeit.timeit(one, number=count) / count * 1e6  # type: ignore[misc]
                 for name, one in candidates.items()})


def lookups(count: int = 100_000) -> None:
    """A lookup in this process, beside a dictionary's."""
    here, plain = runtime.current(), {f"node-{number}": number for number in range(1000)}
    ways: dict[str, Callable[[], object]] = {
        "plain dict": lambda: plain["node-500"],
        "pyzmp, a node": lambda: here.facts().node("adder"),
        "pyzmp, a node's service": lambda: here.facts().provider("adder", "double"),
        "pyzmp, all providers of a service": lambda: here.facts().providers("double"),
        "pyzmp.discover('double')": lambda: pyzmp.discover("double"),
    }
    with Cell("adder"):
        compare("a lookup", "ns", {name: lambda one=one: timeit.timeit(one, number=count) / count * 1e9  # type: ignore[misc]
                                   for name, one in ways.items()}, rounds=5)


async def joining(count: int) -> None:
    """Nodes that come one after the other, and all at once."""
    print(f"{count} entity nodes of one process join")
    for title, together in (("one after the other", False), ("at once", True)):
        cells = [Cell(f"cell-{number}") for number in range(count)]
        began = time.perf_counter()
        if together:
            await asyncio.gather(*(cell.astart(timeout=300) for cell in cells))
        else:
            for cell in cells:
                await cell.astart(timeout=300)
        took = time.perf_counter() - began
        print(f"  {title:20} {took:6.2f} s   {took / count * 1e6:7.1f} µs a node")
        await asyncio.gather(*(cell.ashutdown() for cell in cells))


def first_looks(count: int) -> None:
    """Fresh processes that look at a graph of so many facts for the first time."""
    here = runtime.current()
    nodes = [facts.NodeFact(f"node-{number}", here.member.id, f"{here.member.id}-1", (f"ipc:///run/pyzmp/node-{number}",),
                            "entity", here.member.host, here.member.pid, "Cell") for number in range(count // 2)]
    parts = [facts.ServiceFact(node.name, "double", here.member.id, ("Cell",), "0" * 16, "(value: int) -> int")
             for node in nodes]
    for first in range(0, len(nodes), 500):
        here.run(here.replica.announce([*nodes[first:first + 500], *parts[first:first + 500]]))
    figures = []
    for _ in range(6):
        process = begin("join", count, stdout=subprocess.PIPE)
        said = process.communicate()[0]
        if process.returncode:
            return
        figures.append([float(figure) for figure in said.split()])
    times, memory = zip(*figures[1:], strict=True)
    print(f"the first look of a fresh process at {count} facts: {median(times):.1f} ms (median of {len(times)}, "
          f"{min(times):.1f} to {max(times):.1f}); {median(memory):.0f} bytes of memory a fact in its view")
    here.run(here.replica.withdraw([node.key for node in nodes]))


def attached(address: str, folder: str, count: int, changes: int, seconds: float) -> None:
    """So many processes with a node each: when they see a change, and what all of it costs when nothing happens."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as raw, context.socket(zmq.PULL) as told:
        raw.xpub_verbose = True  # or it tells of the first one alone
        raw.bind(f"{address}-pub")
        told.bind(f"{address}-told")
        told.rcvtimeo = raw.rcvtimeo = 60_000
        processes = [begin("watch", address, number) for number in range(count)]
        with running(processes):
            for _ in processes:
                told.recv()
                raw.recv()  # its subscription
            idle(folder, [process.pid for process in processes], seconds)
            with ticking() as (node, change):
                length = size(node)
                print(f"a change of {length} bytes, seen by {count} processes ({changes} changes, ms)")

                def publish() -> None:
                    raw.send(str(time.monotonic_ns()).rjust(20).encode().ljust(length))

                def seen(one: Callable[[], None]) -> list[list[float]]:
                    for _ in range(changes):
                        time.sleep(APART)
                        one()
                    time.sleep(1)
                    raw.send(b"tell")
                    return [json.loads(told.recv())[-changes:] for _ in processes]
                theirs, ours = (shown(title, seen(one), changes) for title, one in (
                    ("raw PUB/SUB", publish), ("pyzmp", change)))
            print(f"  ratio: each {ours[0] / theirs[0]:.2f}, the last {ours[1] / theirs[1]:.2f}")
            raw.send(b"end")


def shown(title: str, seen: list[list[float]], changes: int) -> tuple[float, float]:
    """Print when each process, and the last one, had seen a change; the medians of both."""
    if {len(one) for one in seen} != {changes}:
        print(f"  {title}: not every process has seen every change: {sorted(map(len, seen))}")
    each = [one for process in seen for one in process]
    last = [max(turn) for turn in zip(*seen, strict=False)]
    print(f"  {title:12} each {median(each):6.2f} (median) {share(each, .99):7.2f} (99th percentile)   "
          f"the last {median(last):6.2f} (median) {share(last, .99):7.2f} (99th percentile)")
    return median(each), median(last)


def idle(folder: str, pids: list[int], seconds: float) -> None:
    """Print the share of a core that the processes and the registry use while nothing happens."""
    registry = next(int(entry.name) for entry in Path("/proc").glob("[0-9]*") if is_registry(entry, folder))
    time.sleep(1)
    before = {pid: spent(pid) for pid in (*pids, registry, os.getpid())}
    time.sleep(seconds)
    used = {pid: (spent(pid) - begun) / seconds * 100 for pid, begun in before.items()}
    each = [used[pid] for pid in pids]
    print(f"idle, {len(pids)} processes attached, percent of a core over {seconds:g} s: a process {median(each):.3f} "
          f"(median; most {max(each):.3f}), the registry {used[registry]:.2f}")


def is_registry(process: Path, folder: str) -> bool:
    with contextlib.suppress(OSError):
        command = (process / "cmdline").read_bytes()
        return b"pyzmp.registry" in command and folder.encode() in command
    return False


def free() -> int:
    """Bytes of memory that are left."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=many(100, 2), help="that see a change")
    parser.add_argument("--changes", type=int, default=many(100, 2), help="that they see")
    parser.add_argument("--facts", type=int, default=many(10_000), help="of the graph that is joined")
    parser.add_argument("--nodes", type=int, default=many(10_000), help="that join")
    parser.add_argument("--seconds", type=float, default=0.5 if QUICK else 10, help="for which all are idle")
    given = parser.parse_args()
    count = min(given.processes, free() // 2 // PROCESS)
    if count < given.processes:
        print(f"the memory that is free is enough for {count} of {given.processes} processes")
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        os.environ["PYZMP_DIR"] = folder
        address = f"ipc://{folder}/raw"
        with Cell("first"):
            server = begin("echo", f"{address}-echo")
            try:
                round_trips(address)
            finally:
                server.kill()
                server.wait()
            lookups()
            asyncio.run(joining(given.nodes))
            first_looks(given.facts)
            attached(address, folder, count, given.changes, given.seconds)
        runtime.reset()


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in ROLES:
        ROLES[sys.argv[1]](*sys.argv[2:])
    else:
        main()
