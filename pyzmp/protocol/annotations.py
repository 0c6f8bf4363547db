"""Annotations to checks: what a value must be, and what it becomes when it arrives.

Each annotation becomes a ``Form``.  Its ``convert`` takes the caller's own Python value as well as what the
codec makes of it at the other end, by one set of rules, so that both ends agree.  Long containers of plain
types are checked by msgspec; where it finds fault, the rules here decide.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from enum import Enum
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import msgspec

from pyzmp.exceptions import InvalidAnnotation
from pyzmp.protocol import arrays
from pyzmp.protocol.forms import (
    ANY,
    ARRAYS,
    CONTAINERS,
    NATIVE,
    NONE,
    SCALARS,
    Form,
    Mismatch,
    collected,
    only,
    part,
    record_converter,
    shown,
)

WAY_OUT = "use a dataclass, plain types, or Any"
LONG = 32       # from here on msgspec is faster than its preparation takes


class Unresolved(InvalidAnnotation):
    """An annotation names something that is not defined yet; ask again when it is."""


class Reader:
    """Reads annotations into forms; ``where`` says in errors whose annotation it is."""

    def __init__(self, where: str, names: Mapping[str, Any] | None = None) -> None:
        self.where = where
        self.names = dict(names or {})
        self.records: dict[type, Form] = {}

    def refuse(self, annotation: Any, reason: str = "") -> NoReturn:
        shown = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else annotation
        raise InvalidAnnotation(f"{self.where}: {shown} {reason or 'cannot be checked on the wire'}; {WAY_OUT}")

    def read(self, annotation: Any) -> Form:
        """The form of ``annotation``; InvalidAnnotation for what is on no list of ours."""
        if _hashes(annotation) and annotation in SCALARS:
            return SCALARS[annotation]
        if isinstance(annotation, (str, typing.ForwardRef)):
            raise Unresolved(f"{self.where}: {annotation!r} is not defined (yet)")
        origin = get_origin(annotation)
        if origin is not None:
            return self.read_generic(annotation, origin, get_args(annotation))
        if hasattr(annotation, "__supertype__"):                        # a NewType
            return self.read(annotation.__supertype__)
        if type(annotation).__name__ == "TypeAliasType":
            return self.read(annotation.__value__)
        if isinstance(annotation, type):
            return self.read_class(annotation)
        return self.refuse(annotation)

    def read_generic(self, annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Form:
        if origin in (Union, types.UnionType):
            return self.union([self.read(argument) for argument in arguments])
        if origin is Literal:
            return self.literal(arguments)
        if origin is Annotated:
            return self.constrained(self.read(arguments[0]), arguments[1:])
        if (inside := _inside(origin, arguments)) is not None:
            return self.read(inside)
        if origin is tuple:
            return self.read_tuple((Any, ...) if annotation is typing.Tuple else arguments)  # noqa: UP006
        if origin in CONTAINERS:
            return self.container(CONTAINERS[origin], [self.read(argument) for argument in arguments] or [ANY, ANY])
        if isinstance(origin, type) and arrays.is_numpy(origin):
            return self.array(origin, *get_args(arguments[1])) if arguments[1:] else self.read_class(origin)
        return self.refuse(annotation)

    def read_class(self, kind: type) -> Form:
        if kind is tuple:
            return self.read_tuple((Any, ...))
        if kind in CONTAINERS:
            return self.container(CONTAINERS[kind], [ANY, ANY])
        if issubclass(kind, Enum):
            return self.enum(kind)
        if arrays.is_numpy(kind):
            return self.array(kind) if arrays.is_array(kind) else self.numpy_scalar(kind)
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return self.named_tuple(kind)
        if hasattr(kind, "__dataclass_fields__") or issubclass(kind, msgspec.Struct) or hasattr(
                kind, "__required_keys__"):
            return self.records[kind] if kind in self.records else self.record(kind)
        return self.refuse(kind)

    # -- containers

    def hashable(self, form: Form) -> None:
        if form.wire & {list, dict, set} or any(arrays.is_numpy(kind) and arrays.is_array(kind) for kind in form.wire):
            self.refuse(form.text, "arrives without a hash, so that it cannot be a key or stand in a set")

    def container(self, kind: type, items: list[Form]) -> Form:
        if kind is not list:
            self.hashable(items[0])
        if kind is dict:
            return self.mapping(items[0], items[1])
        item = items[0]
        text = kind.__name__ if item is ANY else f"{kind.__name__}[{item.text}]"

        def convert(value: Any) -> Any:
            if not isinstance(value, ARRAYS):
                raise Mismatch(text, value)
            if item is ANY:
                return value if type(value) is kind else collected(kind, value, text)
            done = []
            try:
                for each in value:
                    done.append(item.convert(each))  # noqa: PERF401 - its length says where it failed
            except Mismatch as mismatch:
                mismatch.parts.append(f"[{len(done)}]")
                raise
            return done if kind is list else collected(kind, done, text)
        return self.quick(Form(text, convert, wire=frozenset({kind}), schema=f"{kind.__name__}[{item.schema}]",
                               plain=item.plain and types.GenericAlias(kind, (item.plain,)), deep=item.deep,
                               shape=(kind.__name__, item)))

    def mapping(self, key: Form, item: Form) -> Form:
        text = "dict" if key is item is ANY else f"dict[{key.text}, {item.text}]"

        def convert(value: Any) -> Any:
            if not isinstance(value, dict):
                raise Mismatch(text, value)
            if key is item is ANY:
                return value
            done = {}
            for name, each in value.items():
                try:
                    done[key.convert(name)] = item.convert(each)
                except Mismatch as mismatch:
                    mismatch.parts.append(f"[{shown(name)}]")
                    raise
            return done
        plain = key.plain and item.plain and types.GenericAlias(dict, (key.plain, item.plain))
        return self.quick(Form(text, convert, wire=frozenset({dict}), schema=f"dict[{key.schema}, {item.schema}]",
                               plain=plain, deep=item.deep, shape=("dict", key, item)))

    def read_tuple(self, arguments: tuple[Any, ...]) -> Form:
        if len(arguments) == 2 and arguments[1] is ...:
            same = self.container(list, [item := self.read(arguments[0])])
            text = f"tuple[{same.text[5:-1] or 'Any'}, ...]"
            plain = same.plain and types.GenericAlias(tuple, (*get_args(same.plain), ...))

            def convert_all(value: Any) -> Any:
                if not isinstance(value, ARRAYS):
                    raise Mismatch(text, value)
                return tuple(same.convert(value))
            return Form(text, convert_all, wire=frozenset({tuple}), schema=f"tuple{same.schema[4:]}...", plain=plain,
                        deep=same.deep, shape=("tuple", item))
        items = [] if arguments == ((),) else [self.read(argument) for argument in arguments]
        return self.fixed(f"tuple[{', '.join(form.text for form in items) or '()'}]", items, tuple)

    def fixed(self, text: str, items: list[Form], make: Callable[[Any], Any], *, least: int | None = None,
              names: tuple[str, ...] = ()) -> Form:
        least = len(items) if least is None else least

        def convert(value: Any) -> Any:
            if not isinstance(value, ARRAYS):
                raise Mismatch(text, value)
            if not least <= len(value) <= len(items):
                raise Mismatch(text, reason=f"expected {text}, got {len(value)} items")
            return make([part(form, each, f".{names[at]}" if names else f"[{at}]")
                         for at, (form, each) in enumerate(zip(items, value, strict=False))])
        inner = ", ".join(form.schema for form in items)
        return Form(text, convert, wire=frozenset({tuple}), schema=f"{text.partition('[')[0]}[{inner}]",
                    deep=any(form.deep for form in items), shape=("fixed", least, items))

    def quick(self, form: Form) -> Form:
        """``form`` with msgspec in front of its own rules, where both agree on every value that msgspec takes."""
        if form.plain is not None:
            slow, annotation = form.convert, form.plain

            def convert(value: Any) -> Any:
                if not isinstance(value, (*ARRAYS, dict)) or len(value) < LONG:
                    return slow(value)
                try:
                    return msgspec.convert(value, annotation, builtin_types=NATIVE)
                except (msgspec.ValidationError, ValueError, TypeError):
                    return slow(value)
            return replace(form, convert=convert)
        return form

    # -- choices

    def literal(self, values: tuple[Any, ...]) -> Form:
        text = f"Literal[{', '.join(str(v) if isinstance(v, Enum) else repr(v) for v in values)}]"
        plain = [value.value if isinstance(value, Enum) else value for value in values]

        def convert(value: Any) -> Any:
            for given, sent in zip(values, plain, strict=True):
                if value is given or (type(value) is type(sent) and value == sent):
                    return given
            raise Mismatch(text, reason=f"expected {text}, got {shown(value)}")
        own = next((type(value) for value in values if isinstance(value, Enum)), None)
        return Form(text, convert, wire=frozenset(map(type, plain)), own=own, shape=("literal", plain))

    def enum(self, kind: type[Enum]) -> Form:
        def convert(value: Any) -> Any:
            if isinstance(value, kind):
                return value
            try:
                member = kind(value)
            except Exception:
                member = None
            if member is None or type(member.value) is not type(value):
                raise Mismatch(kind.__name__, reason=f"expected {kind.__name__}, got {shown(value)}")
            return member
        members = sorted(f"{member.name}={member.value!r}" for member in kind)
        return Form(kind.__name__, convert, wire=frozenset(type(member.value) for member in kind), own=kind,
                    schema=f"enum {kind.__name__}({', '.join(members)})", shape=("enum", kind))

    def constrained(self, form: Form, metadata: tuple[Any, ...]) -> Form:
        limits = [item for item in metadata if isinstance(item, msgspec.Meta)]
        if not limits:
            return form
        kind = next(iter(form.wire)) if len(form.wire) == 1 else Any
        annotation: Any = form.plain or kind
        for limit in limits:
            annotation = Annotated[annotation, limit]
        schema = f"{form.schema} {limits}"

        def convert(value: Any) -> Any:
            value = form.convert(value)
            try:
                msgspec.convert(value, annotation, builtin_types=NATIVE)
            except msgspec.ValidationError as error:
                reason = str(error).replace("`", "").partition(" - at ")[0]
                raise Mismatch(form.text, reason=reason[:1].lower() + reason[1:]) from None
            return value
        try:
            msgspec.convert(None, annotation, builtin_types=NATIVE)
        except msgspec.ValidationError:
            pass
        except TypeError as error:
            raise InvalidAnnotation(f"{self.where}: {error}") from error
        return Form(form.text, convert, wire=form.wire, schema=schema, own=form.own, deep=form.deep,
                    plain=form.plain and annotation, shape=("where", form, limits))

    def union(self, arms: list[Form]) -> Form:
        if ANY in arms:
            return ANY
        text = " | ".join(form.text for form in arms)
        self.distinct(arms, text)

        def convert(value: Any) -> Any:
            near = [form for form in arms if type(value) in form.wire or type(value) is form.own]
            # Only one arm with records is tried: two in each level would be 2**64 ways to fail.
            deep = [form for form in near or arms if form.deep]
            best = max(deep, key=lambda form: form.fits(value) if type(value) is dict else 0, default=None)
            failures = []
            for form in (*near, *(form for form in arms if form not in near)):
                if not form.deep or form is best:
                    try:
                        return form.convert(value)
                    except Mismatch as mismatch:
                        failures.append(mismatch)
            likely = len(near) == 1 or (near and not [form for form in near if not form.deep])
            raise failures[0] if likely else Mismatch(text, value)
        simple = len(arms) == 2 and NONE in arms and all(form.plain for form in arms)
        return Form(text, convert, wire=frozenset().union(*(form.wire for form in arms)),
                    schema=" | ".join(sorted(form.schema for form in arms)),
                    exact=frozenset().union(*(form.exact for form in arms)), deep=any(form.deep for form in arms),
                    plain=Union[tuple(form.plain for form in arms)] if simple else None,  # noqa: UP007
                    shape=("or", arms))

    def distinct(self, arms: list[Form], text: str) -> None:
        """Refuse a union of which one arm, once it has travelled, looks like another."""
        for place, left in enumerate(arms):
            for right in arms[place + 1:]:
                hidden = left.own or right.own or (left.deep and right.deep)
                if hidden and left.wire & right.wire and not left.is_apart(right):
                    self.refuse(text, f"is ambiguous: on the wire {left.text} and {right.text} look the same")

    # -- classes

    def record(self, kind: type) -> Form:
        """A dataclass, a Struct or a TypedDict: a map on the wire."""
        name = kind.__qualname__.rpartition("<locals>.")[2]
        outer, hints = self.where, hints_of(kind, self.where, {**self.names, kind.__name__: kind})
        required = _fields_of(kind, hints)
        literals = {field: frozenset(value.value if isinstance(value, Enum) else value for value in get_args(hint))
                    for field, hint in hints.items() if get_origin(hint) is Literal}
        parts: dict[str, tuple[Form, bool]] = {}        # filled below, since they may have the record itself in them
        form = self.records[kind] = Form(
            name, record_converter(kind, name, parts), frozenset({dict}), own=kind, deep=True, schema=f"record {name}",
            keys=frozenset(required), literals=literals, shape=("record", kind, parts, literals))
        for field in required:
            self.where = f"{outer}, field {name}.{field}"
            parts[field] = self.read(hints[field]), required[field]
        self.where = outer
        fields_text = ", ".join(_field_text(*item) for item in parts.items())
        self.records[kind] = replace(form, schema=f"record {name}({fields_text})")
        return self.records[kind]

    def named_tuple(self, kind: Any) -> Form:
        hints = hints_of(kind, self.where, {**self.names, kind.__name__: kind})
        items = [self.read(hints.get(field, Any)) for field in kind._fields]
        form = self.fixed(kind.__name__, items, lambda parts: kind(*parts),
                          least=len(items) - len(kind._field_defaults), names=kind._fields)
        return replace(form, own=kind)

    # -- numpy

    def array(self, kind: type, dtype: Any = Any) -> Form:
        choices = get_args(dtype) if get_origin(dtype) in (Union, types.UnionType) else (dtype,)
        wanted = tuple(get_origin(each) or each for each in choices)
        free = Any in wanted or isinstance(dtype, typing.TypeVar)
        if kind.__name__ != "ndarray" or not (free or all(isinstance(each, type) for each in wanted)):
            self.refuse(kind if free else dtype)
        if not free and any(each.__name__ in ("object_", "void") for each in wanted):
            self.refuse(dtype, "has no form on the wire")
        text = "ndarray" if free else f"NDArray[{' | '.join(each.__name__.strip('_') for each in wanted)}]"

        def convert(value: Any) -> Any:
            if not isinstance(value, kind):
                raise Mismatch(text, value)
            if not free and not issubclass(value.dtype.type, wanted):  # type: ignore[attr-defined]
                raise Mismatch(text, reason=f"expected {text}, got an array of {value.dtype}")  # type: ignore[attr-defined]
            return value
        return Form(text, convert, wire=frozenset({kind}), shape=("array", () if free else wanted))

    def numpy_scalar(self, kind: type) -> Form:
        if kind.__name__ in ("str_", "bytes_", "object_", "void", "longdouble", "clongdouble"):
            self.refuse(kind, "does not arrive as itself")
        text = f"numpy.{kind.__name__.strip('_')}"
        return Form(text, only(kind)(text), wire=frozenset({kind}), shape=("number", kind))


def hints_of(thing: Any, where: str, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The annotations of ``thing`` with all names looked up; Unresolved where one is not defined yet."""
    try:
        return typing.get_type_hints(thing, localns=dict(names or {}), include_extras=True)
    except NameError as error:
        raise Unresolved(f"{where}: {error}") from error
    except Exception as error:
        raise InvalidAnnotation(f"{where}: its annotations cannot be read: {error}; {WAY_OUT}") from error


def _hashes(annotation: Any) -> bool:
    try:
        hash(annotation)
    except TypeError:       # such as Annotated with a list
        return False
    return True


def _inside(origin: Any, arguments: tuple[Any, ...]) -> Any:
    """What a wrapper stands for; None where it is none."""
    if getattr(origin, "_name", "") in ("Required", "NotRequired", "ReadOnly"):
        return arguments[0]
    if type(origin).__name__ != "TypeAliasType":        # as numpy's NDArray is, where Python has them
        return None
    given = dict(zip(origin.__type_params__, arguments, strict=True))
    free = getattr(origin.__value__, "__parameters__", ())
    return origin.__value__[tuple(given[each] for each in free)] if free else origin.__value__


def _fields_of(kind: Any, hints: dict[str, Any]) -> dict[str, bool]:
    """The fields of a record, and which of them are required."""
    if hasattr(kind, "__dataclass_fields__"):
        return {field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(kind)}
    if issubclass(kind, msgspec.Struct):
        return {field.name: field.required for field in msgspec.structs.fields(kind)}
    wrapper = {name: getattr(get_origin(hint), "_name", "") for name, hint in hints.items()}
    return {name: wrapper[name] == "Required" or (name in kind.__required_keys__ and wrapper[name] != "NotRequired")
            for name in hints}


def _field_text(name: str, part: tuple[Form, bool]) -> str:
    return f"{name}: {part[0].schema}" + ("" if part[1] else " = ...")
