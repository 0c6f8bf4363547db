"""The types of services, topics and parameters: what may be sent, checked at both ends."""

from __future__ import annotations

import functools
import inspect
import typing
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, NoReturn, get_args, get_origin

from pyzmp.exceptions import InvalidAnnotation, InvalidCall, MalformedMessage
from pyzmp.protocol.annotations import Reader, Unresolved, hints_of
from pyzmp.protocol.forms import ANY, ARRAYS, Form, Mismatch, shown, streamed
from pyzmp.protocol.rows import Rows
from pyzmp.protocol.shapes import shape_of

__all__ = ["Signature", "Type", "Unresolved"]

_STREAMS = (abc.Iterator, abc.Generator, abc.AsyncIterator, abc.AsyncGenerator, abc.AsyncIterable)
_TAKEN = (abc.Iterator, abc.Iterable, abc.AsyncIterator, abc.AsyncIterable)      # by a service, as a stream
_NOT_ITERATED = (str, bytes, bytearray, memoryview, dict)       # as streams: they are values
_AWAITED = (abc.Awaitable, abc.Coroutine)


def _fingerprint(schema: str) -> str:
    import hashlib  # costs to import, and who only calls by name needs it never

    return hashlib.sha256(schema.encode()).hexdigest()[:16]


class Type:
    """The type of a topic, a parameter, or a service's result.  ``shape`` is for `pyzmp.protocol.fits`."""

    __slots__ = ("_form", "fingerprint", "shape", "text")

    def __init__(self, form: Form) -> None:
        self._form = form
        self.text = form.text
        self.fingerprint = _fingerprint(form.schema)
        self.shape = shape_of(form)

    @classmethod
    def of(cls, annotation: Any, where: str = "this type") -> Type:
        """Raises InvalidAnnotation for what cannot be checked; ``where`` says in its text whose it is."""
        return cls(Reader(where).read(annotation))

    @property
    def exact(self) -> frozenset[type]:
        """A value of exactly one of these types is one of this, without a look inside."""
        return self._form.exact

    def convert(self, value: Any, path: str = "value") -> Any:
        """``value`` as it arrives: checked, and of the annotated class.

        Takes the sender's own value as well as the decoded one, and changes neither.  Raises TypeError with
        the path, what was expected and what came.
        """
        if type(value) in self._form.exact:
            return value
        try:
            return _converted(self._form, value)
        except Mismatch as mismatch:
            raise TypeError(f"{path}{mismatch.path}: {mismatch.reason}") from mismatch.__cause__

    def __repr__(self) -> str:
        return f"<Type {self.text}>"


def _converted(form: Form, value: Any) -> Any:
    try:
        return form.convert(value)
    except RecursionError:
        raise Mismatch(form.text, reason="it is nested too deep, or in itself") from None


class _Argument:
    """A parameter of a service."""

    __slots__ = ("default", "form", "kind", "name", "required")

    def __init__(self, parameter: Parameter, form: Form) -> None:
        self.name, self.kind, self.form, self.default = parameter.name, parameter.kind, form, parameter.default
        self.required = parameter.default is Parameter.empty and parameter.kind not in (
            Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

    @property
    def text(self) -> str:
        stars = "*" if self.kind is Parameter.VAR_POSITIONAL else "**" if self.kind is Parameter.VAR_KEYWORD else ""
        shown = f"{stars}{self.name}" + ("" if self.form.text == "Any" else f": {self.form.text}")
        if self.default is Parameter.empty:
            return shown
        default = repr(self.default) if type(self.default) in (int, float, str, bool, bytes, type(None)) else "..."
        return f"{shown}{' = ' if ':' in shown else '='}{default}"

    @property
    def schema(self) -> str:
        return f"{self.kind.name} {self.name}: {self.form.schema}" + ("" if self.required else " = ...")


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Signature:
    """What a service takes and gives.

    It is not picklable; it is made anew from the function, in about as long as a call takes.

    ``text`` is for people, such as ``(n: int = 10) -> float``.  ``fingerprint`` is equal for equal schemas in
    unrelated interpreters, wherever the classes are defined.  ``streams`` says that the service gives many
    values; ``check_result`` and ``convert_result`` are then for each of them.  ``takes`` names the argument that
    may be a stream, if there is one, and ``takes_async`` says that it is for ``async for``.  ``rows`` reads the
    arguments of many calls.  A value of exactly one of the types ``gives`` is a result without a look inside.
    """

    __slots__ = (
        "_arguments",
        "_exact",
        "_keywords",
        "_least",
        "_place",
        "_positional",
        "_rest",
        "_rest_keywords",
        "_result",
        "_stream",
        "fingerprint",
        "gives",
        "rows",
        "streams",
        "takes",
        "takes_async",
        "text",
    )

    def __init__(self, arguments: Sequence[_Argument] | None, result: Form, *, streams: bool) -> None:
        unchecked = arguments is None
        self._arguments = arguments = list(arguments or ())
        self._result = result
        self.streams = streams
        self._positional = [argument for argument in arguments if argument.kind in _POSITIONAL]
        self._exact = tuple(argument.form.exact for argument in self._positional)
        self._keywords = {argument.name: argument for argument in arguments if argument.kind in (
            Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
        free = _Argument(Parameter("arguments", Parameter.VAR_POSITIONAL), result) if unchecked else None
        self._rest = free or next((a for a in arguments if a.kind is Parameter.VAR_POSITIONAL), None)
        self._rest_keywords = free or next((a for a in arguments if a.kind is Parameter.VAR_KEYWORD), None)
        self._least = sum(argument.required for argument in self._positional)
        if any(argument.kind is Parameter.KEYWORD_ONLY and argument.required for argument in arguments):
            self._least = len(self._exact) + 1      # no call without keywords can be right
        self.rows, self.gives = Rows(self._least, self._exact), result.exact
        self._stream = stream = next((argument for argument in arguments if argument.form.item), None)
        self._place = self._positional.index(stream) if stream in self._positional else None
        self.takes = stream.name if stream else None
        self.takes_async = stream is not None and stream.form.text.startswith("Async")
        self.text = "(...)" if unchecked else self._text()
        self.fingerprint = _fingerprint("(...)" if unchecked else "; ".join(
            (*(argument.schema for argument in arguments), result.schema, str(streams))))

    def _text(self) -> str:
        shown: list[str] = []
        for place, argument in enumerate(self._arguments):
            before = self._arguments[place - 1].kind if place else None
            if before is Parameter.POSITIONAL_ONLY and argument.kind is not before:
                shown.append("/")
            if argument.kind is Parameter.KEYWORD_ONLY and before not in (
                    Parameter.KEYWORD_ONLY, Parameter.VAR_POSITIONAL):
                shown.append("*")
            shown.append(argument.text)
        if self._arguments and self._arguments[-1].kind is Parameter.POSITIONAL_ONLY:
            shown.append("/")
        result = f"Iterator[{self._result.text}]" if self.streams else self._result.text
        return f"({', '.join(shown)})" + ("" if result == "Any" else f" -> {result}")

    @classmethod
    def of(cls, function: Callable[..., Any], *, drop_first: bool = False,
           names: Mapping[str, Any] | None = None) -> Signature:
        """The signature of ``function``, without ``self`` where ``drop_first``.

        Raises InvalidAnnotation, naming service, argument and annotation, for what cannot be checked, and
        Unresolved for a name that is not defined yet; ``names`` are looked up besides the function's globals.
        A callable without a signature is unchecked.
        """
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (ValueError, TypeError):
            return cls(None, ANY, streams=False)
        if drop_first and parameters and parameters[0].kind in _POSITIONAL:
            del parameters[0]
        target = _annotated(function)
        service = getattr(function, "__name__", type(function).__name__)
        hints = hints_of(target, f"{service}()", names)
        arguments = [_Argument(each, _form(each, hints, Reader(f"{service}(): argument {each.name}", names)))
                     for each in parameters]
        streams_in = [argument.name for argument in arguments if argument.form.item]
        if len(streams_in) > 1:
            raise InvalidAnnotation(f"{service}(): the arguments {' and '.join(streams_in)} are streams, and a service "
                                    "takes one; annotate the others as lists")
        result, streams = _outcome(target, Any if isinstance(function, type) else hints.get("return", Any))
        return cls(arguments, Reader(f"{service}(): result", names).read(result), streams=streams)

    def bind(self, service: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """At the node: the decoded arguments, converted to what is annotated.  Raises InvalidCall."""
        exact = self._exact
        if kwargs == {} and type(args) in (list, tuple) and self._least <= len(args) <= len(exact):
            for value, kinds in zip(args, exact):       # noqa: B905 - what has a default may be missing
                if type(value) not in kinds:
                    break
            else:
                return args, kwargs
        return self._bind(service, args, kwargs)

    def check(self, service: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """At the caller, on its own values: raises the InvalidCall that ``bind`` would raise at the node.

        Anything that ``for`` or ``async for`` takes passes for a stream, but text, bytes and dicts; nothing is
        taken from it.
        """
        if self.takes is not None:
            args, kwargs = self._opened(args, kwargs)
        self.bind(service, args, kwargs)

    def stream_at(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | str | None:
        """Where among the arguments the one stands that is sent item by item: its place, or its name.

        None where the service takes no stream, or was given none, or a list, tuple or set, which is sent whole.
        """
        stream, place = self._stream, self._place
        if stream is None:
            return None
        if place is not None and place < len(args):
            return None if isinstance(args[place], ARRAYS) else place
        if stream.kind is Parameter.POSITIONAL_ONLY or stream.name not in kwargs:
            return None
        return None if isinstance(kwargs[stream.name], ARRAYS) else stream.name

    def check_item(self, service: str, value: Any, number: int | None = None) -> None:
        """At the caller: raises the InvalidCall that ``convert_item`` would raise at the node."""
        self.convert_item(service, value, number)

    def convert_item(self, service: str, value: Any, number: int | None = None) -> Any:
        """At the node: a decoded item of the stream that the service takes, converted to what is annotated.

        Raises InvalidCall with the argument, the *number* of the item (counted from 0) if it is given, what was
        expected and what came.
        """
        stream = self._stream
        item = stream.form.item if stream is not None else None
        if stream is None or item is None:
            self._refuse(service, "", f"it takes no stream; it takes {self.text}")
        if type(value) in item.exact:
            return value
        try:
            return _converted(item, value)
        except Mismatch as mismatch:
            where = f"an item of argument {stream.name}" if number is None else f"argument {stream.name}[{number}]"
            self._refuse(service, stream.name, f"{where}{mismatch.path}: {mismatch.reason}", mismatch.__cause__)

    def check_result(self, service: str, value: Any) -> None:
        """At the node, on the service's own result, or each item of its stream: raises TypeError."""
        if type(value) not in self._result.exact:
            try:
                _converted(self._result, value)
            except Mismatch as mismatch:
                promised = f"items of {self._result.text}" if self.streams else self._result.text
                gave = "another item" if self.streams else "another result"
                where = f" at {mismatch.path}" if mismatch.path else ""
                raise TypeError(f"{service}() promises {promised} and gave {gave}{where}: {mismatch.reason}"
                                ) from mismatch.__cause__

    def convert_result(self, service: str, value: Any) -> Any:
        """At the caller: the decoded result, or an item of the stream, as the annotated class.

        Raises MalformedMessage where the node sent something else.
        """
        if type(value) in self._result.exact:
            return value
        try:
            return _converted(self._result, value)
        except Mismatch as mismatch:
            what = "an item" if self.streams else "the result"
            raise MalformedMessage(f"{what} of {service}(){mismatch.path}: {mismatch.reason}"
                                   ) from mismatch.__cause__

    def __repr__(self) -> str:
        return f"<Signature {self.text}>"

    def _opened(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments with an iterator in the place of what the caller has iterated, as the node gets them."""
        at = self.stream_at(args, kwargs)
        if at is None or not _iterated(kwargs[at] if isinstance(at, str) else args[at]):
            return args, kwargs
        if isinstance(at, str):
            return args, {**kwargs, at: iter(())}
        return (*args[:at], iter(()), *args[at + 1:]), kwargs

    # -- the slow way, which also finds the words

    def _bind(self, service: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        if type(args) not in (list, tuple) or type(kwargs) is not dict:
            self._refuse(service, "", "arguments come as a list and a dict")
        for name in kwargs:
            self._check_keyword(service, name, len(args))
        if len(args) > len(self._positional) and self._rest is None:
            most = len(self._positional)
            self._refuse(service, "", f"at most {most} positional argument{'s' * (most != 1)} fit, got {len(args)}; "
                                      f"it takes {self.text}")
        for place, argument in enumerate(self._positional):
            by_name = argument.name in kwargs and argument.kind is not Parameter.POSITIONAL_ONLY
            if argument.required and place >= len(args) and not by_name:
                self._refuse(service, argument.name, f"missing argument {argument.name!r}")
        for name, argument in self._keywords.items():
            if argument.kind is Parameter.KEYWORD_ONLY and argument.required and name not in kwargs:
                self._refuse(service, name, f"missing argument {name!r}")
        return self._values(service, args, kwargs)

    def _check_keyword(self, service: str, name: Any, given: int) -> None:
        argument = self._keywords.get(name) if type(name) is str else None
        if argument is None:
            if self._rest_keywords is None or type(name) is not str:
                text = shown(name)
                self._refuse(service, text.strip("'"), f"unexpected argument {text}; it takes {self.text}")
        elif argument in self._positional[:given]:
            self._refuse(service, name, f"argument {name!r} came twice, by place and by name")

    def _values(self, service: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        most = len(self._positional)
        values = [self._value(service, argument.name, argument, value)
                  for argument, value in zip(self._positional, args, strict=False)]
        if self._rest is not None:
            values += [self._value(service, f"{self._rest.name}[{at}]", self._rest, value)
                       for at, value in enumerate(args[most:])]
        named = {name: self._value(service, name, self._keywords.get(name) or self._rest_keywords, value)
                 for name, value in kwargs.items()}
        return values, named

    def _value(self, service: str, name: str, argument: _Argument | None, value: Any) -> Any:
        if argument is None or type(value) in argument.form.exact:
            return value
        try:
            return _converted(argument.form, value)
        except Mismatch as mismatch:
            self._refuse(service, argument.name, f"argument {name}{mismatch.path}: {mismatch.reason}",
                         mismatch.__cause__)

    def _refuse(self, service: str, argument: str, text: str, cause: BaseException | None = None) -> NoReturn:
        error = InvalidCall(f"{service}(): {text}", service=service)
        error.argument = str(argument) or None
        raise error from cause


def _annotated(function: Any) -> Any:
    """What holds the annotations of a callable."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        return inspect.getattr_static(function, "__init__")
    return function if inspect.isroutine(function) else type(function).__call__


def _iterated(value: Any) -> bool:
    return not isinstance(value, _NOT_ITERATED) and (hasattr(type(value), "__iter__")
                                                     or hasattr(type(value), "__aiter__"))


def _form(parameter: Parameter, hints: dict[str, Any], reader: Reader) -> Form:
    """What is annotated: one of the abstract classes that are iterated stands for a stream, and no other type does."""
    given = hint = _hint(parameter, hints)
    if parameter.default is None and len(get_args(given)) == 2:     # it is made optional, by Python 3.10 or by us
        hint = get_args(given)[0]
    origin = get_origin(hint) or hint
    if origin not in _TAKEN:
        return reader.read(given)
    item = reader.read(get_args(hint)[0]) if get_args(hint) else ANY
    form = streamed(origin.__name__, item, reader.container(list, [item]))
    if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) or parameter.default is not Parameter.empty:
        which = "has no default" if parameter.default is not Parameter.empty else "is one argument, and not many"
        raise InvalidAnnotation(f"{reader.where}: {form.text} is a stream, which {which}; for what is sent whole, "
                                f"annotate list[{item.text}]")
    return form


def _hint(parameter: Parameter, hints: dict[str, Any]) -> Any:
    hint = hints.get(parameter.name, Any)
    if parameter.default is None and hint is not Any:
        return typing.Optional[hint]  # noqa: UP045 - as Python 3.10 reads it; equal fingerprints in all versions
    return hint


def _outcome(function: Any, hint: Any) -> tuple[Any, bool]:
    """The annotation of a result or of a stream's items, and whether it is a stream."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if origin in _STREAMS or generator:
        return (arguments[0] if arguments and origin in (*_STREAMS, abc.Iterable) else Any), True
    if origin in _AWAITED:
        return (arguments[-1] if arguments else Any), False
    return (Any if hint in (typing.NoReturn, getattr(typing, "Never", typing.NoReturn)) else hint), False
