"""What each step does."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import pyzmp
from pyzmp.flow import Echo, Filter, Forward, Ghost, Interval, Map, Merge, Step, Throttle, Window
from tests.flow.conftest import PATIENCE, Source, taken


@pytest.fixture(autouse=True)
def _inside(request: pytest.FixtureRequest) -> None:
    if "process" not in request.node.name:
        request.getfixturevalue("inside")


def add(much: int, number: int) -> int:
    return number + much


class Adder:
    def __init__(self, much: int) -> None:
        self.much = much

    def __call__(self, number: int) -> int:
        return number + self.much


async def later(number: int) -> int:
    return number + 1


async def many(number: int) -> AsyncIterator[int]:
    yield number


@pytest.mark.parametrize("function", [lambda number: number + 1, functools.partial(add, 1), Adder(1), later,
                                      (1).__add__, Adder(1).__call__])
def test_map_applies_any_function(function: Callable[[int], Any], heard: Any) -> None:
    output = heard(Source.number | Map(function))
    Source.say(1, 2)
    assert taken(output, 2) == [2, 3]


def test_filter_passes_what_a_function_wants(heard: Any) -> None:
    async def wanted(number: int) -> bool:
        return number > 2
    output = heard(Source.number | Filter(wanted) | Filter(lambda number: number % 2))
    Source.say(1, 2, 3, 4, 5)
    assert taken(output, 2) == [3, 5]


@pytest.mark.parametrize(("window", "expected"), [
    (Window(2), [[0, 1], [2, 3], [4, 5]]),
    (Window(3, step=1), [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]),
    (Window(4, step=2), [[0, 1, 2, 3], [2, 3, 4, 5]]),
    (Window(1), [[0], [1], [2], [3], [4], [5]]),
], ids=["2", "3 by 1", "4 by 2", "1"])
def test_window_publishes_lists(window: Window, expected: list[list[int]], heard: Any) -> None:
    output = heard(Source.number | window)
    Source.say(*range(6))
    assert taken(output, len(expected)) == expected


@pytest.mark.parametrize("wrong", [{"length": 0}, {"length": 2, "step": 3}, {"length": 2, "step": 0}])
def test_a_window_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a window has 1 value or more"):
        Window(**wrong)


def test_interval_publishes_what_came_within_each_period(heard: Any) -> None:
    interval = Interval(3600.0, "hourly")
    output = heard(Source.number | interval)
    Source.say(1, 2, 3)
    Interval.at("hourly").period.set(0.02)
    gathered: list[int] = []
    while len(gathered) < 3:
        gathered += next(output)
    Source.say(4)
    assert (gathered, next(output)) == ([1, 2, 3], [4])


def test_throttle_passes_one_in_a_period_and_then_the_latest(heard: Any, eventually: Callable[..., None]) -> None:
    output = heard(Source.number | Throttle(0.1, "slow"))
    for number in range(50):
        Source.say(number)
    assert next(output) == 0
    last, passed = 0, 1
    while last != 49:
        last, passed = next(output), passed + 1
    eventually(lambda: Step.at("slow").counts()["dropped"] == 50 - passed)
    assert passed <= 50


def test_throttle_passes_one_in_a_period_of_all_its_sources(heard: Any) -> None:
    output = heard(["one/number", "two/number"] | Throttle(0.1), Source("one"), Source("two"))
    for node in ("one", "two"):
        Source.at(node).say(1)
    messages = output.messages()
    first, second = next(messages), next(messages)
    assert second.time - first.time > 0.09


def test_a_step_takes_one_value_after_the_other_of_all_its_sources(heard: Any) -> None:
    running = 0

    async def alone(number: int) -> int:
        nonlocal running
        running += 1
        await asyncio.sleep(0.01)
        running -= 1
        return running
    output = heard(["one/number", "two/number"] | Map(alone), Source("one"), Source("two"))
    for node in ("one", "two"):
        Source.at(node).say(1, 2)
    assert taken(output, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("step", [Throttle, Interval, lambda period: Ghost(len, period)])
@pytest.mark.parametrize("wrong", [0, -1.0, float("inf")])
def test_a_period_is_a_positive_number(step: Callable[[float], Step], wrong: float) -> None:
    with pytest.raises(ValueError, match="positive, finite number of seconds"):
        step(wrong)


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda: Window(2.5), r"^Window\(…\): length: expected a number of values, got 2.5"),
    (lambda: Window("a"), "got 'a'"), (lambda: Window(2, step=True), "step: expected a number of values, got True"),
    (lambda: Map(len, full="never"), r"^Map\(…\): full: expected one of"), (lambda: Map(len, length=0), "length"),
    (lambda: Map(len, keep=-1), r"^Map\(…\): keep: expected 0 or more messages, got -1"),
    (lambda: Map(len, ful="latest"), r"^Map\(…\) takes no option 'ful'; did you mean 'full'"),
    (lambda: Interval(0), r"^Interval\(…\): period: expected a positive, finite number of seconds, got 0$"),
    (lambda: Throttle("a"), r"^Throttle\(…\): period: .*, got 'a'"),
    (lambda: Map(lambda a, b: a), r"^Map\(…\): expected a function of one value, and <lambda>\(a, b\) cannot be"),
    (lambda: Filter(lambda: 1), r"<lambda>\(\) cannot be called with one: too many"),
    (lambda: Map(many), "many is a generator, which gives many; write a Step"),
    (lambda: Map(later, type=str), r"^Map\(later\) publishes str, .* annotated to give int"),
    (lambda: Forward("a//b"), r"^Forward\(…\): 'a//b'"), (lambda: Forward(5), "expected a topic with a full name")])
def test_what_cannot_be_is_told_where_it_is_written(wrong: Callable[[], Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        wrong()


def test_throttle_is_stopped_in_its_pause(heard: Any) -> None:
    flow = Source.number | Throttle(3600.0)
    output = heard(flow)
    Source.say(1, 2)
    assert next(output) == 1
    flow.shutdown(timeout=PATIENCE)
    assert flow.exitcode == 0


def test_merge_publishes_what_several_publish(heard: Any) -> None:
    output = heard(["one/number", Source.at("two").number] | Merge(), Source("one"), Source("two"))
    Source.at("one").say(1)
    assert next(output) == 1
    Source.at("two").say(2)
    assert next(output) == 2


def test_echo_says_what_passes(heard: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[int] = []
    output = heard(Source.number | Echo() | Echo(said.append))
    Source.say(1, 2)
    assert taken(output, 2) == said == [1, 2]
    assert capsys.readouterr().out == "1\n2\n"


@pytest.mark.parametrize("to", ["house/numbers", pyzmp.Topic(int, "house/numbers")], ids=["name", "topic"])
def test_forward_publishes_under_another_name(to: Any, heard: Any) -> None:
    output = heard(Source.number | Forward(to, "porter"))
    with pyzmp.Topic(int, "house/numbers").subscribe(timeout=PATIENCE) as numbers:
        Source.say(7)
        message = next(numbers.messages())
    assert (message.value, message.node, message.topic, next(output)) == (7, "porter", "house/numbers", 7)


def test_late_subscribers_of_a_step_get_what_it_keeps(heard: Any) -> None:
    flow = Source.number | Map(later, keep=2)
    output = heard(flow)
    Source.say(1, 2, 3)
    assert taken(output, 3) == [2, 3, 4]
    with flow.output.subscribe(timeout=PATIENCE, history=5) as late:
        assert taken(late, 2) == [3, 4]


def test_a_step_takes_what_was_kept_for_it(heard: Any) -> None:
    source = Source("source")
    with source:
        Source.say(1, 2, 3, 4)
        output = heard(Source.number | Window(3, history=3, keep=1), source, history=1)
        assert next(output) == [2, 3, 4]


def test_a_function_that_cannot_go_to_a_process_says_what_it_uses() -> None:
    lock = threading.Lock()
    step = Source.number | Map(lambda number: (lock, number)[1], kind="process")
    with pytest.raises(TypeError, match=r"^cannot start Map\(<lambda>\): 'lock' \(lock\), which its function uses, "
                                        "cannot be sent to a process; have the function make its own"):
        step.start()


def test_functions_travel_to_steps_that_are_processes(heard: Any) -> None:
    factor = 3
    flow = (Source.number | Filter(lambda number: number > 0, kind="process")
            | Map(lambda number: factor * number, kind="process") | Window(2, kind="thread"))
    output = heard(flow, Source("source", kind="process"))
    Source.say(-1, 1, 2)
    assert next(output) == [3, 6]
