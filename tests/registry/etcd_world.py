"""Replicas that follow etcd, for the tests of what is behind them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from pyzmp.protocol.graph import View
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.etcd import Etcd
from pyzmp.registry.replica import Replica
from pyzmp.transport.context import Context
from tests.registry.etcd_server import Server, text
from tests.registry.known import names

SOON = 20.0  # seconds for what takes much less; a loaded machine may take its time


class World:
    """Replicas on one loop, each as if it were a process."""

    def __init__(self, registry: str) -> None:
        self.context, self.registry = Context(), registry
        self.replicas: list[Replica] = []

    def replica(self, registry: str | None = None, context: Context | None = None) -> Replica:
        domain = Domain.named(os.environ["PYZMP_DOMAIN"])
        finder = Etcd(context or self.context, domain, registry or self.registry)
        made = Replica(asyncio.get_running_loop(), this_process(), finder, domain.name)
        self.replicas.append(made)
        return made


@contextlib.asynccontextmanager
async def world(*places: str) -> AsyncIterator[World]:
    made = World(f"etcd://{','.join(places)}")
    try:
        yield made
    finally:
        for replica in made.replicas:
            await replica.close()
        made.context.close()


async def sees(replica: Replica, *expected: str) -> None:
    def there(view: View) -> bool:
        return names(view) == set(expected) and replica.following

    assert await replica.await_until(there, SOON), (names(replica.view), replica.following)


async def looks_after(replica: Replica, count: int) -> None:
    """Wait until it has connections to as many others."""
    over = time.monotonic() + SOON
    assert isinstance(replica._finder, Etcd)
    while sum(ward.evidence.met for ward in replica._finder.ring._wards.values()) < count:
        assert time.monotonic() < over
        await asyncio.sleep(0.01)


def prefix() -> str:
    return f"/pyzmp/{os.environ['PYZMP_DOMAIN']}/"


def entries(server: Server) -> list[dict[str, str]]:
    found = server.post("kv/range", {"key": text(prefix()), "range_end": text(f"{prefix()[:-1]}0")}).get("kvs", [])
    assert isinstance(found, list)
    return found


OTHER = """
import asyncio, os, sys
from pyzmp.protocol.facts import NodeFact
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.etcd import Etcd
from pyzmp.registry.replica import Replica
from pyzmp.transport.context import Context

async def main():
    context = Context()
    domain = Domain.named(os.environ["PYZMP_DOMAIN"])
    replica = Replica(asyncio.get_running_loop(), this_process(), Etcd(context, domain, sys.argv[1]), domain.name)
    me = replica.member
    await replica.announce([NodeFact(sys.argv[2], me.id, "", (), "process", me.host, me.pid, "m.Other")])
    print("ready", flush=True)
    exec(sys.argv[3])
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await replica.close()
    context.close()

asyncio.run(main())
"""


@contextlib.contextmanager
def another_process(server: Server, name: str, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process, with a node of that name, which does *then* and leaves in order when its input ends."""
    with subprocess.Popen([sys.executable, "-c", OTHER, f"etcd://{server.place}", name, then], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
