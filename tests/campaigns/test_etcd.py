"""Three members of etcd while nodes come and go: nothing is lost when the leading one is killed or stopped.

A member that was stopped is worse than one that is dead: its connections stand, and nobody answers.
"""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.registry.etcd_server import Server, running
from tests.registry.etcd_world import world
from tests.registry.known import facts_of, names

ROUNDS = 5
PROCESSES = 4
SOON = 40.0

MEMBER = """
import asyncio, os, sys
from pyzmp.exceptions import RegistryUnavailable
from pyzmp.protocol.facts import NodeFact, ServiceFact
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.etcd import Etcd
from pyzmp.registry.replica import Replica
from pyzmp.transport.context import Context

async def main():
    context = Context()
    domain = Domain.named(os.environ["PYZMP_DOMAIN"])
    replica = Replica(asyncio.get_running_loop(), this_process(), Etcd(context, domain, sys.argv[1]), domain.name)
    me, number = replica.member, 0
    node = lambda name: NodeFact(name, me.id, "", (), "process", me.host, me.pid, "m.Other")
    await replica.announce([node(f"{sys.argv[2]}-stays"), ServiceFact(f"{sys.argv[2]}-stays", "s", me.id)])
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    while not ended.done():
        number += 1
        await replica.announce([node(f"{sys.argv[2]}-{number}")], timeout=30)
        print("+", number, flush=True)
        if number > 3:
            await replica.withdraw([("node", f"{sys.argv[2]}-{number - 3}")], timeout=30)
            print("-", number - 3, flush=True)
        await asyncio.wait([ended], timeout=0.02)
    print("end", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await replica.close()
    context.close()

asyncio.run(main())
"""


def leader(servers: list[Server]) -> Server:
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        for server in servers:
            if server.leads():
                return server
    pytest.fail("no member leads")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_nothing_is_lost_when_the_leading_member_is(how: str, chance: random.Random) -> None:
    with running(3) as servers, ExitStack() as stack:
        registry = f"etcd://{','.join(server.place for server in servers)}"
        members = [stack.enter_context(subprocess.Popen(
            [sys.executable, "-c", MEMBER, registry, f"p{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=Path(__file__).parents[2])) for number in range(PROCESSES)]
        gaps = asyncio.run(watched(servers, members, chance, how))
    joined = gaps[-1][0]
    print(f"{ROUNDS} leaders {how}, {joined} joins; seconds until another join is seen: median "
          f"{statistics.median(found[1] for found in gaps):.2f}, worst {max(found[1] for found in gaps):.2f}")


def stopped(process: subprocess.Popen[str], name: str) -> set[str]:
    """Have a member come to rest; the nodes that it says it has by then."""
    assert process.stdin is not None
    assert process.stdout is not None
    print("stop", file=process.stdin, flush=True)
    there: set[str] = set()
    for line in process.stdout:
        if line == "end\n":
            return there
        sign, number = line.split()
        (there.add if sign == "+" else there.discard)(f"{name}-{number}")
    pytest.fail(f"{name} ended")


async def watched(servers: list[Server], members: list[subprocess.Popen[str]],
                  chance: random.Random, how: str) -> list[tuple[int, float]]:
    """Kill or stop leaders, and see that what stays is in the view throughout; joins so far and each round's gap."""
    staying = {f"p{number}-stays" for number in range(PROCESSES)}
    found = []
    async with world(*(server.place for server in servers)) as here:
        view = here.replica()
        await view.announce(facts_of(view, "watcher"), timeout=SOON)
        assert await view.await_until(lambda view: staying <= names(view), SOON)
        positions = [view.view.position]
        lost: list[set[str]] = []

        ever: set[str] = set()

        def look() -> None:
            ever.update(names(view.view))
            lost.append(staying - names(view.view))
            positions.append(view.view.position)

        view.on_change(look)
        for _ in range(ROUNDS):
            some = len(ever) + PROCESSES
            assert await view.await_until(lambda view, some=some: len(ever) > some, SOON)
            await asyncio.sleep(chance.uniform(0, 0.3))  # at a moment that nobody chose
            dead = await asyncio.to_thread(leader, servers)
            dead.kill() if how == "killed" else dead.signal(signal.SIGSTOP)
            began, some = time.monotonic(), len(ever) + PROCESSES  # each may have one on its way
            assert await view.await_until(lambda view, some=some: len(ever) > some, SOON)
            found.append((len(ever), time.monotonic() - began))
            dead.start() if how == "killed" else dead.signal(signal.SIGCONT)
            await asyncio.to_thread(dead.wait)
        left = set().union(*await asyncio.gather(*(
            asyncio.to_thread(stopped, process, f"p{number}") for number, process in enumerate(members))))
        assert await view.await_until(lambda view: names(view) == {"watcher"} | staying | left, SOON), names(view.view)
        assert not any(lost), lost
        lost.clear()
        for process in members:
            assert process.stdin is not None
            process.stdin.close()
        assert await view.await_until(lambda view: names(view) == {"watcher"}, SOON), names(view.view)
        assert await view.await_until(lambda _: view.following, SOON)
        assert positions == sorted(positions, key=lambda position: position.version)  # type: ignore[union-attr, arg-type, return-value]
        assert len({position.epoch for position in positions}) == 1  # type: ignore[union-attr]
    return found
