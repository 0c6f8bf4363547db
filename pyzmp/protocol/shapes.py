"""What a type lets through, as a topic's publisher and its subscriber tell each other: its *shape*.

A shape is MessagePack, and has no class in it that would be looked up; names are there for people only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union

import msgspec

from pyzmp.exceptions import CannotTravel, MalformedMessage
from pyzmp.protocol import arrays, codec
from pyzmp.protocol.forms import Form

LONGEST = 16384  # bytes of a shape; a type with a longer one is not checked
SHOWN = 80  # characters of a type, for people

Name = Annotated[str, msgspec.Meta(max_length=LONGEST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LONGEST)]
Kind = tuple[Name, ...]  # a class of numpy's: its name, and those of the classes that its values have when they arrive


class _Node(msgspec.Struct, frozen=True, array_like=True):
    """A part of a type."""

    @property
    def inside(self) -> tuple[Node, ...]:
        """What it is made of, but for keys."""
        return ()

    @property
    def kinds(self) -> frozenset[str]:
        """What containers its values may arrive as."""
        return frozenset()

    def hashes(self, *, free: bool = True) -> bool:
        """Whether all that arrives as it has a hash; *free*: where that is Any."""
        return all(each.hashes(free=free) for each in self.inside)

    def text(self, shape: Shape) -> str:
        """It, for people."""
        raise NotImplementedError


class Scalar(_Node, frozen=True, tag="s"):
    """One value, such as ``int``, or ``Any``."""

    name: Name

    def hashes(self, *, free: bool = True) -> bool:
        return free if self.name == "Any" else self.name != "bytearray"

    def text(self, shape: Shape) -> str:
        return self.name


class Items(_Node, frozen=True, tag="i"):
    """Any number of items of one kind."""

    kind: Literal["list", "set", "frozenset", "tuple"]
    item: Node

    @property
    def inside(self) -> tuple[Node, ...]:
        return (self.item,)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({self.kind})

    def hashes(self, *, free: bool = True) -> bool:
        return self.kind == "frozenset" or (self.kind == "tuple" and self.item.hashes(free=free))

    def text(self, shape: Shape) -> str:
        return f"{self.kind}[{self.item.text(shape)}{', ...' if self.kind == 'tuple' else ''}]"


class Dict(_Node, frozen=True, tag="d"):
    """A mapping."""

    key: Node
    item: Node

    @property
    def inside(self) -> tuple[Node, ...]:
        return (self.item,)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"dict"})

    def hashes(self, *, free: bool = True) -> bool:
        return False

    def text(self, shape: Shape) -> str:
        return f"dict[{self.key.text(shape)}, {self.item.text(shape)}]"


class Fixed(_Node, frozen=True, tag="f"):
    """A tuple of these items, of which ``least`` are enough; all are published."""

    least: Count
    items: tuple[Node, ...]

    @property
    def inside(self) -> tuple[Node, ...]:
        return self.items

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"tuple"})

    def text(self, shape: Shape) -> str:
        return f"tuple[{', '.join(item.text(shape) for item in self.items) or '()'}]"


class Values(_Node, frozen=True, tag="v"):
    """Certain values, encoded.  An enum is ``is_open`` where it takes others besides, as flags do."""

    values: tuple[bytes, ...]
    is_open: bool = False

    def text(self, shape: Shape) -> str:
        return f"Literal[{', '.join(repr(codec.decode(value))[:SHOWN] for value in self.values[:SHOWN])}]"


class Where(_Node, frozen=True, tag="w"):
    """What keeps within a limit: an encoded argument of `msgspec.Meta`."""

    inner: Node
    limits: bytes

    @property
    def inside(self) -> tuple[Node, ...]:
        return (self.inner,)

    @property
    def kinds(self) -> frozenset[str]:
        return self.inner.kinds

    def text(self, shape: Shape) -> str:
        limits = codec.decode(self.limits)
        if not isinstance(limits, dict):
            raise MalformedMessage("the limits of a type are no map")
        return f"{self.inner.text(shape)} with {', '.join(f'{name}={value!r}' for name, value in limits.items())}"


class Or(_Node, frozen=True, tag="o"):
    """One of these."""

    arms: tuple[Node, ...]

    @property
    def inside(self) -> tuple[Node, ...]:
        return self.arms

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset[str]().union(*(arm.kinds for arm in self.arms))

    def text(self, shape: Shape) -> str:
        return " | ".join(arm.text(shape) for arm in self.arms)


class Array(_Node, frozen=True, tag="a"):
    """An array of one of these types; of any, where there is none."""

    dtypes: tuple[Kind, ...]

    def hashes(self, *, free: bool = True) -> bool:
        return False

    def text(self, shape: Shape) -> str:
        return f"NDArray[{' | '.join(kind[0] for kind in self.dtypes if kind)}]" if self.dtypes else "ndarray"


class Number(_Node, frozen=True, tag="n"):
    """A scalar of numpy's."""

    dtype: Kind

    def text(self, shape: Shape) -> str:
        return f"numpy.{''.join(self.dtype[:1])}"


class Record(_Node, frozen=True, tag="r"):
    """A record, by its place among those of the shape, since it may be in itself."""

    place: Count

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"dict"})

    def hashes(self, *, free: bool = True) -> bool:
        return False

    def text(self, shape: Shape) -> str:
        return shape.record(self).name


Node = Union[Scalar, Items, Dict, Fixed, Values, Where, Or, Array, Number, Record]  # noqa: UP007 - by name, in itself


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A field of a record: ``tells`` says that its values tell the record from others in a union."""

    name: Name
    form: Node
    required: bool
    tells: bool


class Definition(msgspec.Struct, frozen=True, array_like=True):
    """What a record is made of.  One that ``is_map`` may lack what is not required even where it is published."""

    name: Name
    is_map: bool
    fields: tuple[Field, ...]

    def always(self, field: Field) -> bool:
        return field.required or not self.is_map


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """A type."""

    root: Node
    records: tuple[Definition, ...]

    def record(self, node: Record) -> Definition:
        if node.place >= len(self.records):
            raise MalformedMessage(f"a type names its record {node.place}, and has {len(self.records)}")
        return self.records[node.place]

    def text(self, node: Node) -> str:
        """A part of it, for people."""
        return shown(node.text(self))


def shown(text: str) -> str:
    """A text on one line, and not too long, whatever was sent."""
    text = text if len(text) <= SHOWN else f"{text[:SHOWN - 1]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def shape_of(form: Form) -> bytes:
    """The shape of what a form lets through; empty where it is too long, or has no form on the wire."""
    writer = _Writer()
    try:
        root = writer.write(form)
        body = msgspec.msgpack.encode(Shape(root, tuple(each for each in writer.records if each)))
    except (CannotTravel, RecursionError):
        return b""
    return body if len(body) <= LONGEST else b""


@functools.cache
def _decoder() -> msgspec.msgpack.Decoder[Shape]:
    return msgspec.msgpack.Decoder(Shape)


def read(data: bytes) -> Shape:
    """Raises MalformedMessage, and nothing else, for bytes that are no shape."""
    if len(data) > LONGEST:
        raise MalformedMessage(f"a type of {len(data)} bytes; the limit is {LONGEST}")
    try:
        return _decoder().decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise MalformedMessage(f"no type of a topic: {error}") from error


def encoded(value: Any) -> bytes:
    """A value in one piece; raises CannotTravel for what is too large for that."""
    body, buffers = codec.encode(value)
    if buffers:
        raise CannotTravel("bytes", "so many in a type")
    return body


_ARRAYS = ("list", "set", "frozenset", "tuple")
_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz")


class _Writer:
    def __init__(self) -> None:
        self.records: list[Definition | None] = []
        self._places: dict[int, int] = {}

    def write(self, form: Form) -> Node:
        head, *rest = form.shape
        if not rest:
            return Scalar(head)
        return Items(head, self.write(rest[0])) if head in _ARRAYS else getattr(self, f"_{head}")(*rest)

    def _dict(self, key: Form, item: Form) -> Node:
        return Dict(self.write(key), self.write(item))

    def _fixed(self, least: int, items: Iterable[Form]) -> Node:
        return Fixed(least, tuple(map(self.write, items)))

    def _literal(self, values: Iterable[Any]) -> Node:
        return Values(tuple(dict.fromkeys(map(encoded, values))))

    def _enum(self, kind: type[Enum]) -> Node:
        values = dict.fromkeys(encoded(member.value) for member in kind.__members__.values())
        plain = getattr(kind._missing_, "__func__", None) is getattr(Enum._missing_, "__func__", None)
        return Values(tuple(values), not plain)

    def _where(self, inner: Form, limits: Iterable[msgspec.Meta]) -> Node:
        node = self.write(inner)
        for limit in sorted({encoded({name: value}) for each in limits for name in _LIMITS
                             if (value := getattr(each, name)) is not None}):
            node = Where(node, limit)
        return node

    def _or(self, arms: Iterable[Form]) -> Node:
        return Or(tuple(map(self.write, arms)))

    def _array(self, kinds: Iterable[type]) -> Node:
        return Array(tuple(map(_names, kinds)))

    def _number(self, kind: type) -> Node:
        return Number(_names(kind))

    def _record(self, kind: type, parts: Mapping[str, tuple[Form, bool]], literals: Mapping[str, Any]) -> Node:
        place = self._places.get(id(parts))
        if place is None:
            place = self._places[id(parts)] = len(self.records)
            self.records.append(None)  # it may be in itself
            self.records[place] = Definition(kind.__name__, issubclass(kind, dict), tuple(
                Field(name, self.write(form), required, name in literals) for name, (form, required) in parts.items()))
        return Record(place)


def _names(kind: type) -> Kind:
    import numpy as np  # which is there, since the class is

    arrives = np.dtype(np.dtype(kind).str).type if kind in np.sctypeDict.values() else kind
    return (kind.__name__.strip("_"),
            *(base.__name__.strip("_") for base in arrives.__mro__ if base is not object and arrays.is_numpy(base)))
