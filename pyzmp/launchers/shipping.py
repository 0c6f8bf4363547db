"""What is carried to a new process: pickled by reference where the child can import it, by value elsewhere.

This is local and trusted: bytes made here go through a pipe to our own child, and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
import sys
import typing
from collections import ChainMap
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, ClassVar

import cloudpickle
import msgspec

from pyzmp.exceptions import StartError
from pyzmp.launchers import structs


class Unsendable(StartError, TypeError):
    """Something that the body needs cannot be sent to another process; the text names it, and the ways out."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, which also takes what multiprocessing can hand to a child: its locks, queues and connections."""

    dispatch_table: ClassVar[Any] = ChainMap(cloudpickle.Pickler.dispatch_table,
                                             ForkingPickler._extra_reducers)  # type: ignore[attr-defined]

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._by_value: dict[str, bool] = {}

    def reducer_override(self, obj: Any) -> Any:
        if obj is dataclasses.MISSING:  # there is one, which the fields of dataclasses are compared with
            return "MISSING"
        if type(obj) is msgspec.Meta:  # of an annotation; it has no pickled form of its own
            return _meta, ({name: getattr(obj, name) for name in dir(obj) if name[0] != "_"},)
        if isinstance(obj, (type, FunctionType)) and self._goes_by_value(obj.__module__):
            module = sys.modules[obj.__module__]
            cloudpickle.register_pickle_by_value(module)
            try:
                return self._reduced(obj)
            finally:
                cloudpickle.unregister_pickle_by_value(module)
        synchronize = sys.modules.get("multiprocessing.synchronize")
        if synchronize is not None and isinstance(obj, synchronize.SemLock) and obj._semlock.name is None:
            # Up to Python 3.10 multiprocessing itself fails in the child only.
            raise TypeError("it belongs to multiprocessing's fork context; make it with "
                            "multiprocessing.get_context('forkserver') instead")
        return self._reduced(obj)

    def _reduced(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if not isinstance(obj, (type, FunctionType)) or not isinstance(reduced, tuple) or len(reduced) < 3:
            return reduced  # not by value
        if isinstance(obj, type) and issubclass(obj, msgspec.Struct):
            reduced = structs.reduce(obj)
        return _with_hints(obj, reduced)

    def _goes_by_value(self, name: str | None) -> bool:
        if name is None or name not in sys.modules or name == "__main__":  # cloudpickle knows what to do
            return False
        if name not in self._by_value:
            self._by_value[name] = not _importable(name)
        return self._by_value[name]


def _meta(fields: dict[str, Any]) -> msgspec.Meta:
    return msgspec.Meta(**fields)


def _with_hints(obj: Any, reduced: Any) -> Any:
    """What goes by value for a function or a class, with annotations that are text looked up.

    In the child there is no module to look them up in.  Text that nobody can look up stays text.
    """
    for state in reduced[2] if isinstance(reduced[2], tuple) else [reduced[2]]:
        given = (state or {}).get("__annotations__", {})
        if any(isinstance(each, str) for each in given.values()):
            with contextlib.suppress(Exception):
                hints = typing.get_type_hints(obj, include_extras=True)
                state["__annotations__"] = {name: hints.get(name, each) for name, each in given.items()}
    return reduced


def _importable(name: str) -> bool:
    """Whether a process with our sys.path would import this loaded module from where we have it."""
    module = sys.modules[name]
    ours = getattr(module, "__file__", None)
    if ours is None or getattr(module.__spec__, "origin", None) == "frozen":
        return True  # built in, or a namespace
    path = None
    for end in (*(at for at, letter in enumerate(name) if letter == "."), len(name)):
        specs = (finder.find_spec(name[:end], path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return spec is None or spec.origin in (None, ours) or not spec.has_location


def dumps(body: Any, *, name: str, open_in: str) -> bytes:
    """Pickles the body of ``name``, in the spawning context of the process that it is for.  Raises Unsendable."""
    try:
        return _dumps(body)
    except Exception as error:  # whatever a __reduce__ raises
        owner = getattr(body, "__self__", body)
        what = next(_blamed(owner), f"something that {type(owner).__qualname__} uses")
        raise Unsendable(f"cannot start {name!r}: {what} cannot be sent to a process; open it in {open_in}, "
                         f"or carry it with start_method='fork' ({_reason(error)})") from error


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _blamed(owner: Any) -> Iterator[str]:
    """Names the attributes of ``owner`` that cannot be pickled, those first that fail by themselves."""
    state = owner.__getstate__() if hasattr(owner, "__getstate__") else getattr(owner, "__dict__", None)
    found = [each for key, value in (state if isinstance(state, dict) else {}).items()
             for each in _unpicklable(key.lstrip("_"), value, 3)]
    # A container fails for what is in it, and a method of the owner's for another attribute.
    found.sort(key=lambda each: isinstance(each[1], (dict, list, tuple)) or getattr(each[1], "__self__", None) is owner)
    return (f"attribute {path!r} ({type(part).__name__})" for path, part in found)


def _unpicklable(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    try:
        _dumps(value)
    except Exception:
        items: Any = value.items() if isinstance(value, dict) else ()
        if isinstance(value, (list, tuple)):
            items = enumerate(value)
        for key, item in items if depth else ():
            yield from _unpicklable(f"{path}[{key!r}]", item, depth - 1)
        yield path, value
