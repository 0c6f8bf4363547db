from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import facts
from pyzmp.protocol.facts import (
    Beat,
    Change,
    Commit,
    Epoch,
    Follow,
    Hold,
    Join,
    Leave,
    Member,
    NodeFact,
    Position,
    Propose,
    ServiceFact,
    Settled,
    Snapshot,
)
from pyzmp.protocol.reign import NotAdmitted, Reign

A, B, C = (Member(name, "host", number, "1") for number, name in enumerate("abc", 1))
BEFORE = Position(Epoch(1, "before"), 9)


def node(name: str, owner: Member, *addresses: str, incarnation: tuple[int, int] = (0, 0)) -> NodeFact:
    return NodeFact(name, owner.id, "", addresses, "process", "host", owner.pid, "m.T", incarnation=incarnation)


class Bench:
    """A reign, what it said to whom, and who is gone."""

    def __init__(self, **options: float) -> None:
        self.now = 0.0
        self.said: list[tuple[str, facts.Message]] = []
        self.gone: set[str] = set()
        self.left: list[str] = []
        self.reign: Reign[str] = Reign(
            Epoch(2, "now"), 0.0, self.send, lambda member: member.id in self.gone, lease=options.get("lease", 4.5),
            grace=options.get("grace", 0.0), domain="home", leaving=lambda member, owned: self.left.append(member.id))

    def send(self, sessions: Sequence[str], message: facts.Message) -> None:
        self.said.extend((session, message) for session in sessions)

    def says(self, session: str, *messages: facts.Message, user: str = "") -> None:
        if session not in self.reign._seats:
            self.reign.opened(session, user)
        for message in messages:
            self.reign.receive(session, message)

    def joins(self, session: str, member: Member, *nodes: NodeFact, number: int = 1) -> None:
        self.says(session, Join(member, "home", number),
                  Propose(1, tuple(Change((one,)) for one in nodes), complete=True))

    def after(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            self.reign.pass_to(self.now)
            self.reign.look()

    def kinds(self, session: str) -> list[type]:
        return [type(message) for to, message in self.said if to == session]

    def answered(self, session: str) -> bool:
        return Snapshot in self.kinds(session)

    def names(self) -> set[str]:
        return {one.name for one in self.reign.log.facts.nodes()}


def test_who_comes_from_an_earlier_epoch_is_answered_when_all_have_spoken() -> None:
    bench = Bench()
    bench.says("observer", Hold((A, B, node("kitchen", B, incarnation=(1, 4)))), Follow(BEFORE))
    bench.says("new", Follow())
    bench.joins("a", A)
    assert not bench.answered("observer")
    assert not bench.answered("new")
    bench.joins("b", B, node("kitchen", B))
    assert bench.answered("observer")
    assert bench.answered("new")
    kitchen = bench.reign.log.facts.node("kitchen")
    assert kitchen is not None
    assert kitchen.incarnation == (1, 4)


def test_nobody_waits_for_the_dead_or_longer_than_the_lease() -> None:
    bench = Bench()
    bench.gone = {"a"}
    bench.says("observer", Hold((A, B, C)), Follow(BEFORE))
    bench.joins("c", C)
    assert bench.left == ["a"]
    bench.after(4)
    assert not bench.answered("observer")
    bench.after(0.5)
    assert bench.answered("observer")
    bench.says("late", Hold((B,)), Follow(BEFORE))
    assert bench.answered("late")


def test_who_dies_while_it_is_waited_for_is_not_waited_for() -> None:
    bench = Bench()
    bench.says("observer", Hold((A,)), Follow(BEFORE))
    bench.gone = {"a"}
    bench.after(0.5)
    assert bench.answered("observer")


def test_time_in_which_it_was_stopped_counts_for_little() -> None:
    bench = Bench()
    bench.joins("a", A, node("kitchen", A))
    bench.reign.ended("a")
    assert not bench.reign.pass_to(1.0)
    assert bench.reign.pass_to(3600.0)
    bench.now = 3600.0
    bench.reign.look()
    assert bench.names() == {"kitchen"}
    bench.after(2)
    assert bench.names() == {"kitchen"}
    bench.after(0.5)
    assert bench.names() == set()
    assert bench.reign.empty


def test_a_name_that_is_held_waits_for_its_owner() -> None:
    bench = Bench()
    bench.says("observer", Hold((B, node("kitchen", B, incarnation=(1, 4)))), Follow(BEFORE))
    bench.joins("a", A, node("kitchen", A), node("hall", A))
    assert bench.names() == {"hall"}
    assert Settled not in bench.kinds("a")
    bench.says("a", Propose(2, (Change(deletes=(("node", "hall"),)),)))
    assert [message.id for _, message in bench.said if isinstance(message, Settled)] == [2]
    bench.joins("b", B, node("kitchen", B, incarnation=(1, 4)))
    settled = [message for to, message in bench.said if isinstance(message, Settled) and to == "a"]
    assert [(one.id, [refusal.index for refusal in one.refusals]) for one in settled] == [(2, []), (1, [0])]


def test_a_name_whose_owner_is_gone_is_given_then() -> None:
    bench = Bench()
    bench.says("observer", Hold((B, node("kitchen", B, incarnation=(1, 4)))), Follow(BEFORE))
    bench.joins("a", A, node("kitchen", A))
    bench.gone = {"b"}
    bench.after(0.5)
    assert bench.names() == {"kitchen"}
    assert bench.answered("observer")


def test_what_waits_for_others_after_the_grace_makes_nobody_look_all_the_time() -> None:
    bench = Bench(grace=1.0)
    bench.says("observer", Hold((B, node("kitchen", B, incarnation=(1, 4)))), Follow(BEFORE))
    bench.joins("a", A, node("kitchen", A))
    bench.after(2)
    assert Settled not in bench.kinds("a")
    assert bench.reign.next_look() > 1


def of(member: Member, key: str) -> Member:
    """The member as somebody with that key."""
    return replace(member, id=f"{member.id}{facts.proof(key)}")


def claims(bench: Bench, member: Member, key: str, incarnation: tuple[int, int]) -> None:
    """The member says that it had the kitchen in the epoch before."""
    who = of(member, key)
    bench.says(member.id, Join(who, "home", 1), user=key)
    bench.says(member.id, Propose(1, (Change((node("kitchen", who, incarnation=incarnation),)),), complete=True))


def tells(bench: Bench, session: str, key: str, who: Member, incarnation: tuple[int, int]) -> None:
    """Somebody says that *who* had it."""
    bench.says(session, Hold((who, node("kitchen", who, incarnation=incarnation)), "home"), user=key)


def owner(bench: Bench) -> str:
    kitchen = bench.reign.log.facts.node("kitchen")
    assert kitchen is not None
    return kitchen.owner[0]


@pytest.mark.parametrize("before", ["registered", "held"])
def test_nobody_takes_a_name_by_saying_himself_that_he_had_it_later(before: str) -> None:
    bench = Bench()
    if before == "held":
        tells(bench, "observer", "", of(A, "KEY OF A"), (1, 4))
    else:
        claims(bench, A, "KEY OF A", (1, 4))
    tells(bench, "b", "KEY OF B", of(B, "KEY OF B"), (1, 99))
    claims(bench, B, "KEY OF B", (1, 99))
    assert not bench.names() or owner(bench) == "a"
    claims(bench, A, "KEY OF A", (1, 4))
    assert owner(bench) == "a"


def test_who_had_a_name_later_gets_it_where_somebody_else_knew_of_that() -> None:
    bench = Bench()
    claims(bench, A, "KEY OF A", (1, 4))
    tells(bench, "c", "KEY OF C", of(B, "KEY OF B"), (1, 9))
    claims(bench, B, "KEY OF B", (1, 9))
    assert owner(bench) == "b"


def test_who_was_known_to_have_a_name_gets_it_back_from_one_who_only_says_so() -> None:
    bench = Bench()
    claims(bench, B, "KEY OF B", (1, 99))
    tells(bench, "c", "KEY OF C", of(A, "KEY OF A"), (1, 4))
    claims(bench, A, "KEY OF A", (1, 4))
    assert owner(bench) == "a"


@pytest.mark.parametrize(("seconds", "winner"), [(8, "b"), (9, "a")])
def test_a_name_cannot_be_claimed_of_old_long_after_the_epoch_began(seconds: float, winner: str) -> None:
    bench = Bench()
    claims(bench, A, "", (1, 4))
    bench.after(seconds)
    claims(bench, B, "", (1, 9))
    assert owner(bench) == winner


def test_new_names_wait_for_the_grace_and_what_comes_after_them_too() -> None:
    bench = Bench(grace=1.0)
    bench.joins("a", A, node("kitchen", A), node("hall", A, incarnation=(1, 2)))
    bench.says("a", Propose(2, (Change((ServiceFact("kitchen", "x", "a"),)), Change(deletes=(("node", "attic"),)))))
    assert bench.names() == {"hall"}
    bench.says("a", Propose(3, (Change(deletes=(("node", "kitchen"),)),)))
    bench.after(1)
    assert bench.names() == {"hall"}
    assert [message.id for _, message in bench.said if isinstance(message, Settled)] == [1, 2, 3]


def test_the_grace_is_over_soon_after_somebody_has_told_of_the_epoch_before() -> None:
    bench = Bench(grace=100.0)
    bench.joins("a", A, node("attic", A))
    bench.after(1)
    assert bench.names() == set()
    bench.says("observer", Hold((B, node("kitchen", B, incarnation=(1, 5)))), Follow(BEFORE))
    bench.says("a", Propose(2, (Change((node("kitchen", A),)),)))
    bench.after(0.5)
    assert bench.names() == {"attic"}, "names that were told of still wait for their owners"


def test_a_cut_member_is_doubted_until_it_is_back_and_dropped_after_the_lease() -> None:
    bench = Bench()
    bench.says("observer", Follow())
    bench.joins("a", A, node("kitchen", A))
    bench.reign.ended("a")
    bench.after(0.5)
    assert bench.said[-1][1] == Commit(bench.reign.log.position, 2, (replace(A, doubted=True),))
    bench.joins("again", A, node("kitchen", A), number=2)
    assert bench.reign.log.facts.get(A.key) == A
    bench.reign.ended("again")
    bench.after(4.5)
    assert bench.names() == set()
    assert bench.left == ["a"]


def test_what_comes_late_from_an_earlier_session_does_not_count() -> None:
    bench = Bench()
    bench.joins("late", A, number=2)
    bench.joins("early", A, node("kitchen", A), number=1)
    assert bench.names() == set()
    bench.says("early", Leave())
    bench.reign.ended("early")
    bench.after(6)
    assert bench.reign.log.facts.get(A.key) == A


def test_nobody_is_a_member_of_another_key_though_he_comes_first() -> None:
    bench = Bench()
    victim = of(A, "KEY OF A")
    for who in (victim, A, of(A, "another key of his, which is not proved")):
        with pytest.raises(NotAdmitted, match="of another key"):
            bench.says(f"thief as {who.id}", Join(who, "home", 99), user="KEY OF B")
    bench.says("a", Join(victim, "home", 1), user="KEY OF A")
    assert bench.reign.present(victim.id)


def test_what_was_before_is_told_by_those_of_this_domain() -> None:
    bench = Bench()
    with pytest.raises(MalformedMessage, match="a Hold of the domain 'work'; this registry is of 'home'"):
        bench.says("far", Hold((B,), "work"), user="KEY")
    assert bench.reign.log.unconfirmed == []
    bench.says("far", Hold((B,), "home"))
    bench.says("near", Hold((C,)))
    assert bench.reign.log.unconfirmed == ["b", "c"]


@pytest.mark.parametrize(("message", "said"), [
    (Join(A, "home", 2), "member 'a' of another key"),
    (Join(C, "work"), "domain 'home', and this peer of 'work'"),
])
def test_who_is_not_who_he_says_or_of_another_domain_is_not_admitted(message: facts.Message, said: str) -> None:
    bench = Bench()
    bench.says("a", Join(A, "home"))
    with pytest.raises(NotAdmitted, match=said):
        bench.says("thief", message, user="another key")
    with pytest.raises(MalformedMessage):
        bench.says("thief", Follow())
    bench.said.clear()
    bench.reign.beat()
    assert bench.said == [("a", Beat(bench.reign.log.position, "home"))]


def test_a_node_listens_with_the_key_of_its_owner() -> None:
    bench, a = Bench(), of(A, "KEY")
    bench.says("a", Join(a), user="KEY")
    bench.says("a", Propose(1, (Change((node("kitchen", a, "tcp://10.0.0.1:5#KEY", "ipc:///x"),)),)))
    assert bench.names() == {"kitchen"}
    with pytest.raises(NotAdmitted, match="key of somebody else"):
        bench.says("a", Propose(2, (Change((node("hall", a, "tcp://10.0.0.1:6#OTHER"),)),)))
    assert bench.names() == {"kitchen"}


def test_a_change_that_takes_several_commits_is_told_with_all_of_them() -> None:
    bench = Bench()
    bench.says("observer", Follow())
    bench.joins("a", A, *(replace(node(f"n{number}", A), cls="c" * 16000) for number in range(50)))
    commits = [message for to, message in bench.said if to == "observer" and isinstance(message, Commit)]
    assert len(commits) > 2
    assert [commit.after for commit in commits] == list(range(len(commits)))
    assert commits[-1].position == bench.reign.log.position


def test_who_came_and_went_is_not_remembered_for_ever() -> None:
    bench = Bench()
    bench.says("observer", Hold((B, node("hall", B))))
    bench.after(10)
    for number in range(9):
        bench.joins(f"s{number}", replace(A, id=f"a{number}"))
        bench.says(f"s{number}", Leave())
    assert bench.reign.log._settled == set()
    assert bench.reign._vouched == {}


def test_a_session_has_one_member_and_only_members_propose() -> None:
    bench = Bench()
    for message in (Propose(1, ()), Leave(), Beat(BEFORE)):
        with pytest.raises(MalformedMessage):
            bench.says("x", message)
    bench.says("x", Join(A))
    with pytest.raises(NotAdmitted, match="in a session of 'a'"):
        bench.says("x", Join(B))


def test_a_later_epoch_that_somebody_has_seen_is_noted_and_he_is_not_answered() -> None:
    bench = Bench()
    bench.says("x", Follow(Position(Epoch(7, "later"), 1)))
    assert bench.reign.later == 7
    assert not bench.answered("x")
