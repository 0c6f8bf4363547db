"""The arguments of many calls of one service: packed together, read together, and looked at together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any, Union, cast

import msgspec
from msgpack import unpackb

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.runs import SCALARS, Bodies

MOST = 4096  # calls that are asked together, at most
SIZE = 1 << 20  # bytes of their arguments, and of the results that travel together, at most

_BEFORE, _BEHIND = b"\x92", b"\x80"  # what stands around the positional arguments in the body of a `Request`
_SIMPLE = SCALARS - {bytes}  # large ones travel as buffers
_KNOWN = 256  # kinds of arguments that are remembered for one service, at most
_WIDEST = 64  # arguments of a call that is read without a look at how deep it is
_pack = msgspec.msgpack.Encoder().encode
_READY = SCALARS | {msgspec.Raw}


def pack(rows: Sequence[Sequence[Any]]) -> bytes | None:
    """The positional arguments of many calls as one value; None where they are to be packed one by one.

    That is where they are too large for one message, hold large buffers, or one of them cannot travel.
    """
    plain = SCALARS.issuperset(map(type, chain.from_iterable(rows)))
    return _packed(rows if plain else [list(row) for row in rows], plain)


def pack_values(values: list[Any]) -> bytes | None:
    """The results of many calls, as `pack`; those that are no scalars are `raw`."""
    return _packed(values, _READY.issuperset(map(type, values)))


def raw(value: Any) -> msgspec.Raw | None:
    """A result as it is now, packed; None where it is to be answered alone."""
    body = _packed(value, plain=False)
    return msgspec.Raw(body) if body is not None else None


def _packed(values: Any, plain: bool) -> bytes | None:
    try:
        body, buffers = (_pack(values), ()) if plain else codec.encode(values)
    except Exception:  # whatever it is, the one that has it tells
        return None
    return body if not buffers and len(body) <= SIZE else None


class Plain:
    """What of one service is seen at a glance: arguments that are scalars and fit as they are, and results that do.

    Without *rows* all scalars fit; a result of exactly one of the types that it *gives* does.  To find the types of
    arguments among those that did takes a tenth of the time that a look at each of them takes.
    """

    __slots__ = ("_known", "_rows", "gives")

    def __init__(self, rows: Rows | None, gives: frozenset[type]) -> None:
        self._rows, self.gives = rows, gives
        self._known: set[tuple[type, ...]] = set()

    def body(self, args: Sequence[Any]) -> bytes | None:
        """The body of a `Request` with these arguments alone; None where they are to be looked at more closely."""
        kinds = tuple(map(type, args))
        if kinds not in self._known:
            if not _SIMPLE.issuperset(kinds) or (self._rows is not None and not self._rows.fit((args,))):
                return None
            if len(self._known) < _KNOWN:
                self._known.add(kinds)
        try:
            return _BEFORE + _pack(args) + _BEHIND
        except Exception:  # such as a number that is too large for it
            return None


def result(value: Any, gives: frozenset[type]) -> bytes | None:
    """The body of a `Reply`, where the result is a scalar of exactly one of these types, and small; else None."""
    if type(value) not in gives or type(value) not in _SIMPLE:
        return None
    try:
        body = _pack(value)
    except Exception:  # such as a number that is too large for it
        return None
    return body if len(body) <= SIZE else None


def join(bodies: Collection[bytes]) -> bytes:
    """As `pack`, of the bodies of `Request` messages without named arguments."""
    return b"".join((b"\xdd", len(bodies).to_bytes(4, "big"), *[body[1:-1] for body in bodies]))


def split(body: bytes, count: int) -> list[bytes]:
    """The bodies that as many `Request` messages would have.  Raises MalformedMessage."""
    found = Bodies(body)
    if len(found) != count or count > len(body):
        raise MalformedMessage(f"{len(found)} rows of arguments for {count} calls")
    return [b"".join((_BEFORE, each, _BEHIND)) for each in found]


class Rows:
    """The arguments of many calls of one service, which takes *least* values and at most one for each of *exact*.

    A value of exactly one of the types of its place fits as it is.
    """

    __slots__ = ("_exact", "_least", "_reader", "_reads")

    def __init__(self, least: int, exact: Sequence[frozenset[type]]) -> None:
        self._least, self._exact = least, exact
        self._reader: Callable[[bytes], Any] | None = None  # made when it is needed first
        self._reads: Callable[[bytes], Any] | None = None  # the same, for one alone

    def fit(self, rows: Sequence[Sequence[Any]]) -> bool:
        """Whether the arguments of each row fit as they are, seen at a glance."""
        exact, widths = self._exact, set(map(len, rows))
        if len(widths) != 1 or not self._least <= widths.pop() <= len(exact):
            return False
        return all(kinds.issuperset(map(type, column)) for kinds, column in zip(exact, zip(*rows, strict=True)))  # noqa: B905

    def one(self, body: bytes) -> Sequence[Any] | None:
        """The arguments in the body of a `Request`, where all fit as they are and none is named; else None."""
        if not (body.startswith(_BEFORE) and body.endswith(_BEHIND)):
            return None
        if self._reads is None:
            self._reads = _reader(self._least, self._exact, together=False)
        try:
            return cast("Sequence[Any]", self._reads(body[1:-1]))
        except Exception:  # they are not exactly what that takes
            return None

    def read(self, body: bytes, count: int) -> tuple[Sequence[Sequence[Any]] | None, bool]:
        """The arguments of each of *count* calls, and whether all fit; None where they are to be read one by one."""
        if _claims(body) != count:
            return None, False
        try:
            if self._reader is None:
                self._reader = _reader(self._least, self._exact, together=True)
            return self._reader(body), True
        except Exception:  # they are not all exactly what that takes
            rows = _glance(body, count) if all(kinds <= SCALARS for kinds in self._exact) else None
        if rows is not None and self.fit(rows):
            return rows, True
        try:
            rows = codec.decode(body)
        except MalformedMessage:  # the one that has it tells
            return None, False
        return (rows, False) if _are_rows(rows, count) else (None, False)


def _reader(least: int, exact: Sequence[frozenset[type]], *, together: bool) -> Callable[[bytes], Any]:
    """What reads arguments that are exactly of these types, and checks that, at once.  It raises for others.

    It is for bodies that claim no more rows than may be.
    """
    # A whole number would become a float, which it does not where it may be either.
    if (together and not exact) or least > len(exact) or not all(
            kinds and kinds <= SCALARS and (float not in kinds or int in kinds) for kinds in exact):
        return _reads_nothing
    row: Any = tuple[tuple(Union[tuple(kinds)] for kinds in exact)]  # type: ignore[misc]  # noqa: UP007
    return msgspec.msgpack.Decoder(list[row] if together else row).decode


def _reads_nothing(body: bytes) -> None:
    raise ValueError


def _claims(body: bytes) -> int:
    """How many rows *body* claims to have."""
    try:
        return len(Bodies(body))
    except MalformedMessage:
        return -1


def _glance(body: bytes, count: int) -> list[list[Any]] | None:
    """The rows of *body*, where all values in them are of `SCALARS`; else it has no meaning.

    Bounded as this is, what it takes is bounded before it is known that nothing stands in each other.
    """
    try:
        rows = unpackb(body, max_array_len=max(count, _WIDEST), max_map_len=0, ext_hook=_refuse, timestamp=3)
    except Exception:  # whatever it is, it is to be looked at more closely
        return None
    return rows if _are_rows(rows, count) else None


def _are_rows(rows: Any, count: int) -> bool:
    return type(rows) is list and len(rows) == count and set(map(type, rows)) == {list}


def _refuse(code: int, data: bytes) -> None:
    raise ValueError(code)
