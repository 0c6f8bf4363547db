"""Thousands of entities in one process."""

from __future__ import annotations

import asyncio
import os

import pytest

import pyzmp


class Cell(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def double(self, value: int) -> int:
        return 2 * value


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_entities_start_answer_and_stop_in_one_process(count: int) -> None:
    async def live() -> None:
        cells = [Cell(f"cell-{number}") for number in range(count)]
        before = len(os.listdir("/proc/self/fd"))
        addresses = await asyncio.gather(*(cell.astart(timeout=60) for cell in cells))
        assert len(set(addresses)) == 1, "they share one socket"
        assert len(os.listdir("/proc/self/fd")) < before + 40
        assert len(pyzmp.services["double"]) == count
        answers = await asyncio.gather(*(Cell.at(cell.name).double.acall(number) for number, cell in enumerate(cells)))
        assert answers == [2 * number for number in range(count)]
        assert await asyncio.gather(*(cell.ashutdown() for cell in cells)) == [0] * count
        assert "double" not in pyzmp.services
    asyncio.run(live())
