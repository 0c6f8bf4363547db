"""What is said where something on the right of ``|`` is no step of a flow."""

from __future__ import annotations

from typing import Any

import pytest

import pyzmp
from pyzmp.channels.joining import no_step
from pyzmp.flow import Map

ALERTS: Any = pyzmp.Topic(str, "house/alerts")


@pytest.mark.parametrize(("part", "way"), [
    (len, "for a function write Map(len)"), (lambda value: value, "write Map(lambda …: …)"),
    (Map, "Map is a class of steps, write Map(…)"), (int, "for a function write Map(int)"),
    ("a/b", "write Forward('a/b')"), (ALERTS, "write Forward('house/alerts')"),
    ([], "write one such as Map(function)")],
    ids=["function", "lambda", "step", "class", "name", "topic", "list"])
def test_it_says_what_to_write(part: Any, way: str) -> None:
    with pytest.raises(TypeError, match=r"on the right of <Topic house/alerts: str> \| stands a step, got ") as caught:
        ALERTS | part
    assert str(caught.value).endswith(way)


def test_what_joins_by_itself_is_asked() -> None:
    class Mine:
        def __ror__(self, left: Any) -> str:
            return f"{left.name} and mine"
    assert ALERTS | Mine() == "house/alerts and mine"
    assert no_step(ALERTS, 5) is NotImplemented
