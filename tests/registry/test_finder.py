from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
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
    with pytest.raises(RegistryUnavailable, match=r"could not be started.*nonexistent"):
        asyncio.run(OnHost(home).find(0, start=True))


def test_a_registry_that_dies_while_it_starts_is_told_with_its_last_words(
        home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyzmp.registry.domain._BOOT", "raise SystemExit('no room in the house')")
    with pytest.raises(RegistryUnavailable, match="failed to start: no room in the house"):
        asyncio.run(OnHost(home).find(0, start=True))


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
        finding = OnHost(home, linger=0.2)
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
        address = await finder.find(0, start=False)
        assert address is not None
        assert address.startswith("memory://")
        assert address.endswith("-1")
        assert await finder.find(0, start=True) == address
        finder.close_inherited()
        finder.close()
        context.close()

    asyncio.run(run())
