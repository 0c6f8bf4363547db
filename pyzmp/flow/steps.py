"""The usual steps of a flow."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from operator import index
from typing import Any

from pyzmp.channels.declare import every
from pyzmp.channels.parameter import Parameter
from pyzmp.channels.topic import Topic
from pyzmp.exceptions import InvalidAnnotation
from pyzmp.flow.naming import shown, told_of
from pyzmp.flow.stages import Stage, Step, awaited, value_of
from pyzmp.launchers.shipping import Unsendable, dumps
from pyzmp.protocol.fits import fits
from pyzmp.protocol.schema import Type


class _Applied(Step):
    """A step that calls *function*, plain or async, whose annotations say what it takes."""

    def __init__(self, function: Callable[[Any], Any], name: str | None = None, **options: Any) -> None:
        _check(type(self), function)
        self.function, self._about = function, shown(function)
        super().__init__(name, **{"takes": _hints(function)[0], **options})

    def start(self, timeout: float | None = None) -> Any:
        try:
            return super().start(timeout)
        except Unsendable as error:
            part = next(_unsendable(self.function), None)
            if part is None:
                raise
            raise Unsendable(
                f"cannot start {self.shown}: {part}, which its function uses, cannot be sent to a process; have the "
                "function make its own when it is first called, write a Step that opens it in on_start, or leave out "
                "kind='process'") from error

    async def call(self, value: Any) -> Any:
        return await awaited(self.function(value))


class Map(_Applied):
    """Publishes what *function*, plain or async, makes of each value; its annotations say what that is."""

    def __init__(self, function: Callable[[Any], Any], name: str | None = None, *, type: Any = None,
                 **options: Any) -> None:
        gives = _hints(function)[1]
        super().__init__(function, name, type=gives if type is None else type, **options)
        if type is not None:
            self._check_result(gives)

    def _check_result(self, gives: Any) -> None:
        with contextlib.suppress(InvalidAnnotation):  # such as a class that is defined later
            made, wanted = Type.of(gives, self.what), Type.of(self._said, self.what)
            if reason := fits(made.shape, wanted.shape):
                raise TypeError(f"{self.what} publishes {wanted.text}, by its type=…, and its function is annotated to "
                                f"give {made.text}: {reason}; leave type=… out, or annotate the function as it is")

    async def take(self, value: Any) -> None:
        await self.send(await self.call(value))


class Filter(_Applied):
    """Publishes the values for which *function*, plain or async, gives something true."""

    async def take(self, value: Any) -> None:
        if await self.call(value):
            await self.send(value_of(value))


class Echo(_Applied):
    """Calls *function*, by default `print`, with each value where the node lives, and passes the value on."""

    def __init__(self, function: Callable[[Any], Any] = print, name: str | None = None, **options: Any) -> None:
        super().__init__(function, name, **options)

    async def take(self, value: Any) -> None:
        await self.call(value)
        await self.send(value_of(value))


class Window(Step):
    """Publishes lists of *length* values, each of which begins *step* values after the one before.

    By default that is where it ended; ``Window(10, step=1)`` publishes the last ten with every value.  What an
    unfinished one holds when the node stops is not published.
    """

    def __init__(self, length: int, name: str | None = None, *, step: int | None = None, **options: Any) -> None:
        for option, given in (("length", length), ("step", length if step is None else step)):
            if isinstance(given, bool) or not hasattr(given, "__index__"):
                raise TypeError(f"{type(self).__name__}(…): {option}: expected a number of values, got {given!r}")
        self.length, self.step = index(length), index(length if step is None else step)
        self._about = str(self.length)
        if not 1 <= self.step <= self.length:
            raise ValueError(f"a window has 1 value or more, and a step of 1 to as many, got {length} and {step}")
        super().__init__(name, **options)

    def on_start(self) -> None:
        self._values: list[Any] = []
        super().on_start()

    async def take(self, value: Any) -> None:
        self._values.append(value_of(value))
        if len(self._values) == self.length:
            full, self._values = self._values, self._values[self.step:]
            await self.send(full)

    def _makes(self) -> Any:
        return types.GenericAlias(list, (self._comes(),))


class Paced(Stage):
    """What does something every *period* seconds."""

    period = Parameter(1.0)
    period.timed = True  # also where no timer has it

    def __init__(self, period: float = 1.0, name: str | None = None, **options: Any) -> None:
        if not self._about:
            self._about = repr(period)
        super().__init__(name, **options)
        try:
            self.period = period
        except (TypeError, ValueError) as error:
            raise type(error)(f"{type(self).__name__}(…): period: expected a positive, finite number of seconds, got "
                              f"{period!r}") from None


class Interval(Paced, Step):
    """Publishes, as a list, what has come within each *period* of so many seconds, a parameter; nothing for none."""

    def on_start(self) -> None:
        self._values: list[Any] = []
        super().on_start()

    async def take(self, value: Any) -> None:
        self._values.append(value_of(value))

    @every(Paced.period)
    async def turn(self) -> None:
        """Publish what has come, and begin anew."""
        if self._values:
            gathered, self._values = self._values, []
            await self.send(gathered)

    _makes = Window._makes


class Throttle(Paced, Step):
    """Publishes one value in *period* seconds, a parameter, at most: each time the latest that has come by then.

    Of several publishers, one after the other has its turn.
    """

    full = "latest"

    async def take(self, value: Any) -> None:
        await self.send(value_of(value))
        await asyncio.sleep(self.period)  # meanwhile only the latest waits


class Merge(Step):
    """Publishes what all its sources publish, as it comes: ``[one, other] | Merge()``."""


class Forward(Step):
    """Publishes what it takes as another topic, *to*: ``Class.reading | Forward("house/temperature")``."""

    def __init__(self, to: Topic[Any] | str, name: str | None = None, **options: Any) -> None:
        if not isinstance(to, (Topic, str)):
            raise TypeError(f"Forward(to): expected a topic with a full name, or such a name, got {to!r}")
        if isinstance(to, Topic) and to.full_name is None and not to.is_bound:
            raise TypeError(f"Forward(to): {to!r} belongs to a node, which alone publishes it; expected a topic with a "
                            "full name, such as 'house/temperature'")
        given = to if isinstance(to, str) else to.name
        if "*" in given:
            raise ValueError(f"Forward(to): {given!r} is a pattern, which selects topics to subscribe to; expected one "
                             "full name, such as 'house/temperature'")
        with told_of(type(self)):
            Topic(Any, given)
        self.to, self._about = to, repr(given)
        super().__init__(name, **options)

    @property
    def output(self) -> Topic[Any]:
        """The topic that it publishes."""
        return self.to if isinstance(self.to, Topic) else Topic(super().output.annotation, self.to, keep=self._keep)


def _check(cls: type, function: Callable[..., Any]) -> None:
    """Raise TypeError for what cannot be called with one value, or gives many."""
    said = f"{cls.__name__}(…): expected a function of one value"
    if not callable(function):
        raise TypeError(f"{said}, got {function!r}")
    plain = function.func if isinstance(function, functools.partial) else function
    for each in (plain, getattr(plain, "__call__", None)):  # noqa: B004 - of an object, it may be one itself
        if inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each):
            raise TypeError(f"{said}, and {shown(function)} is a generator, which gives many; write a Step whose take "
                            "sends them")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # something built in
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(f"{said}, and {shown(function)}{signature} cannot be called with one: {error}") from None


def _unsendable(function: Any) -> Iterator[str]:
    """What *function* refers to that cannot be sent to a process."""
    try:
        found = inspect.getclosurevars(function)
    except TypeError:  # no plain function
        return
    for name, value in {**found.nonlocals, **found.globals}.items():
        try:
            dumps(value, name=name, open_in="")
        except Unsendable:
            yield f"{name!r} ({type(value).__name__})"


def _hints(function: Callable[..., Any]) -> tuple[Any, Any]:
    """What *function* takes and gives, by its annotations: Any where there are none."""
    plain = function.func if isinstance(function, functools.partial) else function
    try:
        names = list(inspect.signature(function).parameters)
        hints = typing.get_type_hints(plain if inspect.isroutine(plain) else type(plain).__call__)
    except (NameError, TypeError, ValueError):  # something built in, or a name that is not known here
        return Any, Any
    return hints.get(names[0], Any) if names else Any, hints.get("return", Any)
