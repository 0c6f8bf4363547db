"""Whether what a topic's publisher sends fits who listens, by the shapes of their types.

It does where every value that the one type lets through is taken by the other's conversion.  ``Any`` fits everything,
on either side: then each value has to show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyzmp.protocol import codec
from pyzmp.protocol.forms import TAGS, name_of
from pyzmp.protocol.shapes import (
    Array,
    Definition,
    Dict,
    Field,
    Fixed,
    Items,
    Kind,
    Node,
    Number,
    Or,
    Record,
    Scalar,
    Shape,
    Values,
    Where,
    encoded,
    read,
    shown,
)

STEPS = 20_000  # of one comparison

Found = tuple[str, Node, Node | None] | None  # where two types differ, and what is published and wanted there
ANY = Scalar("Any")
_MISSING = "not published, or not always, and expected without a default"
_BYTES = ("bytes", "bytearray", "memoryview")
_TAKEN: Mapping[str, tuple[str, ...]] = {  # what else a value passes for
    "int": ("float", "complex"), "float": ("complex",), **dict.fromkeys(_BYTES, _BYTES)}


def fits(published: bytes, wanted: bytes) -> str:
    """Empty where what is published under the one shape fits who wants the other; else the reason, with the place.

    An empty shape stands for a type that is not checked.  Raises MalformedMessage for bytes that are no shape.
    """
    if published == wanted or not (published and wanted):
        return ""
    ours, theirs = read(published), read(wanted)
    try:
        return _said(_Comparison(ours, theirs).fit(ours.root, theirs.root), ours, theirs)
    except (RecursionError, _TooInvolved):
        return "the types are too involved to be compared; publish or expect Any"


def _said(found: Found, ours: Shape, theirs: Shape) -> str:
    if found is None:
        return ""
    path, p, w = found
    where = "" if not path else f"field {shown(path[1:])}: " if path.startswith(".") else f"item {shown(path)}: "
    return f"{where}published {ours.text(p)}, expected {theirs.text(w)}" if w else f"{where}{_MISSING}"


class _TooInvolved(Exception):
    pass


class _Comparison:
    """Of two shapes: in all that follows, ``p`` is of what is published, and ``w`` of what is wanted."""

    def __init__(self, published: Shape, wanted: Shape) -> None:
        self._published, self._wanted = published, wanted
        self._known: dict[tuple[int, int], Found] = {}  # of records
        self._deep: dict[int, bool] = {}
        self._steps = 0

    def fit(self, p: Node, w: Node) -> Found:
        """None where it fits."""
        self._step(1)
        if ANY in (p, w):
            return None
        if isinstance(p, Or):
            return _first(self.fit(arm, w) for arm in p.arms)
        if isinstance(p, Values):
            return self._fit_values(p, w)
        if isinstance(w, Or):
            found = self._choose(p, w)
            return self.fit(p.inner, w) if found and isinstance(p, Where) else found
        if isinstance(w, Where):
            return self._fit_limits(p, w)
        if isinstance(p, Where):
            return self.fit(p.inner, w)
        return self._fit_kind(p, w)

    def _fit_limits(self, p: Node, w: Where) -> Found:
        while isinstance(p, Where):
            if p.limits == w.limits and _same_kind(_unlimited(p), _unlimited(w)):
                return self.fit(p.inner, w.inner)
            p = p.inner
        return _differ(p, w)

    def _fit_kind(self, p: Node, w: Node) -> Found:
        if isinstance(p, Record):
            return self._fit_record(p, w)
        if isinstance(p, Items) and isinstance(w, Items):
            found = _at("[]", self.fit(p.item, w.item))
            return found or self._hashed(p, w, p.kind in ("set", "frozenset") or p.item.hashes())
        if isinstance(p, Fixed) and isinstance(w, Items):
            found = _first(_at(f"[{at}]", self.fit(item, w.item)) for at, item in enumerate(p.items))
            return found or self._hashed(p, w, p.hashes())
        if isinstance(p, Fixed) and isinstance(w, Fixed) and w.least <= len(p.items) <= len(w.items):
            return _first(_at(f"[{at}]", self.fit(item, w.items[at])) for at, item in enumerate(p.items))
        if isinstance(p, Dict) and isinstance(w, Dict):
            found = _at("[key]", self.fit(p.key, w.key)) or _at("[]", self.fit(p.item, w.item))
            return found or (None if w.key.hashes() else _differ(p, w))
        return None if _passes(p, w) else _differ(p, w)

    def _hashed(self, p: Node, w: Items, free: bool) -> Found:
        """What is wanted in a set needs a hash."""
        return None if w.kind in ("list", "tuple") or w.item.hashes(free=free) else _differ(p, w)

    # -- records

    def _fit_record(self, p: Record, w: Node) -> Found:
        record = self._published.record(p)
        if isinstance(w, Dict):
            return _first(_differ(p, w) if not self._takes(encoded(field.name), w.key)
                          else _at(f".{field.name}", self.fit(field.form, w.item)) for field in record.fields)
        if not isinstance(w, Record):
            return _differ(p, w)
        pair = p.place, w.place
        if pair not in self._known:
            self._known[pair] = None  # so it is taken where it is in itself: if it does not fit after all, nothing does
            self._known[pair] = self._fit_fields(record, self._wanted.record(w))
        return self._known[pair]

    def _fit_fields(self, p: Definition, w: Definition) -> Found:
        given = {field.name: field for field in p.fields}
        for field in w.fields:
            mine = given.get(field.name)
            found = self.fit(mine.form, field.form) if mine else None
            if found:
                return _at(f".{field.name}", found)
            if field.required and not (mine and p.always(mine)):
                return f".{field.name}", field.form, None
        return None

    # -- certain values

    def _fit_values(self, p: Values, w: Node) -> Found:
        if p.is_open:
            if any(isinstance(arm, Values) and arm.is_open and set(arm.values) == set(p.values) for arm in _arms(w)):
                return None
            kinds = dict.fromkeys(name_of(codec.decode(value)) for value in p.values)
            return _first(self.fit(Scalar(kind), w) for kind in kinds)
        wrong = next((value for value in p.values if not self._takes(value, w)), None)
        return None if wrong is None else _differ(Values((wrong,)), w)

    def _takes(self, value: bytes, w: Node) -> bool:
        """Whether one encoded value is taken."""
        self._step(len(w.values) if isinstance(w, Values) else 1)
        if isinstance(w, Or):
            return any(self._takes(value, arm) for arm in w.arms)
        return value in w.values if isinstance(w, Values) else w == ANY or _passes(
            Scalar(name_of(codec.decode(value))), w)

    # -- unions

    def _choose(self, p: Node, w: Or) -> Found:
        """As conversion does: one arm after the other; and of those with records one only, the best by its looks."""
        founds = []
        for arm in w.arms:
            if not self._is_deep(arm):
                founds.append((arm, self.fit(p, arm)))
                if founds[-1][1] is None:
                    return None
        kinds = p.kinds
        if len(kinds) == 1:
            near = [arm for arm in w.arms if arm.kinds & kinds]
            rivals = [arm for arm in near or w.arms if self._is_deep(arm)]
            best = next((arm for at, arm in enumerate(rivals) if self._wins(p, rivals, at)), None)
            if best is not None:
                return self.fit(p, best)
            likely = [found for arm, found in founds if arm in near]
            if len(likely) == 1 and not rivals:
                return likely[0]
        return _differ(p, w)

    def _is_deep(self, w: Node) -> bool:
        """Whether records are in it."""
        if id(w) not in self._deep:
            self._deep[id(w)] = isinstance(w, Record) or any(map(self._is_deep, w.inside))
        return self._deep[id(w)]

    def _wins(self, p: Node, rivals: list[Node], at: int) -> bool:
        """Whether of the arms with records it is surely this one that conversion tries."""
        p = _unlimited(p)
        if len(rivals) == 1 or not isinstance(p, Record):
            return at == 0
        scores = [self._score(self._published.record(p), each) for each in rivals]
        least = scores[at][0]
        return all(least > most for _, most in scores[:at]) and all(least >= most for _, most in scores[at + 1:])

    def _score(self, p: Definition, w: Node) -> tuple[int, int]:
        """The least and the most that `Form.fits` gives for what is published."""
        if not isinstance(w, Record):
            return 2, 3
        record = self._wanted.record(w)
        given = {field.name: field for field in p.fields}
        self._step(len(given) + len(record.fields))
        names = {field.name for field in record.fields}
        possible = names <= given.keys() and all(name in names for name, each in given.items() if p.always(each))
        tags = [_tells(given.get(field.name), field.form) for field in record.fields if field.tells]
        sure = all(tags) and all(p.always(given[field.name]) for field in record.fields if field.tells)
        return (2 * sure + (possible and all(map(p.always, p.fields))), 2 * (False not in tags) + possible)

    def _step(self, count: int) -> None:
        self._steps += count
        if self._steps > STEPS:
            raise _TooInvolved


def _differ(p: Node, w: Node) -> Found:
    return "", p, w


def _first(found: Iterable[Found]) -> Found:
    return next((each for each in found if each), None)


def _at(part: str, found: Found) -> Found:
    return (f"{part}{found[0]}", *found[1:]) if found else None


def _arms(node: Node) -> tuple[Node, ...]:
    return node.arms if isinstance(node, Or) else (node,)


def _unlimited(node: Node) -> Node:
    while isinstance(node, Where):
        node = node.inner
    return node


def _same_kind(p: Node, w: Node) -> bool:
    """Whether what keeps within limits as the one still does as the other."""
    if isinstance(p, Items) and isinstance(w, Items) and p.kind in ("list", "tuple"):
        return p.kind == w.kind
    return p == w and not _has_records(p)


def _has_records(node: Node) -> bool:
    return isinstance(node, Record) or any(map(_has_records, node.inside))


def _passes(p: Node, w: Node) -> bool:
    """Whether one value passes for another by its type alone."""
    if isinstance(p, Number):
        return _is_any(p.dtype, (w.dtype,)) if isinstance(w, Number) else isinstance(w, Scalar) and _counts(
            p.dtype, w.name)
    if isinstance(p, Array) and isinstance(w, Array):
        return not w.dtypes or all(_is_any(kind, w.dtypes) for kind in p.dtypes)
    return isinstance(p, Scalar) and isinstance(w, Scalar) and (p == w or w.name in _TAKEN.get(p.name, ()))


def _is_any(p: Kind, wanted: Iterable[Kind]) -> bool:
    return any(w[:1] and w[0] in p[1:] for w in wanted)


def _counts(kind: Kind, name: str) -> bool:
    """Whether a scalar of numpy's passes for a number of Python's."""
    whole = "integer" in kind[1:] and not {"timedelta64", "integer", "signedinteger"}.intersection(kind[:1])
    real = whole or "floating" in kind[1:]
    return (name == "int" and whole) or (name == "float" and real) or (
        name == "complex" and (real or "complex128" in kind[1:]))


def _tells(p: Field | None, w: Node) -> bool | None:
    """Whether what is published as a field is among the values wanted there; None where both can be."""
    if p is None:
        return False
    if not isinstance(p.form, Values) or p.form.is_open or not isinstance(w, Values):
        return None
    mine, wanted = ([value for value in map(codec.decode, each.values) if type(value) in TAGS] for each in (p.form, w))
    if set(p.form.values) <= set(w.values) and len(mine) == len(p.form.values):
        return True
    return None if set(mine) & set(wanted) else False
