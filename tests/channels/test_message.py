"""What subscribers get."""

from __future__ import annotations

import pytest

from pyzmp.channels.message import Gap, Joined, Left, Message, Refused


def test_messages_and_events_are_values() -> None:
    message = Message("on", "lamp/light", "lamp", 3, 1.5)
    assert message == Message("on", "lamp/light", "lamp", 3, 1.5)
    assert (message.value, message.topic, message.node, message.number, message.time) == (
        "on", "lamp/light", "lamp", 3, 1.5)
    with pytest.raises(AttributeError):
        message.value = "off"  # type: ignore[misc]
    assert len({Gap("t", "n", 1, 2, True), Joined("t", "n"), Left("t", "n", "r"), Refused("t", "n", "r")}) == 4
