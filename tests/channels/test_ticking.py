"""Timers: their rhythm, and periods that change.  In nodes: behaviour/test_living.py."""

from __future__ import annotations

import asyncio
import logging

import pytest

from pyzmp.channels.ticking import period_of, ticks
from pyzmp.channels.values import Values


def test_a_timer_goes_on_whatever_its_function_does(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls: list[int] = []
        done = asyncio.Event()

        async def function() -> None:
            calls.append(len(calls))
            if len(calls) == 3:
                done.set()
            raise SystemExit(len(calls))
        task = asyncio.create_task(ticks(function, lambda: 0.001, asyncio.Event()))
        await asyncio.wait_for(done.wait(), 20)
        task.cancel()
        assert not task.done()
    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "it goes on" in caplog.text


def test_another_period_takes_effect_at_once() -> None:
    async def main() -> None:
        period, changed, called = [1000.0], asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(ticks(called.set, lambda: period[0], changed))
        await asyncio.sleep(0)
        period[0] = 0.001
        changed.set()
        await asyncio.wait_for(called.wait(), 20)
        task.cancel()
    asyncio.run(main())


def test_a_number_is_the_period_as_it_is() -> None:
    async def main() -> None:
        values = Values("node", asyncio.get_running_loop(), {}, {})
        period, changed = period_of(0.5, values)
        assert (period(), changed.is_set()) == (0.5, False)
    asyncio.run(main())
