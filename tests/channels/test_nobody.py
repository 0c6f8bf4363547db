"""What is said where nobody publishes what a subscription is for."""

from __future__ import annotations

from typing import Any

import pytest

import pyzmp


class Talker(pyzmp.Node):
    kind = "entity"
    said = pyzmp.Topic(int)


class Lamp(pyzmp.Node):
    light = pyzmp.Topic(int)
    said = pyzmp.Topic(int)


@pytest.mark.parametrize(("topic", "text"), [
    (pyzmp.Topic(int, "talker/sad"), "nobody publishes 'talker/sad' {}; did you mean 'talker/said'?"),
    (pyzmp.Topic(int, "talk*/sad"), "nobody publishes 'talk*/sad' {}; did you mean 'talker/said'?"),
    (Talker.at("talkers").said, "there is no node 'talkers' {}; did you mean 'talker'?"),
    (Lamp.light, "nobody publishes 'Lamp.light' {}"),
    (Lamp.at("talker").light, "nobody publishes 'talker/light' {}"),
    (Lamp.at("talker").said, "what publishes 'talker/said' {} is not Lamp.said"),
])
def test_who_waits_for_nobody_hears_what_is_known(topic: Any, text: str) -> None:
    pyzmp.configure(registry="memory", domain="x")
    with Talker("talker"), topic.subscribe(timeout=0.001) as nothing, pytest.raises(TimeoutError) as late:
        next(nothing)
    assert str(late.value).startswith(f"nothing has come of {topic.name} for 0.001 s; "
                                      + text.format("in domain 'x' (1 node known)"))


def test_where_somebody_publishes_nothing_is_said_of_that() -> None:
    pyzmp.configure(registry="memory")
    with Talker("talker"), Talker.said.subscribe(timeout=0.001) as silent, pytest.raises(TimeoutError) as late:
        next(silent)
    assert str(late.value) == "nothing has come of Talker.said for 0.001 s"
