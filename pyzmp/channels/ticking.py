"""Timers of nodes: what is called again and again, in rhythm."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from pyzmp.channels.parameter import Parameter
from pyzmp.channels.values import Values

log = logging.getLogger("pyzmp.node")


def period_of(period: float | Parameter[Any], values: Values) -> tuple[Callable[[], float], asyncio.Event]:
    """The period of a timer as it is at any moment, and what is set when it is another."""
    changed = asyncio.Event()
    if not isinstance(period, Parameter):
        return lambda: period, changed
    values.tells(changed)
    return lambda: float(values.get(period.name)), changed


async def ticks(function: Callable[[], Any], period: Callable[[], float], changed: asyncio.Event) -> None:
    """Call *function* every *period* seconds, in rhythm; *changed* is set when the period is another."""
    loop, last = asyncio.get_running_loop(), time.monotonic()  # when it was due
    while True:
        changed.clear()
        due = loop.call_later(last + period() - time.monotonic(), changed.set)
        try:
            await changed.wait()
        finally:
            due.cancel()
        if time.monotonic() < last + period():
            continue
        last += period()
        try:
            value = function()
            if inspect.isawaitable(value):
                await value
        except asyncio.CancelledError:
            raise
        except BaseException:  # also SystemExit: it would end the loop, and all nodes that share it
            log.exception("the timer %s failed; it goes on", getattr(function, "__qualname__", function))
        last += period() * max(0, math.ceil((time.monotonic() - last) / period()) - 1)
