"""Exceptions, to and from a form that is safe on the wire.

An exception travels as plain values: the qualified name of its type, its text, its arguments and
attributes as far as they travel, its notes, its traceback as text, and its causes.  Nothing is
imported on arrival: the original type is used only where ``sys.modules`` already holds it, where it
is an `Exception`, and where it is not one of ours (those mean the caller's own call, so that one
from inside a service arrives as `RemoteError`).
"""

from __future__ import annotations

import builtins
import sys
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pyzmp.exceptions import CannotTravel, PyzmpError, RemoteError
from pyzmp.protocol import codec

CAUSES = 8  # of a chain of causes, this many travel
SIZE = 1 << 20  # bytes that an exception may take, with its causes
FIELDS: Mapping[type[BaseException], tuple[str, ...]] = MappingProxyType({
    # What Python's own types keep beside their arguments
    OSError: ("errno", "strerror", "filename", "filename2"), ImportError: ("name", "path"), NameError: ("name",),
    AttributeError: ("name",),
})
TEXT = 32 * 1024  # characters of a text that travel; of a traceback, its beginning and its end


def describe(error: BaseException, *, node: str, service: str | None = None) -> bytes:
    """The wire form of *error*, raised in *service* of *node*.  Never raises, whatever the exception holds."""
    try:
        body, buffers = codec.encode(_described(error, node, service, CAUSES))
        if not buffers and len(body) <= SIZE:
            return body
        reason = f"they take more than {SIZE} bytes"
    except Exception as failed:  # too deep inside this form, or something that runs a user's code failed
        reason = _text(failed)
    text = _text(error)
    form = _form(_name(error), text, node, service)
    return codec.encode(form | {"args": [text], "trace": _trace(error), "lost": [f"its details: {reason}"]})[0]


def rebuild(body: bytes | memoryview) -> Exception:
    """The exception that *body* describes: the original type with a `RemoteError` as its cause, or that `RemoteError`.

    Never raises: what is no wire form of an exception becomes a `RemoteError` that says so.
    """
    try:
        return _rebuilt(codec.decode(body), CAUSES)
    except Exception as error:  # whatever a peer wrote, and whatever the modules of this process hold
        return RemoteError("MalformedMessage", f"the node's error could not be read: {error}")


def _described(error: BaseException, node: str, service: str | None, causes: int) -> dict[str, Any]:
    cause = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__
    if isinstance(error, RemoteError):  # it goes on as what it stands for
        form = _form(f":{error.type_name}", error.message, node, service) | {"trace": error.traceback_text}
        came: RemoteError | None = error
    else:
        form = _form(_name(error), _text(error), node, service) | {"trace": _trace(error)}
        _carry(error, form, form["lost"])
        # Rebuilt from another node's: its cause says where it was raised.
        came = cause if isinstance(cause, RemoteError) and cause.type_name == _shown(_name(error)) else None
    if came is not None:
        form["nodes"], form["service"] = [*came.nodes, node], came.service
        cause = came.__cause__
    if cause is not None and causes:
        form["cause"] = _described(cause, node, service, causes - 1)
    return form


def _form(name: str, message: str, node: str, service: str | None) -> dict[str, Any]:
    return {"type": _plain(name), "message": _plain(message), "args": [], "state": {}, "notes": [], "trace": "",
            "nodes": [node], "service": service, "lost": []}


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}:{type(error).__qualname__}"


def _shown(name: str) -> str:
    """The name of a type as users read it."""
    module, _, qualname = name.partition(":")
    return qualname if module in ("", "builtins") else f"{module}.{qualname}"


def _carry(error: BaseException, form: dict[str, Any], lost: list[str]) -> None:
    """Put into *form* the arguments, attributes and notes of *error* that travel, and into *lost* those that do not."""
    notes = vars(error).get("__notes__")
    form["notes"] = [_text(note) for note in notes] if isinstance(notes, list) else []
    form["args"] = [_travelling(value, f"args[{index}]", lost) for index, value in enumerate(error.args)]
    fields = {name: getattr(error, name) for kind, names in FIELDS.items() if isinstance(error, kind) for name in names}
    present = {name: value for name, value in fields.items() if value is not None}
    for name, value in (present | {name: value for name, value in vars(error).items() if name != "__notes__"}).items():
        count = len(lost)
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
        size = len(body) + sum(memoryview(buffer).nbytes for buffer in buffers)
        lost.append(f"{path}: a value of {size} bytes is too large "
                    f"to travel with an exception, the limit is {TEXT}")
        return f"<{type(value).__name__}>"
    return value


def _plain(text: str) -> str:
    """An exact string that can be encoded, of a limited length."""
    return str.encode(str.__getitem__(text, slice(TEXT)), "utf-8", "backslashreplace").decode()


def _text(value: object) -> str:
    try:
        return _plain(str(value))
    except (Exception, SystemExit) as error:  # a user's __str__ may do anything; what it raised is told instead
        return f"<{type(value).__name__} whose text could not be made: {type(error).__name__}>"


def _trace(error: BaseException) -> str:
    try:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return _plain(trace if len(trace) <= TEXT else f"{trace[:TEXT // 2]}\n...\n{trace[8 - TEXT // 2:]}")
    except (Exception, SystemExit) as failure:  # as above: it calls the user's __str__
        return f"<no traceback: {type(failure).__name__}>"


def _rebuilt(form: Mapping[str, Any], causes: int) -> Exception:
    name = str(form["type"])
    lost = [str(text) for text in form["lost"]]
    service = None if form["service"] is None else str(form["service"])
    remote = RemoteError(_shown(name), str(form["message"]),
                         traceback_text=str(form["trace"]) + "".join(f"\nlost on the way: {text}" for text in lost),
                         nodes=[str(node) for node in form["nodes"]], service=service)
    if form.get("cause") and causes:
        remote.__cause__ = _rebuilt(form["cause"], causes - 1)
    original = _original(name, form)
    if original is None:
        return remote
    notes = [str(note) for note in form["notes"]] + [f"lost on the way: {text}" for text in lost]
    if notes:
        original.__notes__ = notes  # type: ignore[attr-defined,unused-ignore]
    original.__cause__ = remote
    return original


def _original(name: str, form: Mapping[str, Any]) -> Exception | None:
    module, _, qualname = name.partition(":")
    cls: Any = sys.modules.get(module)
    for part in qualname.split("."):
        cls = vars(cls).get(part) if hasattr(cls, "__dict__") else None
    if (not isinstance(cls, type) or not issubclass(cls, Exception)
            or issubclass(cls, (PyzmpError, StopIteration, StopAsyncIteration))):
        return None
    args = tuple(form["args"])
    try:
        # Python's own types set their fields in __init__; a user's __init__ or __new__ may do anything, and is not run.
        own = next(kind for kind in cls.__mro__ if vars(builtins).get(kind.__name__) is kind)
        error: Exception = cls(*args) if own is cls else own.__new__(cls, *args)
        error.args = args
        fields = {name for kind, names in FIELDS.items() if issubclass(cls, kind) for name in names}
        for attribute, value in form["state"].items():
            if attribute in fields:
                setattr(error, attribute, value)
            else:
                error.__dict__[str(attribute)] = value
    except Exception:  # the type refuses its own arguments: the RemoteError tells everything
        return None
    return error
