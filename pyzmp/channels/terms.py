"""What a subscription asks its publishers for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from pyzmp.protocol.feed import MAX, SIZE, Full

FullQueue = Literal["drop_oldest", "drop_newest", "latest", "block"]

_FULL: Mapping[str, int] = {"drop_oldest": Full.DROP_OLDEST, "drop_newest": Full.DROP_NEWEST,
                            "latest": Full.DROP_OLDEST, "block": Full.BLOCK}


class Terms(msgspec.Struct, frozen=True):
    """What a subscription asks for: a queue of that ``length`` (0 for any) and ``size``, as `Subscribe` has it.

    ``who`` is the node that subscribes, if one does; ``events`` says whether it wants to hear of them, and ``latest``
    that what is dropped is of no use to it.
    """

    full: int = Full.DROP_OLDEST
    length: int = 0
    size: int = SIZE
    history: int = 0
    who: str = ""
    events: bool = False
    latest: bool = False


def terms_of(full: str, length: int | None, size: int, history: int, *, who: str = "", events: bool = False) -> Terms:
    """The terms that users' options stand for.  Raises ValueError and TypeError for what cannot be."""
    if full not in _FULL:
        raise ValueError(f"full: expected one of {', '.join(map(repr, _FULL))}, got {full!r}")
    if full == "latest" and length is not None:
        raise ValueError("full='latest' keeps one message, and takes no length")
    _check("length", 1 if length is None else length, 1)
    _check("size", size, 1)
    _check("history", history, 0)
    return Terms(_FULL[full], 1 if full == "latest" else length or 0, size, history, who, events, full == "latest")


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not least <= value <= MAX:
        raise ValueError(f"{name}: expected a number from {least} to {MAX}, got {value}")
