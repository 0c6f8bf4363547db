from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from pyzmp.exceptions import NodeExists, RegistryUnavailable
from pyzmp.protocol.facts import ParameterFact, Position
from pyzmp.protocol.graph import View
from pyzmp.registry import replica as replicas
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.finder import Inside, Link, OnHost, Place
from pyzmp.registry.replica import Replica
from pyzmp.transport.context import Context
from tests.campaigns.history import SCALE
from tests.registry.known import facts_of, names

Eventually = Callable[..., None]


class World:
    """Replicas on one loop, each as if it were a process."""

    def __init__(self, *, inside: bool = False) -> None:
        self.context = Context()
        self.inside = inside
        self.replicas: list[Replica] = []

    def replica(self, linger: float = 2.0, lease: float = 1.0) -> Replica:
        loop = asyncio.get_running_loop()
        finder = (Inside(self.context, loop) if self.inside
                  else OnHost(self.context, Domain.named("home"), linger=linger, lease=lease))
        self.replicas.append(Replica(loop, this_process(), finder))
        return self.replicas[-1]


@contextlib.asynccontextmanager
async def world(*, inside: bool = False) -> AsyncIterator[World]:
    made = World(inside=inside)
    try:
        yield made
    finally:
        for replica in made.replicas:
            await replica.close()
        made.context.close()


def registry_pid(domain: Path) -> int:
    found = subprocess.run(["pgrep", "-f", f"registry.process.*{domain}"], capture_output=True, text=True, check=True)
    (pid,) = found.stdout.split()
    return int(pid)


OTHER = """
import asyncio, sys
from pyzmp.protocol.facts import NodeFact
from pyzmp.registry.domain import Domain, this_process
from pyzmp.registry.finder import OnHost
from pyzmp.registry.replica import Replica
from pyzmp.transport.context import Context

async def main():
    context = Context()
    finder = OnHost(context, Domain.named("home"), linger=2, lease=1)
    replica = Replica(asyncio.get_running_loop(), this_process(), finder)
    me = replica.member
    await replica.announce([NodeFact(sys.argv[1], me.id, "", (), "process", me.host, me.pid, "m.Other")])
    print("ready", flush=True)
    while line := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        import ctypes
        ctypes.PyDLL(None).sleep(10)  # with the interpreter's lock
        print("held", flush=True)
    await replica.close()
    context.close()

asyncio.run(main())
"""


@contextlib.contextmanager
def another_process(name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, with a node of that name, which leaves in order when its input ends."""
    with subprocess.Popen([sys.executable, "-c", OTHER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(5)


# -- both kinds of registry --------------------------------------------------------------------------------------------

@pytest.fixture(params=[False, True], ids=["own process", "memory"])
def inside(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_what_is_announced_is_in_the_own_view_at_once_and_what_is_withdrawn_is_not(inside: bool) -> None:
    async def run() -> None:
        async with world(inside=inside) as here:
            replica = here.replica()
            position = await replica.announce(facts_of(replica, "kitchen", "x", "y"))
            assert replica.view.reached(position)
            ((node, service),) = replica.view.facts.providers("x")
            assert (node.name, service.name, node.incarnation) == ("kitchen", "x", (1, 2))
            assert replica.following
            await replica.withdraw([("service", "kitchen", "x")])
            assert set(replica.view.facts.services()) == {"y"}
            await replica.withdraw([("node", "kitchen")])
            assert names(replica.view) == set()
            assert replica.view.facts.services() == {}

    asyncio.run(run())


def test_two_nodes_of_one_process_cannot_have_one_name(inside: bool) -> None:
    async def run() -> None:
        async with world(inside=inside) as here:
            replica = here.replica()
            await replica.announce(facts_of(replica, "kitchen"))
            with pytest.raises(NodeExists, match="'kitchen' is already run by pid"):
                await replica.announce(facts_of(replica, "kitchen"))
            await replica.withdraw([("node", "kitchen")])
            await replica.announce(facts_of(replica, "kitchen"))

    asyncio.run(run())


def test_thousands_of_nodes_are_announced_together(inside: bool) -> None:
    async def run() -> None:
        async with world(inside=inside) as here:
            replica = here.replica()
            await asyncio.gather(*(replica.announce(facts_of(replica, f"n{number}", "x")) for number in range(2000)))
            assert len(replica.view.facts.providers("x")) == 2000
            assert replica.view.position is not None
            assert replica.view.position.version < 50

    asyncio.run(run())


def test_closing_ends_who_waits(inside: bool) -> None:
    async def run() -> None:
        async with world(inside=inside) as here:
            replica = here.replica()
            announcing = asyncio.ensure_future(replica.announce(facts_of(replica, "kitchen")))
            await asyncio.sleep(0)
            await replica.close()
            with pytest.raises(RegistryUnavailable, match="closed"):
                await announcing

    asyncio.run(run())


# -- several processes -------------------------------------------------------------------------------------------------

def test_an_observer_starts_nothing_and_finds_what_comes_later(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            observer, member = here.replica(), here.replica()
            assert not await observer.connect(start=False)
            assert os.listdir(domain) == []
            waiting = asyncio.ensure_future(observer.await_until(lambda view: view.facts.node("kitchen"), 5))
            await member.announce(facts_of(member, "kitchen"))
            found = await waiting
            assert found is not None
            assert observer.view.position == member.view.position

    asyncio.run(run())


def test_a_later_look_finds_what_the_first_did_not() -> None:
    async def run() -> None:
        async with world() as here:
            observer, member = here.replica(), here.replica()
            assert not await observer.alook()
            await member.announce(facts_of(member, "kitchen"))
            assert await observer.alook()
            assert names(observer.view) == {"kitchen"}

    asyncio.run(run())


def test_a_name_taken_by_another_process_is_refused_and_both_are_named() -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            with pytest.raises(NodeExists) as caught:
                await replica.announce(facts_of(replica, "kitchen"))
            assert f"run by pid {other.pid} as Other; pid {os.getpid()} as Thermometer" in str(caught.value)
            await replica.announce(facts_of(replica, "hall"))
            assert names(replica.view) == {"kitchen", "hall"}

    with another_process("kitchen") as other:
        asyncio.run(run())


def test_the_facts_of_a_killed_process_go_at_once() -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.connect(start=True)
            assert names(replica.view) == {"kitchen"}
            began = time.monotonic()
            other.kill()
            assert await replica.await_until(lambda view: not names(view), 5)
            assert time.monotonic() - began < 0.5 * SCALE

    with another_process("kitchen") as other:
        asyncio.run(run())


def test_the_facts_of_a_process_that_leaves_are_gone() -> None:
    async def run() -> None:
        async with world() as here:
            one, two = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen"))
            await two.connect(start=False)
            began = time.monotonic()
            await one.close()
            assert await two.await_until(lambda view: not view.facts.all(), 5)
            assert time.monotonic() - began < 0.4  # the lease would take longer

    asyncio.run(run())


def test_a_blocking_wait_wakes_in_its_own_thread_and_gives_up_in_time() -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.connect(start=True)
            loop = asyncio.get_running_loop()
            threads: list[str] = []

            def predicate(view: View) -> set[str]:
                threads.append(threading.current_thread().name)
                return names(view)

            waiting = loop.run_in_executor(None, replica.wait_until, predicate, 5)
            await replica.announce(facts_of(replica, "kitchen"))
            assert await waiting == {"kitchen"}
            assert threading.current_thread().name not in threads
            began = time.monotonic()
            assert not await loop.run_in_executor(None, replica.wait_until, lambda view: view.facts.node("hall"), 0.05)
            assert 0.04 < time.monotonic() - began < 0.5 * SCALE
            assert await loop.run_in_executor(None, replica.look)

    asyncio.run(run())


def test_changes_are_told_until_it_is_ended() -> None:
    async def run() -> None:
        async with world(inside=True) as here:
            replica = here.replica()
            told: list[int] = []
            end = replica.on_change(lambda: told.append(1))
            await replica.announce(facts_of(replica, "kitchen"))
            assert told
            end()
            told.clear()
            await replica.withdraw([("node", "kitchen")])
            assert told == []

    asyncio.run(run())


# -- registries that end -----------------------------------------------------------------------------------------------

def test_a_killed_registry_is_replaced_and_no_view_goes_empty_or_back(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            one, two, observer = here.replica(), here.replica(), here.replica()
            for number, replica in enumerate((one, two)):
                await replica.announce(facts_of(replica, f"mine {number}", "x"))
            await observer.connect(start=False)
            everything = {"mine 0", "mine 1", "theirs"}
            seen: list[set[str]] = []
            highest: dict[Replica, Position] = {}

            def look(replica: Replica) -> None:
                seen.append(names(replica.view))
                position = replica.view.position
                assert position is not None
                assert position >= highest.get(replica, position)
                highest[replica] = position

            incarnations = {node.name: node.incarnation for node in one.view.facts.nodes()}
            for replica in here.replicas:
                await replica.await_until(lambda view: names(view) == everything, 5)
                replica.on_change(lambda replica=replica: look(replica))
            for counter in (2, 3, 4):
                os.kill(registry_pid(domain), signal.SIGKILL)
                for replica in here.replicas:
                    assert await replica.await_until(
                        lambda view, c=counter: view.position is not None and view.position.epoch.counter == c, 10)
                    assert await replica.await_until(lambda view: names(view) == everything, 5)
            assert all(found == everything for found in seen)
            assert {node.name: node.incarnation for node in two.view.facts.nodes()} == incarnations
            await one.announce(facts_of(one, "later"))
            assert await observer.await_until(lambda view: view.facts.node("later"), 5)

    with another_process("theirs"):
        asyncio.run(run())


def test_an_observer_keeps_its_view_while_another_registry_takes_over(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            observer = here.replica()
            await observer.connect(start=False)
            seen: list[set[str]] = []
            observer.on_change(lambda: seen.append(names(observer.view)))
            for counter in (2, 3):
                os.kill(registry_pid(domain), signal.SIGKILL)
                assert await observer.await_until(
                    lambda view, c=counter: view.position is not None and view.position.epoch.counter == c, 20)
                assert await observer.await_until(lambda view: observer.following, 20)
            assert seen
            assert all(found == {"theirs"} for found in seen)

    with another_process("theirs"):
        asyncio.run(run())


def test_a_registry_that_was_stopped_for_longer_than_the_lease_takes_nobody_for_gone(
        domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "SILENCE", 60)

    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.announce(facts_of(replica, "mine"))
            seen: list[set[str]] = []
            replica.on_change(lambda: seen.append(names(replica.view)))
            stopped = registry_pid(domain)
            os.kill(stopped, signal.SIGSTOP)
            try:
                await asyncio.sleep(1.5)  # the lease is 1 s; a stopped process tells nothing that could be waited for
            finally:
                os.kill(stopped, signal.SIGCONT)
            await replica.announce(facts_of(replica, "more"))
            assert replica.view.position is not None
            assert replica.view.position.epoch.counter == 1
            assert names(replica.view) == {"mine", "more"}
            assert all("mine" in found for found in seen)

    asyncio.run(run())


def test_a_process_that_dies_with_the_registry_is_forgotten(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.announce(facts_of(replica, "mine"))
            os.kill(registry_pid(domain), signal.SIGKILL)
            other.kill()
            assert await replica.await_until(lambda view: names(view) == {"mine"} and replica.following, 10)

    with another_process("theirs") as other:
        asyncio.run(run())


def test_when_all_die_an_observer_knows_nothing_any_more(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            observer = here.replica()
            assert await observer.connect(start=False)
            assert names(observer.view) == {"theirs"}
            os.kill(registry_pid(domain), signal.SIGKILL)
            other.kill()
            assert await observer.await_until(lambda view: not names(view), 5)

    with another_process("theirs") as other:
        asyncio.run(run())


def test_what_is_announced_while_no_registry_is_there_waits_for_the_next(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.announce(facts_of(replica, "kitchen"))
            os.kill(registry_pid(domain), signal.SIGKILL)
            position = await replica.announce(facts_of(replica, "hall"))
            await replica.withdraw([("node", "kitchen")])
            assert names(replica.view) == {"hall"}
            assert position.epoch.counter == 2

    asyncio.run(run())


def test_a_registry_that_falls_silent_is_superseded(domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "SILENCE", 1.5)  # three beats

    async def run() -> None:
        async with world() as here:
            one, two = here.replica(), here.replica()
            await one.announce(facts_of(one, "kitchen"))
            stopped = registry_pid(domain)
            os.kill(stopped, signal.SIGSTOP)
            try:
                began = time.monotonic()
                await two.announce(facts_of(two, "hall"))
                assert time.monotonic() - began < 5 * SCALE
                for replica in here.replicas:
                    assert await replica.await_until(lambda view: names(view) == {"kitchen", "hall"}, 5)
            finally:
                os.kill(stopped, signal.SIGCONT)
            ended = asyncio.ensure_future(one.await_until(lambda view: not Path(f"/proc/{stopped}").exists(), 2))
            await one.announce(facts_of(one, "attic"))
            await ended
            assert one.view.position is not None
            assert one.view.position.epoch.counter == 2

    asyncio.run(run())


def test_a_process_that_was_stopped_for_longer_than_its_lease_comes_back() -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.connect(start=True)
            other.send_signal(signal.SIGSTOP)
            assert await replica.await_until(lambda view: not names(view), 10)
            other.send_signal(signal.SIGCONT)
            assert await replica.await_until(lambda view: names(view) == {"theirs"}, 10)

    with another_process("theirs") as other:
        asyncio.run(run())


@pytest.mark.slow
def test_a_process_that_holds_its_interpreter_for_long_is_not_doubted() -> None:
    """Longer than heartbeats wait for an answer, and than the lease: its connection answers from another thread."""
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.connect(start=True)
            holder = replica.view.facts.node("theirs")
            assert holder is not None
            changes: list[set[str]] = []
            replica.on_change(lambda: changes.append(names(replica.view)))
            other.stdin.write("hold\n")  # type: ignore[union-attr]
            other.stdin.flush()  # type: ignore[union-attr]
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, other.stdout.readline) == "held\n"  # type: ignore[union-attr]
            assert changes == []
            assert replica.view.confirmed(holder.owner, time.monotonic()) < 3

    with another_process("theirs") as other:
        asyncio.run(run())


def test_a_directory_that_was_replaced_leads_to_a_higher_epoch(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            await replica.announce(facts_of(replica, "kitchen"))
            os.kill(registry_pid(domain), signal.SIGKILL)
            assert await replica.await_until(
                lambda view: view.position is not None and view.position.epoch.counter == 2, 10)
            (domain / "home").rename(domain / "away")
            assert await replica.await_until(
                lambda view: view.position is not None and view.position.epoch.counter == 3, 10)
            assert names(replica.view) == {"kitchen"}

    asyncio.run(run())


# -- errors ------------------------------------------------------------------------------------------------------------

def test_a_directory_that_is_not_private_is_told_to_members_and_observers(domain: Path) -> None:
    (domain / "home").mkdir(mode=0o755)

    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            with pytest.raises(RegistryUnavailable, match="mode 0755"):
                await replica.connect(start=False)
            with pytest.raises(RegistryUnavailable, match="mode 0755"):
                await replica.announce(facts_of(replica, "kitchen"))
            (domain / "home").chmod(0o700)
            await replica.announce(facts_of(replica, "kitchen"))

    asyncio.run(run())


def test_a_registry_that_does_not_answer_is_told_after_the_timeout(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            first = here.replica()
            await first.connect(start=True)
            stopped = registry_pid(domain)
            os.kill(stopped, signal.SIGSTOP)
            try:
                with pytest.raises(RegistryUnavailable, match=r"within 0\.1 s; looked at .*home"):
                    await here.replica().connect(start=True, timeout=0.1)
                assert not await here.replica().connect(start=False, timeout=0.1)
            finally:
                os.kill(stopped, signal.SIGCONT)

    asyncio.run(run())


def test_a_registry_of_another_domain_is_told_to_who_waits_and_both_are_named() -> None:
    async def run() -> None:
        async with world() as here:
            await here.replica().connect(start=True)
            finder = OnHost(here.context, Domain.named("home"), linger=2)
            stranger = Replica(asyncio.get_running_loop(), this_process(), finder, "work")
            here.replicas.append(stranger)
            with pytest.raises(RegistryUnavailable, match=r"registry-1: .*'home', and this process of 'work'"):
                await stranger.announce(facts_of(stranger, "kitchen"))

    asyncio.run(run())


class Broken:
    """A finder whose registries cannot be followed for a while, because of a mistake."""

    place = "nowhere"
    address, counter = "memory://broken", 0

    def __init__(self, other: Inside, mistakes: int) -> None:
        self.other, self.mistakes = other, mistakes

    async def find(self, above: int, *, start: bool) -> Place | None:
        self.mistakes -= 1
        if self.mistakes > 1:
            raise KeyError("a mistake in finding")
        return self if self.mistakes > 0 else await self.other.find(above, start=start)

    def open(self, hear: object, over: object) -> Link:
        raise KeyError("a mistake in opening")

    def interfaces(self) -> None:
        return None

    def close(self) -> None:
        self.other.close()

    def close_inherited(self) -> None:
        pass


def test_a_mistake_costs_one_attempt_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world(inside=True) as here:
            loop = asyncio.get_running_loop()
            one = Replica(loop, this_process(), Broken(Inside(here.context, loop), 3))
            here.replicas.append(one)
            for said in ("nowhere cannot be followed: KeyError.*finding", "memory://broken cannot be.*opening"):
                with pytest.raises(RegistryUnavailable, match=said):
                    await one.connect(start=True)
            await one.announce(facts_of(one, "kitchen"))

    asyncio.run(run())
    assert "a mistake in opening" in caplog.text


class Absent(Broken):
    async def find(self, above: int, *, start: bool) -> Place | None:
        await asyncio.get_running_loop().create_future()
        return None


def test_who_looks_in_vain_leaves_nothing_and_what_is_announced_has_one_deadline(
        monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with world(inside=True) as here:
            loop = asyncio.get_running_loop()
            one = Replica(loop, this_process(), Absent(Inside(here.context, loop), 0))
            here.replicas.append(one)
            for _ in range(9):
                assert not await one.connect(start=False, timeout=0.001)
            assert len(one._lookers) <= 1
            left: list[float] = []
            clock, wait_for = loop.time, asyncio.wait_for

            async def connects(*, start: bool, timeout: float) -> bool:
                monkeypatch.setattr(loop, "time", lambda: clock() + timeout)  # it takes as long as it may
                return True

            async def waits(future: asyncio.Future[Position], timeout: float) -> Position:
                left.append(timeout)
                return await wait_for(future, timeout)

            monkeypatch.setattr(one, "connect", connects)
            monkeypatch.setattr(asyncio, "wait_for", waits)
            with pytest.raises(RegistryUnavailable, match="within 60 s"):
                await one.announce(facts_of(one, "kitchen"), timeout=60)
            assert left == [0.0]
            monkeypatch.undo()

    asyncio.run(run())


def test_what_was_assigned_while_the_registry_was_lost_is_heard_of_by_the_next(domain: Path) -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            member = replica.member.id
            before = ParameterFact("kitchen", "heat", member, b"old")
            await replica.announce([*facts_of(replica, "kitchen", "x"), before])
            os.kill(registry_pid(domain), signal.SIGSTOP)
            with pytest.raises(RegistryUnavailable):
                await replica.announce([ParameterFact("kitchen", "heat", member, b"new")], timeout=0.05)
            os.kill(registry_pid(domain), signal.SIGKILL)
            assert await replica.await_until(lambda view: replica.following and view.position.epoch.counter == 2, 10)
            heat = replica.view.facts.parameter("kitchen", "heat")
            assert heat is not None
            assert heat.value == b"new"
            assert set(replica.view.facts.services()) == {"x"}

    asyncio.run(run())


# -- those who wait ----------------------------------------------------------------------------------------------------

def test_who_waited_on_a_loop_that_is_closed_keeps_nobody_from_being_told() -> None:
    async def run() -> None:
        async with world(inside=True) as here:
            replica = here.replica()
            await replica.connect(start=True)
            other = asyncio.new_event_loop()

            def wait_and_close() -> None:
                waits.append(other.create_task(replica.await_until(lambda view: None, None)))
                other.run_until_complete(asyncio.sleep(0))
                other.close()

            waits: list[asyncio.Task[None]] = []
            await asyncio.to_thread(wait_and_close)
            waits[0]._log_destroy_pending = False  # type: ignore[attr-defined]
            told: list[int] = []
            replica.on_change(lambda: told.append(1))
            await replica.announce(facts_of(replica, "kitchen"))
            assert told

    asyncio.run(run())


def test_a_callback_that_fails_is_logged_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world(inside=True) as here:
            replica = here.replica()
            told: list[int] = []
            end = replica.on_change(lambda: told[1])
            replica.on_change(lambda: told.append(1))
            await replica.announce(facts_of(replica, "kitchen"))
            assert told
            end()

    with caplog.at_level("ERROR", "pyzmp.registry"):
        asyncio.run(run())
    assert " failed" in caplog.text
    caplog.clear()


def test_closing_ends_who_waits_for_a_change() -> None:
    async def run() -> None:
        async with world(inside=True) as here:
            replica, looks, looked = here.replica(), list[View](), threading.Event()

            def look(view: View) -> None:
                looks.append(view)
                looked.set()

            waiting = [asyncio.create_task(replica.await_until(looks.append, None)),
                       asyncio.create_task(asyncio.to_thread(replica.wait_until, look, None))]
            assert await asyncio.to_thread(looked.wait, 10)
            replica.closed = True  # as the runtime says first
            looks.clear()
            await replica.close()
            assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [None, None]
            assert looks == []

    asyncio.run(run())


def test_who_attends_without_end_has_a_registry_looked_for_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with world() as here:
            replica = here.replica()
            replica._task = asyncio.create_task(asyncio.sleep(0))  # no search but the one below
            monkeypatch.setattr(replicas, "_GLANCE", (0.0, 60.0))
            for endless in (False, True):
                end = replica.attend(lambda: None, endless=endless)
                await asyncio.sleep(0)
                replica._wanted.clear()
                rest = asyncio.create_task(replica._rest(60.0))
                await asyncio.wait([rest], timeout=0.05 if endless else 10)
                assert rest.done() is not endless
                end()
            replica._wanted.set()
            await rest

    asyncio.run(run())
