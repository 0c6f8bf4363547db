"""The usual steps of a flow."""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
import typing
from collections.abc import Callable
from operator import index
from typing import Any

from pyzmp.channels.declare import every
from pyzmp.channels.parameter import Parameter
from pyzmp.channels.topic import Topic
from pyzmp.flow.stages import Stage, Step, awaited, topic_of, value_of


class _Applied(Step):
    """A step that calls *function*, plain or async, whose annotations say what it takes."""

    def __init__(self, function: Callable[[Any], Any], name: str | None = None, **options: Any) -> None:
        super().__init__(name, **{"takes": _hints(function)[0], **options})
        self.function = function

    async def call(self, value: Any) -> Any:
        return await awaited(self.function(value))


class Map(_Applied):
    """Publishes what *function*, plain or async, makes of each value; its annotations say what that is."""

    def __init__(self, function: Callable[[Any], Any], name: str | None = None, *, type: Any = None,
                 **options: Any) -> None:
        super().__init__(function, name, type=_hints(function)[1] if type is None else type, **options)

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
        super().__init__(name, **options)
        self.length, self.step = index(length), index(length if step is None else step)
        if not 1 <= self.step <= length:
            raise ValueError(f"a window has 1 value or more, and a step of 1 to as many, got {length} and {step}")

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
        super().__init__(name, **options)
        self.period = period


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
        super().__init__(name, **options)
        self.to = to
        topic_of(to)

    @property
    def output(self) -> Topic[Any]:
        """The topic that it publishes."""
        return self.to if isinstance(self.to, Topic) else Topic(super().output.annotation, self.to, keep=self._keep)


def _hints(function: Callable[..., Any]) -> tuple[Any, Any]:
    """What *function* takes and gives, by its annotations: Any where there are none."""
    if not callable(function):
        raise TypeError(f"expected a function of one value, got {function!r}")
    plain = function.func if isinstance(function, functools.partial) else function
    try:
        names = list(inspect.signature(function).parameters)
        hints = typing.get_type_hints(plain if inspect.isroutine(plain) else type(plain).__call__)
    except (NameError, TypeError, ValueError):  # something built in, or a name that is not known here
        return Any, Any
    return hints.get(names[0], Any) if names else Any, hints.get("return", Any)
