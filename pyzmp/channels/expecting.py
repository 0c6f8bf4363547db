"""What a function expects to be called with, by its annotations."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from pyzmp.channels.message import Message
from pyzmp.channels.selection import Selection
from pyzmp.exceptions import InvalidAnnotation
from pyzmp.protocol.annotations import hints_of
from pyzmp.protocol.fits import fits
from pyzmp.protocol.schema import Type

_MESSAGE = re.compile(r"([\w.]+\.)?Message(\[|$)")


def wants_messages(function: Callable[..., Any]) -> bool:
    """Whether a callback, by its annotation, takes a `Message` and not its value."""
    annotation = _annotation(function)
    if isinstance(annotation, str):  # a name in it is defined later, or elsewhere
        return _MESSAGE.match(annotation) is not None
    return annotation is Message or get_origin(annotation) is Message


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a callback is to be awaited: an ``async`` function, or an object that is called as one."""
    called = getattr(function, "__call__", None)  # noqa: B004  it may be async itself
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def expected(function: Callable[..., Any], shown: str) -> Type | None:
    """The type of the values that a callback takes, where it is annotated with one that is known by now."""
    annotation = _annotation(function)
    if get_origin(annotation) is Message:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, (str, TypeVar)) or annotation in (inspect.Parameter.empty, Any, Message):
        return None
    try:
        return Type.of(annotation, shown)
    except InvalidAnnotation:  # such as a class that is defined later
        return None


def expecting(selection: Selection, function: Callable[..., Any], shown: str) -> Selection:
    """*selection* with the type that a callback, *shown* as that, expects; TypeError where that does not fit."""
    wanted = expected(function, shown)
    if wanted is None:
        return selection
    reason = fits(selection.type.shape, wanted.shape) if selection.type is not None else ""
    if reason and selection.type is not None:
        raise TypeError(f"{shown} takes {wanted.text}, and {selection.text} is {selection.type.text}: {reason}")
    return msgspec.structs.replace(selection, type=wanted)


def _annotation(function: Callable[..., Any]) -> Any:
    """What the first argument is annotated to be, as text where nobody knows it now; nothing where it is not."""
    try:
        parameter = next(iter(inspect.signature(function).parameters.values()))
    except (ValueError, TypeError, StopIteration):
        return inspect.Parameter.empty
    given = parameter.annotation
    if not isinstance(given, str):
        return given
    plain = _plain(function)
    alone = type("callback", (), {"__annotations__": {"value": given}, "__module__": plain.__module__})
    try:
        return hints_of(alone, "callback", _names(plain))["value"]
    except InvalidAnnotation:
        return given


def _plain(function: Any) -> Any:
    """What there is to call, below what binds its arguments or wraps it."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(getattr(function, "__func__", function))


def _names(plain: Any) -> dict[str, Any]:
    """What the names in the annotations of a function stand for."""
    names = {**getattr(plain, "__globals__", {})}
    for name, cell in zip(plain.__code__.co_freevars if inspect.isfunction(plain) else (),
                          getattr(plain, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # it has no value yet, such as the subscription that is being made
            names[name] = cell.cell_contents
    return names
