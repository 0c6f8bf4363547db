"""Names of topics, and patterns that select among them.

A name is made of levels, as in ``kitchen/reading``.  In a pattern, ``*`` stands for any characters within one level,
and a level ``**`` for any number of levels, also for none; everything else stands for itself.  So a name never
matches a longer or a shorter one by its beginning alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 255  # characters of a name or a pattern

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")


def check_topic_name(name: str) -> str:
    """*name*, if a topic may be called so: levels of letters, digits and ``_ . -``, with a ``/`` between them.

    Raises TypeError for what is no str and ValueError for anything else, with the reason.
    """
    _check(name, "the name of a topic")
    if "*" in name:
        raise ValueError(f"{name!r} is a pattern, which selects topics; the name of a topic has no *")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a topic: its levels are made of letters, digits, '_', '.' and '-'")
    return name


class Pattern:
    """What selects topics by their names.  ``plain`` says that it has no wildcards, and matches its ``text`` only.

    Raises TypeError for what is no str and ValueError for anything else that is none, with the reason.
    """

    __slots__ = ("_blocks", "_head", "_tail", "plain", "text")

    def __init__(self, text: str) -> None:
        _check(text, "a pattern of topics")
        levels = text.split("/")
        if any("**" in level and level != "**" for level in levels):
            raise ValueError(f"{text!r} is no pattern of topics: ** is a level of its own, as in 'sensors/**'")
        self.text = text
        self.plain = "*" not in text
        head = text.partition("*")[0]
        self._head = head.removesuffix("/") if text[len(head):].startswith("**") else head  # how all names begin
        tail = text.rpartition("*")[2]
        self._tail = tail.removeprefix("/") if text[:len(text) - len(tail)].endswith("**") else tail
        self._blocks: list[list[list[str]]] = [[]]  # what is between the **, by level, and there between the *
        for level in levels:
            if level == "**":
                self._blocks.append([])
            else:
                self._blocks[-1].append(level.split("*"))

    def matches(self, name: str) -> bool:
        """Whether it selects the topic of that name.  Takes any text, and a time that is bounded for any pattern."""
        if self.plain:
            return name == self.text
        return name.startswith(self._head) and name.endswith(self._tail) and _matches(self._blocks, name.split("/"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _check(text: str, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, got {text!r}")
    if not 1 <= len(text) <= LONGEST:
        raise ValueError(f"{what} has 1 to {LONGEST} characters, got {len(text)}")
    if "" in text.split("/"):
        raise ValueError(f"{text!r} cannot be {what}: it has a level without a name; write it as in 'kitchen/reading'")


def _matches(blocks: Sequence[Sequence[Sequence[str]]], levels: Sequence[str]) -> bool:
    """Whether *levels* begin with the first of the blocks, end with the last, and have the others between in order.

    To take the first place for each is enough: it leaves the most to those behind it.
    """
    first, *middle = blocks
    if not middle:
        return len(levels) == len(first) and _stands(first, levels, 0)
    last = middle.pop()
    place, end = len(first), len(levels) - len(last)
    if end < place or not _stands(first, levels, 0) or not _stands(last, levels, end):
        return False
    for block in middle:
        while place + len(block) <= end and not _stands(block, levels, place):
            place += 1
        place += len(block)
    return place <= end


def _stands(block: Sequence[Sequence[str]], levels: Sequence[str], place: int) -> bool:
    return all(_fits(parts, levels[at]) for at, parts in enumerate(block, place))


def _fits(parts: Sequence[str], level: str) -> bool:
    """The same within a level, with what is between its ``*``."""
    first, *middle = parts
    if not middle:
        return level == first
    last = middle.pop()
    place, end = len(first), len(level) - len(last)
    if end < place or not level.startswith(first) or not level.endswith(last):
        return False
    for part in middle:
        place = level.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True
