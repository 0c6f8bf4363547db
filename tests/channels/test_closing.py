"""What is closed when its ``with`` is left."""

from __future__ import annotations

import asyncio

import pytest

from pyzmp.channels.closing import Closing


class Door(Closing):
    def __init__(self) -> None:
        self.closed: list[str] = []

    def close(self) -> None:
        self.closed.append("close")


class Gate(Door):
    async def aclose(self) -> None:
        self.closed.append("aclose")


@pytest.mark.parametrize("kind", [Door, Gate])
def test_leaving_the_with_closes_it_also_after_an_error(kind: type[Door]) -> None:
    door = kind()
    with pytest.raises(KeyError), door as same:
        assert same is door
        assert not door.closed
        raise KeyError
    assert door.closed == ["close"]


@pytest.mark.parametrize(("kind", "closed"), [(Door, "close"), (Gate, "aclose")])
def test_leaving_the_async_with_closes_it_in_the_coroutine(kind: type[Door], closed: str) -> None:
    async def run() -> None:
        async with kind() as door:
            assert not door.closed
        assert door.closed == [closed]

    asyncio.run(run())
