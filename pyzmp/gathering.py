"""Small messages that are published one after the other, and leave together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from msgspec import Raw

from pyzmp.protocol import runs
from pyzmp.protocol.feed import BATCH, BATCH_SIZE, FEW
from pyzmp.protocol.runs import SCALARS, Bodies
from pyzmp.protocol.schema import Type

SMALL = 1024  # bytes up to which messages are gathered
SOON, LATE = 0.0002, 0.002  # seconds for which messages are gathered: the more there are to send, the longer

clock = time.time  # noqa: TID251  subscribers are told when each message was published


class Gathering:
    """What was published of a topic of that *type*, and is not offered yet.  Any thread may add to it.

    So that this takes next to no time, whoever publishes does it himself: where a value is small, and of a type that is
    ``quick``, he adds its time and itself to ``pending``, at one stroke.  He sees to it that it leaves where that time
    is not between ``since`` and ``due``, which is 0 where nobody waits to have it leave.  All are encoded together.
    """

    def __init__(self, type: Type) -> None:
        self.quick = self._plain = type.exact & SCALARS
        self.pending: list[Any] = []
        self.since = self.due = 0.0
        self._most = 2 * BATCH  # entries of it that may travel together
        self._few = False

    def _gather(self, at: float, body: bytes) -> bool:
        """Add a value that is encoded already; False where it is to leave now."""
        self.pending += (at, Raw(body))
        return self.since <= at < self.due

    def _weigh(self, *, careful: bool, few: bool) -> None:
        """Take nothing of this kind where one is *careful*, and no more than `FEW` where there are to be *few*."""
        self.quick, self._few = frozenset() if careful else self._plain, few
        if few:
            self._most, self.since = 2 * FEW, inf  # so that whoever publishes always asks

    def _may_wait(self) -> bool:
        """Whether what was added may wait for more, where there are to be few."""
        return self._few and self.due > 0 and len(self.pending) < self._most

    def _in_a_moment(self, began: float) -> None:
        """Somebody will have it leave: gather as long as it took to send what came before, which *began* then."""
        now = clock()
        self.since = inf if self._few else now
        self.due = now + min(max(SOON, now - began), LATE)

    def _taken(self) -> Iterator[tuple[Sequence[float], Bodies]]:
        """Take what is there, by what may travel together: the times, and the values."""
        pending = self.pending
        while pending:
            gathered = pending[:self._most]
            del pending[:len(gathered)]
            times, values = gathered[::2], gathered[1::2]
            bodies = runs.pack_all(values)
            if bodies.size > BATCH_SIZE and len(values) > FEW:
                self._most = 2 * FEW
                for at in range(0, len(values), FEW):
                    yield times[at:at + FEW], runs.pack_all(values[at:at + FEW])
            else:
                if not self._few and bodies.size * self._most <= BATCH_SIZE * len(values):
                    self._most = min(2 * self._most, 2 * BATCH)
                yield times, bodies
