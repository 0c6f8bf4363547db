"""The messages of a subscription; that they say whose they are is shown with the subscription."""

from __future__ import annotations

import asyncio

import pyzmp
from pyzmp.channels.message import Message


class Lamp(pyzmp.Node):
    kind = "entity"
    light = pyzmp.Topic(str, keep=3)

    def on_start(self) -> None:
        for word in ("a", "b", "c"):
            self.light.publish(word)


def test_messages_are_iterated_both_ways_and_closed_with_their_subscription() -> None:
    pyzmp.configure(registry="memory")
    with Lamp("lamp"):
        lights = Lamp.light.subscribe(timeout=30, history=3)
        with lights.messages() as messages:
            first = next(messages)
            assert first == Message("a", "lamp/light", "lamp", 0, first.time)

            async def main() -> list[str]:
                return [(await messages.__anext__()).value for _ in range(2)]
            assert asyncio.run(main()) == ["b", "c"]
        assert list(messages) == []
        assert list(lights) == []
