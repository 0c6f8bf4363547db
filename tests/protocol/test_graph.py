from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from pyzmp.exceptions import AnnouncementRefused
from pyzmp.protocol.facts import (
    Beat,
    Change,
    Commit,
    Epoch,
    Fact,
    Follow,
    Member,
    NodeFact,
    Position,
    ServiceFact,
    Snapshot,
)
from pyzmp.protocol.graph import TAIL, Facts, Log, Outcome, View, run_by

A, B = (Member(name, "host", number, "1") for number, name in enumerate("ab", 1))


def node(name: str, owner: Member, **changed: object) -> NodeFact:
    fact = NodeFact(name, owner.id, "loop", (f"ipc:///{name}",), "process", owner.host, owner.pid, "m.Thermometer")
    return replace(fact, **changed)


def service(of: str, name: str, owner: Member) -> ServiceFact:
    return ServiceFact(of, name, owner.id, ("m.Thermometer",), "schema", "() -> float")


def announce(log: Log, owner: Member, *puts: Fact) -> Commit:
    commit, refusals = log.propose(owner, [Change(puts)])
    assert commit is not None
    assert not refusals
    return commit


def a_log(counter: int = 1) -> Log:
    return Log(Epoch(counter, f"nonce {counter}"))


def loaded(log: Log) -> View:
    view = View()
    for piece in log.snapshot():
        view.load(piece)
    return view


# -- the log -----------------------------------------------------------------------------------------------------------

def test_versions_are_contiguous_from_one() -> None:
    log = a_log()
    commits = [announce(log, A, node(f"n{number}", A)) for number in range(3)]
    assert [commit.position.version for commit in commits] == [1, 2, 3]
    assert log.position == commits[-1].position


def test_the_first_commit_of_a_member_brings_the_member() -> None:
    log = a_log()
    assert A in announce(log, A, node("kitchen", A)).puts
    assert A not in announce(log, A, node("hall", A)).puts


def test_a_taken_name_is_refused_and_names_both_owners() -> None:
    log = a_log()
    announce(log, A, node("kitchen", A))
    commit, (refusal,) = log.propose(B, [Change((node("kitchen", B, cls="m.Oven"), service("kitchen", "x", B)))])
    assert "'kitchen' is already run by pid 1 as Thermometer; pid 2 as Oven asked for it" in str(refusal.error())
    assert log.facts.node("kitchen") in announce(a_log(), A, node("kitchen", A)).puts
    assert log.facts.providers("x") == ()
    assert commit is not None  # B itself
    assert commit.puts == (B,)


def test_one_refused_change_leaves_the_others_of_its_batch() -> None:
    log = a_log()
    announce(log, A, node("kitchen", A))
    changes = [Change((node(name, B),)) for name in ("hall", "kitchen", "attic")]
    commit, refusals = log.propose(B, changes)
    assert [refusal.index for refusal in refusals] == [1]
    assert commit is not None
    assert {found.name for found in log.facts.nodes()} == {"kitchen", "hall", "attic"}


@pytest.mark.parametrize("change", [
    Change(deletes=(("node", "kitchen"),)),
    Change((service("kitchen", "steal", B),)),
    Change((node("hall", A),)),
    Change((service("nowhere", "x", B),)),
    Change((replace(A, host="elsewhere"),)),
], ids=["withdraw", "service of another's node", "in another's name", "service of no node", "another member"])
def test_a_fact_is_changed_by_its_owner_only(change: Change) -> None:
    log = a_log()
    announce(log, A, node("kitchen", A))
    before = log.facts.all()
    _, (refusal,) = log.propose(B, [change])
    assert isinstance(refusal.error(), AnnouncementRefused)
    assert [fact for fact in log.facts.all() if fact != B] == before


def test_a_registration_gets_its_incarnation_and_an_update_keeps_it() -> None:
    log = a_log(7)
    announce(log, A, node("hall", A))
    announce(log, A, node("kitchen", A))
    announce(log, A, node("kitchen", A, labels=(("room", "small"),)))
    kitchen = log.facts.node("kitchen")
    assert kitchen is not None
    assert kitchen.incarnation == (7, 2)
    assert kitchen.labels
    log.propose(A, [Change((node("kitchen", A),), (kitchen.key,))])
    again = log.facts.node("kitchen")
    assert again is not None
    assert again.incarnation == (7, 4)


def test_what_is_announced_and_withdrawn_in_one_batch_is_not_there() -> None:
    log, view = a_log(), View()
    view.load(next(log.snapshot()))
    new = Change((node("kitchen", A), service("kitchen", "x", A)))
    commit, _ = log.propose(A, [new, Change(deletes=(("node", "kitchen"),))])
    assert commit is not None
    assert view.apply(commit) is Outcome.APPLIED
    assert view.facts.all() == log.facts.all() == [A]


def test_announcing_the_same_again_is_no_change() -> None:
    log = a_log()
    announce(log, A, node("kitchen", A))
    assert log.propose(A, [Change((node("kitchen", A),))]) == (None, ())


def test_dropping_a_member_withdraws_all_it_owns() -> None:
    log = a_log()
    announce(log, A, node("kitchen", A), service("kitchen", "x", A))
    announce(log, B, node("hall", B), service("hall", "x", B))
    view = loaded(log)
    commit = log.drop("a")
    assert commit is not None
    view.apply(commit)
    assert view.facts.all() == log.facts.all()
    assert [found.name for found, _ in view.facts.providers("x")] == ["hall"]
    assert log.drop("a") is None


def test_the_tail_catches_up_and_beyond_it_only_a_snapshot_does() -> None:
    log = a_log()
    commits = [announce(log, A, node(f"n{number}", A)) for number in range(TAIL + 10)]
    epoch = log.position.epoch
    assert log.since(Position(epoch, TAIL + 8)) == commits[-2:]
    assert log.since(log.position) == []
    assert log.since(Position(epoch, 9)) is None
    assert log.since(Position(epoch, TAIL + 11)) is None
    assert log.since(Position(Epoch(1, "other"), 5)) is None
    assert log.since(None) is None


# -- a new epoch -------------------------------------------------------------------------------------------------------

def test_held_facts_keep_their_incarnation_until_their_owner_confirms_them() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A), service("kitchen", "x", A))
    new.join(B)
    new.hold(old.facts.all())
    assert new.unconfirmed == {"a"}
    kept = old.facts.node("kitchen")
    assert new.facts.node("kitchen") == kept
    assert kept is not None
    new.join(A)
    commit, refusals = new.propose(A, [Change((kept, service("kitchen", "x", A)))], complete=True)
    assert (commit, refusals, new.unconfirmed) == (None, (), set())


def test_what_an_owner_does_not_confirm_ends() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A), node("hall", A))
    new.hold(old.facts.all())
    kitchen = old.facts.node("kitchen")
    assert kitchen is not None
    new.join(A)
    new.propose(A, [Change((kitchen,))], complete=True)
    assert [found.name for found in new.facts.nodes()] == ["kitchen"]


def test_what_others_hold_of_an_owner_that_has_spoken_is_old() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A))
    new.join(A)
    new.propose(A, complete=True)
    assert new.hold(old.facts.all()) is None
    new.drop("a")
    assert new.hold(old.facts.all()) is None
    assert new.facts.all() == []


def test_the_later_registration_of_a_name_wins_over_one_that_is_held() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A), service("kitchen", "x", A))
    stale = old.facts.all()
    old.drop("a")
    announce(old, B, node("kitchen", B))
    living = old.facts.node("kitchen")
    assert living is not None
    new.hold(stale)
    assert announce(new, B, living)
    assert new.facts.node("kitchen") == living
    assert new.facts.providers("x") == ()


def test_a_new_node_does_not_take_a_name_that_is_held() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A))
    new.hold(old.facts.all())
    _, refusals = new.propose(B, [Change((node("kitchen", B),))])
    assert len(refusals) == 1


# -- views -------------------------------------------------------------------------------------------------------------

def test_a_view_takes_the_next_commit_only() -> None:
    log = a_log()
    view = loaded(log)
    first, second, third = (announce(log, A, node(f"n{number}", A)) for number in range(3))
    assert view.apply(first) is Outcome.APPLIED
    assert view.apply(first) is Outcome.DUPLICATE
    assert view.apply(third) is Outcome.GAP
    assert view.apply(second) is Outcome.APPLIED
    assert view.apply(third) is Outcome.APPLIED
    assert view.facts.all() == log.facts.all()


def test_a_view_without_a_snapshot_takes_no_commit() -> None:
    view = View()
    assert view.apply(announce(a_log(), A, node("kitchen", A))) is Outcome.GAP
    assert view.position is None
    assert view.hear(Beat(a_log().position)) is Outcome.GAP


def test_a_beat_ahead_tells_a_gap() -> None:
    log = a_log()
    view = loaded(log)
    assert view.hear(Beat(log.position)) is Outcome.DUPLICATE
    announce(log, A, node("kitchen", A))
    assert view.hear(Beat(log.position)) is Outcome.GAP


def test_an_older_epoch_or_a_namesake_is_foreign() -> None:
    view = loaded(a_log(2))
    for position in (Position(Epoch(1, "nonce 1"), 99), Position(Epoch(2, "another"), 99)):
        assert view.apply(Commit(position)) is Outcome.FOREIGN
        assert view.load(Snapshot(position, 0, True, ())) is Outcome.FOREIGN
        assert view.hear(Beat(position)) is Outcome.FOREIGN


def test_a_commit_of_a_later_epoch_is_a_gap_and_its_snapshot_a_switch() -> None:
    view, later = loaded(a_log(1)), a_log(2)
    assert view.apply(announce(later, A, node("kitchen", A))) is Outcome.GAP
    assert view.load(next(later.snapshot())) is Outcome.APPLIED
    assert view.position == later.position


def test_a_view_switches_with_the_last_piece_and_not_before() -> None:
    view, other = View(), a_log(2)
    first = Snapshot(other.position, 0, False, (A, node("kitchen", A)))
    last = Snapshot(other.position, 1, True, (service("kitchen", "x", A),))
    assert view.load(last) is Outcome.GAP
    assert view.load(first) is Outcome.APPLIED
    assert (view.position, view.facts.nodes()) == (None, [])
    assert view.load(last) is Outcome.APPLIED
    assert len(view.facts.providers("x")) == 1


def test_reached_compares_positions_of_one_epoch_and_epochs() -> None:
    view = View()
    assert not view.reached(Position(Epoch(1, "n"), 0))
    view.load(Snapshot(Position(Epoch(2, "n"), 5), 0, True, ()))
    assert view.reached(Position(Epoch(2, "n"), 5))
    assert view.reached(Position(Epoch(1, "m"), 9))
    assert not view.reached(Position(Epoch(2, "n"), 6))
    assert not view.reached(Position(Epoch(2, "m"), 1))
    view.forget()
    assert view.position is None


# -- lookups -----------------------------------------------------------------------------------------------------------

def test_providers_are_one_object_until_they_change() -> None:
    facts = Facts()
    facts.change([node("kitchen", A), service("kitchen", "x", A)])
    before = facts.providers("x")
    facts.change([node("hall", A), service("hall", "y", A)])
    assert facts.providers("x") is before
    facts.change([node("kitchen", A, kind="thread")])
    assert facts.providers("x")[0][0].kind == "thread"
    assert set(facts.services()) == {"x", "y"}
    assert facts.services_of("hall") == [service("hall", "y", A)]
    facts.change(deletes=[("service", "kitchen", "x")])
    assert facts.providers("x") == ()
    assert set(facts.services()) == {"y"}


def test_a_service_that_comes_before_its_node_has_no_provider_until_then() -> None:
    facts = Facts()
    facts.change([service("kitchen", "x", A)])
    assert facts.providers("x") == ()
    facts.change([node("kitchen", A)])
    assert len(facts.providers("x")) == 1


def test_lookups_from_another_thread_see_whole_states() -> None:
    facts, wrong, done = Facts(), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            found = facts.providers("x")
            if any(provider.name != offer.node for provider, offer in found) or len(facts.nodes()) > 300:
                wrong.append(found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(3):
            for number in range(300):
                facts.change([node(f"n{number}", A), service(f"n{number}", "x", A)])
            for number in range(300):
                facts.change(deletes=[("node", f"n{number}")])
    finally:
        done.set()
        thread.join()
    assert wrong == []
    assert facts.providers("x") == ()


def test_ten_thousand_nodes_are_a_matter_of_a_moment() -> None:
    log, view = a_log(), View()
    view.load(next(log.snapshot()))
    changes = [Change((node(f"n{number}", A), service(f"n{number}", "x", A))) for number in range(10_000)]
    for start in range(0, 10_000, 1000):
        commit, _ = log.propose(A, changes[start:start + 1000])
        assert commit is not None
        view.apply(commit)
    assert len(view.facts.providers("x")) == 10_000


def test_an_owner_on_another_host_is_named_with_it() -> None:
    assert run_by(node("kitchen", A), "host") == "pid 1 as Thermometer"
    assert run_by(node("kitchen", A, cls=""), "here") == "pid 1 on host as process"


# -- everything together, over a network that delays, loses, repeats and reorders --------------------------------------

Wire = Commit | Snapshot | Beat
WHICH = st.integers(0, 2)
NAMES = st.sampled_from("xyz")


class Process:
    """A member: its view, what it owns, and what is on its way to it."""

    def __init__(self, number: int) -> None:
        self.member = Member(f"m{number}", "host", number, "1")
        self.view = View()
        self.own: dict[tuple[str, ...], Fact] = {}
        self.wire: list[Wire] = []
        self.highest: Position | None = None
        self.joined = False


class AGraph(RuleBasedStateMachine):
    """One registry at a time and three processes."""

    @initialize()
    def begin(self) -> None:
        self.alive: list[Process] = []
        self.count = 0
        self.history: dict[Position, frozenset[Fact]] = {}
        self.log = a_log(1)
        self.note(None)
        for _ in range(3):
            self.a_process_comes()

    def a_process_comes(self) -> None:
        self.count += 1
        self.alive.append(Process(self.count))
        self.a_process_connects(len(self.alive) - 1)

    @rule(which=WHICH)
    def a_process_dies_and_another_comes(self, which: int) -> None:
        process = self.alive.pop(which)
        self.note(self.log.drop(process.member.id))
        self.a_process_comes()

    @rule(which=WHICH, name=NAMES, offers=st.sets(st.sampled_from("pq")))
    def a_node_is_announced(self, which: int, name: str, offers: set[str]) -> None:
        process = self.alive[which]
        new = (node(name, process.member), *(service(name, offer, process.member) for offer in sorted(offers)))
        if process.joined and ("node", name) not in process.own:
            self.propose(process, Change(new))

    @rule(which=WHICH, name=NAMES)
    def a_node_is_withdrawn(self, which: int, name: str) -> None:
        process = self.alive[which]
        if process.joined and process.own.pop(("node", name), None):
            process.own = {key: fact for key, fact in process.own.items() if key[1] != name}
            commit, refusals = self.log.propose(process.member, [Change(deletes=(("node", name),))])
            assert not refusals
            self.note(commit)

    @rule()
    def the_registry_dies_and_the_next_one_begins(self) -> None:
        self.log = a_log(self.log.position.epoch.counter + 1)
        self.note(None)
        for process in self.alive:
            process.joined = False

    @rule(which=WHICH)
    def a_process_connects(self, which: int) -> None:
        process = self.alive[which]
        living = {other.member.id for other in self.alive}
        self.note(self.log.join(process.member))
        if process.view.position is not None and process.view.position.epoch != self.log.position.epoch:
            self.note(self.log.hold(fact for fact in process.view.facts.all()
                                    if fact.owner in living and fact.owner != process.member.id))
        own, process.own = process.own, {}
        for name in "xyz":
            self.propose(process, Change(tuple(fact for fact in own.values() if fact.key[1] == name)))
        self.note(self.log.propose(process.member, complete=True)[0])
        process.joined = True
        self.follow(process)

    @rule(which=WHICH, numbers=st.lists(st.integers(0, 9), min_size=1, max_size=6), again=st.booleans())
    def messages_arrive(self, which: int, numbers: list[int], again: bool) -> None:
        """Those with these places among what is on its way, some to arrive once more later."""
        process = self.alive[which]
        for number in numbers:
            if process.wire:
                place = number % len(process.wire)
                self.receive(process, process.wire[place] if again else process.wire.pop(place))
                self.every_view_is_a_prefix_and_never_goes_back()

    @rule(which=WHICH)
    def all_that_is_on_its_way_arrives(self, which: int) -> None:
        self.deliver(self.alive[which])

    @rule(which=WHICH, number=st.integers(0, 9))
    def a_message_is_lost(self, which: int, number: int) -> None:
        wire = self.alive[which].wire
        if wire:
            wire.pop(number % len(wire))

    @rule(which=WHICH)
    def the_registry_beats(self, which: int) -> None:
        self.alive[which].wire.append(Beat(self.log.position))

    @invariant()
    def every_view_is_a_prefix_and_never_goes_back(self) -> None:
        for process in self.alive:
            position = process.view.position
            if position is None:
                assert process.highest is None
                continue
            assert frozenset(process.view.facts.all()) == self.history[position]
            if process.highest is not None:
                assert (position.epoch.counter, position.version) >= (
                    process.highest.epoch.counter, process.highest.version)
            process.highest = position

    def teardown(self) -> None:
        """The network heals: all views are equal, and hold exactly what the living own."""
        for which, process in enumerate(self.alive):
            process.wire.clear()
            self.a_process_connects(which)
        for process in self.alive:
            process.wire.append(Beat(self.log.position))
            self.deliver(process)
            assert process.view.facts.all() == self.log.facts.all()
        expected = {fact for process in self.alive for fact in (process.member, *process.own.values())}
        assert set(self.log.facts.all()) == expected

    def propose(self, process: Process, change: Change) -> None:
        commit, refusals = self.log.propose(process.member, [change])
        self.note(commit)
        if not refusals:
            known = (self.log.facts.get(fact.key) for fact in change.puts)
            process.own.update({fact.key: fact for fact in known if fact is not None})
            assert {fact.key for fact in change.puts} <= set(process.own)

    def deliver(self, process: Process) -> None:
        while process.wire:
            self.receive(process, process.wire.pop(0))
            self.every_view_is_a_prefix_and_never_goes_back()

    def receive(self, process: Process, message: Wire) -> None:
        view = process.view
        outcome = (view.apply(message) if isinstance(message, Commit) else
                   view.load(message) if isinstance(message, Snapshot) else view.hear(message))
        if outcome is Outcome.GAP:
            self.follow(process)

    def follow(self, process: Process) -> None:
        asked = Follow(process.view.position)
        missing: Iterable[Wire] | None = self.log.since(asked.since)
        if missing is None:
            (whole,) = self.log.snapshot()
            cut = len(whole.facts) // 2
            missing = (replace(whole, last=False, facts=whole.facts[:cut]),
                       replace(whole, piece=1, facts=whole.facts[cut:]))
        process.wire.extend(missing)

    def note(self, commit: Commit | None) -> None:
        """Remember the state after each step, and send it to all."""
        position = self.log.position
        assert commit is None or commit.position == position
        state = frozenset(self.log.facts.all())
        assert self.history.setdefault(position, state) == state
        names = [fact.name for fact in state if isinstance(fact, NodeFact)]
        assert len(names) == len(set(names))
        if commit is not None:
            for process in self.alive:
                process.wire.append(commit)


AGraph.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestAGraph = AGraph.TestCase
