"""The registry of several hosts, here with all of its members on one."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pyzmp.exceptions import InvalidAddress, RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.registry import keys, reach
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.finder import AtAddress, ByBeacon, OnHost
from pyzmp.registry.replica import Replica
from pyzmp.registry.standing import Standing
from pyzmp.transport.context import Context

ANY = "tcp://127.0.0.1:*"


@pytest.fixture
def home(domain: Path) -> Domain:
    return Domain.named("home")


@asynccontextmanager
async def standing(home: Domain, *binds: str, where: tuple[str, int] | None = None) -> AsyncIterator[list[str]]:
    """A registry that serves, and what it says."""
    said: list[str] = []
    registry = Standing(home, binds or (ANY,), where, said.append)
    serving = asyncio.get_running_loop().create_task(registry.serve())
    try:
        await so(lambda: len(said) > 1 or serving.done())
        yield said
    finally:
        registry.stop()
        await serving


@asynccontextmanager
async def member(home: Domain, finder: Any) -> AsyncIterator[Replica]:
    context = Context(lambda: keys.security(home))
    replica = Replica(asyncio.get_running_loop(), this_process("", context.public_key()), finder(context), home.name)
    try:
        yield replica
    finally:
        await replica.close()
        context.close()


def node(replica: Replica, name: str) -> facts.NodeFact:
    who = replica.member
    return facts.NodeFact(name, who.id, "loop", (), "thread", who.host, who.pid, "Node")


def address(said: list[str]) -> str:
    return said[1].partition("'")[2].rstrip("'")


async def so(condition: Callable[[], object]) -> None:
    over = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < over, "not so after 20 s"
        await asyncio.sleep(0.01)


def test_members_come_from_its_own_host_and_from_others(home: Domain) -> None:
    async def run() -> None:
        async with standing(home) as said:
            assert said[0] == "registry 1 of domain 'home' serves; only programs on this host reach it, with"
            assert address(said).endswith(f"#{keys.export(home)}")
            without = address(said).partition("#")[0]
            async with (member(home, lambda context: OnHost(context, home)) as near,
                        member(home, lambda context: AtAddress(context, home, address(said))) as far,
                        member(home, lambda context: AtAddress(context, home, without)) as own):
                await near.announce([node(near, "lamp")])
                await far.announce([node(far, "far")])
                await own.connect(start=False)
                await so(lambda: len(own.view.facts.nodes()) == 2)
                assert near._finder.interfaces() == []  # it is reached by loopback alone

    asyncio.run(run())
    assert Path(home.path, "registry-1.lock").exists()
    assert not Path(home.path, "registry-1").exists()


def lose(home: Domain) -> None:
    """As if the standing registry had been killed: its lock is free, and nothing was written."""
    counter, lock = home.claim(0)
    reach.note(lock, ["10.0.0.1"])
    lock.release()
    assert home.counters() == [counter]


def test_one_that_is_lost_is_not_replaced_by_members_on_its_host(home: Domain) -> None:
    home.make()
    lose(home)

    async def run() -> None:
        async with member(home, lambda context: OnHost(context, home)) as near:
            with pytest.raises(RegistryUnavailable, match=r"several hosts is gone.*start it again with pyzmp registry"):
                await near.announce([node(near, "lamp")], timeout=0.1)
            assert home.counters() == [1]
            with pytest.raises(InvalidAddress):
                await Standing(home, ["tcp://nowhere.invalid:1"], None, print).serve()
            assert await near._finder.find(0, start=True) is None, "nor where it could not be started again"
            async with standing(home):
                await near.announce([node(near, "lamp")])
                assert near.view.position is not None
                assert near.view.position.epoch.counter == 3
                place = await near._finder.find(3, start=True)  # as after it was stopped for a while
                assert place is not None
                assert place.counter == 3
            await so(lambda: near.following and near.view.position and near.view.position.epoch.counter == 4)

    asyncio.run(run())


def test_it_is_found_by_its_beacon(home: Domain) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]

    async def run() -> None:
        where = "127.255.255.255", port
        async with (standing(home, where=where), member(
                home, lambda context: ByBeacon(context, home, f"{where[0]}:{port}")) as far):
            await far.announce([node(far, "far")])
            assert far._finder.interfaces() == []
            far.close_inherited()

    asyncio.run(run())


def test_one_that_was_superseded_begins_again_at_the_same_port(home: Domain) -> None:
    async def run() -> None:
        async with (standing(home) as said,
                    member(home, lambda context: AtAddress(context, home, address(said))) as far):
            await far.announce([node(far, "far")])
            home.claim(6)[1].release()
            await so(lambda: far.view.position and far.view.position.epoch.counter == 8 and far.following)
            assert far.view.facts.node("far") is not None
            assert len(said) == 2

    asyncio.run(run())


def test_it_outlives_its_directory(home: Domain) -> None:
    async def run() -> None:
        async with (standing(home) as said,
                    member(home, lambda context: AtAddress(context, home, address(said))) as far):
            await far.announce([node(far, "far")])
            shutil.rmtree(home.path)
            await so(lambda: far.view.position and far.view.position.epoch.counter == 2 and far.following)

    asyncio.run(run())


def test_it_begins_above_what_a_member_has_seen(home: Domain) -> None:
    async def run() -> None:
        context = Context(lambda: keys.security(home))
        async with standing(home) as said:
            beats: list[facts.Message] = []
            link = await AtAddress(context, home, address(said)).find(0, start=True)
            over: list[str] = []
            opened = link.open(beats.append, over.append)
            opened.say(facts.Follow(facts.Position(facts.Epoch(41, "another"), 7)))
            await so(lambda: over)
            async with member(home, lambda context: AtAddress(context, home, address(said))) as far:
                await far.connect(start=True)
                assert far.view.position is not None
                assert far.view.position.epoch.counter == 42
        context.close()

    asyncio.run(run())


def test_a_domain_has_one_on_a_host(home: Domain) -> None:
    async def run() -> None:
        async with standing(home):
            with pytest.raises(RegistryUnavailable, match="another registry for several hosts serves 'home'"):
                await Standing(home, [ANY], None, print).serve()

    asyncio.run(run())


@pytest.mark.parametrize("bind", ["ipc:///tmp/x", "memory://x", f"tcp://127.0.0.1:1#{'0' * 40}"])
def test_it_listens_at_tcp_with_the_domains_own_key(home: Domain, bind: str) -> None:
    with pytest.raises(InvalidAddress, match=r"a registry for other hosts listens at tcp://HOST:PORT"):
        Standing(home, [bind], None, print)


def test_a_registry_that_refuses_is_heard_at_once(home: Domain) -> None:
    other = Domain("other", f"{os.path.dirname(home.path)}/other")

    async def run() -> None:
        async with (standing(home) as said,
                    member(other, lambda context: AtAddress(context, other, address(said))) as far):
            with pytest.raises(RegistryUnavailable, match=r"refused: the key .* is not authorised by tcp://127"):
                await far.connect(start=True, timeout=30)
            without = address(said).partition("#")[0]
            async with member(other, lambda context: AtAddress(context, other, without)) as lost:
                with pytest.raises(RegistryUnavailable, match=r"is not the one expected.*none stands behind the addr"):
                    await lost.connect(start=True, timeout=30)

    asyncio.run(run())


def test_one_of_another_domain_is_named_with_ours(home: Domain) -> None:
    other = Domain("other", f"{os.path.dirname(home.path)}/other")

    async def run() -> None:
        async with standing(home) as said:
            keys.authorise(home, "other", keys.export(other))
            async with member(other, lambda context: AtAddress(context, other, address(said))) as far:
                with pytest.raises(RegistryUnavailable, match="of the domain 'home', and this process of 'other'"):
                    await far.connect(start=True, timeout=30)

    asyncio.run(run())


def test_one_that_cannot_be_reached_is_named_after_the_timeout(home: Domain) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{closed.getsockname()[1]}"

    async def run() -> None:
        async with member(home, lambda context: AtAddress(context, home, where)) as far:
            with pytest.raises(RegistryUnavailable, match=f"within 0.3 s; looked at {where} .*nobody listens there"):
                await far.connect(start=True, timeout=0.3)
            assert not await far.connect(start=False, timeout=0.1)
        async with member(home, lambda context: ByBeacon(context, home, "127.255.255.255:1024")) as far:
            with pytest.raises(RegistryUnavailable, match=r"looked at the beacons of domain 'home' at UDP port 1024"):
                await far.announce([node(far, "far")], timeout=0.3)

    asyncio.run(run())
    assert home.counters() == []  # nobody starts one of his own


def test_one_that_is_lost_leaves_the_last_view_and_is_followed_again(home: Domain) -> None:
    async def run() -> None:
        async with standing(home) as said:
            where = address(said)
            far = member(home, lambda context: AtAddress(context, home, where))
            replica = await far.__aenter__()
            await replica.announce([node(replica, "far")])
        await so(lambda: not replica.following)
        assert replica.view.facts.node("far") is not None
        assert replica.stale_since is not None
        async with standing(home, where.partition("#")[0]):
            await so(lambda: replica.following)
            assert replica.view.facts.node("far") is not None
            await far.__aexit__(None, None, None)

    asyncio.run(run())
