"""Answers kept for a while, so that a call that comes again is answered and not run again."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyzmp.protocol.kept import WAITERS, Kept, Key, Standing

ENTRIES, SIZE, SECONDS = 3, 20, 10.0
KEYS = st.tuples(st.sampled_from("pq"), st.sampled_from([b"1", b"2", b"3"]))


class Store(RuleBasedStateMachine):
    """A `Kept` beside a list of what ended and a dict of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Kept[int, str] = Kept(ENTRIES, SIZE, SECONDS)
        self.ended: list[tuple[Key, str, int, float]] = []  # with size and time, oldest first
        self.running: dict[Key, list[int]] = {}
        self.ran: set[Key] = set()
        self.now, self.count = 0.0, 0

    def fresh(self) -> list[tuple[Key, str, int, float]]:
        """What must be kept, by the rule as it is said."""
        young = [entry for entry in self.ended if self.now - entry[3] < SECONDS]
        while len(young) > ENTRIES or sum(entry[2] for entry in young) > SIZE:
            del young[0]
        return young

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=KEYS)
    def begin(self, key: Key) -> None:
        self.count += 1
        self.ended = self.fresh()
        found = self.kept.begin(key, self.count, self.now)
        answers = [answer for other, answer, _, _ in self.ended if other == key]
        if answers:
            assert [found] == answers
            return
        if key in self.ran:
            assert found is Standing.FORGOTTEN
            return
        assert found is (Standing.RUNNING if key in self.running else Standing.FRESH)
        self.running.setdefault(key, []).append(self.count)

    @rule(key=KEYS, size=st.integers(0, SIZE + 2))
    def end(self, key: Key, size: int) -> None:
        answer = f"{key} at {self.now}"
        assert self.kept.end(key, answer, size, self.now) == self.running.get(key, [])
        if key in self.running:
            self.ran.add(key)
            if size <= SIZE:
                self.ended.append((key, answer, size, self.now))
        self.running.pop(key, None)
        self.ended = self.fresh()

    @rule(key=KEYS)
    def drop(self, key: Key) -> None:
        assert self.kept.drop(key) == self.running.pop(key, [])

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.kept.running == len(self.running)
        assert len(self.kept) <= ENTRIES
        assert self.kept.size <= SIZE
        assert (len(self.kept), self.kept.size) == (len(self.ended), sum(entry[2] for entry in self.ended))

    def teardown(self) -> None:
        for key in list(self.running):
            self.drop(key)
        self.now += SECONDS
        self.begin(("r", b""))
        self.drop(("r", b""))
        assert (len(self.kept), self.kept.size, self.kept.running) == (0, 0, 0)


TestStore = Store.TestCase

KEY = "process", b"key"


def test_a_call_is_run_once_and_answers_all_who_asked() -> None:
    kept: Kept[str, str] = Kept()
    assert [kept.begin(KEY, name, 0.0) for name in "abc"] == [Standing.FRESH, Standing.RUNNING, Standing.RUNNING]
    assert kept.end(KEY, "answer", 6, 1.0) == ["a", "b", "c"]
    assert kept.begin(KEY, "d", 30.9) == "answer"
    assert kept.begin(KEY, "e", 31.0) is Standing.FORGOTTEN


def test_that_a_call_ran_is_known_long_after_its_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyzmp.protocol.kept.KEYS", 3)
    kept: Kept[int, str] = Kept(entries=1)
    keys = [("p", bytes([number])) for number in range(6)]
    for number, key in enumerate(keys):
        kept.begin(key, number, 0.0)
        kept.end(key, "answer", 1, 0.0)
    assert [kept.begin(key, 0, 1e9) for key in keys[5:]] == [Standing.FORGOTTEN]
    assert [kept.begin(key, 0, 0.0) for key in keys[:3]] == [Standing.FRESH] * 3
    assert [kept.begin(key, 0, 0.0) for key in keys[3:]] == [Standing.FORGOTTEN] * 3


def test_so_many_may_wait_for_one_answer() -> None:
    kept: Kept[int, str] = Kept()
    standings = [kept.begin(KEY, number, 0.0) for number in range(WAITERS + 2)]
    assert standings[1:] == [Standing.RUNNING] * (WAITERS - 1) + [Standing.CROWDED] * 2
    assert kept.end(KEY, "answer", 1, 0.0) == list(range(WAITERS))


def test_another_process_with_the_same_key_makes_another_call() -> None:
    kept: Kept[str, str] = Kept()
    kept.begin(KEY, "a", 0.0)
    assert kept.begin(("other", KEY[1]), "b", 0.0) is Standing.FRESH


def test_an_answer_too_large_to_be_kept_is_given_to_those_who_wait() -> None:
    kept: Kept[str, str] = Kept(size=10)
    kept.begin(("p", b"small"), "s", 0.0)
    kept.end(("p", b"small"), "small", 5, 0.0)
    kept.begin(KEY, "a", 0.0)
    assert kept.end(KEY, "large", 11, 0.0) == ["a"]
    assert kept.begin(KEY, "b", 0.0) is Standing.FORGOTTEN
    assert kept.begin(("p", b"small"), "c", 0.0) == "small", "and nothing else is forgotten for it"


def test_what_runs_is_never_forgotten() -> None:
    kept: Kept[int, str] = Kept(entries=1, size=1, seconds=1.0)
    for number in range(100):
        assert kept.begin(("p", bytes([number])), number, 0.0) is Standing.FRESH
    assert all(kept.begin(("p", bytes([number])), 100 + number, 1e6) is Standing.RUNNING for number in range(100))


def test_the_end_of_a_call_that_does_not_run_is_not_kept() -> None:
    kept: Kept[str, str] = Kept()
    assert kept.end(KEY, "answer", 6, 0.0) == []
    assert kept.begin(KEY, "a", 0.0) is Standing.FRESH
