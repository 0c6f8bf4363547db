"""One-way calls: sent, run once, never answered."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import CannotTravel, Overloaded
from pyzmp.guest import WORKERS
from pyzmp.protocol.calls import CALLS, SIZE
from tests.campaigns.history import SCALE


class Noted(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Ledger(pyzmp.Node):
    """Writes down what it is told."""

    def on_start(self) -> None:
        self.lines: list[str] = []
        self.gate = asyncio.Event()
        self.worked = threading.Event()
        self.logged = Noted()
        logging.getLogger("pyzmp.node").addHandler(self.logged)

    def on_stop(self) -> None:
        logging.getLogger("pyzmp.node").removeHandler(self.logged)

    @pyzmp.service
    def note(self, line: str) -> str:
        self.lines.append(line)
        return line

    @pyzmp.service
    async def anote(self, line: str) -> None:
        await asyncio.sleep(0)
        self.lines.append(line)

    @pyzmp.service(worker=True)
    def wnote(self, line: str) -> None:
        self.lines.append(line)

    @pyzmp.service
    def fail(self, why: str) -> None:
        self.lines.append(why)
        raise ValueError(why)

    @pyzmp.service
    async def later(self, line: str, seconds: float) -> None:
        self.lines.append(f"begun {line}")
        await asyncio.sleep(seconds)
        self.lines.append(line)

    @pyzmp.service
    async def weigh(self, data: bytes) -> None:
        await self.gate.wait()
        self.lines.append(str(len(data)))

    @pyzmp.service
    async def wait(self) -> None:
        await self.gate.wait()

    @pyzmp.service
    async def open(self) -> None:
        self.gate.set()
        self.worked.set()

    @pyzmp.service(worker=True)
    def work(self) -> None:
        self.worked.wait(5)

    @pyzmp.service
    def hold(self, seconds: float) -> None:
        time.sleep(seconds)

    @pyzmp.service
    async def said(self) -> list[str]:
        return self.lines

    @pyzmp.service
    async def errors(self) -> list[str]:
        return self.logged.lines


def test_what_is_posted_runs_once_each_and_in_order(place: Any, eventually: Any) -> None:
    place.start(Ledger("ledger"))
    lines = [str(number) for number in range(300)]
    for line in lines:
        assert Ledger.note.post(line) is None  # type: ignore[func-returns-value]
    eventually(lambda: len(Ledger.said()) >= 300)
    assert Ledger.said() == lines
    for post in (Ledger.anote.post, Ledger.wnote.post):
        post("more")
    by_name = pyzmp.discover("note")
    assert by_name is not None
    by_name.post("more")
    eventually(lambda: Ledger.said()[300:] == ["more"] * 3)


def test_a_post_does_not_wait_for_what_it_calls(home: Any) -> None:
    home.start(Ledger("ledger"))
    began = time.monotonic()
    Ledger.hold.post(0.3 * SCALE)
    assert time.monotonic() - began < 0.25 * SCALE
    assert Ledger.said.submit().result(5) == []  # on the same session, behind it
    assert time.monotonic() - began >= 0.3 * SCALE


def test_a_coroutine_posts_without_waiting(home: Any, eventually: Any) -> None:
    home.start(Ledger("ledger"))

    async def run() -> None:
        Ledger.note.post("from a coroutine")
    asyncio.run(run())
    eventually(lambda: Ledger.said() == ["from a coroutine"])


class Postman(pyzmp.Node):
    @pyzmp.service
    def inline(self) -> None:
        Postman.at(self.name).receive.post()

    @pyzmp.service
    def receive(self) -> None:
        self.got = True

    @pyzmp.service
    async def received(self) -> bool:
        return hasattr(self, "got")


def test_a_service_posts_to_its_own_node(home: Any, eventually: Any) -> None:
    home.start(Postman("postman"))
    Postman.inline()
    eventually(Postman.received)


def test_an_error_is_logged_at_the_node_and_is_nothing_to_the_caller(home: Any, eventually: Any) -> None:
    home.start(Ledger("ledger"))
    Ledger.fail.post("out of ink")
    Ledger.note.post("goes on")
    eventually(Ledger.errors)
    (line,) = Ledger.errors()
    assert "the one-way call of fail() of 'ledger' by process" in line
    assert "failed: ValueError: out of ink" in line
    assert Ledger.said() == ["out of ink", "goes on"]
    by_name = pyzmp.discover("note")
    assert by_name is not None
    by_name.post(5)
    eventually(lambda: len(Ledger.errors()) == 2)
    assert "argument line" in Ledger.errors()[1]


def test_what_can_be_known_is_raised_at_once(home: Any) -> None:
    with pytest.raises(pyzmp.UnknownService, match="nobody provides 'note'"):
        Ledger.note.post("to nobody")
    home.start(Ledger("ledger"))
    with pytest.raises(pyzmp.InvalidCall, match="argument line"):
        Ledger.note.post(5)  # type: ignore[arg-type]
    with pytest.raises(CannotTravel, match="argument 1"):
        pyzmp.Service("note").post(threading.Lock())
    assert Ledger.said() == []


def test_what_has_no_turn_in_time_is_not_begun(home: Any, eventually: Any) -> None:
    home.start(Ledger("ledger"))
    busy = [Ledger.work.submit() for _ in range(WORKERS)]
    Ledger.wnote.with_options(timeout=0.1).post("late")
    Ledger.wnote.post("in time")
    assert Ledger.said.submit().result(5) == []  # behind them, so that they are read by now
    read = time.monotonic()
    eventually(lambda: time.monotonic() > read + 0.15)
    Ledger.open()
    assert [future.result(5) for future in busy] == [None] * WORKERS
    eventually(lambda: Ledger.said() == ["in time"])
    eventually(Ledger.errors)
    assert "the one-way call of wnote()" in Ledger.errors()[0]
    assert "was not begun" in Ledger.errors()[0]


def test_the_posts_of_a_program_that_ends_are_not_lost(script: Any, eventually: Any) -> None:
    with Ledger("ledger"):
        for ending in ("", "raise SystemExit(3)"):
            before = len(Ledger.said())
            done = script("import pyzmp\n"
                          "note = pyzmp.discover('note', timeout=5)\n"
                          f"for number in range(100):\n    note.post(str(number))\n{ending}\n")
            assert done.code == (3 if ending else 0), done.err
            assert done.seconds < 5
            eventually(lambda before=before: len(Ledger.said()) >= before + 100)
            assert Ledger.said()[before:] == [str(number) for number in range(100)]


def test_the_death_of_the_caller_ends_none_of_them(script: Any, eventually: Any) -> None:
    with Ledger("ledger"):
        program = ("import pyzmp, sys\nlater = pyzmp.discover('later', timeout=5)\n"
                   "later.post('posted', 0.5)\nlater.submit('submitted', 0.5)\nsys.stdin.read()\n")
        (script.folder / "caller.py").write_text(program)
        with subprocess.Popen([sys.executable, "caller.py"], cwd=script.folder, stdin=subprocess.PIPE,
                              env=script.environment()) as caller:
            eventually(lambda: len(Ledger.said()) == 2, 10)
            caller.kill()
        eventually(lambda: "posted" in Ledger.said())
        assert "submitted" not in Ledger.said()


def patiently(post: Any, value: Any) -> int:
    """Post, again where there is no room; how often there was none."""
    for refused in range(1000):
        try:
            post(value)
        except Overloaded as error:
            assert error.executed is False
            assert error.retry_after
            time.sleep(error.retry_after)
        else:
            return refused
    raise AssertionError("there is never room")


def test_a_full_window_is_told_at_once_and_what_was_taken_runs(home: Any, eventually: Any) -> None:
    home.start(Ledger("ledger"))
    assert Ledger.said() == Ledger.said() == []  # from now on this thread has a session of its own
    with pytest.raises(Overloaded, match="window") as caught:
        for _ in range(2 * CALLS):
            Ledger.wait.post()
    assert caught.value.executed is False
    assert Ledger.said() == []
    assert Ledger.open() is None
    note = Ledger.note.with_options(timeout=60)
    for number in range(CALLS + 500):
        patiently(note.post, str(number))
    eventually(lambda: len(Ledger.said()) >= CALLS + 500)
    assert Ledger.said() == [str(number) for number in range(CALLS + 500)]


def test_the_window_has_a_limit_in_bytes_too(home: Any, eventually: Any) -> None:
    home.start(Ledger("ledger"))
    assert Ledger.said() == []
    weigh = Ledger.weigh.with_options(timeout=60)
    taken = 0
    with pytest.raises(Overloaded, match="window"):
        while taken < 150:
            weigh.post(bytes(1 << 20))
            taken += 1
    assert (SIZE >> 20) - 8 < taken < SIZE >> 20  # a few may be on their way into the window, and count twice
    Ledger.open()
    for _ in range(150 - taken):
        patiently(weigh.post, bytes(1 << 20))
    eventually(lambda: Ledger.said() == [str(1 << 20)] * 150)


def test_a_node_that_dies_with_posts_under_way_is_logged(caplog: pytest.LogCaptureFixture, eventually: Any) -> None:
    with caplog.at_level(logging.WARNING, "pyzmp.call"), Ledger("ledger") as node:
        for _ in range(3):
            Ledger.wait.post()
        assert Ledger.said.submit().result(5) == []
        os.kill(node.ident, signal.SIGKILL)  # type: ignore[arg-type]
        eventually(lambda: caplog.messages)
        (line,) = caplog.messages
        assert "unknown what became of its last 3 one-way calls" in line
