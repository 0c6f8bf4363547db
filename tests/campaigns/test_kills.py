"""Processes that are killed or stopped with a hundred calls in flight."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pyzmp
from tests.campaigns.history import SCALE, History, Made, judge, note, opened, share

MOST = 60  # seconds in which all calls of a round have ended, whatever goes wrong
BLOCKING = 10  # threads that block


class Victim(pyzmp.Node):
    """Notes each call that it starts, and each that it ends."""

    def __init__(self, name: str, book: Path) -> None:
        super().__init__(name)
        self.book = book

    def on_start(self) -> None:
        self.notes = opened(self.book)
        self.going = 0

    @pyzmp.service
    async def hold(self, number: int, seconds: float = 60) -> int:
        note(self.notes, number)
        self.going += 1
        try:
            await asyncio.sleep(seconds)
            note(self.notes, -number)
        finally:
            self.going -= 1
        return number

    @pyzmp.service
    def quick(self, number: int, seconds: float = 0.0) -> int:
        note(self.notes, number)
        time.sleep(seconds)
        note(self.notes, -number)
        return number

    @pyzmp.service(worker=True)
    def work(self, number: int, seconds: float = 0.0) -> int:
        self.going += 1
        self.quick(number, seconds)
        self.going -= 1
        return number

    @pyzmp.service
    def idle(self) -> bool:
        return not self.going


class Callers:
    """A thread that submits, a loop that awaits, and threads that block: about a hundred calls in each round."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._pool = ThreadPoolExecutor(BLOCKING + 1)

    def call(self, at: Any, turn: int, seconds: float) -> list[Future[Any]]:
        """Begin the calls of round *turn*, most of which take *seconds*.  What ends with them."""
        def submit() -> None:
            for number in range(72):
                service = at.hold if number % 9 else at.work if number % 2 else at.quick
                self.history.submitted(service, seconds if number % 9 else min(seconds, 0.002), turn=turn)

        async def await_() -> None:
            await asyncio.gather(*(self.history.awaited(at.hold, seconds, turn=turn) if number % 9 else
                                   self.history.awaited(at.quick, turn=turn) for number in range(36)))

        def block() -> None:
            self.history.blocking(at.quick, turn=turn)  # with its second call a thread has a session of its own
            self.history.blocking(at.hold, seconds, turn=turn)
        return [self._pool.submit(submit), asyncio.run_coroutine_threadsafe(await_(), self.loop),
                *(self._pool.submit(block) for _ in range(BLOCKING))]

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._pool.shutdown()
        self.loop.close()


def once(**options: Any) -> Any:
    """The services of the victim, each call of which is made once."""
    at = Victim.at("victim")
    return SimpleNamespace(**{name: getattr(at, name).with_options(attempts=1, **options)
                              for name in ("hold", "quick", "work")})


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "book")


@pytest.fixture
def callers(history: History) -> Iterator[Callers]:
    made = Callers(history)
    yield made
    made.close()


@pytest.fixture
def settled(history: History, eventually: Callable[..., None]) -> Callable[..., list[Made]]:
    """Wait until all calls of a round have ended; they are what it gives."""

    def wait_for(calls: list[Future[Any]], turn: int) -> list[Made]:
        late = wait(calls, MOST * SCALE).not_done
        assert not late, f"{len(late)} callers of round {turn} still wait"
        made = history.of(turn)
        eventually(lambda: all(call.outcomes for call in made))
        return made
    return wait_for


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rounds", [8, pytest.param(1_000, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_its_calls_and_leaves_none_to_its_successor(
        rounds: int, history: History, callers: Callers, settled: Any, chance: random.Random) -> None:
    node = Victim("victim", history.book)
    at = once()  # or a call that was not sent might rightly run in the successor
    sent: dict[int, set[int]] = {}  # the calls that were made before its process was killed, for each life
    noticed, flying = [], 0
    node.start()
    for turn in range(rounds):
        life = node.ident
        calls = callers.call(at, turn, 60)
        time.sleep(chance.uniform(0.0, 0.06))  # until the moment of the kill; nothing is waited for
        killed = time.monotonic()
        os.kill(life, signal.SIGKILL)  # type: ignore[arg-type]
        node.join(10)
        node.start()
        made = settled(calls, turn)
        after = history.blocking(at.quick, turn=-1)
        assert after.outcome == after.number, f"the successor answers: {after}"
        flying += sum(call.open_at(killed) for call in made)
        sent[life] = {call.number for call in made if call.begun < killed}  # type: ignore[index]
        noticed += [call.at - killed for call in made if call.open_at(killed)]
    node.shutdown()
    starts = history.starts()
    print(f"\n{rounds} kills, {flying / rounds:.0f} calls in flight at each; {history.kinds()}; {len(starts)} started; "
          f"the callers knew after {share(noticed, .5) * 1e3:.1f} ms (median), {share(noticed, .99) * 1e3:.1f} ms "
          f"(99th percentile), {max(noticed) * 1e3:.1f} ms (most)")
    judge(history.faults() + [
        f"{history.calls[number]} was sent to process {life} and started in {starts[number]}"
        for life, numbers in sent.items() for number in numbers if starts.get(number, [life]) != [life]])
    assert flying > 60 * rounds, "too little was in flight: invalid"
    assert share(noticed, 0.5) < 0.05 * SCALE
    assert share(noticed, 0.99) < 0.5 * SCALE


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_process_that_is_stopped_ends_its_calls_and_tells_nobody_anything_when_it_goes_on(
        rounds: int, history: History, callers: Callers, settled: Any, chance: random.Random,
        eventually: Callable[..., None]) -> None:
    noticed, flying = [], 0
    with Victim("victim", history.book) as node:
        at = Victim.at("victim")
        patient = once(timeout=8)
        for turn in range(rounds):
            calls = callers.call(patient, turn, 0.3)
            time.sleep(chance.uniform(0.0, 0.2))  # until the moment of the stop
            stopped = time.monotonic()
            os.kill(node.ident, signal.SIGSTOP)  # type: ignore[arg-type]
            try:
                made = settled(calls, turn)
                outcomes = [list(call.outcomes) for call in made]
                # Stopped for longer than any of its connections lives.
                time.sleep(max(0.0, stopped + chance.uniform(4.6, 5.2) - time.monotonic()))
            finally:
                os.kill(node.ident, signal.SIGCONT)  # type: ignore[arg-type]
            eventually(lambda: pyzmp.discover("victim/idle") is not None, 10)
            eventually(at.idle)
            after = history.blocking(at.quick, turn=-1)
            assert after.outcome == after.number, f"it answers again: {after}"
            assert [call.outcomes for call in made] == outcomes, "nothing was told after the outcome"
            flying += sum(call.open_at(stopped) for call in made)
            noticed += [call.at - stopped for call in made if call.open_at(stopped)]
    starts, ends = history.starts(), history.ends()
    late = sum(isinstance(call.outcome, Exception) for call in history.calls.values() if call.number in ends)
    print(f"\n{rounds} stops, {flying / rounds:.0f} calls in flight at each; {history.kinds()}; {len(starts)} started; "
          f"the callers knew after {share(noticed, .5):.2f} s (median), {max(noticed):.2f} s (most); {late} results "
          "came to nobody")
    judge(history.faults())
    assert flying > 60 * rounds, "too little was in flight: invalid"
    assert late >= rounds, "no result was late: invalid"
    assert max(noticed) < 4.5 * SCALE
