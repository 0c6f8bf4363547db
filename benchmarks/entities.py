"""Ten thousand nodes in one process, each with a service: started, called and shut down."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from harness import compare, count, world

import pyzmp

COUNT = count(10_000)


class Cell(pyzmp.Node):
    """One of many."""

    kind = "entity"

    @pyzmp.service
    def double(self, value: int) -> int:
        """Twice the value."""
        return 2 * value


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def timed(what: str, work: Callable[[int], Awaitable[object]]) -> None:
    """Do *work* for every node at once, and print what each took."""
    began = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(COUNT)))
    spent = time.perf_counter() - began
    print(f"  {what:9} {spent:6.2f} s   {spent / COUNT * 1e6:6.1f} µs a node")


async def main() -> None:
    """Print time and memory."""
    async with Cell("warm"):
        await Cell.at("warm").double.acall(1)
    print(f"{COUNT} entity nodes in one process")
    before = resident()
    cells = [Cell(f"cell-{number}") for number in range(COUNT)]

    async def call(number: int) -> None:
        if await Cell.at(f"cell-{number}").double.with_options(wait=True).acall(number) != 2 * number:
            raise ValueError(number)

    await timed("start", lambda number: cells[number].astart(timeout=60))
    held = resident() - before
    await timed("call", call)
    await timed("shutdown", lambda number: cells[number].ashutdown())
    figures = iter([held / COUNT / 1000] * 3)
    compare("memory of an entity, its facts in this process included", "KB",
            {"what was aimed at": lambda: 20.0, "an entity": lambda: next(figures)}, rounds=1, target={"an entity": 1})


if __name__ == "__main__":
    with world():
        asyncio.run(main())
