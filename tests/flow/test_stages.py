"""Stages and what joins them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import InvalidAnnotation
from pyzmp.flow import Echo, Filter, Flow, Forward, Ghost, Map, Merge, Shadow, Stage, Step, Window
from tests.flow.conftest import PATIENCE, Source, taken

pytestmark = pytest.mark.usefixtures("inside")


@dataclass
class Reading:
    node: str
    celsius: int


class Plain(Step):
    """A step that does nothing which has to be awaited."""

    heard: list[int]

    def take(self, value: int) -> None:  # type: ignore[override]
        self.heard.append(value)


class Last(Step):
    """A step of one's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.total = 0

    async def take(self, value: int) -> None:
        self.total += value
        await self.send(self.total)


def double(number: int) -> int:
    return 2 * number


def fail_on_3(number: int) -> int:
    if number == 3:
        raise ValueError("unlucky")
    return number


def as_reading(number: int) -> Reading:
    return Reading("kitchen", number)


def celsius(reading: Reading) -> int:
    return reading.celsius


def loud(text: str) -> str:
    return text.upper()


def said_by(message: pyzmp.Message[int]) -> str:
    return f"{message.node} {message.number} {message.value}"


@pytest.mark.parametrize("source", [
    Source.number, Source.at("source").number, pyzmp.Topic(int, "source/number"), "source/number", "so*/number",
    "**/number", [Source.number], ("source/number",),
], ids=repr)
def test_a_flow_begins_with_a_topic_a_name_or_a_pattern(source: Any, heard: Any) -> None:
    flow = source | Map(double)
    assert isinstance(flow, Map)
    output = heard(flow)
    Source.say(1, 2, 3)
    assert taken(output, 3) == [2, 4, 6]


def test_what_is_published_once_a_flow_has_started_goes_through_all_of_it(heard: Any) -> None:
    output = heard(Source.number | Filter(lambda number: number % 2 == 0) | Map(double) | Last() | Window(100))
    Source.say(*range(1000))
    assert [each[-1] for each in taken(output, 5)] == [2 * sum(range(0, end, 2)) for end in (200, 400, 600, 800, 1000)]


def test_nothing_is_dropped_where_all_steps_wait_for_room(heard: Any) -> None:
    async def slow(number: int) -> int:
        await asyncio.sleep(0.0005)
        return number
    block: dict[str, Any] = {"full": "block", "length": 4}
    steps = Map(double, **block) | Map(slow, **block) | Echo(lambda number: None, **block)
    output = heard(Source.number | steps, **block)
    said = Source.say.with_options(timeout=PATIENCE).submit(*range(100))
    assert taken(output, 100) == [2 * number for number in range(100)]
    said.result(PATIENCE)


def test_a_chain_can_be_joined_in_any_order_and_begin_with_several_sources(heard: Any) -> None:
    tail = Filter(lambda number: number > 0) | Map(double)
    output = heard(["source/number", pyzmp.Topic(int, "other/number") | Last()] | tail, Source("source"),
                   Source("other"))
    Source.at("source").say(-1, 1)
    assert taken(output, 1) == [2]
    Source.at("other").say(5, 5)
    assert taken(output, 2) == [10, 20]


def test_a_flow_is_a_group_whose_name_names_its_stages(heard: Any) -> None:
    flow = Source.number | Map(double) | Last(name="last") | Window(1)
    flow.name = "cellar"
    assert isinstance(flow, pyzmp.Group)
    assert flow.output.name == "cellar/2/output"
    assert [node.name for node in flow.nodes] == ["cellar/1", "cellar/2"]
    flat = Flow("attic", ["cellar/2/output", Map(sum), Window(2, "pairs")])
    assert [node.name for node in flat.nodes] == ["attic/1", "pairs"]
    source = Source("source")
    heard(flow, source)
    output = heard(flat, source)
    Source.say(1, 2)
    assert taken(output, 1) == [[2, 6]]
    assert Step.at("last").counts() == {"received": 2, "dropped": 0, "lost": 0, "failed": 0}
    assert {node.name for node in pyzmp.graph().nodes} >= {"cellar", "cellar/1", "cellar/1/1", "last", "attic/1"}


def test_a_flow_stops_as_one_and_starts_again(heard: Any) -> None:
    source, flow = Source("source"), Source.number | Window(2) | Map(sum)
    for _ in range(2):
        output = heard(flow, source)
        Source.say(1, 2, 3)
        assert next(output) == 3
        flow.shutdown()
        assert not any(node.is_alive() for node in flow.nodes)
        assert flow.exitcode == 0


def test_a_flow_lives_on_the_loop_of_a_coroutine() -> None:
    async def flows() -> None:
        async with Source("source"), Source.number | Map(double) | Window(2) as flow:
            output = await flow.output.asubscribe(timeout=PATIENCE)
            await Source.say.acall(1, 2)
            assert await anext(output) == [2, 4]
    asyncio.run(flows())


def test_what_a_step_of_ones_own_does_may_be_plain(eventually: Callable[..., None]) -> None:
    plain = Plain()
    plain.heard = []
    with Source("source"), Source.number | plain:
        Source.say(1, 2)
        eventually(lambda: plain.heard == [1, 2])


def test_two_flows_go_on_from_one_by_its_output(heard: Any) -> None:
    doubled, source = Source.number | Map(double), Source("source")
    heard(doubled, source)
    sums, windows = heard(doubled.output | Last(), source), heard(doubled.output | Window(2), source)
    Source.say(1, 2)
    assert (taken(sums, 2), taken(windows, 1)) == ([2, 6], [[2, 4]])
    again = Source.number | Map(double)
    flow, step = again | Map(double), Map(double)
    with pytest.raises(ValueError, match=f"is in the group '{flow.name}' already"):
        again | step
    "other/number" | step


def test_a_step_in_a_unit_test_publishes_nothing() -> None:
    with pytest.raises(RuntimeError, match="'mapper' publishes nothing before its start"):
        asyncio.run(Map(double, "mapper").take(1))


def test_a_pattern_is_only_to_subscribe_to() -> None:
    with pytest.raises(TypeError, match=r"'so\*/number' is a pattern.* publish\(…\) is for a full name"):
        pyzmp.Topic(int, "so*/number").publish(1)
    with pytest.raises(ValueError, match=r"'house/\*\*' is a pattern, .* expected one full name"):
        Forward("house/**")
    with pytest.raises(TypeError, match="belongs to a node, which alone publishes it"):
        Forward(Source.number)


# Types.


def test_types_come_from_annotations_and_else_from_what_comes() -> None:
    def shown(stage: Any) -> str:
        return repr(stage.output).partition(": ")[2]
    assert shown("a/b" | Map(double)) == "int>"
    assert shown("a/b" | Map(lambda value: value)) == "Any>"
    assert shown("a/b" | Map(lambda value: value, type=float)) == "float>"
    assert shown("a/b" | Filter(fail_on_3)) == "int>"
    assert shown(Source.number | Filter(bool)) == "int>"
    assert shown(Source.number | Filter(bool) | Merge()) == "int>"
    assert shown(Source.number | Window(3)) == "list[int]>"
    assert shown(["a/b" | Map(double), Source.number] | Merge()) == "int>"
    assert shown(["a/b" | Map(double), "a/b" | Map(loud)] | Merge()) == "Any>"
    assert shown(Source.number | Filter(said_by)) == "int>"
    assert shown("a/b" | Map(len, takes=str)) == "Any>"
    assert shown("a/b" | Merge(takes=str)) == "str>"
    with pytest.raises(InvalidAnnotation):
        Map(double, type=set[Callable[[], None]])


def test_values_arrive_as_what_functions_are_annotated_with(heard: Any) -> None:
    output = heard(Source.number | Map(as_reading) | Merge(type=Any) | Map(celsius) | Window(1))
    Source.say(21)
    assert taken(output, 1) == [[21]]


def test_a_function_that_takes_messages_gets_them(heard: Any) -> None:
    output = heard(Source.number | Map(said_by))
    Source.say(5, 6)
    assert taken(output, 2) == ["source 0 5", "source 1 6"]


def test_a_step_that_could_never_take_what_comes_does_not_start() -> None:
    with pytest.raises(TypeError, match=r"^Map\(loud\) takes str, and source/number is int"):
        Source.at("source").number | Map(loud)
    with pytest.raises(TypeError, match=r"^Map\(loud\) takes str, and Map.double-\w+/output is int"):
        Source.number | Map(double) | Map(loud)
    tail = Filter(bool) | Map(loud)
    with pytest.raises(TypeError, match=r"^Map\(loud\) takes str, and Filter.bool-\w+/output is int"):
        Source.number | tail


# Errors.


def test_what_a_function_raises_is_logged_and_counted_and_the_flow_goes_on(
        heard: Any, caplog: pytest.LogCaptureFixture) -> None:
    output = heard(Source.number | Map(fail_on_3, "mapper") | Map(double))
    with caplog.at_level(logging.ERROR, "pyzmp"):
        Source.say(*range(6))
        assert taken(output, 5) == [0, 2, 4, 8, 10]
    assert Step.at("mapper").counts() == {"received": 6, "dropped": 0, "lost": 0, "failed": 1}
    assert "source/number" in caplog.text
    assert "'mapper'" in caplog.text
    assert "unlucky" in caplog.text
    lines = caplog.text.splitlines()
    assert "Map(fail_on_3) of 'mapper' raised" in caplog.text
    assert [line for line in lines if line.startswith("  File")] == [line for line in lines if "in fail_on_3" in line]


def test_a_result_that_is_not_what_was_annotated_counts_as_a_failure(heard: Any) -> None:
    output = heard(Source.number | Map(lambda number: number or "zero", "mapper", type=int))
    Source.say(0, 1)
    assert taken(output, 1) == [1]
    assert Step.at("mapper").counts()["failed"] == 1


def test_a_step_without_a_source_does_not_start() -> None:
    with pytest.raises(RuntimeError, match=r"^Merge\(\) 'lonely' has no source; write topic \| step"):
        Merge("lonely").start()
    with pytest.raises(RuntimeError, match=r"^Map\(double\) has no source"):
        Map(double).start()


def test_a_step_takes_its_sources_once() -> None:
    step = Source.number | Map(double, "doubles")
    with pytest.raises(ValueError, match=r"'doubles' has its sources; give it several at once"):
        "other/number" | step
    flow = step | Map(double)
    with pytest.raises(ValueError, match="'doubles' has its sources"):
        "other/number" | flow


def wild(what: object) -> Any:
    """What type checkers know to be wrong."""
    return what


@pytest.mark.parametrize(("join", "said"), [
    (lambda: Source("x") | Map(double), "a flow begins with a topic, such as Class.reading"),
    (lambda: Source | Map(double), "a flow begins with a topic, such as Class.reading"),
    (lambda: Source.say | Map(double), r"write Ghost\(service\)"),
    (lambda: 5 | Map(double), "a flow begins with a topic.* got 5"),
    (lambda: "not a name" | Map(double), "'not a name'"),
    (lambda: "a//b" | Map(double), "a level without a name"),
    (lambda: Flow("x", [Source.number, Ghost("say")]), "takes nothing, and so it stands at the beginning"),
    (lambda: Source.number | Flow("x", [Ghost("say"), Map(double)]), "takes nothing"),
    (lambda: Map("no function"), "expected a function of one value, got 'no function'"),
    (lambda: wild([]) | Map(double), "a flow begins with a source or several"),
    (lambda: wild(Source.number) | double, r"got <function double .*; for a function write Map\(double\)"),
    (lambda: wild(Source.number) | Map, r"Map is a class of steps, write Map\(…\)"),
    (lambda: wild(Source.number) | Source.number, r"write Forward\('house/alerts'\)"),
    (lambda: wild(Source.number) | "a/b", r"write Forward\('a/b'\)"),
    (lambda: wild(Source.number) | 5, "unsupported operand"),
    (lambda: wild(Map(double)) | [double], r"write one such as Map\(function\)"),
    (lambda: wild(Source.number | Map(double)) | print, r"for a function write Map\(print\)"),
    (lambda: wild(Map(double)) | pyzmp.Topic(int, "a/b"), r"write Forward\('a/b'\)"),
    (lambda: wild(Map(double)) | Map, r"write Map\(…\)"),
    (lambda: Flow("x", [Source.number, Map(double), wild(double)]), r"write Map\(double\)"),
])
def test_what_cannot_be_joined_says_so(join: Callable[[], Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        join()


def test_only_steps_are_on_the_right() -> None:
    with pytest.raises(TypeError):
        Source.number | Stage("stage")  # type: ignore[operator]
    with pytest.raises(TypeError):
        Source.number | Ghost("say")  # type: ignore[operator]


def test_the_services_of_steps_take_no_names_from_others(heard: Any) -> None:
    heard(Source.number | Shadow(name="shadow") | Map(double))
    assert {"counts", "latest", "take", "send"}.isdisjoint(pyzmp.services)
