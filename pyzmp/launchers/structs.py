"""Classes of msgspec's Structs that go by value: made again in the child, as the class statement made them here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_CONFIGURED = ("frozen", "eq", "order", "array_like", "gc", "repr_omit_defaults", "omit_defaults",
               "forbid_unknown_fields", "weakref", "dict", "cache_hash", "tag", "tag_field")
_MADE = frozenset({"__module__", "__slots__", "__annotations__", "__weakref__", "__dict__"})  # by the class statement

Reduced = tuple[Callable[..., Any], tuple[Any, ...], Any, None, None, Callable[[Any, Any], object]]


def reduce(kind: type[msgspec.Struct]) -> Reduced:
    """What pickles *kind* by value, for a pickler that takes functions and classes by value too.

    Its fields come first and all else of it afterwards, which may need the class itself.
    """
    own = inspect.get_annotations(kind)
    fields = {name: _default(kind, name) for name in own if name in kind.__struct_fields__}
    config = {name: getattr(kind.__struct_config__, name) for name in _CONFIGURED}
    config["kw_only"] = bool(fields) and fields.keys().isdisjoint(kind.__match_args__)
    rest = {name: value for name, value in kind.__dict__.items() if name not in _MADE and name not in fields}
    return (_make, (type(kind), kind.__name__, kind.__bases__, kind.__module__, kind.__qualname__, fields, config),
            {**rest, "__annotations__": dict(own)}, None, None, _complete)


def _default(kind: type[msgspec.Struct], name: str) -> dict[str, Any]:
    """The arguments of `msgspec.field` for the field *name*."""
    at, defaults = kind.__struct_fields__.index(name), kind.__struct_defaults__
    default = dict(zip(reversed(range(len(kind.__struct_fields__))), reversed(defaults), strict=False)).get(
        at, msgspec.NODEFAULT)
    given = ("default_factory", default.factory) if hasattr(default, "factory") else ("default", default)
    encoded = kind.__struct_encode_fields__[at]
    return {given[0]: given[1], "name": encoded if encoded != name else None}


def _make(meta: type, name: str, bases: tuple[type, ...], module: str, qualname: str,
          fields: Mapping[str, dict[str, Any]], config: dict[str, Any]) -> type:
    namespace = {"__module__": module, "__qualname__": qualname, "__annotations__": dict.fromkeys(fields, object),
                 **{field: msgspec.field(**given) for field, given in fields.items()}}
    made: type = meta(name, bases, namespace, **config)
    return made


def _complete(kind: type, rest: Mapping[str, Any]) -> None:
    for name, value in rest.items():
        setattr(kind, name, value)
