"""What flows are tried on: a node that publishes what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import pyzmp
from pyzmp.flow import Flow, Stage
from pyzmp.typing import Subscription
from tests.campaigns.history import SCALE

PATIENCE = 10 * SCALE


class Source(pyzmp.Node):
    kind = "entity"
    number = pyzmp.Topic(int, keep=3)

    @pyzmp.service
    async def say(self, *numbers: int) -> None:
        for number in numbers:
            await self.number.apublish(number)


@pytest.fixture
def inside() -> None:
    """Nothing leaves this process, so no registry of the host's needs to be there."""
    pyzmp.configure(registry="memory")


@pytest.fixture
def heard() -> Iterator[Callable[..., Subscription[Any]]]:
    """``heard(flow)`` starts its sources, unless they live, and the flow; gives what comes of it."""
    with ExitStack() as stack:
        def start(flow: Stage | Flow, *sources: pyzmp.Node, **options: Any) -> Subscription[Any]:
            for node in (*(sources or (Source("source"),)), flow):
                if not node.is_alive():
                    stack.enter_context(node)
            return stack.enter_context(flow.output.subscribe(timeout=PATIENCE, **options))
        yield start


def taken(subscription: Subscription[Any], count: int) -> list[Any]:
    return [next(subscription) for _ in range(count)]
