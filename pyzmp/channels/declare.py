"""How a class declares its services: ``@service`` and ``@every``."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from pyzmp.channels.parameter import Parameter
from pyzmp.channels.subscribe import check_handlers
from pyzmp.channels.topic import Topic
from pyzmp.exceptions import InvalidAnnotation
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.schema import Signature, Unresolved
from pyzmp.registry.domain import check_service_name

if TYPE_CHECKING:
    from pyzmp.channels.channel import Channel, Declared
    from pyzmp.channels.service import Service
    from pyzmp.channels.streaming import StreamService

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
L_co = TypeVar("L_co", covariant=True)
F = TypeVar("F", bound=Callable[[Any], Any])


class ServiceMethod(Generic[P, R_co, L_co]):
    """A method that is a service: on its class the `Service` to call, on an instance the method itself."""

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, timeout: float | None = None,
                 idempotent: bool = False, deduplicate: bool = False, worker: bool = False) -> None:
        if isinstance(function, (staticmethod, classmethod)):
            raise TypeError(f"@service: {function.__func__.__qualname__} is a {type(function).__name__}; a service "
                            "is a plain method, that gets the node as self")
        if not callable(function):
            raise TypeError(f"@service goes on a method, got {function!r}")
        if worker and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
            raise TypeError(f"@service(worker=True): {function.__qualname__} is async, and runs on the node's loop; "
                            "leave one of the two out")
        self.function = function
        self.name = check_service_name(function.__name__ if name is None else name)
        self.timeout = None if timeout is None else seconds(timeout)
        self.idempotent, self.deduplicate, self.worker = idempotent, deduplicate, worker
        self._cls = function.__qualname__.rpartition(".")[0]
        self._owner: type | None = None
        self._attribute = ""
        self._signature: Signature | None = None
        self._declared: Declared | None = None
        self._service: Channel[P, R_co] | None = None
        functools.update_wrapper(cast("Callable[..., Any]", self), function)
        with contextlib.suppress(Unresolved):  # a name that is defined later: looked up again when it is needed
            self.signature()

    @property
    def __isabstractmethod__(self) -> bool:
        return bool(getattr(self.function, "__isabstractmethod__", False))

    def __set_name__(self, owner: type, attribute: str) -> None:
        self._owner, self._attribute, self._cls = owner, attribute, owner.__qualname__

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Service[P, R_co]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any]) -> Callable[P, L_co]: ...
    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Any:
        if instance is None:
            found = self._service
            if found is None:
                found = self.of_node(None)
                if self._signature is not None:  # before that one may not know which of the two it is
                    self._service = found
            return found
        bound = self.function.__get__(instance, owner)
        guard = getattr(instance, "_guarded", None)
        return bound if guard is None else guard(self.name, bound)

    def of_node(self, node: str | None) -> Channel[P, R_co]:
        """The service, of every provider or of one *node*."""
        declared = self.declared if self._owner is None else _Declaration(self._owner, self._attribute)
        if self._streams():
            from pyzmp.channels.streaming import StreamService  # where it is called, and not where it is only declared

            return StreamService(self.name, node=node, declared=declared)
        from pyzmp.channels.service import Service

        return Service(self.name, node=node, declared=declared)

    def _streams(self) -> bool:
        try:
            return self.signature().streams
        except Unresolved:  # then a generator is known by its looks
            return inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function)

    def declared(self) -> Declared:
        """What callers know of it.  Raises InvalidAnnotation for annotations that cannot be checked."""
        if self._declared is None:
            from pyzmp.channels.channel import Declared

            self._declared = Declared(self._cls, self.signature(), self.timeout, self.traits())
        return self._declared

    def signature(self) -> Signature:
        """What it takes and returns.

        Raises InvalidAnnotation for annotations that cannot be checked, and TypeError for a stream that could not
        arrive.
        """
        if self._signature is None:
            try:
                signature = Signature.of(self.function, drop_first=True)
            except Unresolved:
                raise
            except InvalidAnnotation as error:
                raise InvalidAnnotation(f"service {self._cls}.{self.name}: {error}") from error
            shown = f"service {self._cls}.{self.name}"
            check_streams(shown, self.function, signature, worker=self.worker)
            self._check_repeated(shown, signature)
            self._signature = signature
        return self._signature

    def traits(self) -> int:
        """What callers should know of it besides its signature: bits of `Trait`."""
        return (self.idempotent * Trait.IDEMPOTENT | self.deduplicate * Trait.DEDUPLICATE
                | self.signature().streams * Trait.STREAM)

    def _check_repeated(self, shown: str, signature: Signature) -> None:
        """Raise TypeError where nobody ever calls it a second time for one result."""
        option = "idempotent" if self.idempotent else "deduplicate" if self.deduplicate else ""
        what = "is" if signature.streams else "takes" if signature.takes else ""
        if option and what:
            raise TypeError(f"{shown} {what} a stream, which is never begun again by itself; leave {option} out")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_signature": None, "_declared": None, "_service": None}


class StreamMethod(ServiceMethod[P, R_co, L_co]):
    """What type checkers take a `ServiceMethod` for whose result is a stream: on its class a `StreamService`."""

    if TYPE_CHECKING:
        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: type[Any]) -> StreamService[P, R_co]: ...
        @overload
        def __get__(self, instance: object, owner: type[Any]) -> Callable[P, L_co]: ...
        def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Any: ...


def check_streams(shown: str, function: Callable[..., Any], signature: Signature, *, worker: bool = False) -> None:
    """Raise TypeError for a stream that a service, *shown* as that, would wait for where it can never come."""
    called = function, type(function).__call__  # the latter for an object that is offered
    awaited = any(map(inspect.iscoroutinefunction, called))
    awaits = awaited or any(map(inspect.isasyncgenfunction, called))
    if signature.streams and awaited:
        raise TypeError(f"{shown} is async and returns an iterator; write it as an async generator, with yield, or as "
                        "a plain method that returns the iterator")
    if signature.takes is None:
        return
    if not worker and not awaits:
        raise TypeError(f"{shown} takes a stream, which would have to arrive on the loop that it holds up; make it "
                        f"async, or worker=True, or annotate {signature.takes} as a list")
    if awaits is not signature.takes_async:
        raise TypeError(f"{shown} {'is async' if awaits else 'runs in a thread'}, and could not wait for the items of "
                        f"argument {signature.takes}; annotate {'AsyncIterator' if awaits else 'Iterator'}[...]")


class _Declaration:
    """What a class declares of one service; it travels as the class and the attribute."""

    def __init__(self, owner: type, attribute: str) -> None:
        self._owner, self._attribute = owner, attribute
        self._declared: Declared | None = None

    def __call__(self) -> Declared:
        declared = self._declared
        if declared is None:
            declared = self._declared = inspect.getattr_static(self._owner, self._attribute).declared()
        return declared

    def __reduce__(self) -> Any:
        return _Declaration, (self._owner, self._attribute)


class _Decorator(Protocol):
    @overload
    def __call__(self, f: Callable[Concatenate[Any, P], AsyncIterator[T]], /) -> StreamMethod[
        P, T, AsyncIterator[T]]: ...
    @overload
    def __call__(self, f: Callable[Concatenate[Any, P], Iterator[T]], /) -> StreamMethod[
        P, T, Iterator[T]]: ...
    @overload
    def __call__(self, f: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], /) -> ServiceMethod[
        P, T, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, f: Callable[Concatenate[Any, P], T], /) -> ServiceMethod[P, T, T]: ...


@overload
def service(f: Callable[Concatenate[Any, P], AsyncIterator[T]], /) -> StreamMethod[
    P, T, AsyncIterator[T]]: ...
@overload
def service(f: Callable[Concatenate[Any, P], Iterator[T]], /) -> StreamMethod[
    P, T, Iterator[T]]: ...
@overload
def service(f: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], /) -> ServiceMethod[
    P, T, Coroutine[Any, Any, T]]: ...
@overload
def service(f: Callable[Concatenate[Any, P], T], /) -> ServiceMethod[P, T, T]: ...
@overload
def service(*, name: str | None = ..., timeout: float | None = ..., idempotent: bool = ...,
            deduplicate: bool = ..., worker: bool = ...) -> _Decorator: ...
def service(f: Any = None, /, *, name: str | None = None, timeout: float | None = None, idempotent: bool = False,
            deduplicate: bool = False, worker: bool = False) -> Any:
    """Declare a method to be a service of its node.

    A plain method runs inline, alone in its node; an ``async`` one interleaves with others; with
    *worker* it runs in a thread of the node's and may block.  *name* is what callers find it by, the
    method's own name by default.  *timeout* is the default for its callers, in seconds.
    *idempotent* says that running it twice does no harm.  With *deduplicate* a repeated attempt of a
    call is answered with the reply of the first, which is kept for 30 s, and the method not run again.

    A generator, or a method that returns an ``Iterator``, streams its result: callers get each item as
    it is yielded, and a generator is closed where they stop early.  One argument of an ``async`` or
    *worker* method may be a stream too, as an ``AsyncIterator`` or an ``Iterator``.  A stream is never
    begun again by itself, so that *idempotent* and *deduplicate* are not for these.

    Raises InvalidAnnotation, when the class is made, for an annotation that cannot be checked, and
    TypeError for what cannot be a service.
    """
    def made(function: Callable[..., Any]) -> ServiceMethod[..., Any, Any]:
        return ServiceMethod(function, name=name, timeout=timeout, idempotent=idempotent, deduplicate=deduplicate,
                             worker=worker)
    return made if f is None else made(f)


class Timer:
    """What `every` puts on a method: its period in seconds, or the parameter that has it."""

    ATTRIBUTE = "__pyzmp_every__"


def every(period: float | Parameter[float] | Parameter[int], /) -> Callable[[F], F]:
    """Declare a method to be called every *period* seconds while its node runs, sync or async.

    *period* may be a `Parameter` of the class: another value of it takes effect at once.
    The first call comes one period after the start.  Calls keep their rhythm: the time that the
    method takes does not add to the period, and calls that a slow one has overrun are left out.
    What it raises is logged, and the timer goes on.
    """
    checked = period if isinstance(period, Parameter) else seconds(period, "every()")

    def mark(function: F) -> F:
        setattr(function, Timer.ATTRIBUTE, checked)
        return function
    return mark


def methods_of(cls: type) -> dict[str, ServiceMethod[..., Any, Any]]:
    """The services that *cls* declares or inherits, by attribute."""
    return {attribute: found for attribute, found in _members(cls).items() if isinstance(found, ServiceMethod)}


def marks_of(cls: type, attribute: str) -> tuple[str, ...]:
    """The marks by which typed callers find a service: one for each class that declares it."""
    found = (vars(base).get(attribute) for base in cls.__mro__)
    return tuple(method.declared().mark for method in found if isinstance(method, ServiceMethod))


def parameters_of(cls: type) -> dict[str, Parameter[Any]]:
    """The parameters that *cls* declares or inherits, by their names."""
    return {attribute: found for attribute, found in _members(cls).items() if isinstance(found, Parameter)}


def topics_of(cls: type) -> dict[str, Topic[Any]]:
    """The topics of their own that the nodes of *cls* publish, by attribute."""
    return {attribute: found for attribute, found in _members(cls).items()
            if isinstance(found, Topic) and found.full_name is None}


def topic_marks_of(cls: type, attribute: str) -> tuple[str, ...]:
    """The marks by which subscribers of a class's topic find it: one for each class that declares it."""
    return tuple(f"{base.__qualname__}.{attribute}" for base in cls.__mro__
                 if isinstance(vars(base).get(attribute), Topic))


def timers_of(cls: type) -> dict[str, float | Parameter[Any]]:
    """The timers of *cls*: attribute and period."""
    return {attribute: getattr(found, Timer.ATTRIBUTE) for attribute, found in _members(cls).items()
            if hasattr(found, Timer.ATTRIBUTE)}


def check_class(cls: type, base: type) -> None:
    """Raise TypeError for a declaration in *cls* that could not work; *base* is the class whose names are taken."""
    named: dict[str, str] = {}
    theirs = set().union(*(vars(parent) for parent in cls.__mro__ if parent not in base.__mro__))
    # In what is the base's only nothing can be wrong, and that is most.
    members = {attribute: value for attribute, value in _members(cls).items() if attribute in theirs}
    for attribute, value in members.items():
        owners = [parent for parent in cls.__mro__ if attribute in vars(parent)]
        shown = f"{owners[0].__qualname__}.{attribute}"
        if isinstance(value, ServiceMethod):
            if hasattr(base, attribute):
                raise TypeError(f"service {shown} would hide {base.__name__}.{attribute}; give the method another "
                                f"name, and callers this one by @service(name={attribute!r})")
            if value.name in named:
                raise TypeError(f"{cls.__qualname__}.{named[value.name]} and {shown} are both the service "
                                f"{value.name!r}; give one of them another name")
            named[value.name] = attribute
        elif isinstance(getattr(value, "__func__", None), ServiceMethod):
            raise TypeError(f"{shown} is a service inside of a {type(value).__name__}; a service is a plain method, "
                            "that gets the node as self")
        elif any(isinstance(vars(owner)[attribute], ServiceMethod) for owner in owners):
            raise TypeError(f"{shown} overrides a service of {cls.__qualname__} without being one; put @service on it "
                            "too")
        elif isinstance(value, Parameter):
            _check_parameter(value, attribute, shown, base)
        elif isinstance(value, Topic):
            _check_topic(value, attribute, shown, base)
        _check_kind(cls, value, attribute, shown)
    _check_names(cls, named)
    _check_periods(cls)
    check_handlers(cls, members)


def _check_kind(cls: type, value: object, attribute: str, shown: str) -> None:
    """Raise TypeError where *value* stands for a parameter or a topic of a class above, and is none."""
    for kind in (Parameter, Topic):
        hidden = any(isinstance(vars(parent).get(attribute), kind) for parent in cls.__mro__)
        if hidden and not isinstance(value, kind):
            raise TypeError(f"{shown} overrides a {kind.__name__.lower()} of {cls.__qualname__} without being one; "
                            f"write {attribute} = {kind.__name__}(...)")


def _check_parameter(parameter: Parameter[Any], attribute: str, shown: str, base: type) -> None:
    if hasattr(base, attribute):
        raise TypeError(f"parameter {shown} would hide {base.__name__}.{attribute}; give it another name")
    if parameter.name != attribute:
        raise TypeError(f"parameter {shown} has the name {parameter.name!r} already; make it a Parameter(...) of its "
                        "own")
    check_service_name(attribute)
    with contextlib.suppress(Unresolved):  # a name that is defined later: looked up again when it is needed
        parameter.checked(parameter.default, f"the default of parameter {shown}")


def _check_topic(topic: Topic[Any], attribute: str, shown: str, base: type) -> None:
    if hasattr(base, attribute):
        raise TypeError(f"topic {shown} would hide {base.__name__}.{attribute}; give it another name")
    if topic.full_name is None and topic.attribute != attribute:
        raise TypeError(f"topic {shown} has the name {topic.attribute!r} already; make it a Topic(...) of its own")
    with contextlib.suppress(Unresolved):  # a name that is defined later: looked up again when it is needed
        topic.check_annotation()


def _check_names(cls: type, services: dict[str, str]) -> None:
    for name in parameters_of(cls):
        if name in services:
            raise TypeError(f"{cls.__qualname__}.{services[name]} is the service {name!r}, which is a parameter too; "
                            "give one of them another name")


def _check_periods(cls: type) -> None:
    """Have the parameters that are periods of timers take positive numbers only."""
    parameters = parameters_of(cls)
    for attribute, period in timers_of(cls).items():
        if not isinstance(period, Parameter):
            continue
        found = parameters.get(period.name)
        if found is None:
            raise TypeError(f"@every() of {cls.__qualname__}.{attribute}: expected a number of seconds, or a Parameter "
                            "that is an attribute of the class too")
        if not found.timed:
            if period.name not in vars(cls):  # of a class above, where it may be any number
                found = copy.copy(found)
                setattr(cls, found.name, found)
            found.timed = True
        seconds(found.default, f"the default of parameter {cls.__qualname__}.{found.name}, a period")


def _members(cls: type) -> dict[str, Any]:
    """What stands in *cls* under which name, inherited or its own, without calling any descriptor."""
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        members.update(vars(base))
    return members
