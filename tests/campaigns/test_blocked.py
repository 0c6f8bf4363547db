"""Nodes whose loop is held up: by a service that sleeps, and by each other."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.service import Service
from tests.campaigns.history import SCALE, History, note, opened

AT_ONCE = 0.1 * SCALE  # seconds in which comes what the caller can know; a deadline is kept within as many
NAP = 2.0
PATIENCE = 0.5
EARLY = 0.15 * SCALE  # seconds before it calls, from which a twin holds up its loop


class Sleeper(pyzmp.Node):
    def __init__(self, name: str, book: Path, **options: Any) -> None:
        super().__init__(name, **options)
        self.book = book

    def on_start(self) -> None:
        self.notes = opened(self.book)

    def on_stop(self) -> None:
        os.close(self.notes)

    @pyzmp.service
    def sleep(self, number: int, seconds: float) -> float:
        note(self.notes, number)
        time.sleep(seconds)
        return time.monotonic()

    @pyzmp.service
    def touch(self, number: int) -> int:
        note(self.notes, number)
        return number


def timed(call: Callable[..., object], *args: object) -> tuple[float, object]:
    """How long a call takes, and what it gives."""
    began = time.monotonic()
    try:
        outcome = call(*args)
    except Exception as error:
        outcome = error
    return time.monotonic() - began, outcome


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("rounds", "kind"), [
    (1, "process"), pytest.param(10, "process", marks=pytest.mark.slow),
    pytest.param(10, "thread", marks=pytest.mark.slow)])
def test_while_a_service_sleeps_its_callers_know_what_they_can_and_the_rest_when_it_wakes(
        rounds: int, kind: Any, tmp_path: Path, eventually: Callable[..., None]) -> None:
    history = History(tmp_path / "book")
    at = Sleeper.at("sleeper")
    hasty = at.touch.with_options(timeout=PATIENCE)
    told: list[tuple[float, ...]] = []
    with Sleeper("sleeper", history.book, kind=kind), ThreadPoolExecutor(4) as pool:
        for _ in range(rounds):
            made = len(history.calls)
            asleep = pool.submit(history.blocking, at.sleep, NAP)
            eventually(lambda: made + 1 in history.starts())  # noqa: B023
            until = time.monotonic() + NAP
            second = pool.submit(history.blocking, at.touch)
            late = [pool.submit(timed, call, history, hasty) for call in (History.blocking, at_end)]
            unknown, error = timed(Service("nothing", node="sleeper"))
            assert isinstance(error, pyzmp.UnknownService), error
            unfit, error = timed(at.touch, "one")
            assert isinstance(error, pyzmp.InvalidCall), error
            future_unfit, error = timed(at.touch.submit, 1, 2)
            assert isinstance(error, pyzmp.InvalidCall), error
            over = [future.result() for future in late]
            assert time.monotonic() < until, "it slept all the time"
            woke = asleep.result().outcome
            answered = second.result()
            assert answered.outcome == answered.number
            told.append((unknown, unfit, future_unfit, *(took - PATIENCE for took, _ in over), answered.at - woke))
    worst = [max(column) for column in zip(*told, strict=True)]
    print(f"\n{rounds} naps of a {kind}, at worst: unknown service {worst[0] * 1e3:.1f} ms, unfit arguments "
          f"{max(worst[1:3]) * 1e3:.1f} ms, deadlines missed by {max(worst[3:5]) * 1e3:.1f} ms, the rest "
          f"{worst[5] * 1e3:.1f} ms after it woke")
    hasty_ones = [call for call in history.calls.values() if isinstance(call.outcome, Exception)]
    assert len(hasty_ones) == 2 * rounds
    assert all(isinstance(call.outcome, pyzmp.CallTimeout) for call in hasty_ones), hasty_ones
    assert not history.starts().keys() & {call.number for call in hasty_ones}, "what was too late was not begun"
    assert not history.faults()
    assert max(worst) < AT_ONCE


def at_end(history: History, service: Any) -> object:
    """As a future, whose outcome is waited for."""
    future = history.submitted(service)
    with contextlib.suppress(pyzmp.CallError):
        return future and future.result()
    return None


class Twin(pyzmp.Node):
    """Calls the other one at given moments, from a timer, blocking its loop."""

    def __init__(self, name: str, other: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.other = other
        self.moments: list[float] = []
        self.crossings: list[tuple[float, float, str]] = []
        self.served = 0

    @pyzmp.service
    def cross_at(self, moments: list[float]) -> None:
        self.moments = moments

    @pyzmp.every(0.01)
    def cross(self) -> None:
        if not self.moments or time.monotonic() < self.moments[0] - EARLY:
            return
        moment = self.moments.pop(0)
        while (began := time.monotonic()) < moment:  # its loop is held up already, so that the calls do cross
            pass
        try:
            Twin.at(self.other).ping.with_options(timeout=PATIENCE)()
            outcome = "result"
        except pyzmp.CallError as error:
            outcome = type(error).__name__
        self.crossings.append((began - moment, time.monotonic() - began, outcome))
        while time.monotonic() < moment + PATIENCE + AT_ONCE:  # the other one is not answered in its last moment
            pass

    @pyzmp.service
    def ping(self) -> None:
        self.served += 1

    @pyzmp.service
    def said(self) -> list[Any]:
        return [self.served, self.crossings]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("rounds", "kinds"), [
    (1, ("process", "process")), (1, ("thread", "thread")),
    pytest.param(20, ("process", "process"), marks=pytest.mark.slow),
    pytest.param(20, ("thread", "thread"), marks=pytest.mark.slow),
    pytest.param(20, ("process", "thread"), marks=pytest.mark.slow)])
def test_nodes_that_wait_for_each_other_end_at_their_deadlines_and_go_on(
        rounds: int, kinds: tuple[Any, Any], eventually: Callable[..., None]) -> None:
    names = "castor", "pollux"
    with ExitStack() as stack:
        for name, other, kind in zip(names, reversed(names), kinds, strict=True):
            stack.enter_context(Twin(name, other, kind=kind))
        first = time.monotonic() + 2 * EARLY
        for name in names:
            Twin.at(name).cross_at([first + turn * (PATIENCE + 3 * EARLY) for turn in range(rounds)])
        said = [Twin.at(name).said.with_options(timeout=30) for name in names]
        eventually(lambda: all(len(ask()[1]) == rounds for ask in said), (PATIENCE + 3 * EARLY) * rounds + 5)
        served = [ask()[0] for ask in said]
        crossings = [crossing for ask in said for crossing in ask()[1]]
        assert [Twin.at(name).ping() for name in names] == [None, None], "they go on"
    ends = [took - PATIENCE for _, took, _ in crossings]
    print(f"\n{rounds} crossings of {' and '.join(kinds)}: {dict(Counter(outcome for *_, outcome in crossings))}, "
          f"{served} begun, {min(ends) * 1e3:.1f} to {max(ends) * 1e3:.1f} ms after their deadlines")
    assert max(late for late, *_ in crossings) < EARLY, "they did not cross: invalid"
    assert {outcome for *_, outcome in crossings} == {"CallTimeout"}
    assert served == [0, 0], "what waited beyond its deadline was not begun"
    assert min(ends) > -0.01
    assert max(ends) < AT_ONCE
