from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable

import pytest

from pyzmp.protocol.etcd import Json, Layout, Peer
from pyzmp.protocol.facts import Member
from pyzmp.registry import etcd_ring
from pyzmp.registry.domain import Domain
from pyzmp.registry.etcd import Etcd
from pyzmp.transport.context import Context
from tests.registry.etcd_server import Server, text
from tests.registry.etcd_world import SOON, another_process, entries, looks_after, prefix, sees, world
from tests.registry.known import facts_of, names


def test_a_process_that_is_killed_leaves_every_view_and_its_name_is_free(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one = here.replica()
            with another_process(server, "other") as process:
                await one.announce(facts_of(one, "kitchen"))
                await sees(one, "kitchen", "other")
                process.kill()
                began = time.monotonic()
                await sees(one, "kitchen")
                assert time.monotonic() - began < 15  # its lease has 60 s
            with another_process(server, "other") as process:
                await one.close()
                process.kill()  # nobody is left who would see it
            two = here.replica()
            await two.announce(facts_of(two, "other"))
            await sees(two, "other")

    asyncio.run(run())


def test_who_was_taken_for_gone_and_is_not_announces_itself_again(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one, other = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen", "x"))
            await other.announce(facts_of(other, "bath"))
            await sees(other, "kitchen", "bath")
            ((node, _),) = other.view.facts.providers("x")
            lease = next(entry["lease"] for entry in entries(server) if entry["key"] == text(f"{prefix()}node/kitchen"))
            server.post("lease/revoke", {"ID": lease})
            assert await other.await_until(lambda view: "kitchen" not in names(view), SOON)
            await sees(other, "kitchen", "bath")
            assert other.view.facts.providers("x")[0][0] == node  # the same life
            await sees(one, "kitchen", "bath")

    asyncio.run(run())


def test_a_doubt_about_a_member_that_lives_is_contradicted(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one, other = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen"))
            await other.announce(facts_of(other, "bath"))
            seen = set()

            def look() -> None:
                fact = one.view.facts.get(other.member.key)
                seen.add(isinstance(fact, Member) and fact.doubted)

            one.on_change(look)
            await sees(one, "kitchen", "bath")
            finder = one._finder
            assert isinstance(finder, Etcd)
            await finder.ring._doubt(other.member)
            assert await one.await_until(lambda view: seen == {True, False} and not other.view.facts.get(
                other.member.key).doubted, SOON)  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_new_session_knows_whom_there_is_a_way_to(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one, other = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen"))
            await other.announce(facts_of(other, "bath"))
            await looks_after(one, 1)
            assert isinstance(one._finder, Etcd)
            ring = one._finder.ring
            peers = dict(ring._peers)
            ring.rest()
            ring.reset(peers)
            assert [ward.evidence.met for ward in ring._wards.values()] == [True]

    asyncio.run(run())


class Recorder:
    """Takes requests, and answers that there is nothing."""

    endpoint = "nowhere"

    def __init__(self) -> None:
        self.paths: asyncio.Queue[str] = asyncio.Queue()

    async def ask(self, path: str, body: Json, timeout: float) -> Json:
        self.paths.put_nowait(path)
        return {}

    async def watch(self, body: Json, hear: Callable[[Json], None]) -> str:
        return "there is nothing to see"


@pytest.mark.parametrize("greeting", [b"\xff", b""])
def test_who_is_met_no_more_is_doubted_unless_its_sockets_greet(
        greeting: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_ring, "LEASE", 0.2)
    monkeypatch.setattr(etcd_ring, "_GREETING", SOON if greeting else 0.1)
    knocks: asyncio.Queue[None] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(greeting)
            if not await reader.read(64):  # ZeroMQ greets, too
                knocks.put_nowait(None)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def run() -> None:
        place = socket.create_server(("127.0.0.1", 0))  # the system takes connections, whether anybody answers or not
        listener = await asyncio.start_server(take, sock=place) if greeting else place
        context, gateway, domain = Context(), Recorder(), Domain.named(os.environ["PYZMP_DOMAIN"])
        ring = etcd_ring.Ring(context, domain, gateway, Layout(domain.name), list)
        address = f"tcp://127.0.0.1:{place.getsockname()[1]}"
        ward = etcd_ring._Ward(Peer(Member("other", "elsewhere", 1, "boot:1"), (address,)), address, met=True)
        ward.task = asyncio.get_running_loop().create_task(ring._look_after(ward))
        if greeting:
            for _ in range(2):
                await asyncio.wait_for(knocks.get(), SOON)
            assert gateway.paths.empty()
        else:
            assert await asyncio.wait_for(gateway.paths.get(), SOON)  # it is reported
        ward.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # the connections that it had taken end
            await asyncio.wait(others)
        listener.close()  # with nothing taken at this moment, which it would forget
        context.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_process_that_was_stopped_leaves_every_view_and_comes_back(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one = here.replica()
            with another_process(server, "other") as process:
                await one.announce(facts_of(one, "kitchen"))
                await sees(one, "kitchen", "other")
                await looks_after(one, 1)
                process.send_signal(signal.SIGSTOP)
                await sees(one, "kitchen")
                process.send_signal(signal.SIGCONT)
                await sees(one, "kitchen", "other")

    asyncio.run(run())


@pytest.mark.slow
def test_a_process_that_holds_the_gil_for_long_stays_in_every_view(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one = here.replica()
            with another_process(server, "busy", "import ctypes; ctypes.PyDLL(None).sleep(30)") as process:
                await one.announce(facts_of(one, "kitchen"))
                await sees(one, "kitchen", "busy")
                seen = set()

                def look() -> None:
                    seen.add((frozenset(names(one.view)), *(fact.doubted for fact in one.view.facts.all()
                                                            if isinstance(fact, Member))))

                one.on_change(look)
                assert not await one.await_until(lambda view: "busy" not in names(view), 32)
                assert all(known == {"kitchen", "busy"} and not any(doubts) for known, *doubts in seen), seen
                assert process.poll() is None

    asyncio.run(run())
