"""Exceptions, to and from a form that is safe on the wire.

An exception travels as plain values: the qualified name of its type, its text, its arguments and
attributes as far as they travel, its notes, its traceback as text, and its causes.  Nothing is
imported on arrival: the original type is used only where ``sys.modules`` already holds it, where it
is an `Exception`, and where it is not one of ours (those mean the caller's own call, so that one
from inside a service arrives as `RemoteError`).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import Any

from pyzmp.exceptions import CannotTravel, MalformedMessage, PyzmpError, RemoteError
from pyzmp.protocol import codec

CAUSES = 8  # of a chain of causes, this many travel
TEXT = 32 * 1024  # characters of a text that travel; the end of a traceback says most


def describe(error: BaseException, *, node: str, service: str | None = None) -> bytes:
    """The wire form of *error*, raised in *service* of *node*.  Never raises, whatever the exception holds."""
    try:
        return codec.encode(_described(error, node, service, CAUSES))[0]
    except CannotTravel as reason:  # as deep as may be in itself, and too deep inside this form
        bare = RemoteError(type(error).__qualname__, f"{_text(error)} (its details were lost: {reason})")
        return codec.encode(_described(bare, node, service, 0))[0]


def rebuild(body: bytes | memoryview) -> Exception:
    """The exception that *body* describes: the original type with a `RemoteError` as its cause, or that `RemoteError`.

    Never raises: what is no wire form of an exception becomes a `RemoteError` that says so.
    """
    try:
        return _rebuilt(codec.decode(body), CAUSES)
    except (MalformedMessage, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return RemoteError("MalformedMessage", f"the node's error could not be read: {error}")


def _described(error: BaseException, node: str, service: str | None, causes: int) -> dict[str, Any]:
    lost: list[str] = []
    form: dict[str, Any] = {
        "type": f"{type(error).__module__}:{type(error).__qualname__}", "message": _text(error),
        "args": [], "state": {}, "notes": [], "trace": "", "nodes": [node], "service": service, "lost": lost,
    }
    if isinstance(error, RemoteError):
        form["nodes"], form["service"] = [*error.nodes, node], error.service
    form["trace"] = _trace(error)
    _carry(error, form, lost)
    cause = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__
    if isinstance(cause, RemoteError):
        form["nodes"], form["service"] = [*cause.nodes, node], cause.service
    elif cause is not None and causes:
        form["cause"] = _described(cause, node, service, causes - 1)
    return form


def _carry(error: BaseException, form: dict[str, Any], lost: list[str]) -> None:
    """Put into *form* the arguments, attributes and notes of *error* that travel, and into *lost* those that do not."""
    notes = getattr(error, "__notes__", None)
    form["notes"] = [str(note)[:TEXT] for note in notes] if isinstance(notes, list) else []
    form["args"] = [_travelling(value, f"args[{index}]", lost) for index, value in enumerate(error.args)]
    for name, value in list(vars(error).items()):
        count = len(lost)
        if name != "__notes__":
            carried = _travelling(value, f"attribute {name!r}", lost)
            if len(lost) == count:
                form["state"][name] = carried


def _travelling(value: Any, path: str, lost: list[str]) -> Any:
    try:
        body, buffers = codec.encode(value, path)
    except CannotTravel as error:
        lost.append(str(error))
        return _text(value)
    if buffers or len(body) > TEXT:
        lost.append(f"{path}: a value of {len(body) + sum(map(len, map(memoryview, buffers)))} bytes is too large "
                    f"to travel with an exception, the limit is {TEXT}")
        return f"<{type(value).__name__}>"
    return value


def _text(value: object) -> str:
    try:
        return str(value)[:TEXT]
    except Exception as error:  # a user's __str__ may do anything; what it raised is told instead
        return f"<{type(value).__name__} whose text could not be made: {type(error).__name__}>"


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-TEXT:]
    except Exception as failure:  # as above: it calls the user's __str__
        return f"<no traceback: {type(failure).__name__}>"


def _rebuilt(form: Mapping[str, Any], causes: int) -> Exception:
    module, _, qualname = str(form["type"]).partition(":")
    lost = [str(text) for text in form["lost"]]
    remote = RemoteError(qualname if module == "builtins" else f"{module}.{qualname}", str(form["message"]),
                         traceback_text=str(form["trace"]) + "".join(f"\nlost on the way: {text}" for text in lost),
                         nodes=[str(node) for node in form["nodes"]], service=form["service"])
    if form.get("cause") and causes:
        remote.__cause__ = _rebuilt(form["cause"], causes - 1)
    original = _original(module, qualname, form)
    if original is None:
        return remote
    notes = [str(note) for note in form["notes"]] + [f"lost on the way: {text}" for text in lost]
    if notes:
        original.__notes__ = notes  # type: ignore[attr-defined,unused-ignore]
    original.__cause__ = remote
    return original


def _original(module: str, qualname: str, form: Mapping[str, Any]) -> Exception | None:
    cls: Any = sys.modules.get(module)
    for name in qualname.split("."):
        cls = vars(cls).get(name) if hasattr(cls, "__dict__") else None
    if (not isinstance(cls, type) or not issubclass(cls, Exception)
            or issubclass(cls, (PyzmpError, StopIteration, StopAsyncIteration))):
        return None
    args = tuple(form["args"])
    try:
        # Python's own types set their fields in __init__; a user's __init__ may do anything, and is not run.
        error: Exception = cls(*args) if module == "builtins" else cls.__new__(cls, *args)
        error.args = args
        for name, value in form["state"].items():
            error.__dict__[str(name)] = value
    except Exception:  # the type refuses its own arguments: the RemoteError tells everything
        return None
    return error
