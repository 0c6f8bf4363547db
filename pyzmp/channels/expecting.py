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
from pyzmp.protocol.schema import Type, Unresolved

IN_THREADS = "outside of nodes callbacks are called in a thread; iterate in async for"

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


def refuse_awaitable(said: Any, function: Callable[..., Any]) -> None:
    """Raise TypeError for what a callback has given that nobody awaits."""
    if said is not None and inspect.isawaitable(said):
        if inspect.iscoroutine(said):
            said.close()
        raise TypeError(f"{function!r} gives what is to be awaited, and {IN_THREADS}")


def expected(function: Callable[..., Any], shown: str, *, known: bool = False) -> Type | None:
    """The type of the values that a callback takes, where it is annotated with one that is known by now.

    Where all names are to be *known* it raises InvalidAnnotation for one that is not.
    """
    annotation = _annotation(function)
    if known and isinstance(annotation, str):
        raise InvalidAnnotation(f"{shown}: its annotation {annotation!r} has a name that is not defined")
    if get_origin(annotation) is Message:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, (str, TypeVar)) or annotation in (inspect.Parameter.empty, Any, Message):
        return None
    try:
        return Type.of(annotation, shown)
    except InvalidAnnotation as error:  # such as a class that is defined later
        if known and isinstance(error, Unresolved):
            raise
        return None


def expecting(selection: Selection, function: Callable[..., Any], shown: str, *, known: bool = False) -> Selection:
    """*selection* with the type that a callback, *shown* as that, expects; TypeError where that does not fit.

    Where all names are to be *known* it raises InvalidAnnotation for one that is not.
    """
    wanted = expected(function, shown, known=known)
    if wanted is None:
        return selection
    reason = fits(selection.type.shape, wanted.shape) if selection.type is not None else ""
    if reason and selection.type is not None:
        raise TypeError(f"{shown} takes {wanted.text}, and {selection.text} is {selection.type.text}: {reason}")
    return msgspec.structs.replace(selection, type=wanted)


def check_argument(function: Callable[..., Any], shown: str, *, bound: bool = True) -> None:
    """Raise TypeError for a function, *shown* as that, which cannot be called with what comes.

    One that is not *bound* yet takes the node first.
    """
    plain = _plain(function)
    called = plain if inspect.isroutine(plain) else getattr(plain, "__call__", None)  # noqa: B004  what it does
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise TypeError(f"{shown} is a generator; nobody would iterate over what it gives")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # a builtin that does not tell
        return
    try:
        signature.bind(*[None] * (1 if bound else 2))
    except TypeError:
        raise TypeError(f"{shown}{signature} is to take one argument{'' if bound else ' besides self'}: the value, or "
                        "the Message") from None


def callback_for(selection: Selection, callback: Any, on_event: Any, timeout: float | None) -> Selection:
    """What *callback* is for, where there is one; TypeError for what cannot be called with what comes."""
    if on_event is not None and (not callable(on_event) or is_async(on_event)):
        raise TypeError(f"subscribe() to {selection.text}: on_event is to be a plain function, got {on_event!r}")
    if callback is None:
        return selection
    if not callable(callback):
        raise TypeError(f"subscribe() to {selection.text}: expected a function to call, got {callback!r}")
    if timeout is not None:
        raise TypeError(f"subscribe() to {selection.text}: a timeout is for iterating, a callback is called when "
                        "something comes; leave one of the two out")
    shown = f"callback {getattr(callback, '__qualname__', callback)}"
    check_argument(callback, shown)
    return expecting(selection, callback, shown)


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
