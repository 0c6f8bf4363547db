"""Calls that leave together, as one message: each of them is a call like any other."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import CallError, CallTimeout, InvalidCall, NodeDied, Overloaded, Refused
from tests.behaviour.conftest import Place


class Mill(pyzmp.Node):
    """Notes in a file what runs, which outlives it."""

    def __init__(self, name: str, notes: Path) -> None:
        super().__init__(name)
        self.notes = str(notes)

    def on_start(self) -> None:
        self.seen: list[int] = []

    def note(self, value: int) -> None:
        with open(self.notes, "a") as file:
            file.write(f"{value}\n")

    @pyzmp.service
    def grind(self, value: int, seconds: float = 0.0) -> int:
        self.note(value)
        if seconds:
            time.sleep(seconds)
        return -value

    @pyzmp.service
    async def sift(self, value: int) -> int:
        self.note(value)
        await asyncio.sleep(0.001)
        return -value

    @pyzmp.service(worker=True)
    def press(self, value: int) -> int:
        self.note(value)
        return -value

    @pyzmp.service(deduplicate=True)
    def stamp(self, value: int) -> int:
        self.note(value)
        return -value

    @pyzmp.service
    def lazily(self, value: int) -> Any:
        return self._later(value)

    async def _later(self, value: int) -> int:
        self.note(value)
        await asyncio.sleep(0)
        return -value

    @pyzmp.service
    def odd(self, value: Any) -> Any:
        if value == 3:
            raise KeyError(value)
        if value == 5:
            return object()
        return "x" * 1_200_000 if value == 7 else [value] * (value % 4) if value % 2 else value

    @pyzmp.service
    def gathered(self, value: int) -> Any:
        self.seen.append(value)
        return self.seen

    @pyzmp.service
    def echo(self, value: list[int]) -> list[int]:
        return value

    @pyzmp.service
    def fatal(self, value: int, at: int) -> int:
        self.note(value)
        if value == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return -value

    @pyzmp.service(idempotent=True)
    def safe(self, value: int, at: int) -> int:
        if value >= at and self.name == "weak":
            os.kill(os.getpid(), signal.SIGKILL)
        return -value

    @pyzmp.service
    def left(self, value: int) -> tuple[float, float, str, str]:
        call = pyzmp.current_call()
        left = call.remaining
        inner, name = Clerk.left.with_options(wait=True)(value)
        return left, inner, call.service, name

    @pyzmp.service
    def done(self) -> None:
        """Nothing."""


class Clerk(pyzmp.Node):
    kind = "thread"

    @pyzmp.service
    def left(self, value: int) -> tuple[float, str]:
        call = pyzmp.current_call()
        return call.remaining, f"{call.service}({value})"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").touch()
    return tmp_path / "notes"


@pytest.fixture
def mill(home: Place, notes: Path) -> Mill:
    return home.start(Mill("mill", notes))  # type: ignore[no-any-return]


def noted(notes: Path) -> list[int]:
    return list(map(int, notes.read_text().split()))


def taken(mapped: Iterator[Any]) -> list[Any]:
    """The results, or the errors in their places."""
    found = []
    while True:
        try:
            found.append(next(mapped))
        except StopIteration:
            return found
        except Exception as error:
            found.append(error)


def by_map(service: Any, values: Any) -> list[Any]:
    return taken(service.map(values))


def by_futures(service: Any, values: Any) -> list[Any]:
    futures = [service.submit(value) for value in values]
    return [future.exception(10) or future.result() for future in futures]


def by_gather(service: Any, values: Any) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*[service.acall(value) for value in values], return_exceptions=True)
    return asyncio.run(gather())


Way = Callable[[Any, Any], list[Any]]


@pytest.fixture(params=[by_map, by_futures, by_gather], ids=["map", "futures", "gather"])
def way(request: pytest.FixtureRequest) -> Way:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.usefixtures("mill")
def test_each_has_its_own_outcome(way: Way) -> None:
    found = way(Mill.odd, range(12))
    assert isinstance(found[3], KeyError)
    assert isinstance(found[3].__cause__, pyzmp.RemoteError)
    assert isinstance(found[5], pyzmp.PyzmpError)
    assert "object" in str(found[5])
    assert found[7] == "x" * 1_200_000
    assert [found[at] for at in (0, 1, 2, 4, 6, 8, 9, 10, 11)] == [0, [1], 2, 4, 6, 8, [9], 10, [11] * 3]


@pytest.mark.parametrize("bad", ["four", object()])
@pytest.mark.usefixtures("mill")
def test_arguments_that_are_wrong_are_so_for_that_call_alone(bad: Any, notes: Path) -> None:
    found = taken(Mill.grind.map([1, 2, 3, bad, 5]))
    assert isinstance(found[3], CallError)
    assert found[3].executed is False
    assert "value" in str(found[3])
    assert [*found[:3], found[4]] == [-1, -2, -3, -5]
    assert noted(notes) == [1, 2, 3, 5]


@pytest.mark.usefixtures("mill")
def test_a_result_is_what_it_was_when_its_call_ended(way: Way) -> None:
    assert way(Mill.gathered, range(20)) == [list(range(n + 1)) for n in range(20)]


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.usefixtures("mill")
def test_arguments_are_what_they_were_when_they_were_taken(awaited: bool) -> None:
    def growing() -> Iterator[list[int]]:
        one: list[int] = []
        for value in range(100):
            one.append(value)
            yield one

    async def collected() -> list[list[int]]:
        return [value async for value in Mill.echo.map(growing())]
    found = asyncio.run(collected()) if awaited else list(Mill.echo.map(growing()))
    assert found == [list(range(number)) for number in range(1, 101)]


@pytest.mark.parametrize("service", [Mill.sift, Mill.press, Mill.stamp, Mill.lazily],
                         ids=["async", "worker", "deduplicate", "lazy"])
@pytest.mark.usefixtures("mill")
def test_whatever_runs_them_each_runs_once(service: Any, way: Way, notes: Path) -> None:
    assert way(service, range(60)) == [-value for value in range(60)]
    assert sorted(noted(notes)) == list(range(60))


@pytest.mark.usefixtures("mill")
def test_what_they_call_ends_with_them_and_each_knows_itself() -> None:
    with Clerk("clerk"):
        found = list(Mill.left.with_options(timeout=3.0).map(range(20)))
    for number, (outer, inner, name, nested) in enumerate(found):
        assert 0 < inner <= outer <= 3.0
        assert (name, nested) == ("left", f"left({number})")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("home", ["process"], indirect=True)
def test_a_node_that_is_killed_among_them_leaves_none_without_an_outcome(mill: Mill, way: Way, notes: Path) -> None:
    class Fatal:
        """The service with its second argument."""

        @staticmethod
        def map(values: Any) -> Any:
            return Mill.fatal.map(values, [40] * 100)

        @staticmethod
        def submit(value: int) -> Any:
            return Mill.fatal.submit(value, 40)

        @staticmethod
        def acall(value: int) -> Any:
            return Mill.fatal.acall(value, 40)
    found = way(Fatal, range(100))
    ran = noted(notes)
    assert ran == list(range(41))
    assert len(found) == 100
    for value, outcome in enumerate(found):
        if isinstance(outcome, Exception):
            assert isinstance(outcome, (NodeDied, pyzmp.UnknownService))
            assert outcome.executed is None or value not in ran
        else:
            assert outcome == -value
            assert value in ran
    assert isinstance(found[40], NodeDied)
    assert found[40].executed is None
    del mill


def test_a_node_that_shuts_down_among_them_refuses_those_that_did_not_run(mill: Mill, notes: Path,
                                                                         eventually: Any) -> None:
    futures = [Mill.grind.with_options(attempts=1).submit(value, 0.002) for value in range(300)]
    eventually(lambda: len(noted(notes)) > 3)
    mill.shutdown()
    found = [future.exception(5) or future.result() for future in futures]
    ran = noted(notes)
    assert ran == list(range(len(ran)))
    assert 3 < len(ran) < 300
    assert found[:len(ran)] == [-value for value in ran]
    refused = [error for error in found if isinstance(error, CallError) and error.executed is False]
    assert len(refused) > 200
    for error in found[len(ran):]:  # a process that ends may be gone before its last answers have left
        assert isinstance(error, (Refused, pyzmp.UnknownService, NodeDied))
        assert error.executed is (None if mill.kind == "process" and isinstance(error, NodeDied) else False)


@pytest.mark.usefixtures("mill")
def test_those_whose_turn_comes_after_their_deadline_do_not_run(notes: Path) -> None:
    Mill.done()
    found = taken(Mill.grind.with_options(timeout=0.2, attempts=1).map(range(64), [0.02] * 64))
    Mill.done.with_options(timeout=10)()
    ran = noted(notes)
    assert len(ran) == len(set(ran)) < 64
    assert found[0] == 0
    assert isinstance(found[40], CallTimeout)
    for value, outcome in enumerate(found):
        if isinstance(outcome, Exception):
            assert isinstance(outcome, (CallTimeout, Overloaded))
            assert outcome.executed is None or (outcome.executed is False and value not in ran)
        else:
            assert outcome == -value
            assert value in ran


def test_what_is_left_of_a_closed_map_is_not_begun_and_takes_no_place(mill: Mill, notes: Path) -> None:
    with Mill.grind.map(range(3000), [0.001] * 3000) as mapped:
        for _ in range(40):
            next(mapped)
    Mill.done.submit().result(5)  # behind the word to the node
    ran = len(noted(notes))
    assert 40 <= ran < 3000
    assert list(Mill.grind.map(range(10))) == [-value for value in range(10)]
    assert len(noted(notes)) == ran + 10
    del mill


def test_a_closed_map_tries_nothing_again(home: Place, notes: Path) -> None:
    class Narrow(Mill):
        max_calls = 2
    home.start(Narrow("mill", notes))
    with Narrow.grind.map(range(200), [0.01] * 200) as mapped:
        next(mapped)
    Narrow.done.with_options(wait=True)()
    ran = len(noted(notes))
    assert ran < 150
    for _ in range(5):
        Narrow.done.with_options(wait=True)()
    assert len(noted(notes)) == ran


@pytest.mark.timeout(20)
@pytest.mark.parametrize("home", ["process"], indirect=True)
def test_a_map_over_two_providers_goes_on_with_the_one_that_lives(home: Place, notes: Path, eventually: Any) -> None:
    home.start(Mill("weak", notes), Mill("strong", notes))
    assert list(Mill.safe.map(range(8), [2] * 8)) == [-value for value in range(8)]
    eventually(lambda: len(Mill.safe.providers) == 1)
    assert list(Mill.safe.map(range(400), [2] * 400)) == [-value for value in range(400)]


@pytest.mark.usefixtures("mill")
def test_one_way_calls_and_others_begin_in_the_order_in_which_they_were_made(notes: Path) -> None:
    futures = []
    for value in range(200):
        if value % 7 == 3:
            Mill.grind.post(value)
        else:
            futures.append(Mill.grind.submit(value))
    for future in futures:
        future.result(5)
    assert noted(notes) == list(range(200))


def test_others_have_their_turns_among_them(mill: Mill, notes: Path) -> None:
    Mill.done()
    Mill.done()  # this thread has a session of its own from now on
    many = [Mill.grind.submit(value, 0.0005) for value in range(1000)]
    many[0].result(5)
    before = len(noted(notes))
    for value in range(5):
        Mill.grind(10_000 + value)
    ran = noted(notes)
    between = [place for place, value in enumerate(ran) if value >= 10_000]
    assert len(between) == 5
    assert between[-1] - before < 200, "and not behind all of them"
    for future in many:
        future.cancel()
    del mill


def test_a_node_that_is_full_refuses_the_rest_of_them_and_a_map_waits(home: Place, notes: Path) -> None:
    class Narrow(Mill):
        max_calls = 8
    home.start(Narrow("mill", notes))
    Narrow.done()
    once = Narrow.grind.with_options(attempts=1)
    found = [future.exception(5) or future.result() for future in [once.submit(value, 0.01) for value in range(40)]]
    refused = [outcome for outcome in found if isinstance(outcome, Exception)]
    assert refused
    assert all(isinstance(error, Overloaded) and error.executed is False and error.retry_after for error in refused)
    assert len(noted(notes)) == 40 - len(refused)
    assert list(Narrow.grind.map(range(40))) == [-value for value in range(40)]
    assert len(noted(notes)) == 80 - len(refused)


def test_calls_of_many_threads_leave_together_and_come_apart(mill: Mill) -> None:
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        futures = [Mill.grind.submit(number * 1000 + value) for value in range(50)]
        found[number] = [future.result(10) for future in futures]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [-(number * 1000 + value) for value in range(50)] for number in range(6)}
    with pytest.raises(InvalidCall):
        Mill.grind.submit("no")  # type: ignore[arg-type]
    del mill
