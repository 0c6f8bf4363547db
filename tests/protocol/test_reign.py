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


@pytest.mark.parametrize(("message", "said"), [
    (Join(A, "home", 2), "member 'a' of another key"),
    (Join(C, "work"), "domain 'home', and this peer of 'work'"),
])
def test_who_is_not_who_he_says_or_of_another_domain_is_not_admitted(message: facts.Message, said: str) -> None:
    bench = Bench()
    bench.says("a", Join(A, "home"), user="key of a")
    with pytest.raises(NotAdmitted, match=said):
        bench.says("thief", message, user="another key")
    with pytest.raises(MalformedMessage):
        bench.says("thief", Follow())
    bench.said.clear()
    bench.reign.beat()
    assert bench.said == [("a", Beat(bench.reign.log.position, "home"))]


def test_a_node_listens_with_the_key_of_its_owner() -> None:
    bench = Bench()
    bench.says("a", Join(A), user="KEY")
    bench.says("a", Propose(1, (Change((node("kitchen", A, "tcp://10.0.0.1:5#KEY", "ipc:///x"),)),)))
    assert bench.names() == {"kitchen"}
    with pytest.raises(NotAdmitted, match="key of somebody else"):
        bench.says("a", Propose(2, (Change((node("hall", A, "tcp://10.0.0.1:6#OTHER"),)),)))
    assert bench.names() == {"kitchen"}


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
