from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry import finder as finders
from pyzmp.registry.domain import Domain
from pyzmp.registry.finder import Inside, OnHost, Place
from pyzmp.transport.context import Context
from pyzmp.transport.security import Keys


@pytest.fixture
def home(domain: Path) -> Domain:
    return Domain.named("home")


def on_host(home: Domain, *, linger: float = 3.0) -> OnHost:
    return OnHost(Context(), home, linger=linger)


def address_of(place: Place | None) -> str:
    return place.address if place is not None else ""


def test_who_only_looks_starts_nothing_and_makes_nothing(home: Domain) -> None:
    assert asyncio.run(on_host(home).find(0, start=False)) is None
    assert not Path(home.path).exists()


def test_a_registry_is_started_once_for_all_who_ask_at_once(home: Domain) -> None:
    async def run() -> list[Place | None]:
        return await asyncio.gather(*(on_host(home, linger=0.2).find(0, start=True) for _ in range(5)))

    assert {address_of(place) for place in asyncio.run(run())} == {home.registry(1)}
    assert home.counters() == [1]


def test_one_that_is_there_is_found(home: Domain) -> None:
    async def run() -> None:
        one = await on_host(home, linger=0.2).find(0, start=True)
        assert address_of(await on_host(home).find(0, start=False)) == address_of(one)
        assert await on_host(home).find(1, start=False) is None

    asyncio.run(run())


def test_one_above_another_is_started_though_that_lives(home: Domain) -> None:
    async def run() -> None:
        found = on_host(home, linger=0.2)
        assert address_of(await found.find(0, start=True)) == home.registry(1)
        assert address_of(await found.find(1, start=True)) == home.registry(2)

    asyncio.run(run())


def test_a_stuck_starter_holds_nobody_up_for_long(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    home.make()
    stuck = home.start_lock()
    assert stuck is not None
    monkeypatch.setattr(finders, "COURTESY", 0.1)
    assert address_of(asyncio.run(on_host(home, linger=0.2).find(0, start=True))) == home.registry(1)
    stuck.release()


def test_an_interpreter_that_cannot_run_is_told(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(RegistryUnavailable, match=r"could not be started.*nonexistent"):
        asyncio.run(on_host(home).find(0, start=True))


def test_a_registry_that_dies_while_it_starts_is_told_with_its_last_words(
        home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyzmp.registry.domain._BOOT", "raise SystemExit('no room in the house')")
    with pytest.raises(RegistryUnavailable, match="failed to start: no room in the house"):
        asyncio.run(on_host(home).find(0, start=True))


def in_a_forked_child(body: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(body())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def closes(finding: OnHost, pipe: int) -> int:
    """0 where the pipe and the lock of the parent are closed afterwards."""
    finding.close_inherited()
    with contextlib.suppress(OSError):
        os.fstat(pipe)
        return 1
    return 2 if finding._lock is None or finding._lock.descriptor >= 0 else 0


def test_a_forked_child_closes_what_is_its_parents(home: Domain) -> None:
    async def run() -> None:
        finding = on_host(home, linger=0.2)
        task = asyncio.create_task(finding.find(0, start=True))
        await asyncio.sleep(0)  # as far as its first wait, for the registry to be ready
        assert finding._starting is not None
        pipe = finding._starting.pipe
        assert in_a_forked_child(lambda: closes(finding, pipe)) == 0
        await task

    asyncio.run(run())


def test_inside_this_process_there_is_always_one() -> None:
    async def run() -> None:
        context = Context()
        finder = Inside(context, asyncio.get_running_loop())
        address = address_of(await finder.find(0, start=False))
        assert address.startswith("memory://")
        assert address.endswith("-1")
        assert address_of(await finder.find(0, start=True)) == address
        finder.close_inherited()
        finder.close()
        context.close()

    asyncio.run(run())


def test_what_finds_a_registry_is_told_by_its_name(home: Domain) -> None:
    async def run() -> list[str]:
        context, loop = Context(), asyncio.get_running_loop()
        names = ["", "tcp://10.0.0.1:4242", "beacon", "beacon://10.0.0.255:5000"]
        found: list[finders.Finder] = [finders.finder_for(finders.check_registry(name), context, home, loop)
                                       for name in names]
        found.append(finders.finder_for("memory", context, None, loop))
        for finder in found:
            finder.close()
        return [f"{type(finder).__name__} {finder.place}" for finder in found]

    on_host, at_address, beacon, other, inside = asyncio.run(run())
    assert on_host == f"OnHost {home.path}"
    assert at_address == "AtAddress tcp://10.0.0.1:4242"
    assert beacon == ("ByBeacon the beacons of domain 'home' at UDP port 4243, where those of none that is let in here "
                      "were heard and 0 others dropped")
    assert "port 5000" in other
    assert inside == "Inside this process"


@pytest.mark.parametrize("text", ["paper", "tcp://10.0.0.1", "tcp://*:4242", "tcp://10.0.0.1:*", "etcd://", "etcd",
                                  "memory://x", "beacon://kitchen", "ipc:///tmp/x", "tcp://10.0.0.1:1#key",
                                  f"tcp://{'h' * 70}:4242", "tcp://attic..house:4242"])
def test_a_name_of_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^registry: .* names none: "):
        finders.check_registry(text)


def test_the_error_shows_no_password() -> None:
    with pytest.raises(ValueError, match="registry: 'etcd://…@db:x' names none") as caught:
        finders.check_registry("etcd://ann:p@ss//word@db:x")
    assert "word" not in str(caught.value)


def test_a_registry_is_named_by_a_text() -> None:
    with pytest.raises(TypeError, match="registry: expected a text, got 3"):
        finders.check_registry(3)


def test_the_name_of_a_registrys_host_is_looked_up_beside_the_loop(
        home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def looks_up(registry: str) -> list[str]:
        threads.append(threading.current_thread())
        return ["10.0.0.7"]

    monkeypatch.setattr("pyzmp.registry.reach.interfaces", looks_up)
    found = finders.AtAddress(Context(), home, f"tcp://attic:1#{Keys.make().public}")
    assert found.interfaces() == []
    asyncio.run(found.find(0, start=False))
    assert threads
    assert threading.main_thread() not in threads
    assert found.interfaces() == found.interfaces() == ["10.0.0.7"]
    assert len(threads) == 1


def test_who_follows_a_registry_elsewhere_removes_what_killed_nodes_of_this_host_have_left(home: Domain) -> None:
    home.make()
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
        for name, made in (("node-dead", dead), ("node-living", living)):
            made.bind(f"{home.path}/{name}")
            os.utime(f"{home.path}/{name}", (1, 1))
        living.listen()
        dead.close()
        found = finders.AtAddress(Context(), home, f"tcp://127.0.0.1:1#{Keys.make().public}")
        assert asyncio.run(found.find(0, start=True)) is not None
        assert {path.name for path in Path(home.path).glob("node-*")} == {"node-living"}
    os.unlink(f"{home.path}/node-living")
