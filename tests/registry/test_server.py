from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pyzmp.protocol import facts
from pyzmp.protocol.envelope import Cancel, Hello, Note, Parcel
from pyzmp.protocol.facts import Beat, Change, Commit, Epoch, Member, NodeFact, Settled, Snapshot
from pyzmp.registry.domain import BEAT, Domain, this_process
from pyzmp.registry.server import Registry
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from tests.campaigns.history import SCALE

Eventually = Callable[..., None]


def node(name: str, owner: Member) -> NodeFact:
    return NodeFact(name, owner.id, "", (), "process", owner.host, owner.pid, "m.Thermometer")


class Follower:
    """A session with a registry, and all that came through it."""

    def __init__(self, context: Context, address: str) -> None:
        self.member = this_process()
        self.came: list[facts.Message] = []
        self.ended: list[str] = []
        self.news = asyncio.Event()
        self.session = Session(context, address, Hello(session_id(), self.member.id), on_parcel=self._take,
                               on_end=self._end)
        self.session.attach(asyncio.get_running_loop())

    def _take(self, parcel: Parcel) -> None:
        assert isinstance(parcel.message, Note)
        self.came.append(facts.decode(parcel.message.body))
        self.news.set()

    def _end(self, reason: str) -> None:
        self.ended.append(reason)
        self.news.set()

    def say(self, *messages: facts.Message) -> None:
        for message in messages:
            self.session.send(Note(facts.encode(message)))

    def announce(self, *names: str) -> None:
        self.say(facts.Join(self.member), facts.Propose(1, tuple(Change((node(name, self.member),)) for name in names)))

    async def until(self, condition: Callable[[list[facts.Message]], object]) -> None:
        while not condition(self.came):
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 5)

    async def first(self, kind: type[facts.Message]) -> facts.Message:
        await self.until(lambda came: any(isinstance(message, kind) for message in came))
        return next(message for message in self.came if isinstance(message, kind))


class Here:
    """A registry on this loop, and followers."""

    def __init__(self, **options: float | None) -> None:
        self.context = Context()
        loop = asyncio.get_running_loop()
        self.registry = Registry(self.context, loop, Epoch(2, "nonce"), **options)  # type: ignore[arg-type]
        self.address = self.registry.bind("memory://registry-2")
        self.followers: list[Follower] = []

    def follower(self) -> Follower:
        self.followers.append(Follower(self.context, self.address))
        return self.followers[-1]


@asynccontextmanager
async def here(**options: float | None) -> AsyncIterator[Here]:
    world = Here(**options)
    try:
        yield world
    finally:
        for follower in world.followers:
            follower.session.close()
        world.registry.close()
        world.context.close()


def test_a_session_begins_with_a_beat_and_goes_on_with_more() -> None:
    async def run() -> None:
        async with here() as world:
            follower = world.follower()
            assert await follower.first(Beat) == Beat(world.registry.log.position)
            began = time.monotonic()
            await follower.until(lambda came: len(came) == 2)
            assert time.monotonic() - began < BEAT + 0.3

    asyncio.run(run())


def test_a_follower_gets_a_snapshot_then_commits_and_its_own_before_the_answer() -> None:
    async def run() -> None:
        async with here() as world:
            follower = world.follower()
            follower.say(facts.Follow())
            follower.announce("kitchen")
            await follower.first(Settled)
            kinds = [type(message) for message in follower.came]
            assert kinds == [Beat, Snapshot, Beat, Commit, Commit, Settled]
            settled = follower.came[-1]
            assert isinstance(settled, Settled)
            assert settled.position == world.registry.log.position
            assert settled.position.version == 2

    asyncio.run(run())


def test_a_follower_that_missed_a_little_gets_that() -> None:
    async def run() -> None:
        async with here() as world:
            one, two = world.follower(), world.follower()
            before = world.registry.log.position
            one.announce("kitchen")
            await one.first(Settled)
            two.say(facts.Follow(before))
            await two.until(lambda came: len(came) == 4)
            assert [type(message) for message in two.came] == [Beat, Commit, Commit, Beat]

    asyncio.run(run())


def test_a_taken_name_is_refused_in_the_answer() -> None:
    async def run() -> None:
        async with here() as world:
            one, two = world.follower(), world.follower()
            one.announce("kitchen")
            await one.first(Settled)
            two.announce("kitchen", "hall")
            settled = await two.first(Settled)
            assert isinstance(settled, Settled)
            assert [refusal.index for refusal in settled.refusals] == [0]
            assert {found.name for found in world.registry.log.facts.nodes()} == {"kitchen", "hall"}

    asyncio.run(run())


def test_what_is_malformed_or_not_for_this_peer_is_counted_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with here() as world:
            follower = world.follower()
            follower.session.send(Note(b"nonsense"))
            follower.session.send(Cancel(1))
            follower.say(facts.Propose(1, ()), facts.Leave(), facts.Hold(()), Beat(world.registry.log.position))
            follower.say(facts.Follow())
            await follower.first(Snapshot)
            assert world.registry.malformed == 5

    asyncio.run(run())
    assert len(caplog.records) == 1
    assert "malformed" in caplog.text


def test_a_node_at_no_address_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with here() as world:
            follower = world.follower()
            wrong = replace(node("kitchen", follower.member), addresses=("ipc:///x", "nonsense"))
            follower.say(facts.Join(follower.member), facts.Propose(1, (Change((wrong,)),)))
            follower.announce("hall")
            await follower.first(Settled)
            assert {one.name for one in world.registry.log.facts.nodes()} == {"hall"}

    asyncio.run(run())
    assert "a node at no address: 'nonsense' is no address" in caplog.text


def test_what_is_remembered_of_sockets_does_not_grow(domain: Path) -> None:
    home = Domain.named("home")
    home.make()
    for number in range(3):
        Path(home.path, f"node-{number}").touch()

    async def run() -> None:
        async with here(domain=home) as world:  # type: ignore[arg-type]
            near, far = world.follower(), world.follower()
            far.member = replace(far.member, host="elsewhere")
            for number in range(500):
                for one in (near, far):
                    made = replace(node("kitchen", one.member), name=f"{one.member.host}{number}", addresses=(
                        f"ipc://{home.path}/node-{number}", f"ipc:///elsewhere/node-{number}", "tcp://10.0.0.1:1"))
                    one.say(facts.Join(one.member), facts.Propose(number, (Change((made,)),)),
                            facts.Propose(number, (Change(deletes=(made.key,)),)))
            for one in (near, far):
                one.say(facts.Propose(500, ()))
                await one.until(lambda came: came and isinstance(came[-1], Settled) and came[-1].id == 500)
            sockets = world.registry._sockets
            assert set(sockets) == {near.member.id}
            assert 3 <= len(sockets[near.member.id]) < 100
            assert {f"ipc://{home.path}/node-{number}" for number in range(3)} <= set(sockets[near.member.id])
            for one in (near, far):
                one.say(facts.Leave())
                await one.until(lambda came: came and isinstance(came[-1], Settled) and came[-1].id == 0)
            assert set(world.registry._lost) == {near.member.id}

    asyncio.run(run())


def test_who_says_what_is_not_for_him_to_say_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with here() as world:
            follower = world.follower()
            follower.say(facts.Join(replace(follower.member, program="oven.py")), facts.Hold(()),
                         Beat(world.registry.log.position), facts.Follow())
            await follower.first(Snapshot)
            assert world.registry.malformed == 1

    asyncio.run(run())
    assert f"(oven.py, pid {os.getpid()} on " in caplog.text


def test_a_member_that_leaves_takes_its_facts_along() -> None:
    async def run() -> None:
        async with here() as world:
            follower = world.follower()
            follower.say(facts.Follow())
            follower.announce("kitchen")
            follower.say(facts.Leave())
            await follower.until(lambda came: came and came[-1] == Settled(0, world.registry.log.position))
            assert isinstance(follower.came[-2], Commit)
            assert follower.came[-2].gone == (follower.member.id,)
            assert world.registry.log.facts.all() == []

    asyncio.run(run())


def test_facts_outlive_a_cut_connection_for_the_lease() -> None:
    async def run() -> None:
        async with here(lease=0.2) as world:
            one, two = world.follower(), world.follower()
            two.say(facts.Follow())
            one.announce("kitchen")
            await one.first(Settled)
            one.session.close()
            began = time.monotonic()
            await two.until(lambda came: came and isinstance(came[-1], Commit) and came[-1].gone)
            assert 0.15 < time.monotonic() - began < 0.5 * SCALE

    asyncio.run(run())


def test_a_member_that_comes_back_keeps_its_facts() -> None:
    async def run() -> None:
        async with here(lease=0.1) as world:
            one = world.follower()
            one.announce("kitchen")
            await one.first(Settled)
            one.session.close()
            again = world.follower()
            again.say(facts.Join(one.member))
            again.say(facts.Follow())
            await again.until(lambda came: len(came) > 3)  # a beat later
            assert [found.name for found in world.registry.log.facts.nodes()] == ["kitchen"]

    asyncio.run(run())


def test_who_comes_from_another_epoch_is_answered_when_all_that_is_known_have_spoken() -> None:
    async def run() -> None:
        async with here(lease=60) as world:
            observer, member, other = world.follower(), world.follower(), world.follower()
            dead = replace(this_process(), started=f"{this_process().started.rpartition(':')[0]}:1")
            before = facts.Position(Epoch(1, "before"), 9)
            observer.say(facts.Hold((other.member, dead, node("kitchen", other.member), node("hall", dead))))
            observer.say(facts.Follow(before))
            member.announce("attic")
            member.say(facts.Follow())
            await member.first(Settled)
            assert not [one for one in (*observer.came, *member.came) if isinstance(one, Snapshot)]
            other.say(facts.Join(other.member),
                      facts.Propose(1, (Change((node("kitchen", other.member),)),), complete=True))
            for follower in (observer, member):
                snapshot = await follower.first(Snapshot)
                assert isinstance(snapshot, Snapshot)
                assert {fact.key for fact in snapshot.facts if isinstance(fact, NodeFact)} == {
                    ("node", "kitchen"), ("node", "attic")}

    asyncio.run(run())


def test_who_is_not_heard_of_within_the_lease_is_not_waited_for() -> None:
    async def run() -> None:
        async with here(lease=0.2) as world:
            observer, other = world.follower(), this_process()
            observer.say(facts.Hold((other, node("kitchen", other))), facts.Follow())
            snapshot = await observer.first(Snapshot)
            assert isinstance(snapshot, Snapshot)
            assert snapshot.facts == ()

    asyncio.run(run())


def test_a_member_without_a_connection_is_doubted_until_it_is_back() -> None:
    async def run() -> None:
        async with here(lease=60) as world:
            one, two = world.follower(), world.follower()
            two.say(facts.Follow())
            one.announce("kitchen")
            await one.first(Settled)
            one.session.close()
            await two.until(lambda came: isinstance(came[-1], Commit) and came[-1].puts == (
                replace(one.member, doubted=True),))
            again = world.follower()
            again.say(facts.Join(one.member, number=2))
            await two.until(lambda came: isinstance(came[-1], Commit) and came[-1].puts == (one.member,))

    asyncio.run(run())


def test_what_an_earlier_session_has_said_does_not_count_any_more() -> None:
    async def run() -> None:
        async with here() as world:
            early, late = world.follower(), world.follower()
            late.say(facts.Join(early.member, number=2))
            late.say(facts.Propose(1, (), complete=True))
            await late.first(Settled)
            early.say(facts.Join(early.member, number=1), facts.Propose(1, (Change((node("kitchen", early.member),)),)),
                      facts.Follow())
            await early.first(Snapshot)
            assert world.registry.log.facts.all() == [early.member]
            assert world.registry.malformed == 0

    asyncio.run(run())


def test_a_member_of_another_domain_is_sent_away_and_both_are_named() -> None:
    async def run() -> None:
        async with here(domain_name="home") as world:  # type: ignore[arg-type]
            follower = world.follower()
            follower.say(facts.Join(follower.member, "work"), facts.Follow())
            await follower.until(lambda came: follower.ended)
            assert "domain 'home'" in follower.ended[0]
            assert "'work'" in follower.ended[0]
            assert world.registry.log.facts.all() == []

    asyncio.run(run())


def test_time_in_which_the_registry_was_stopped_counts_towards_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGSTOP does it: the clock goes on, and nothing else."""
    async def run() -> None:
        async with here(lease=5) as world:
            one, two = world.follower(), world.follower()
            two.say(facts.Follow())
            one.announce("kitchen")
            await one.first(Settled)
            one.session.close()
            await two.until(lambda came: isinstance(came[-1], Commit) and came[-1].puts)
            loop = asyncio.get_running_loop()
            clock = loop.time
            monkeypatch.setattr(loop, "time", lambda: clock() + 3600)
            two.came.clear()
            await two.until(lambda came: sum(isinstance(one, Beat) for one in came) > 1)
            assert world.registry.log.facts.node("kitchen") is not None

    asyncio.run(run())


def test_a_registry_that_was_stopped_looks_whether_it_was_superseded_before_it_goes_on(
        monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with here(superseded=lambda: "by another one") as world:  # type: ignore[arg-type]
            follower = world.follower()
            await follower.first(Beat)
            loop = asyncio.get_running_loop()
            clock = loop.time
            monkeypatch.setattr(loop, "time", lambda: clock() + 3600)
            follower.announce("kitchen")
            assert await asyncio.wait_for(asyncio.shield(world.registry.left), 7200) == "by another one"
            assert world.registry.log.facts.all() == []

    asyncio.run(run())


def test_a_registry_leaves_after_its_last_member_and_observers_do_not_count() -> None:
    async def run() -> None:
        async with here(linger=0.1) as world:
            observer, member = world.follower(), world.follower()
            observer.say(facts.Follow())
            member.announce("kitchen")
            await member.first(Settled)
            assert (await asyncio.wait([world.registry.left], timeout=0.2))[0] == set()
            member.say(facts.Leave())
            await asyncio.wait_for(world.registry.left, 1)

    asyncio.run(run())


DIES = """
import os, signal, pyzmp
class Dies(pyzmp.Node):
    @pyzmp.service
    def die(self) -> None: os.kill(os.getpid(), signal.SIGKILL)
for kind in ("entity", "thread"):
    Dies(kind, kind=kind).start()
Dies.at("entity").die()
"""


def test_a_killed_process_leaves_no_sockets(domain: Path, script: Any, eventually: Eventually) -> None:
    script("import pyzmp; pyzmp.Node('first', kind='thread').start()")  # so that a registry is there, which stays
    assert script(DIES).code == -signal.SIGKILL
    eventually(lambda: [path.name for path in domain.rglob("node*")] == [], 1)


# -- the process -------------------------------------------------------------------------------------------------------

def started(domain: Domain, *, linger: float = 5.0, above: int = 0) -> int | None:
    return domain.start(above, linger, 1.0).outcome()  # reading its pipe waits


@pytest.fixture
def home(domain: Path) -> Domain:
    made = Domain.named("home")
    made.make()
    return made


def pid_of(domain: Domain) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"registry.process.*{domain.path}"], capture_output=True, text=True,
                           check=False)
    return [int(line) for line in found.stdout.split()]


def test_the_process_is_no_child_of_its_starter_and_ends_by_sigterm(home: Domain, eventually: Eventually) -> None:
    assert started(home) == 1
    assert home.current() == 1
    (pid,) = pid_of(home)
    assert os.getpgid(pid) != os.getpgid(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not pid_of(home))
    assert home.current() is None
    assert not Path(home.path, "registry-1").exists()


def test_it_leaves_when_nobody_joins(home: Domain, eventually: Eventually) -> None:
    started(home, linger=0.1)
    eventually(lambda: not pid_of(home))


def test_it_steps_down_for_a_later_one(home: Domain, eventually: Eventually) -> None:
    assert started(home) == 1
    assert started(home, above=1) == 2
    eventually(lambda: len(pid_of(home)) == 1)
    assert home.current() == 2
    assert "registry 1 ends: superseded by registry 2" in Path(home.path, "registry.log").read_text()


def test_it_ends_when_its_directory_goes(home: Domain, eventually: Eventually) -> None:
    started(home)
    Path(home.path).rename(f"{home.path}-moved")
    eventually(lambda: not pid_of(home))


def test_a_failure_to_start_is_told_at_once(home: Domain) -> None:
    Path(home.path, "registry-1").write_text("in the way")
    with pytest.raises(Exception, match="not a socket of this user"):
        started(home)
    assert Path(home.path, "registry-1").read_text() == "in the way"


def test_it_imports_nothing_from_the_current_directory_or_the_users_modules(
        home: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("asyncio", "logging", "signal", "zmq", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert started(home, linger=0.1) == 1
