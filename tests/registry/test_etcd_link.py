from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time

import msgspec
import pytest

from pyzmp.exceptions import NodeExists, RegistryUnavailable
from pyzmp.protocol.etcd import Peer, text64
from pyzmp.protocol.facts import Member
from pyzmp.registry import etcd_link
from pyzmp.registry.etcd_link import EtcdLink
from tests.registry.etcd_server import Server, text, wire
from tests.registry.etcd_world import SOON, entries, prefix, sees, world
from tests.registry.known import facts_of, names


def test_what_is_announced_is_in_every_view_and_what_is_withdrawn_or_left_in_none(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one, other, observer = here.replica(), here.replica(), here.replica()
            assert not await observer.connect(start=False, timeout=SOON)  # nobody has begun, and it does not
            position = await one.announce(facts_of(one, "kitchen", "x", "y"))
            assert one.view.reached(position)
            later = await other.announce(facts_of(other, "bath", "x"))
            assert await observer.connect(start=False, timeout=SOON)
            assert observer.view.reached(position)
            assert observer.view.reached(later)
            await sees(one, "kitchen", "bath")
            assert len(one.view.facts.providers("x")) == 2
            nodes = {node.name: node.incarnation for node in one.view.facts.nodes()}
            assert nodes == {"kitchen": (1, position.version), "bath": (1, later.version)}
            assert nodes == {node.name: node.incarnation for node in observer.view.facts.nodes()}
            await one.withdraw([("service", "kitchen", "x")])
            assert {fact.name for fact in one.view.facts.services_of("kitchen")} == {"y"}
            await one.withdraw([("node", "kitchen")])
            assert set(one.view.facts.services()) == {"x"}
            await sees(observer, "bath")
            await other.close()
            await sees(observer)
            assert [fact.key for fact in one.view.facts.all()] == [("member", one.member.id)]
            await one.close()
        assert [entry["key"] for entry in entries(server)] == [text(f"{prefix()}epoch")]  # and nothing else is left

    asyncio.run(run())


def test_a_name_that_is_taken_is_refused_and_both_owners_are_named(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one, other = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen", "x"))
            results = await asyncio.gather(other.announce(facts_of(other, "kitchen")),
                                           other.announce(facts_of(other, "bath")), return_exceptions=True)
            assert isinstance(results[0], NodeExists)
            assert str(results[0]).count(f"pid {os.getpid()} as Thermometer") == 2
            await sees(one, "kitchen", "bath")  # what was asked for together is decided one by one
            asked = [replica.announce(facts_of(replica, f"race-{number}"))
                     for number in range(20) for replica in (one, other)]
            raced = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(result, NodeExists) for result in raced) == 20
            assert all(isinstance(result, NodeExists | tuple) for result in raced)

    asyncio.run(run())


def test_much_is_announced_in_transactions_that_etcd_takes(server: Server) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one, other = here.replica(), here.replica()
            await one.announce(facts_of(one, "large", *(f"s{number}" for number in range(500))))
            asked = [one.announce(facts_of(one, f"n{number}", "x", "y")) for number in range(1000)]
            await asyncio.gather(*asked)
            await other.connect(start=False, timeout=SOON)
            assert len(other.view.facts.nodes()) == 1001
            assert len(other.view.facts.providers("y")) == 1000
            assert len(other.view.facts.services_of("large")) == 500
            await one.close()
            await sees(other)

    asyncio.run(run())


def test_what_is_no_fact_is_dropped_and_named(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one = here.replica()
            server.post("kv/put", {"key": text(f"{prefix()}node/a"), "value": text("nonsense")})
            await one.announce(facts_of(one, "kitchen"))
            server.post("kv/put", {"key": text(f"{prefix()}what"), "value": text("nonsense")})
            server.post("kv/put", {"key": text(f"{prefix()}node/kitchen2"), "value": text("nonsense")})
            await one.announce(facts_of(one, "bath"))
            await sees(one, "kitchen", "bath")
            await one.announce(facts_of(one, "a"))  # the name is nobody's
            await sees(one, "kitchen", "bath", "a")

    with caplog.at_level(logging.WARNING, "pyzmp.registry"):
        asyncio.run(run())
    said = [record.getMessage() for record in caplog.records]
    assert any(f"{prefix()}what" in line for line in said), said
    server.post("kv/deleterange", {"key": text(prefix()), "range_end": text(f"{prefix()[:-1]}0")})


@pytest.mark.parametrize("address", ["nonsense", "tcp://192.0.2.1:*"])
def test_a_peer_whose_addresses_are_none_is_dropped_and_named(
        server: Server, address: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world(server.place) as here:
            one, other = here.replica(), here.replica()
            for number, replica in enumerate((one, other)):
                peer = Peer(Member(f"other{number}", f"host{number}", 1, "boot:1"), (address,))
                server.post("kv/put", {"key": text(f"{prefix()}peer/other{number}"),
                                       "value": text64(msgspec.msgpack.encode(peer))})
                await replica.announce(facts_of(replica, f"n{number}"))
            await other.announce(facts_of(other, "later"))
            for replica in (one, other):
                await sees(replica, "n0", "n1", "later")

    with caplog.at_level(logging.WARNING, "pyzmp.registry"):
        asyncio.run(run())
    assert {number for number in "01" for line in caplog.messages if f"no peer, dropped: member other{number}" in line
            } == {"0", "1"}


def test_a_watch_that_goes_silent_is_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_link, "BEAT", 0.05)

    async def run() -> None:
        async with wire(server) as cable, world(server.place) as here:
            one, far = here.replica(), here.replica(f"etcd://{cable.place}")
            await one.announce(facts_of(one, "kitchen"))
            await far.connect(start=False, timeout=SOON)
            await sees(far, "kitchen")
            cable.hush()
            await one.announce(facts_of(one, "bath"))
            await sees(far, "kitchen", "bath")
            cable.hush()
            await one.withdraw([("node", "kitchen")])
            await sees(far, "bath")

    asyncio.run(run())


def test_what_others_write_beside_the_domain_is_no_silence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_link, "BEAT", 0.05)

    async def run() -> None:
        async with world(server.place) as here:
            one = here.replica()
            await one.announce(facts_of(one, "kitchen"))
            link = one._link
            assert isinstance(link, EtcdLink)
            put = server.post("kv/put", {"key": text("/elsewhere"), "value": text("x")})
            over = time.monotonic() + SOON
            while link._checked < int(put["header"]["revision"]):
                assert time.monotonic() < over
                await asyncio.sleep(0.01)
            assert one._link is link

    asyncio.run(run())


def test_views_go_on_while_etcd_is_down_and_after_it_came_back(own: Server) -> None:
    async def run() -> None:
        async with world(own.place) as here:
            one, other = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen", "x"))
            await other.announce(facts_of(other, "bath"))
            await sees(one, "kitchen", "bath")
            before = one.view.position
            assert before is not None
            own.kill()
            assert await one.await_until(lambda view: one.stale_since is not None, SOON)
            assert names(one.view) == {"kitchen", "bath"}
            late = asyncio.ensure_future(one.announce(facts_of(one, "late"), timeout=1.0))
            with pytest.raises(RegistryUnavailable, match=own.place):
                await late
            assert await other.await_until(lambda view: other.stale_since is not None, SOON)
            own.start()
            await sees(one, "kitchen", "bath")
            await sees(other, "kitchen", "bath")
            assert one.view.position is not None
            assert one.view.position.epoch == before.epoch
            await one.announce(facts_of(one, "late"))
            await sees(other, "kitchen", "bath", "late")

    asyncio.run(run())


def test_what_etcd_has_compacted_is_a_new_epoch_that_all_agree_on(server: Server) -> None:
    async def run() -> None:
        async with wire(server) as cable, world(server.place) as here:
            one, cut = here.replica(), here.replica(f"etcd://{cable.place}")
            await one.announce(facts_of(one, "kitchen"))
            await cut.announce(facts_of(cut, "bath"))
            await sees(cut, "kitchen", "bath")
            before = cut.view.position
            await cable.cut()
            assert await cut.await_until(lambda view: cut.stale_since is not None, SOON)
            position = await one.announce(facts_of(one, "later"))
            await one.announce(facts_of(one, "latest"))
            server.post("kv/compaction", {"revision": position.version + 1})
            await cable.mend()
            await sees(cut, "kitchen", "bath", "later", "latest")
            await sees(one, "kitchen", "bath", "later", "latest")
            assert await one.await_until(lambda view: view.position.epoch == cut.view.position.epoch, SOON)  # type: ignore[union-attr]
            assert cut.view.position is not None
            assert before is not None
            assert cut.view.position.epoch.counter == before.epoch.counter + 1
            assert one.view.reached(position)
            assert one.view.reached(await cut.announce(facts_of(cut, "x"))) or await one.await_until(
                lambda view: "x" in names(view), SOON)

    asyncio.run(run())


@pytest.mark.parametrize("lost", ["all", pytest.param("what came last", marks=pytest.mark.slow)])
def test_a_cluster_that_lost_its_data_is_a_new_epoch_and_no_view_loses_the_living(own: Server, lost: str) -> None:
    async def run() -> None:
        async with world(own.place) as here:
            one, other = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen", "x"))
            copy = own.folder / "copy"
            own.kill()
            shutil.copytree(own.data, copy)
            own.start()
            await other.announce(facts_of(other, "bath"))
            await sees(one, "kitchen", "bath")
            await sees(other, "kitchen", "bath")
            before = one.view.position
            assert before is not None
            seen = []
            one.on_change(lambda: seen.append(names(one.view)))
            own.kill()
            shutil.rmtree(own.data)
            if lost != "all":
                copy.rename(own.data)
            own.start()
            for replica in (one, other):
                assert await replica.await_until(
                    lambda view: view.position is not None and view.position.epoch.counter > before.epoch.counter, SOON)
                await sees(replica, "kitchen", "bath")
            assert seen
            assert all(known == {"kitchen", "bath"} for known in seen)
            assert one.view.position is not None
            assert other.view.position is not None
            assert one.view.position.epoch == other.view.position.epoch

    asyncio.run(run())
