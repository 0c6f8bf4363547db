"""A call that comes alone: nothing about it is different from any other's."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import Any

import pytest

import pyzmp
from pyzmp import lone, runtime
from pyzmp.exceptions import InvalidCall, RemoteError
from pyzmp.pending import Pending

mark: ContextVar[str] = ContextVar("mark", default="none")


class Adder(pyzmp.Node):
    """Plain services, and what is special about some."""

    def on_start(self) -> None:
        self.call: Any = None
        self.stop = threading.Event()

    @pyzmp.service
    def add(self, a: int, b: int) -> int:
        return a + b

    @pyzmp.service
    def nothing(self) -> None:
        """Take nothing, and give nothing."""

    @pyzmp.service
    def named(self, a: int, *, b: int) -> int:
        return a - b

    @pyzmp.service
    def odd(self, value: int) -> Any:
        if value == 0:
            return b"x" * 100_000
        if value == 1:
            return 1 << 70
        if value == 2:
            return self.later(value)
        if value == 3:
            raise ValueError(value)
        if value == 4:
            raise SystemExit(value)
        return threading.Lock()

    async def later(self, value: int) -> int:
        return -value

    @pyzmp.service
    def endless(self, name: str) -> Any:
        return self.wait(name)

    async def wait(self, name: str) -> None:
        pyzmp.current_call().check()
        await asyncio.Event().wait()

    @pyzmp.service
    def wrong(self) -> int:
        return "no number"  # type: ignore[return-value]

    @pyzmp.service
    def marked(self, name: str) -> str:
        before = mark.get()
        mark.set(name)
        self.call = pyzmp.current_call()
        return before

    @pyzmp.service
    def over(self) -> bool:
        return bool(self.call.over)

    @pyzmp.service
    def spins(self, seconds: float) -> str:
        call, until = pyzmp.current_call(), time.monotonic() + seconds
        while time.monotonic() < until:
            call.check()
            time.sleep(0.001)
        return "whole"


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> list[Pending]:
    """The calls that were not served at once."""
    found: list[Pending] = []
    init = Pending.__init__

    def noted(self: Pending, *args: Any) -> None:
        found.append(self)
        init(self, *args)
    monkeypatch.setattr(Pending, "__init__", noted)
    return found


def occupied() -> list[tuple[int, int]]:
    return [host._waiting.occupied("adder") for host in runtime.current().hosts.values()]


def test_a_plain_call_is_served_at_once(general: list[Pending]) -> None:
    with Adder("adder", kind="thread"):
        assert [Adder.add(number, 1) for number in range(20)] == list(range(1, 21))
        assert [Adder.nothing() for _ in range(3)] == [None] * 3
        assert [call for call in general if call.request.node == "adder" and call.request.service != "over"] == []
        assert set(occupied()) == {(0, 0)}


def test_what_does_not_fit_is_refused_as_ever() -> None:
    with Adder("adder", kind="thread"):
        for args in (("1", 2), (1,), (1, 2, 3), (True, 1)):
            with pytest.raises(InvalidCall):
                Adder.add(*args)
        assert Adder.named(3, b=1) == 2
        with pytest.raises(TypeError, match="promises int"):
            Adder.wrong()
        assert set(occupied()) == {(0, 0)}


def test_what_is_special_about_a_result_is_dealt_with_as_ever(eventually: Any) -> None:
    with Adder("adder", kind="thread"):
        assert Adder.odd(0) == b"x" * 100_000
        assert Adder.odd(1) == 1 << 70
        assert Adder.odd(2) == -2
        with pytest.raises(ValueError, match="3"):
            Adder.odd(3)
        with pytest.raises(RemoteError, match="SystemExit"):
            Adder.odd(4)
        with pytest.raises(RemoteError, match="cannot travel"):
            Adder.odd(5)
        assert Adder.add(1, 2) == 3
        eventually(lambda: set(occupied()) == {(0, 0)})


def test_each_has_a_context_of_its_own_and_ends() -> None:
    with Adder("adder", kind="thread"):
        assert [Adder.marked(name) for name in "ab"] == ["none", "none"]
        assert Adder.over()


def test_it_sees_that_it_is_given_up(eventually: Any) -> None:
    with Adder("adder", kind="thread"):
        future = Adder.spins.submit(20.0)
        time.sleep(0.05)
        future.cancel()
        with pytest.raises(CancelledError):
            future.result(5)
        assert Adder.add(1, 2) == 3


def test_one_that_goes_on_as_a_task_is_cancelled_there(eventually: Any) -> None:
    with Adder("adder", kind="thread"):
        future = Adder.endless.submit("a")
        assert Adder.add(1, 2) == 3
        eventually(lambda: set(occupied()) != {(0, 0)})
        future.cancel()
        with pytest.raises(CancelledError):
            future.result(5)
        eventually(lambda: set(occupied()) == {(0, 0)})


def test_an_error_of_ours_is_its_answer_and_leaves_its_place(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    with Adder("adder", kind="thread"):
        assert Adder.add(1, 2) == 3

        def fails(*args: object) -> None:
            raise ZeroDivisionError
        with monkeypatch.context() as patch:
            patch.setattr(lone.rows, "result", fails)
            with pytest.raises(ZeroDivisionError):
                Adder.add(1, 2)
        eventually(lambda: set(occupied()) == {(0, 0)})
        assert Adder.add(1, 2) == 3
