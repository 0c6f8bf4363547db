"""The rules: what a value must be for an annotation, and what it becomes when it arrives."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, field, fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from numbers import Real
from operator import index
from typing import Any
from uuid import UUID

from pyzmp.protocol import arrays

NATIVE = (bytes, datetime, date, time, timedelta, Decimal, UUID)
ARRAYS = (list, tuple, set, frozenset)
TAGS = (str, int, bytes, bool)


class Mismatch(Exception):
    """A value is not what an annotation says; ``parts`` is where, from the inside out."""

    def __init__(self, expected: str, got: Any = None, *, reason: str = "") -> None:
        super().__init__(expected)
        self.reason = reason or f"expected {expected}, got {name_of(got)}"
        self.parts: list[str] = []

    @property
    def path(self) -> str:
        return "".join(reversed(self.parts))


def name_of(value: Any) -> str:
    """The type of a value, for people."""
    return "None" if value is None else type(value).__name__


class _Everything(frozenset[type]):
    def __contains__(self, kind: object) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Form:
    """What one annotation says."""

    text: str
    convert: Callable[[Any], Any]               # the value as it arrives, or Mismatch
    wire: frozenset[type]                       # the types that the codec may make of it
    _: KW_ONLY
    schema: str = ""                            # the same in every interpreter, equal where the rules are
    exact: frozenset[type] = frozenset()        # a value of exactly these types needs no look inside
    plain: Any = None                           # the annotation, where msgspec has the same rules
    own: type | None = None                     # the class that arrives as something else, and is converted
    deep: bool = False                          # records are in it, which may be in themselves
    keys: frozenset[str] = frozenset()          # a record's: the names of its fields
    literals: Mapping[str, frozenset[Any]] = field(default_factory=dict)     # and those with certain values only
    item: Form | None = None                    # a stream's: what each of its items is
    shape: tuple[Any, ...] = ()                 # how it is made, and of what, to be told to others

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", self.schema or self.text)
        object.__setattr__(self, "shape", self.shape or (self.text,))

    def fits(self, fields: dict[Any, Any]) -> int:
        """How well a record's map fits by its looks."""
        tags = [type(fields.get(name)) in TAGS and fields[name] in values for name, values in self.literals.items()]
        return 2 * all(tags) + (self.keys == fields.keys())

    def is_apart(self, other: Form) -> bool:
        """Whether two records can be told apart by their fields."""
        if not self.keys or not other.keys:
            return False
        return self.keys != other.keys or any(
            not self.literals[name] & other.literals[name] for name in self.literals.keys() & other.literals.keys())


def only(*kinds: type) -> Callable[[str], Callable[[Any], Any]]:
    """What passes values of these types, and nothing else."""
    def make(text: str) -> Callable[[Any], Any]:
        def convert(value: Any) -> Any:
            if isinstance(value, kinds):
                return value
            raise Mismatch(text, value)
        return convert
    return make


def _integer(value: Any) -> int:
    if type(value) is not bool and (isinstance(value, int) or (arrays.is_numpy(type(value)) and hasattr(
            value, "__index__") and isinstance(value, Real))):
        return index(value)  # type: ignore[arg-type]
    raise Mismatch("int", value)


def _number(kind: type, value: Any) -> Any:
    fits = isinstance(value, (int, float)) or (arrays.is_numpy(type(value)) and isinstance(value, Real))
    if type(value) is bool or not fits:
        raise Mismatch(kind.__name__, value)
    try:
        return kind(value)
    except OverflowError:
        raise Mismatch(kind.__name__, reason=f"the number is too large for a {kind.__name__}") from None


def _day(value: Any) -> Any:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise Mismatch("date", value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    raise Mismatch("str", value)


def _scalar(kind: type, convert: Callable[[Any], Any] | None = None, *, plain: bool = True) -> Form:
    return Form(kind.__name__, convert or only(kind)(kind.__name__), wire=frozenset({kind}),
                exact=frozenset({kind}), plain=kind if plain else None)


def _bytes_like(kind: type) -> Form:
    def convert(value: Any) -> Any:
        if type(value) is bytes:
            return kind(value)
        if isinstance(value, (bytes, bytearray, memoryview)):       # at the caller: no copy to look at it
            return value
        raise Mismatch(kind.__name__, value)
    return Form(kind.__name__, convert, wire=frozenset({bytes}), own=None if kind is bytes else kind,
                exact=frozenset({bytes} if kind is bytes else ()), plain=kind if kind is bytes else None)


ANY = Form("Any", lambda value: value, wire=frozenset(), exact=_Everything())
NONE = Form("None", only(type(None))("None"), wire=frozenset({type(None)}), exact=frozenset({type(None)}),
             plain=type(None))
SCALARS: Mapping[Any, Form] = {
    None: NONE, type(None): NONE, Any: ANY, object: ANY,
    bool: _scalar(bool), int: _scalar(int, _integer), str: _scalar(str, _text), date: _scalar(date, _day),
    float: _scalar(float, lambda value: _number(float, value)),
    complex: _scalar(complex, lambda value: value if isinstance(value, complex) else _number(complex, value),
                     plain=False),
    **{kind: _scalar(kind) for kind in (datetime, time, timedelta, Decimal, UUID)},
    **{kind: _bytes_like(kind) for kind in (bytes, bytearray, memoryview)},
}
# What is taken for an abstract container, and what it arrives as.
CONTAINERS: Mapping[Any, type] = {
    list: list, set: set, frozenset: frozenset, dict: dict,
    abc.Sequence: list, abc.MutableSequence: list, abc.Collection: list, abc.Iterable: list,
    abc.Set: set, abc.MutableSet: set, abc.Mapping: dict, abc.MutableMapping: dict,
}


class Whole:
    """The items of a list, for a service that takes them as a stream on its loop."""

    def __init__(self, items: list[Any]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> Whole:
        return self

    async def __anext__(self) -> Any:
        for item in self._items:
            return item
        raise StopAsyncIteration


def streamed(name: str, item: Form, whole: Form) -> Form:
    """An argument whose items may come one after the other; or all at once, and are then checked as *whole*.

    What is iterated is not looked into.  *name* is the abstract class that the service takes it as.
    """
    text = name if item is ANY else f"{name}[{item.text}]"
    given: Callable[[list[Any]], Any] | None = (
        Whole if name.startswith("Async") else iter if name == "Iterator" else None)

    def convert(value: Any) -> Any:
        if isinstance(value, ARRAYS):
            items = whole.convert(value)
            return given(items) if given else items
        if hasattr(type(value), "__next__") or hasattr(type(value), "__anext__"):
            return value
        raise Mismatch(text, value)
    return Form(text, convert, wire=frozenset(), schema=f"stream[{item.schema}]", item=item)


def collected(kind: type, items: Any, text: str) -> Any:
    """A container made of *items*; Mismatch where one that needs a hash has none."""
    try:
        return kind(items)
    except TypeError as error:
        raise Mismatch(text, reason=f"expected {text}, got an item without a hash") from error


def part(form: Form, value: Any, where: str) -> Any:
    """What ``value`` becomes by ``form``, inside of something."""
    try:
        return form.convert(value)
    except Mismatch as mismatch:
        mismatch.parts.append(where)
        raise


def shown(value: Any) -> str:
    """A value, short and without running anything of its own, for people."""
    return repr(value)[:40] if type(value) in (str, bool, float, bytes) or (
        type(value) is int and value.bit_length() < 64) else name_of(value)


def record_converter(kind: type, name: str, parts: dict[str, tuple[Form, bool]]) -> Callable[[Any], Any]:
    """What makes a record of a map, and looks at each field of an instance."""
    is_map = issubclass(kind, dict)
    make = _make_dataclass if hasattr(kind, "__dataclass_fields__") else lambda kind, values: kind(**values)

    def convert(value: Any) -> Any:
        if not is_map and isinstance(value, kind):
            for key, (form, _) in parts.items():
                part(form, getattr(value, key), f".{key}")
            return value
        if not isinstance(value, dict):
            raise Mismatch(name, value)
        values = {}
        for key, (form, required) in parts.items():
            if key in value:
                values[key] = part(form, value[key], f"[{key!r}]" if is_map else f".{key}")
            elif required:
                raise Mismatch(name, reason=f"expected {name}, got a dict without {key!r}")
        try:
            return make(kind, values)
        except Exception as error:      # its __post_init__
            raise Mismatch(name, reason=f"{name} refuses its fields: {error}") from error
    return convert


def _make_dataclass(kind: Any, values: dict[str, Any]) -> Any:
    """An instance without its ``__init__``, whose parameters may be others, but with its ``__post_init__``."""
    made = object.__new__(kind)
    for each in fields(kind):
        if each.name in values:
            value = values[each.name]
        else:
            value = each.default if each.default_factory is MISSING else each.default_factory()
        object.__setattr__(made, each.name, value)
    if hasattr(kind, "__post_init__"):
        made.__post_init__()
    return made
