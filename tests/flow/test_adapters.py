"""From topics to services and back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import CallTimeout
from pyzmp.flow import Ghost, Map, Shadow, Window
from tests.flow.conftest import Source, taken


@pytest.fixture(autouse=True)
def _inside(request: pytest.FixtureRequest) -> None:
    if "process" not in request.node.name:
        request.getfixturevalue("inside")


class Counter(pyzmp.Node):
    kind = "entity"

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.count = 0

    @pyzmp.service
    def counted(self) -> int:
        self.count += 1
        if self.count % 2 == 0:
            raise ValueError("even")
        return self.count


def test_a_shadow_gives_the_latest_value_as_a_service(heard: Any) -> None:
    output = heard(Source.number | Shadow("number", "shadow"))
    Source.say(1, 2)
    assert taken(output, 2) == [1, 2]
    number = pyzmp.discover("number")
    assert number is not None
    assert number() == Shadow.at("shadow").latest() == 2


def test_a_shadow_that_starts_late_has_what_was_kept() -> None:
    with Source("source"):
        Source.say(1, 2)
        with Source.number | Shadow(name="shadow"):
            assert Shadow.at("shadow").latest() == 2


def test_a_call_of_a_shadow_waits_for_the_first_value(heard: Any) -> None:
    heard(Source.number | Shadow(name="shadow"))
    with pytest.raises(CallTimeout):
        Shadow.at("shadow").latest.with_options(timeout=0.05)()
    latest = Shadow.at("shadow").latest.submit()
    Source.say(8)
    assert latest.result() == 8


def test_a_shadow_may_be_a_process(heard: Any) -> None:
    output = heard(Source.number | Shadow("number", "shadow", kind="process"))
    Source.say(3)
    assert next(output) == 3
    number = pyzmp.discover("number")
    assert number is not None
    assert number() == Shadow.at("shadow").latest() == 3


async def _five() -> int:
    return 5


@pytest.mark.parametrize("asked", [Counter.counted, Counter.at("counter").counted, "counted", "counter/counted",
                                   Counter.counted.acall], ids=repr)
def test_a_ghost_publishes_what_a_service_says(asked: Any, heard: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "pyzmp"):
        output = heard(Ghost(asked, 0.01, "ghost", type=int) | Window(2), Counter("counter"))
        first, second = next(output)
    assert (second - first, first % 2) == (2, 1)
    counts = Ghost.at("ghost").counts()
    assert counts["asked"] >= counts["failed"] > 0


def test_a_ghost_asks_any_function(heard: Any) -> None:
    output = heard(Ghost(_five, 0.01) | Map(lambda number: number + 1), Source("source"))
    assert taken(output, 2) == [6, 6]


def test_a_ghost_logs_that_there_is_no_answer_and_goes_on(heard: Any, caplog: pytest.LogCaptureFixture,
                                                          eventually: Callable[..., None]) -> None:
    with caplog.at_level(logging.ERROR, "pyzmp.flow"):
        output = heard(Ghost(Counter.counted, 0.01, "ghost"), Source("source"))
        eventually(lambda: Ghost.at("ghost").counts()["failed"] > 1)
        with Counter("counter"):
            next(output)
    assert "Ghost(counted) of 'ghost' has no answer to publish" in caplog.text
    assert "Traceback" not in caplog.text  # none of it is the user's
    assert "UnknownService" in caplog.text


def test_the_rhythm_of_a_ghost_is_a_parameter(heard: Any) -> None:
    output = heard(Ghost(_five, 3600.0, "ghost"), Source("source"))
    Ghost.at("ghost").period.set(0.01)
    assert next(output) == 5


def test_a_ghost_of_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="Ghost"):
        Ghost(5)  # type: ignore[arg-type]


def test_a_shadow_of_a_ghost_of_a_shadow_is_the_value(heard: Any) -> None:
    output = heard(Source.number | Shadow("first"))
    Source.say(4)
    assert next(output) == 4
    with Ghost("first", 0.01) | Shadow("second"):
        second = pyzmp.discover("second")
        assert second is not None
        assert second() == 4
