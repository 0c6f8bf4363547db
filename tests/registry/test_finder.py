from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry import finder as finders
from pyzmp.registry.domain import Domain
from pyzmp.registry.finder import Inside, OnHost
from pyzmp.transport.context import Context


@pytest.fixture
def home(domain: Path) -> Domain:
    return Domain.named("home")


def test_who_only_looks_starts_nothing_and_makes_nothing(home: Domain) -> None:
    assert asyncio.run(OnHost(home).find(0, start=False)) is None
    assert not Path(home.path).exists()


def test_a_registry_is_started_once_for_all_who_ask_at_once(home: Domain) -> None:
    async def run() -> list[str | None]:
        return await asyncio.gather(*(OnHost(home, linger=0.2).find(0, start=True) for _ in range(5)))

    assert set(asyncio.run(run())) == {home.registry(1)}
    assert home.counters() == [1]


def test_one_that_is_there_is_found(home: Domain) -> None:
    async def run() -> None:
        one = await OnHost(home, linger=0.2).find(0, start=True)
        assert await OnHost(home).find(0, start=False) == one
        assert await OnHost(home).find(1, start=False) is None

    asyncio.run(run())


def test_one_above_another_is_started_though_that_lives(home: Domain) -> None:
    async def run() -> None:
        found = OnHost(home, linger=0.2)
        assert await found.find(0, start=True) == home.registry(1)
        assert await found.find(1, start=True) == home.registry(2)

    asyncio.run(run())


def test_a_stuck_starter_holds_nobody_up_for_long(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    home.make()
    stuck = home.start_lock()
    assert stuck is not None
    monkeypatch.setattr(finders, "COURTESY", 0.1)
    assert asyncio.run(OnHost(home, linger=0.2).find(0, start=True)) == home.registry(1)
    stuck.release()


def test_an_interpreter_that_cannot_run_is_told(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(RegistryUnavailable, match="could not be started.*nonexistent"):
        asyncio.run(OnHost(home).find(0, start=True))


def test_a_registry_that_dies_while_it_starts_is_told_with_its_last_words(
        home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyzmp.registry.domain._BOOT", "raise SystemExit('no room in the house')")
    with pytest.raises(RegistryUnavailable, match="failed to start: no room in the house"):
        asyncio.run(OnHost(home).find(0, start=True))


def test_a_forked_child_closes_what_is_its_parents(home: Domain) -> None:
    async def run() -> None:
        finding = OnHost(home, linger=0.2)
        task = asyncio.create_task(finding.find(0, start=True))
        while finding._starting is None:
            await asyncio.sleep(0)
        pipe = finding._starting.pipe
        child = os.fork()
        if child == 0:
            finding.close_inherited()
            try:
                os.fstat(pipe)
            except OSError:
                os._exit(0 if finding._lock is None or finding._lock.descriptor < 0 else 2)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        await task

    asyncio.run(run())


def test_inside_this_process_there_is_always_one() -> None:
    async def run() -> None:
        context = Context()
        finder = Inside(context, asyncio.get_running_loop())
        address = await finder.find(0, start=False)
        assert address is not None
        assert address.startswith("memory://")
        assert address.endswith("-1")
        assert await finder.find(0, start=True) == address
        finder.close_inherited()
        finder.close()
        context.close()

    asyncio.run(run())
