"""The registry is killed and stopped, and so are members, while nodes come and go; nobody loses sight of the living."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Self

import pyzmp
from pyzmp import runtime
from pyzmp.protocol.facts import NodeFact
from pyzmp.registry.domain import Domain
from tests.campaigns.history import SCALE, judge, share

MEMBER = str(Path(__file__).with_name("member.py"))
HEARD = 30  # seconds in which anything comes that comes at all, on however loaded a machine
NEVER = float("inf")

Event = list[Any]


class Probe(pyzmp.Node):
    """Announced by the process of the test, to know that a registry serves."""

    kind = "entity"

    @pyzmp.service
    def number(self) -> int:
        return 1


@dataclass
class Span:
    """From when to when the members' notes say that a node, or a member, was there."""

    member: int
    begun: float
    ended: float = NEVER


@dataclass
class Crowd:
    """The members of a campaign: programs that come, are killed, and note what they see."""

    script: Any
    seed: int
    running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    killed: dict[int, float] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.script.folder  # type: ignore[no-any-return]

    def enter(self, count: int = 1, **options: Any) -> list[int]:
        """Start so many members; their numbers."""
        first = len(self.running) + len(self.killed)
        numbers = list(range(first, first + count))
        for number in numbers:
            self.running[number] = self.script.start(MEMBER, str(number), str(self.seed), json.dumps(options))
        return numbers

    def kill(self, number: int) -> None:
        process = self.running.pop(number)
        self.killed[number] = time.monotonic()
        process.kill()
        process.wait()

    @contextlib.contextmanager
    def stop(self, number: int) -> Iterator[float]:
        """Stop a member, as Ctrl-Z does, for as long as this lasts; when that was."""
        moment = self.stopped[number] = time.monotonic()
        with stopped(self.running[number].pid):
            yield moment

    def notes(self, number: int, *kinds: str) -> list[Event]:
        """What a member has noted of these kinds, each with its moment."""
        path = self.folder / f"notes-{number}"
        events = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [event for event in events if not kinds or event[1] in kinds]

    def all(self, *kinds: str) -> list[Event]:
        return [event for number in (*self.running, *self.killed) for event in self.notes(number, *kinds)]

    def rest(self) -> None:
        """Have nobody come or go any more, wait until all members agree on who is there, and end them."""
        (self.folder / "rest").touch()
        rests = self._each("rest")
        mine = runtime.current()
        own = [] if mine.replica.view.facts.get(("member", mine.member.id)) is None else [mine.member.id]
        lives = [life for _, _, _, lives in rests for life in lives]
        owners = {owner for _, owner, _ in lives}
        self._say("expected", {"nodes": lives, "members": sorted({*own, *owners, *(event[2] for event in rests)})})
        self._each("view", "fault")
        self._each("looked")
        (self.folder / "over").touch()
        codes = {number: process.wait(HEARD * SCALE) for number, process in self.running.items()}
        assert set(codes.values()) <= {0}, codes

    def _say(self, name: str, value: Any) -> None:
        (self.folder / "said").write_text(json.dumps(value))
        (self.folder / "said").rename(self.folder / name)

    def _each(self, *kinds: str) -> list[Event]:
        """The first such event of each member that runs, once it is there."""
        over = time.monotonic() + 3 * HEARD * SCALE
        while missing := [number for number in self.running if not self.notes(number, *kinds)]:
            for number in missing:
                assert self.running[number].poll() is None, f"member {number} has ended by itself"
            assert time.monotonic() < over, f"{missing} never came to {kinds[0]}"
            time.sleep(0.02)
        return [self.notes(number, *kinds)[0] for number in self.running]

    # -- the judge -------------------------------------------------------------------------------------------------

    def lives(self) -> dict[tuple[Any, ...], Span]:
        """When each life of a node, and each member, was there by all means, as its owner knows it."""
        found: dict[tuple[Any, ...], Span] = {}
        for number in (*self.running, *self.killed):
            end = self.killed.get(number, NEVER)
            for moment, kind, *what in self.notes(number, "member", "+", "-", "exit"):
                if kind == "-":
                    found[_life(what[0])].ended = min(end, moment)
                elif kind == "exit":
                    end = moment
                else:
                    found[_life(what[0])] = Span(number, moment, end)
            for span in found.values():
                if span.member == number:
                    span.ended = min(span.ended, end)
        return found

    def faults(self) -> list[str]:
        """What is wrong with any view, or with the names."""
        lives = self.lives()
        members = {number: self.notes(number) for number in (*self.running, *self.killed)}
        found = [f"member {number}: {event}" for number, events in members.items() for event in events
                 if event[1] in ("fault", "back", "forgotten") or (event[1] == "own" and number not in self.stopped)]
        for number, events in members.items():
            for moment, kind, key, life in (event for event in events if event[1] in ("lost", "again")):
                span = lives.get(_life(life))
                if span is None or span.member in self.stopped:
                    continue
                if kind == "again" or span.begun <= moment < span.ended:
                    found.append(f"member {number} {'lost' if kind == 'lost' else 'saw again'} {key} of {life} at "
                                 f"{moment:.3f}, which was there from {span.begun:.3f} to {span.ended:.3f}")
        return found + self._twice(lives) + self._different()

    def _twice(self, lives: dict[tuple[Any, ...], Span]) -> list[str]:
        """Names that two nodes had at once."""
        by_name: dict[str, list[tuple[float, float]]] = {}
        for life, span in lives.items():
            if len(life) == 3:
                by_name.setdefault(life[0], []).append((span.begun, span.ended))
        return [f"two nodes were {name!r} at once: {one}, {other}" for name, spans in by_name.items()
                for one, other in zip(sorted(spans), sorted(spans)[1:], strict=False) if other[0] < one[1]]

    def _different(self) -> list[str]:
        views = {number: [str(event[2:4]) for event in self.notes(number, "view")] for number in self.running}
        usual = Counter(view for seen in views.values() for view in seen).most_common(1)
        return [f"at the end the view of member {number} is {view}, most have {usual}" for number, view in views.items()
                if view != [usual[0][0]]] if usual else []

    def told(self) -> str:
        """How much there was to see."""
        counts = Counter(event[1] for event in self.all())
        looked = [event for number in self.running if number not in self.held | self.stopped.keys()
                  for event in self.notes(number, "looked")]
        starts = [event[3] for event in self.all("+")]
        return (f"{counts['+']} nodes came and {counts['-']} were shut down, {counts['taken']} names were taken, "
                f"{counts['in use']} addresses still in use; "
                f"{sum(event[2] for event in looked)} lookups, the longest {max(event[3] for event in looked):.3f} s; "
                f"the start of a node took {share(starts, .5) * 1e3:.0f} ms (median), at most {max(starts):.2f} s; all "
                f"views were equal after {max(event[4] for event in self.all('view')):.2f} s")


def _life(life: Any) -> tuple[Any, ...]:
    """The key of a life in the notes: a name, an owner and an incarnation, or the id of a member alone."""
    return (life,) if isinstance(life, str) or life is None else (life[0], life[1], tuple(life[2]))


def registry() -> tuple[int, int] | None:
    """The counter and the process of the registry that has the highest lock, or None where none is."""
    locks = Path(Domain.named(os.environ["PYZMP_DOMAIN"]).path).glob("registry-*.lock")
    held = {}
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "FLOCK" in fields and "WRITE" in fields:
            held[int(fields[5].rpartition(":")[2])] = int(fields[4])
    found = []
    for lock in locks:
        with contextlib.suppress(FileNotFoundError):
            inode = lock.stat().st_ino
            if inode in held:
                found.append((int(lock.stem.rpartition("-")[2]), held[inode]))
    return max(found, default=None)


def kill_registry(eventually: Callable[..., None], above: int = 0) -> tuple[int, float]:
    """Kill the registry as soon as there is one with a counter that is higher than that; its counter, and when."""
    eventually(lambda: counter() > above, HEARD)
    found = registry()
    assert found is not None
    moment = time.monotonic()
    os.kill(found[1], signal.SIGKILL)
    return found[0], moment


def counter() -> int:
    """The counter of the registry that is there, or 0."""
    found = registry()
    return found[0] if found is not None else 0


def serves() -> float:
    """When this process, which was alive all the time, has announced something; it is withdrawn again."""
    here = runtime.current()
    name = f"probe-{time.monotonic_ns()}"
    here.run(here.replica.announce([NodeFact(name, here.member.id, "", (), "entity", here.member.host, here.member.pid,
                                             "Probe")], HEARD * SCALE))
    moment = time.monotonic()
    here.run(here.replica.withdraw([("node", name)], HEARD * SCALE))
    return moment


def ended(pid: int) -> bool:
    """Whether the process has ended; it may wait to be asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def crowd(script: Any, chance: random.Random) -> Iterator[Crowd]:
    made = Crowd(script, chance.randrange(1 << 32))
    yield made
    for process in made.running.values():
        if process.poll() is None:
            process.kill()
            process.wait()


def settle(count: int) -> None:
    """Wait until so many nodes of members are there."""
    assert pyzmp.discover("who", timeout=HEARD * SCALE, minimum_providers=count) is not None
    found = len(pyzmp.discover("who").providers)  # type: ignore[union-attr]
    assert found >= count, f"{found} of {count} nodes are there"


@pytest.mark.timeout(900)
@pytest.mark.leaves("sockets")  # of members killed with the registry that knew of them: a later one removes them
@pytest.mark.parametrize(("members", "kills"), [(4, 4), pytest.param(20, 50, marks=pytest.mark.slow)])
def test_while_registries_are_killed_no_view_loses_the_living_or_keeps_the_dead(
        members: int, kills: int, crowd: Crowd, chance: random.Random, eventually: Callable[..., None]) -> None:
    options = {"most": 4, "processes": members > 4, "pause": members / 40, "look": members / 1000}
    with Probe("probe"):
        crowd.enter(members, **options)
        settle(members)
        there, serving, killed, quick = [], [], 0, 0
        while killed < kills:
            time.sleep(chance.uniform(0.0, 1.0 if members > 4 else 0.3))  # until the moment of the kill
            before = runtime.current().replica.view.position
            dead, moment = kill_registry(eventually)
            killed += 1
            if chance.random() < 0.4:
                crowd.kill(chance.choice(list(crowd.running)))
            if killed < kills and chance.random() < 0.3:  # the next one, too, perhaps while it settles
                eventually(lambda: counter() > dead, HEARD)  # noqa: B023
                time.sleep(chance.uniform(0.0, 0.1))
                dead, moment = kill_registry(eventually, dead)
                killed, quick = killed + 1, quick + 1
            eventually(lambda: counter() > dead, HEARD)  # noqa: B023
            there.append(time.monotonic() - moment)
            serving.append(serves() - moment)
            after = runtime.current().replica.view.position
            assert before is not None
            assert after is not None
            assert after.epoch.counter > before.epoch.counter, "it was announced through a new registry"
            crowd.enter(members - len(crowd.running), **options)
        crowd.kill(chance.choice(list(crowd.running)))  # and its end is noticed by one that goes on
    crowd.rest()
    print(f"\n{members} processes, the registry killed {killed} times, {quick} of them as soon as it was there, and "
          f"{len(crowd.killed)} members; a new one is there after {share(there, .5) * 1e3:.0f} ms and serves after "
          f"{share(serving, .5) * 1e3:.0f} ms (medians), {share(serving, .99) * 1e3:.0f} ms (99th percentile); "
          f"{crowd.told()}")
    judge(crowd.faults())
    assert len(crowd.all("+")) > members + kills / 2, "too little came and went: invalid"
    if members > 4:
        assert share(serving, 0.5) < 0.5 * SCALE


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("members", "rounds"), [(2, 1), pytest.param(8, 5, marks=pytest.mark.slow)])
def test_a_registry_that_is_stopped_holds_nobody_up_for_long_and_steps_down_when_it_goes_on(
        members: int, rounds: int, crowd: Crowd, chance: random.Random, eventually: Callable[..., None]) -> None:
    here, elsewhere, down = [], [], []
    with Probe("probe"):
        crowd.enter(members, most=3)
        settle(members)
        for turn in range(rounds):
            old = registry()
            assert old is not None
            with stopped(old[1]):
                (fresh,) = crowd.enter()
                began = time.monotonic()
                with Probe(f"here-{turn}"):
                    here.append(time.monotonic() - began)
                eventually(lambda: crowd.notes(fresh, "+"), HEARD)  # noqa: B023
                elsewhere.append(crowd.notes(fresh, "+")[0][3])
                new = registry()
                assert new is not None
                assert new > old
                if rounds > 1:
                    time.sleep(chance.uniform(0.0, 4.0))  # until its connections are over, or not
            began = time.monotonic()
            eventually(lambda: ended(old[1]), HEARD)  # noqa: B023
            down.append(time.monotonic() - began)
            assert registry() == new, "the one that serves goes on"
    crowd.rest()
    print(f"\nthe registry of {members} processes stopped {rounds} times: a process that was alive has a node started "
          f"after {max(here):.2f} s at most, a new one after {max(elsewhere):.2f} s; the old registry ends "
          f"{max(down):.2f} s after it goes on; {crowd.told()}")
    judge(crowd.faults())
    if rounds > 1:
        assert max(*here, *elsewhere) < 5 * SCALE
        assert max(down) < 2 * SCALE, "it has stepped down, and did not leave for want of members"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("others", "seconds"), [(1, 6), pytest.param(4, 30, marks=pytest.mark.slow)])
def test_a_member_that_holds_its_gil_is_not_taken_for_dead_and_holds_nobody_up(
        others: int, seconds: int, crowd: Crowd) -> None:
    with Probe("probe"):
        (busy,) = crowd.enter()
        watching = crowd.enter(others, most=3)
        settle(1 + others)
        held, began = hold(busy, seconds), time.monotonic()
        crowd.held.add(busy)
        done = list(work(held, watching))
        assert time.monotonic() - began > seconds - 1, "it did not hold it for long: invalid"
        assert held.result() is None
        assert pyzmp.discover(f"home-{busy}-0/who")() == f"home-{busy}-0"  # type: ignore[misc]
    crowd.rest()
    counts = Counter(kind for kind, _ in done)
    print(f"\na process held its GIL for {seconds} s, in which another did {dict(counts)}, the longest of which took "
          f"{max(took for _, took in done):.3f} s; {crowd.told()}")
    judge(crowd.faults())
    assert min(counts["starts"], counts["lookups"], counts["calls"]) > 2, "it held others up"
    if seconds > 6:
        assert max(took for _, took in done) < 1 * SCALE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_member_that_is_stopped_leaves_all_views_and_comes_back_by_itself(
        crowd: Crowd, chance: random.Random, eventually: Callable[..., None]) -> None:
    left, back = [], []
    with Probe("probe"):
        (asleep,) = crowd.enter(homes=2)
        watching = crowd.enter(3, most=3)
        settle(5)
        home = pyzmp.discover(f"home-{asleep}-0/who", HEARD).with_options(timeout=HEARD)  # type: ignore[union-attr]
        for _ in range(4):
            with crowd.stop(asleep) as moment:
                eventually(lambda: all(lost(crowd, number, asleep) > moment for number in watching), HEARD)  # noqa: B023
                left += [lost(crowd, number, asleep) - moment for number in watching]
                assert pyzmp.discover(f"home-{asleep}-0/who") is None
                time.sleep(chance.uniform(0.0, 2.0))  # until the moment when it goes on
            moment = time.monotonic()
            eventually(lambda: pyzmp.discover(f"home-{asleep}-0/who"), HEARD)
            assert home() == f"home-{asleep}-0"
            back.append(time.monotonic() - moment)
    crowd.rest()
    print(f"\na process that was stopped was out of the views of {len(watching)} after {min(left):.2f} to "
          f"{max(left):.2f} s, and answered {max(back):.2f} s after it went on, at most; {crowd.told()}")
    judge(crowd.faults())
    assert max(left) < 10 * SCALE
    assert max(back) < 3 * SCALE


def hold(member: int, seconds: int) -> Any:
    """Have a member hold its GIL; the future of that, once it does."""
    held = pyzmp.discover(f"home-{member}-0/hold", HEARD).with_options(timeout=seconds + 2 * HEARD).submit(seconds)  # type: ignore[union-attr]
    who = pyzmp.discover(f"home-{member}-0/who", HEARD).with_options(timeout=0.2)  # type: ignore[union-attr]
    with contextlib.suppress(pyzmp.CallTimeout):
        while not held.done():
            who()
    return held


def work(until: Any, members: list[int]) -> Iterator[tuple[str, float]]:
    """Look up, start nodes and call others until that has ended; what was done, and how long it took."""
    while not until.done():
        began = time.monotonic()
        with Probe("work"):
            yield "starts", time.monotonic() - began
        for member in members:
            began = time.monotonic()
            who = pyzmp.discover(f"home-{member}-0/who")
            yield "lookups", time.monotonic() - began
            assert who is not None
            began = time.monotonic()
            assert who.with_options(timeout=2 * HEARD)() == f"home-{member}-0"
            yield "calls", time.monotonic() - began
        time.sleep(0.02)


def lost(crowd: Crowd, viewer: int, other: int) -> float:
    """When *viewer* has last seen that a node of *other* was lost, or 0."""
    name = ["node", f"home-{other}-0"]
    return max((event[0] for event in crowd.notes(viewer, "lost") if event[2] == name), default=0.0)


class Callers:
    """Calls of all nodes in turn, at a rate: one half as futures, the other blocking, until it is closed."""

    def __init__(self, names: list[str], rate: float) -> None:
        self.names, self.rate = names, rate
        self.outcomes: list[tuple[str, float, Any]] = []
        self.longest = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in (self._submit, self._block)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, each: Callable[[str, Any], None]) -> None:
        began = time.monotonic()
        for number, name in enumerate(itertools.cycle(self.names)):
            if self._over.wait(max(0.0, began + 2 * number / self.rate - time.monotonic())):
                break
            service = pyzmp.discover(f"{name}/who")
            if service is None:
                self.outcomes.append((name, time.monotonic(), "nobody provides it"))
            else:
                each(name, service.with_options(timeout=2 * HEARD))

    def _submit(self, name: str, service: Any) -> None:
        began = time.monotonic()
        service.submit().add_done_callback(lambda future: self._ended(name, began, future.exception(0)
                                                                      or future.result(0)))

    def _block(self, name: str, service: Any) -> None:
        began = time.monotonic()
        try:
            outcome = service()
        except Exception as error:
            outcome = error
        self._ended(name, began, outcome)

    def _ended(self, name: str, began: float, outcome: Any) -> None:
        self.outcomes.append((name, began, outcome))
        self.longest = max(self.longest, time.monotonic() - began)

    def faults(self) -> list[str]:
        return [f"a call of {name} at {began:.3f} ended with {outcome!r}" for name, began, outcome in self.outcomes
                if outcome != name]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("members", "homes", "kills"), [(2, 25, 1), pytest.param(10, 5, 20, marks=pytest.mark.slow)])
def test_no_call_between_nodes_fails_while_the_registry_is_killed(
        members: int, homes: int, kills: int, crowd: Crowd, chance: random.Random,
        eventually: Callable[..., None]) -> None:
    with Probe("probe"):
        numbers = crowd.enter(members, homes=homes)
        settle(members * homes)
        names = [f"home-{number}-{home}" for number in numbers for home in range(homes)]
        equal, began = [], time.monotonic()
        with Callers(names, 200) as callers:
            for _ in range(kills):
                time.sleep(chance.uniform(0.1, 0.5))  # until the moment of the kill
                dead, moment = kill_registry(eventually)
                serves()
                eventually(lambda: all(follows(crowd, number) > dead for number in numbers), HEARD)  # noqa: B023
                equal.append(max(crowd.notes(number, "epoch")[-1][0] for number in numbers) - moment)
        took = time.monotonic() - began
    crowd.rest()
    print(f"\n{len(names)} nodes in {members} processes, {len(callers.outcomes) / took:.0f} calls/s, the registry "
          f"killed {kills} times: the longest call took {callers.longest:.3f} s; all views followed the next one after "
          f"{share(equal, .5):.2f} s (median), {max(equal):.2f} s (most); {crowd.told()}")
    judge(callers.faults() + crowd.faults())
    assert len(callers.outcomes) > 20 * took, "too few calls: invalid"
    if kills > 1:
        assert max(equal) < 3 * SCALE


def follows(crowd: Crowd, number: int) -> int:
    """The counter of the registry that a member has followed last."""
    return crowd.notes(number, "epoch")[-1][2]  # type: ignore[no-any-return]
