"""Several nodes at once, and in order, within one time."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from pyzmp.node import Node
from pyzmp.protocol.deadline import seconds

AT_ONCE = 16  # processes that start, or end, at the same moment, at most
LISTEN = 0.5  # seconds until a Ctrl-C is heard that came right before a wait, which it does not end then
LEAST = 0.05  # seconds that each gets at least, however late it is


class Until:
    """The end of the time that was given for all of it, if one was."""

    def __init__(self, timeout: float | None) -> None:
        self._at = None if timeout is None else time.monotonic() + seconds(timeout)

    @property
    def past(self) -> bool:
        """Whether the time is over, but for a moment."""
        return self._at is not None and self._at - time.monotonic() < LEAST

    def left(self, otherwise: Any) -> Any:
        """The seconds that are left, a few at least; or *otherwise*."""
        return otherwise if self._at is None else max(LEAST, self._at - time.monotonic())

    def share(self, many: int) -> float | None:
        """What each of so *many* may take of what is left."""
        return None if self._at is None else max(LEAST, (self._at - time.monotonic()) / many)


def batches(nodes: Iterable[Node]) -> list[list[Node]]:
    """The nodes in order, those that begin, or end, together in one list: neighbours, if processes of one class."""
    found: list[list[Node]] = []
    for node in nodes:
        last = found[-1] if found else None
        if last and node.kind == last[0].kind == "process" and type(node) is type(last[0]) and len(last) < AT_ONCE:
            last.append(node)
        else:
            found.append([node])
    return found


def in_turn(nodes: Iterable[Node], over: Until) -> Iterator[tuple[list[Node], float | None]]:
    """The batches of *nodes*, each with its share of the time; when that is over, all that are left together."""
    left = batches(nodes)
    while left:
        if over.past:
            left = [list(itertools.chain(*left))]
        yield left[0], over.share(len(left))
        del left[0]


def at_once(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call all *functions*, a single one here and others each in a thread of its own; what they returned, or raised."""
    outcomes: list[Any] = [None] * len(functions)

    def call(place: int) -> None:
        try:
            outcomes[place] = functions[place]()
        except BaseException as error:
            if len(functions) == 1 and not isinstance(error, Exception):  # a Ctrl-C
                raise
            outcomes[place] = error
    if len(functions) == 1:
        call(0)
        return outcomes
    threads = [threading.Thread(target=call, args=(place,), daemon=True) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(LISTEN)
    return outcomes


async def all_of(coroutines: Iterable[Awaitable[Any]]) -> list[Any]:
    """What the coroutines, which run at the same time, returned or raised."""
    return await asyncio.gather(*coroutines, return_exceptions=True)


def raise_of(outcomes: Iterable[Any]) -> None:
    """Raise the first error among *outcomes*, if there is one."""
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
