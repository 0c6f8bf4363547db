"""What happened in a campaign: the calls, the starts that the services noted, the outcomes; judged afterwards."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyzmp

SCALE = float(os.environ.get("PYZMP_TEST_SCALE", "1"))  # makes all limits longer on a slow machine


@dataclass(eq=False)
class Made:
    """One call, as its caller saw it: an outcome is a value or an error, and when it came."""

    number: int
    how: str
    round: int = 0
    begun: float = 0.0
    outcomes: list[tuple[float, Any]] = field(default_factory=list)

    def ended(self, outcome: Any) -> None:
        self.outcomes.append((time.monotonic(), outcome))

    @property
    def at(self) -> float:
        return self.outcomes[0][0]

    @property
    def outcome(self) -> Any:
        return self.outcomes[0][1]

    def open_at(self, moment: float) -> bool:
        return self.begun < moment and (not self.outcomes or self.at > moment)

    def __str__(self) -> str:
        told = ", ".join(f"{outcome!r} executed={getattr(outcome, 'executed', '-')} after {at - self.begun:.4f} s"
                         for at, outcome in self.outcomes)
        return f"call {self.number} ({self.how}, round {self.round}): {told or 'no outcome'}"


class History:
    """The calls of a run, made in each way that there is, and what their services noted in *book*."""

    def __init__(self, book: Path) -> None:
        self.book = book
        self.calls: dict[int, Made] = {}
        self._numbers = itertools.count(1)
        book.touch()

    def made(self, how: str, turn: int = 0) -> Made:
        call = Made(next(self._numbers), how, turn)
        self.calls[call.number] = call
        return call

    def blocking(self, service: Callable[..., Any], *args: Any, turn: int = 0) -> Made:
        call = self.made("blocking", turn)
        call.begun = time.monotonic()
        try:
            call.ended(service(call.number, *args))
        except Exception as error:
            call.ended(error)
        return call

    def submitted(self, service: Any, *args: Any, turn: int = 0) -> Future[Any] | None:
        """Begin a call as a future; None where that raised."""
        call = self.made("future", turn)

        def told(future: Future[Any]) -> None:
            call.ended(future.exception(0) or future.result(0))
        call.begun = time.monotonic()
        try:
            future: Future[Any] = service.submit(call.number, *args)
        except Exception as error:
            call.ended(error)
            return None
        future.add_done_callback(told)
        return future

    async def awaited(self, service: Any, *args: Any, turn: int = 0) -> None:
        call = self.made("awaited", turn)
        call.begun = time.monotonic()
        try:
            call.ended(await service.acall(call.number, *args))
        except Exception as error:
            call.ended(error)

    def of(self, turn: int) -> list[Made]:
        """The calls of round *turn*."""
        return [call for call in self.calls.values() if call.round == turn]

    def starts(self) -> dict[int, list[int]]:
        """For each call that was started: the processes in which it was, as noted by `note`."""
        found: dict[int, list[int]] = {}
        for pid, number in self._notes():
            if number > 0:
                found.setdefault(number, []).append(pid)
        return found

    def ends(self) -> set[int]:
        """The calls whose service came to its end, and noted the negative of their number."""
        return {-number for _, number in self._notes() if number < 0}

    def _notes(self) -> list[tuple[int, int]]:
        return [(int(pid), int(number)) for pid, number in map(str.split, self.book.read_text().splitlines())]

    def faults(self) -> list[str]:
        """What is wrong with any call of any campaign: outcomes, starts, and whether they tell the same."""
        starts, found = self.starts(), []
        for call in self.calls.values():
            times = len(starts.get(call.number, ()))
            wrong = [text for text, is_so in (
                ("has not exactly one outcome", len(call.outcomes) != 1),
                ("was started more than once", times > 1),
                ("started, and its error says that it did not", times and _executed(call) is False),
                ("did not start, and its outcome says that it did", not times and _executed(call) is True),
                ("ended with what is no error of a call", call.outcomes and isinstance(call.outcome, Exception)
                    and not isinstance(call.outcome, pyzmp.CallError)),
            ) if is_so]
            found += [f"{call} {text}; started in {starts.get(call.number)}" for text in wrong]
        return found + [f"call {number} was started and never made" for number in starts.keys() - self.calls.keys()]

    def kinds(self) -> str:
        """How many calls ended how."""
        counts = Counter(type(call.outcome).__name__ if isinstance(call.outcome, Exception) else "result"
                         for call in self.calls.values() if call.outcomes)
        return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def note(book: int, number: int) -> None:
    """Note, by the open file *book*, that the call *number* was started here; a kill right afterwards loses nothing."""
    os.write(book, f"{os.getpid()} {number}\n".encode())


def opened(book: Path) -> int:
    """The file *book*, for `note`."""
    return os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def share(values: Sequence[float], part: float) -> float:
    """The value below which *part* of the *values* are."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def judge(faults: Sequence[str], most: int = 10) -> None:
    """Fail with the first faults, if there are any."""
    more = f"\n  and {len(faults) - most} more" if len(faults) > most else ""
    assert not faults, f"{len(faults)} faults:\n  " + "\n  ".join(faults[:most]) + more


def _executed(call: Made) -> bool | None:
    """What the outcome of *call* says of whether it ran."""
    outcome = call.outcome if call.outcomes else Exception()
    return getattr(outcome, "executed", None) if isinstance(outcome, Exception) else True
