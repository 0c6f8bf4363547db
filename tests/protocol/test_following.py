from __future__ import annotations

import pytest

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.protocol.facts import Beat, Commit, Epoch, Follow, Hold, Member, NodeFact, Position, ServiceFact, Snapshot
from pyzmp.protocol.following import ESTRANGED, Following
from pyzmp.protocol.graph import View

A, B = (Member(name, "host", number, "1") for number, name in enumerate("ab", 1))
KITCHEN = NodeFact("kitchen", "b", "", (), "process", "host", 2, "m.T", incarnation=(2, 2))
HERE, BEFORE, AFTER = (Position(Epoch(counter, f"nonce {counter}"), 3) for counter in (2, 1, 3))


class Bench:
    """A follower, and what it said; ``introduced`` is where it said who it is."""

    def __init__(self, *, member: bool = False) -> None:
        self.said: list[facts.Message | str] = []
        self.view = View()
        self.following = Following(self.view, "a", self.said.append, lambda: self.said.append("introduced"), "home")
        self.following.takes_part = member
        self.following.open()

    def knows(self, *known: facts.Fact) -> Bench:
        self.view.load(Snapshot(HERE, 0, True, known))
        return self


def test_it_says_first_what_it_knows_of_others_and_observers_do_too() -> None:
    for member in (False, True):
        bench = Bench(member=member).knows(A, B, KITCHEN, ServiceFact("kitchen", "x", "b"))
        assert bench.following.hear(Beat(AFTER), 1.0) is False
        assert bench.said == [*(["introduced"] if member else []), Hold((B, KITCHEN), "home"), Follow(HERE)]


def test_in_the_epoch_that_it_knows_it_only_asks_for_what_is_missing() -> None:
    bench = Bench().knows(A, B, KITCHEN)
    bench.following.hear(Beat(HERE), 1.0)
    assert bench.said == [Follow(HERE)]
    assert bench.following.hear(Beat(HERE), 1.0) is True


def test_what_is_missing_is_asked_for_at_once_and_again_after_some_beats() -> None:
    bench = Bench().knows()
    assert bench.following.hear(Beat(HERE), 1.0) is False
    assert bench.following.hear(Beat(HERE), 1.0) is True
    bench.said.clear()
    assert not bench.following.learn(Commit(HERE._replace(version=5), 4), 1.0)
    for _ in range(4):
        bench.following.hear(Beat(HERE._replace(version=5)), 1.0)
    assert bench.said == [Follow(HERE), Follow(HERE)]
    assert bench.following.learn(Commit(HERE._replace(version=5), 3), 1.0)
    assert bench.following.hear(Beat(HERE._replace(version=5)), 1.0) is True


def test_before_it_has_said_what_it_knows_it_believes_nothing() -> None:
    bench = Bench().knows(A, B)
    assert not bench.following.learn(Snapshot(AFTER, 0, True, ()), 1.0)
    assert bench.view.position == HERE


def test_a_member_goes_above_what_it_knows_where_the_counters_began_anew() -> None:
    bench = Bench(member=True).knows(A, B)
    assert "is not after" in str(bench.following.hear(Beat(BEFORE), 1.0))
    assert bench.following.above == 2
    assert bench.said == [Follow(HERE)]


def test_an_observer_waits_for_a_later_epoch_and_begins_anew_when_there_is_none() -> None:
    bench = Bench().knows(A, B, KITCHEN)
    for _ in range(ESTRANGED - 1):
        assert bench.following.hear(Beat(BEFORE), 1.0) is False
    assert bench.view.position == HERE
    assert bench.said == [Follow(HERE)]
    bench.following.hear(Beat(BEFORE), 1.0)
    assert bench.said[1:] == [Follow(None)]
    assert bench.following.learn(Snapshot(BEFORE, 0, True, (A,)), 1.0)
    assert bench.view.facts.all() == [A]


def test_a_later_epoch_that_comes_in_time_is_followed_from_what_is_known() -> None:
    bench = Bench().knows(A, B, KITCHEN)
    for _ in range(ESTRANGED - 1):
        bench.following.hear(Beat(BEFORE), 1.0)
    bench.following.open()
    bench.following.hear(Beat(AFTER), 1.0)
    assert bench.said[1:] == [Hold((B, KITCHEN), "home"), Follow(HERE)]


def test_a_silent_registry_is_not_followed_any_more_by_members() -> None:
    for member in (False, True):
        bench = Bench(member=member).knows()
        bench.following.hear(Beat(HERE), 1.0)
        bench.following.silent()
        assert bench.following.above == (2 if member else 0)


def test_a_registry_of_another_domain_is_refused_and_both_are_named() -> None:
    with pytest.raises(RegistryUnavailable, match="'work', and this process of 'home'"):
        Bench().following.hear(Beat(HERE, "work"), 1.0)
    assert Bench().following.hear(Beat(HERE, "home"), 1.0) is False
    assert Bench().following.hear(Beat(HERE), 1.0) is False


def test_who_takes_part_later_introduces_itself_then() -> None:
    bench = Bench()
    bench.following.hear(Beat(HERE), 1.0)
    bench.following.take_part()
    assert bench.said == [Follow(None), "introduced"]


def test_one_that_refuses_for_the_second_time_goes_on_doing_so_whatever_others_say_meanwhile() -> None:
    following = Bench().following
    said = [following.failed(*failure) for failure in (
        ("tcp://a", "refused: no"), ("tcp://b", "nobody listens"), ("tcp://b", "nobody listens"),
        ("tcp://a", "refused: no"), ("tcp://b", "refused: no"), ("tcp://a", "nobody listens"),
        ("tcp://a", "refused: no"), ("tcp://b", "refused: another reason"))]
    assert said == [False, False, False, True, False, False, False, False]
