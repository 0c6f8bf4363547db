"""Which calls a loop takes, and in which order they begin."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyzmp.protocol.admission import Admission
from pyzmp.protocol.deadline import Deadline

LIMIT = 12
CALLERS = st.sampled_from("abc")


class Line(RuleBasedStateMachine):
    """An `Admission` beside a list of what was let in, in the order in which it came."""

    def __init__(self) -> None:
        super().__init__()
        self.admission: Admission[str, tuple[str, int]] = Admission(LIMIT)
        self.waiting: list[tuple[str, int]] = []
        self.passed: Counter[str] = Counter()  # turns of others, since each caller began to wait or had its own
        self.count = 0

    @rule(caller=CALLERS)
    def come(self, caller: str) -> None:
        self.count += 1
        call = caller, self.count
        taken = self.admission.admit(caller, self.count, Deadline(float(self.count)), call)
        assert taken == (len(self.waiting) < LIMIT)
        if taken:
            if not any(name == caller for name, _ in self.waiting):
                self.passed[caller] = 0
            self.waiting.append(call)

    @rule()
    def begin(self) -> None:
        found = self.admission.next()
        if found is None:
            assert not self.waiting
            return
        caller, deadline, call = found
        assert caller == call[0]
        assert deadline.at == call[1]
        first = next(other for other in self.waiting if other[0] == caller)
        assert call == first, "each caller's calls keep their order"
        others = {name for name, _ in self.waiting} - {caller}
        self.waiting.remove(call)
        self.passed[caller] = 0
        for other in others:
            self.passed[other] += 1
            assert self.passed[other] < 3, "nobody waits for more than one turn of each of the others"

    @rule(caller=CALLERS, back=st.integers(0, 20))
    def cancel(self, caller: str, back: int) -> None:
        call = caller, self.count - back
        assert self.admission.cancel(*call) == (call if call in self.waiting else None)
        self.waiting = [other for other in self.waiting if other != call]

    @rule(caller=CALLERS)
    def leave(self, caller: str) -> None:
        assert list(self.admission.leave(caller)) == [call for call in self.waiting if call[0] == caller]
        self.waiting = [call for call in self.waiting if call[0] != caller]

    @rule(odd=st.booleans())
    def withdraw(self, odd: bool) -> None:
        gone = [call for call in self.waiting if call[1] % 2 == odd]
        taken = self.admission.withdraw(lambda call: call[1] % 2 == odd)
        assert sorted(taken) == sorted((call[0], call) for call in gone)
        self.waiting = [call for call in self.waiting if call not in gone]

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        assert len(self.admission) == len(self.waiting)


TestLine = Line.TestCase
