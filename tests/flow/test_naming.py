"""What steps are called where nobody has named them."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from pyzmp.flow import Filter, Flow, Forward, Ghost, Map, Merge, Step, Window
from pyzmp.flow.naming import check_options, shown, unique
from tests.flow.conftest import Source


def double(number: int) -> int:
    return 2 * number


def test_steps_and_flows_are_called_what_they_are() -> None:
    assert repr(Map(double)).startswith("<Map(double) 'Map.double-")
    assert repr(Map(functools.partial(double), "mapper")) == "<Map(double) 'mapper' entity not started>"
    assert repr(Filter(lambda number: number)).startswith("<Filter(<lambda>) 'Filter.lambda-")
    assert [step.what for step in (Window(2), Forward("a/b"), Merge(), Ghost(Source.say))] == [
        "Window(2)", "Forward('a/b')", "Merge()", "Ghost(say)"]
    flow: Any = Source.number | Map(double) | Window(2) | Filter(len, "some")
    assert repr(flow).startswith("<Flow Map(double) | Window(2) | Filter(len) 'Flow-")
    assert [node.name.partition("-")[0] for node in flow.nodes] == ["Flow", "some"]
    inner = flow.nodes[0]
    assert isinstance(inner, Flow)
    assert [node.name.partition("-")[0] for node in inner.nodes] == ["Map.double", "Window.2"]
    flow.name = "cellar"
    assert [node.name for node in inner.nodes] == ["cellar/1/1", "cellar/1/2"]
    assert Map(double).name != Map(double).name


def test_names_are_short_and_those_of_topics() -> None:
    assert unique("Map(<lambda>)").startswith("Map.lambda-")
    assert len(unique("a" * 500)) < 100
    assert shown(3) == "3"
    assert shown(Source("x").say) == "say"


def test_an_option_that_nobody_takes_is_refused() -> None:
    class Mine(Step):
        def __init__(self, colour: str, **options: object) -> None:
            super().__init__(**options)  # type: ignore[arg-type]
    check_options(Mine, ["colour", "full", "kind", "keep"])
    with pytest.raises(TypeError, match=r"^Mine\(…\) takes no option 'colur'; did you mean 'colour'"):
        check_options(Mine, ["colur"])
    with pytest.raises(TypeError, match=r"takes no option 'xyz'; it takes .*, length, "):
        Merge(xyz=1)
