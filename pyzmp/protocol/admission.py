"""Which calls a loop takes, and in which order they begin.

A loop reads all that has come before it begins the next call, so that it knows what was cancelled
meanwhile and whom it owes an answer.  What waits is bounded; callers take turns, however many calls
each of them has sent; and a call whose deadline has come is not begun.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from pyzmp.protocol.deadline import Deadline

Caller = TypeVar("Caller", bound=Hashable)
Item = TypeVar("Item")

WAITING = 1 << 16  # calls that wait for their turn on one loop, at most


class Admission(Generic[Caller, Item]):
    """The calls that wait for their turn.  Each is taken out once: begun, too late, cancelled, or with its caller."""

    __slots__ = ("_callers", "_count", "_limit")

    def __init__(self, limit: int = WAITING) -> None:
        self._limit = limit
        self._count = 0
        self._callers: dict[Caller, OrderedDict[int, tuple[Deadline, Item]]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return self._count

    def admit(self, caller: Caller, call: int, deadline: Deadline, item: Item) -> bool:
        """Let a call wait for its turn; False where there is no room for it."""
        if self._count >= self._limit:
            return False
        self._callers.setdefault(caller, OrderedDict())[call] = deadline, item
        self._count += 1
        return True

    def next(self) -> tuple[Caller, Deadline, Item] | None:
        """The call whose turn it is, or None: the first one of the caller that has waited longest for a turn."""
        for caller in self._callers:
            calls = self._callers.pop(caller)
            _, found = calls.popitem(last=False)
            if calls:
                self._callers[caller] = calls  # behind all others
            self._count -= 1
            return caller, *found
        return None

    def cancel(self, caller: Caller, call: int) -> Item | None:
        """Take out a call that its caller does not want any more; None where it does not wait here."""
        calls = self._callers.get(caller)
        found = None if calls is None else calls.pop(call, None)
        if calls is None or found is None:
            return None
        if not calls:
            del self._callers[caller]
        self._count -= 1
        return found[1]

    def withdraw(self, unwanted: Callable[[Item], bool]) -> list[tuple[Caller, Item]]:
        """Take out all calls that are *unwanted*, with their callers."""
        found = [(caller, call, item) for caller, calls in self._callers.items()
                 for call, (_, item) in calls.items() if unwanted(item)]
        for caller, call, _ in found:
            self.cancel(caller, call)
        return [(caller, item) for caller, _, item in found]

    def leave(self, caller: Caller) -> Iterator[Item]:
        """Take out all calls of a caller that is gone."""
        calls = self._callers.pop(caller, OrderedDict[int, "tuple[Deadline, Item]"]())
        self._count -= len(calls)
        return (item for _, item in calls.values())
