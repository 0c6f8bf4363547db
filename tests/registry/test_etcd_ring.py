from __future__ import annotations

import asyncio
import signal
import time

import pytest

from pyzmp.protocol.facts import Member
from pyzmp.registry.etcd import Etcd
from tests.registry.etcd_server import Server, text
from tests.registry.etcd_world import SOON, another_process, entries, facts_of, names, prefix, sees, world


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


@pytest.mark.slow
def test_a_process_that_was_stopped_leaves_every_view_and_comes_back(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one = here.replica()
            with another_process(server, "other") as process:
                await one.announce(facts_of(one, "kitchen"))
                await sees(one, "kitchen", "other")
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
