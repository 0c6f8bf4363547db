"""Why a value cannot travel: which part of it, and where that stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from typing import Any, NoReturn, TypeAlias

import msgspec

from pyzmp.exceptions import CannotTravel, MalformedMessage
from pyzmp.protocol.limits import MAX_DEPTH

Travel: TypeAlias = Callable[[Any], Any]


def blame(value: Any, path: str, error: Exception, travel: Travel) -> NoReturn:
    """Raise CannotTravel for the first part of ``value`` that cannot: slow, and only run after a failure.

    ``travel`` gives what arrives where a value is sent.
    """
    _search(value, path, 1, travel)
    reason = "" if isinstance(error, (TypeError, RecursionError)) else str(error)
    raise CannotTravel(type(value).__qualname__, path, reason) from error


def _search(value: Any, path: str, depth: int, travel: Travel) -> None:
    try:
        parts = _parts(value, path)
    except Exception as error:
        raise CannotTravel(type(value).__qualname__, path, f"looking into it raised {type(error).__name__}") from error
    if parts is None:
        _try_leaf(value, path, travel)
        return
    if depth > MAX_DEPTH:
        raise CannotTravel(type(value).__qualname__, path[:80] + " ...",
                           f"it is nested deeper than {MAX_DEPTH} levels, or in itself")
    for where, part, must_hash in parts:
        _search(part, where, depth + 1, travel)
        if must_hash:
            _try_key(part, where, travel)


def _try_leaf(value: Any, path: str, travel: Travel) -> None:
    try:
        travel(value)
    except Exception as error:
        raise CannotTravel(type(value).__qualname__, path, str(error)) from error


def _try_key(value: Any, path: str, travel: Travel) -> None:
    try:
        hash(travel(value))
    except (TypeError, MalformedMessage) as error:
        raise CannotTravel(type(value).__qualname__, path,
                           "it arrives without a hash, so that it cannot be a key or stand in a set") from error


def _parts(value: Any, path: str) -> list[tuple[str, Any, bool]] | None:
    """What ``value`` is made of: where it stands, the part, and whether it must have a hash when it arrives."""
    if isinstance(value, Enum):
        return [(f"{path}.value", value.value, False)]
    if isinstance(value, dict):
        return [part for key, item in list(value.items())
                for part in ((f"{path} key {_show(key)}", key, True), (f"{path}[{_show(key)}]", item, False))]
    if isinstance(value, (set, frozenset)):
        return [(f"{path} item {_show(item)}", item, True) for item in value]
    if isinstance(value, (list, tuple)):
        return [(f"{path}[{index}]", item, False) for index, item in enumerate(value)]
    names = ([field.name for field in fields(type(value))] if hasattr(type(value), "__dataclass_fields__")
             else list(type(value).__struct_fields__) if isinstance(value, msgspec.Struct) else None)
    if names is None or not all(hasattr(value, name) for name in names):
        return None
    return [(f"{path}.{name}", getattr(value, name), False) for name in names]


def _show(value: Any) -> str:
    try:
        return repr(value)[:40] if isinstance(value, (str, float, bytes)) or value in (True, False, None) else (
            f"{value:d}"[:40] if isinstance(value, int) else f"of type {type(value).__qualname__}")
    except Exception:
        return f"of type {type(value).__qualname__}"
