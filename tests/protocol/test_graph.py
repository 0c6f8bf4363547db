from __future__ import annotations

import pytest
from msgspec.structs import replace

from pyzmp.exceptions import AnnouncementRefused
from pyzmp.protocol.facts import (
    LONG,
    Beat,
    Change,
    Commit,
    Epoch,
    Fact,
    Member,
    NodeFact,
    Position,
    ServiceFact,
    Snapshot,
    decode,
    encode,
)
from pyzmp.protocol.graph import TAIL, Log, Outcome, View, run_by

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


def test_a_part_is_not_left_behind_where_its_node_was() -> None:
    log = a_log()
    announce(log, A, node("kitchen", A))
    _, (refusal,) = log.propose(A, [Change((service("kitchen", "evil", A),), (("node", "kitchen"),))])
    assert isinstance(refusal.error(), AnnouncementRefused)
    log.facts.change([service("hall", "evil", A)])  # wherever it may come from
    commit = announce(log, B, node("hall", B), service("hall", "x", B))
    assert commit.deletes == (("service", "hall", "evil"),)
    assert log.facts.providers("evil") == ()
    assert len(log.facts.providers("x")) == 1


def test_a_node_in_one_group_twice_is_refused() -> None:
    log = a_log()
    _, (refusal,) = log.propose(A, [Change((node("kitchen", A, groups=("house", "house")),))])
    assert "in one group twice: house, house" in str(refusal.error())
    assert log.facts.nodes() == []


def test_a_commit_is_never_larger_than_a_follower_reads() -> None:
    log, view = a_log(), View()
    view.load(next(log.snapshot()))
    names = [f"{number:04}{'n' * 200}" for number in range(2000)]
    changes = [Change((node(name, A, cls="c" * 900), service(name, "x", A))) for name in names]
    log.propose(A, changes)
    put = log.since(Position(log.position.epoch, 0))
    log.join(A)
    before = log.position
    log.propose(A, complete=True)
    deleted = log.since(before)
    assert put is not None
    assert deleted is not None
    assert len(put) > 1
    assert len(deleted) > 1
    assert sum(len(commit.deletes) for commit in deleted) == len(names), "a node takes its parts with it"
    for commit in (*put, *deleted):
        assert decode(encode(commit)) == commit
        assert view.apply(commit) is Outcome.APPLIED
    assert view.facts.all() == log.facts.all() == [A]


def test_a_fact_that_no_follower_could_read_is_refused() -> None:
    log = a_log()
    _, (refusal,) = log.propose(A, [Change((node("kitchen", A, addresses=("x" * LONG,) * 50),))])
    assert "node 'kitchen' is too large" in str(refusal.error())


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

def test_what_is_held_is_no_part_of_the_history_and_keeps_its_incarnation() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A), service("kitchen", "x", A))
    new.join(B)
    assert new.hold(old.facts.all()) == {"a"}
    assert new.hold(old.facts.all()) == set()
    kept = old.facts.node("kitchen")
    assert (new.unconfirmed, new.held_of("a"), new.facts.all()) == (["a"], [A, kept], [B])
    new.join(A)
    _, refusals = new.propose(A, [Change((node("kitchen", A), service("kitchen", "x", A)))], complete=True)
    assert (refusals, new.unconfirmed, new.held_of("a")) == ((), [], [])
    assert new.facts.node("kitchen") == kept


def test_what_an_owner_does_not_confirm_ends() -> None:
    log = a_log(1)
    announce(log, A, node("kitchen", A), node("hall", A))
    kitchen = log.facts.node("kitchen")
    assert kitchen is not None
    log.join(A)
    assert len(log.facts.nodes()) == 2
    commit, _ = log.propose(A, [Change((kitchen,))], complete=True)
    assert commit is not None
    assert commit.deletes == (("node", "hall"),)


def test_what_others_hold_of_an_owner_that_has_spoken_is_old() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A))
    new.join(A)
    new.propose(A, complete=True)
    assert new.hold(old.facts.all()) == set()
    new.drop("a")
    assert new.hold(old.facts.all()) == set()
    assert new.unconfirmed == []


def two_lives() -> tuple[Log, list[Fact], NodeFact]:
    """A log in which a kitchen was a's and then b's, with what was known of the first, and the second."""
    old = a_log(1)
    announce(old, A, node("kitchen", A), service("kitchen", "x", A))
    stale = old.facts.all()
    old.drop("a")
    announce(old, B, node("kitchen", B))
    living = old.facts.node("kitchen")
    assert living is not None
    return old, stale, living


def test_the_later_registration_of_a_name_wins_over_one_that_is_held() -> None:
    _, stale, living = two_lives()
    new = a_log(2)
    new.hold(stale)
    assert new.reserved(living) is None
    assert announce(new, B, living)
    assert new.facts.node("kitchen") == living


def test_the_later_registration_of_a_name_wins_though_it_comes_second() -> None:
    _, stale, living = two_lives()
    new = a_log(2)
    announce(new, A, *stale[1:])
    assert announce(new, B, living).deletes == (("node", "kitchen"),)
    assert new.facts.node("kitchen") == living
    assert new.facts.providers("x") == ()


def test_a_name_is_not_taken_by_saying_that_it_was_registered_later() -> None:
    log = a_log(2)
    announce(log, A, node("kitchen", A))
    log.propose(B, complete=True)
    for incarnation in ((1, 9), (2, 9), (3, 1)):
        _, refusals = log.propose(B, [Change((node("kitchen", B, incarnation=incarnation),))])
        assert len(refusals) == 1
    announce(log, B, node("hall", B, incarnation=(3, 1)))
    hall = log.facts.node("hall")
    assert hall is not None
    assert hall.incarnation == (2, log.position.version), "nobody was registered in the future"


def test_a_new_node_does_not_take_a_name_that_is_held() -> None:
    old, new = a_log(1), a_log(2)
    announce(old, A, node("kitchen", A))
    new.hold(old.facts.all())
    assert new.reserved(node("kitchen", B)) == old.facts.node("kitchen")
    _, refusals = new.propose(B, [Change((node("kitchen", B),))])
    assert len(refusals) == 1
    new.release("a")
    assert new.reserved(node("kitchen", B)) is None
    assert announce(new, B, node("kitchen", B))


def test_who_is_out_of_the_graph_can_be_forgotten() -> None:
    log = a_log()
    log.propose(B, complete=True)
    for number in range(9):
        log.propose(replace(A, id=f"a{number}"), complete=True)
        log.drop(f"a{number}")
    log.forget()
    assert log.hold([A, B]) == {"a"}
    assert log._settled == {"b"}


def test_a_doubted_member_is_known_as_such_by_every_view_and_since_when() -> None:
    log = a_log()
    announce(log, A, node("kitchen", A))
    view = View()
    view.load(next(log.snapshot()), 10.0)
    assert view.confirmed("a", 11.0) == 1.0
    assert view.confirmed("b", 11.0) == float("inf")
    doubt = log.doubt("a")
    assert doubt is not None
    assert log.doubt("a") is None
    view.apply(doubt, 12.0)
    view.hear(Beat(log.position), 14.0)
    late = View()
    late.load(next(log.snapshot()), 14.0)
    assert (view.confirmed("a", 15.0), late.confirmed("a", 15.0)) == (3.0, 1.0)
    again = log.join(A)
    assert again is not None
    view.apply(again, 16.0)
    assert view.confirmed("a", 16.5) == 0.5


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
        assert view.apply(Commit(position, 0)) is Outcome.FOREIGN
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
