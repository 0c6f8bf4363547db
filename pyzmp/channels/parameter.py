"""Parameters: named values of a node, which everybody may read and some may set."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin, overload

from pyzmp import runtime
from pyzmp.exceptions import CallError, CallTimeout, CannotTravel, MalformedMessage, PyzmpError, RemoteError
from pyzmp.protocol import codec
from pyzmp.protocol.annotations import hints_of
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.facts import VALUE, Epoch, Position
from pyzmp.protocol.schema import Signature, Type, Unresolved

if TYPE_CHECKING:
    from pyzmp.channels.setting import Setting
    from pyzmp.channels.values import Values
    from pyzmp.channels.watch import Watch
    from pyzmp.protocol.index import Facts

T = TypeVar("T")


class Parameter(Generic[T]):
    """A named value of a node: everybody may read and follow it, and set it unless it is not *settable*.

    It is declared as a class attribute, and on an instance it is a plain value: before the start, and where the
    node lives.  What is assigned there is what its next start begins with, or what the graph says a moment later.
    A value is checked against the annotation, ``period: pyzmp.Parameter[float | None]``, or else the type of the
    *default*, and takes at most 48 KiB.  Assign a new value instead of changing one in place, which nobody hears of.

    ``Class.at("node").period`` is the parameter of one node, for everybody.  `get` and `watch` ask nobody: every
    process knows the values of all parameters.  `set` asks the node.
    """

    def __init__(self, default: T, /, *, settable: bool = True) -> None:
        if not isinstance(settable, bool):
            raise TypeError(f"settable: expected True or False, got {settable!r}")
        self.default, self.settable = default, settable
        self.name = ""
        self.timed = False  # whether it is the period of a timer
        self._owner: type | None = None
        self._node: str | None = None
        self._annotation: Any = _Unread
        self._type: Type | None = None
        self._signature: Signature | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        if self._owner is None:
            self._owner, self.name = owner, name

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Parameter[T]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any]) -> T: ...
    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        values = _living(instance, f"{self.name}.get()")
        if values is not None:
            return values.get(self.name)
        return self.given(instance)

    def __set__(self, instance: object, value: T) -> None:
        values = _living(instance, f"{self.name}.set(...)")
        if values is not None:
            values.set(self.name, value)
        else:
            vars(instance)[self.name] = self.checked(value)[0]

    def given(self, instance: object) -> Any:
        """What the next start of *instance* begins with."""
        if self.name not in vars(instance):
            vars(instance)[self.name] = copy.deepcopy(self.default)  # of its own, like any attribute
        return vars(instance)[self.name]

    # At one node, for everybody.

    def of_node(self, node: str, cls: type) -> Parameter[T]:
        """The parameter of the one node of that name, which is of *cls*."""
        with contextlib.suppress(Unresolved):  # a name that is defined later
            self.signature(), self.typed()
        other: Parameter[T] = object.__new__(type(self))
        vars(other).update(vars(self), _node=node, _owner=cls)
        return other

    def get(self) -> T:
        """Its value, as this process knows it: no call is made.  Raises UnknownService where there is none."""
        self._check_node("get()")
        value: T = self._known(runtime.current().facts())
        return value

    async def aget(self) -> T:
        """As `get`, in a coroutine."""
        self._check_node("aget()")
        await runtime.current().alook()
        value: T = self._known(runtime.current().replica.view.facts)
        return value

    def set(self, value: T, /, *, timeout: float | None = None) -> None:
        """Have the node take another value; when this returns it is in the graph, and this process knows it.

        Raises what calls of services raise, InvalidCall for a value of another type, Refused where the parameter
        is not settable, and CannotTravel for one that is too large.  Nothing is changed then.
        """
        setting, over = self._setting(value, timeout)
        with self._shown_as_set():
            position = setting(value)
        here = runtime.current()
        if not here.wait_until(_reached(here, position), max(0.0, over - time.monotonic())):
            raise self._late()

    async def aset(self, value: T, /, *, timeout: float | None = None) -> None:
        """As `set`, in a coroutine."""
        setting, over = self._setting(value, timeout)
        with self._shown_as_set():
            position = await setting.acall(value)
        here = runtime.current()
        if not await here.await_until(_reached(here, position), max(0.0, over - time.monotonic())):
            raise self._late()

    def watch(self, callback: Callable[[T], object] | None = None, *, timeout: float | None = None) -> Watch[T]:
        """Follow its value: as it is now, or as soon as the node is there, and then whenever it is another.

        A node that was started anew tells its value too.  To iterate over in ``for`` or ``async for``, which with a
        *timeout* raise TimeoutError when nothing has changed for so many seconds.  Or with a *callback*, which is
        called with each value in a thread of its own until the watch is closed, or the node has ended whose code
        made it.  To wait in ``for`` on the very loop that the node lives on raises DeadlockError.
        """
        from pyzmp.channels.watch import Watch

        self._check_node("watch()")
        watch: Watch[T] = Watch(f"{self.name} of {self._node!r}", self._look, timeout, deadlocks=self._deadlocks)
        return watch if callback is None else watch.call(callback)

    def _check_node(self, verb: str) -> None:
        if self._node is None:
            cls = self._owner.__name__ if self._owner is not None else "Class"
            raise TypeError(f"{self._shown()} is a parameter of every {cls}; for that of one node write "
                            f"{cls}.at(name).{self.name}.{verb}")

    def _known(self, facts: Facts) -> Any:
        fact = facts.parameter(self._node or "", self.name)
        if fact is None:
            from pyzmp.channels.setting import unknown

            raise unknown(self._node or "", self.name, facts)
        return self._value(fact.value)

    def _value(self, encoded: bytes) -> Any:
        """What a node has put into the graph, as the class promises it."""
        from pyzmp.channels.graph import unpacked

        try:
            return self.typed().convert(unpacked(encoded))
        except (TypeError, MalformedMessage) as error:
            raise RemoteError("MalformedMessage", f"{self.name} of {self._node!r} is not what {self._shown()} "
                              f"promises: {error}", service=self.name) from error

    def _look(self, here: runtime.Runtime, seen: Any) -> tuple[Any, Callable[[], T]] | None:
        facts, node = here.replica.view.facts, self._node or ""
        by, fact = facts.node(node), facts.parameter(node, self.name)
        if by is None or fact is None or seen == (by.incarnation, fact.value):
            return None
        return (by.incarnation, fact.value), functools.partial(self._value, fact.value)

    def _deadlocks(self, here: runtime.Runtime) -> bool:
        node = here.replica.view.facts.node(self._node or "")
        return here.in_own_thread or (node is not None and here.runs(node.loop))

    @contextlib.contextmanager
    def _shown_as_set(self) -> Iterator[None]:
        """Have errors of the call speak of what users have called."""
        try:
            yield
        except CallError as error:
            shown = f"{self.name}.set"
            text = str(error).replace(f"{self.setter}()", f"{shown}(…)").replace(".acall(…)", ".aset(…)")
            error.args = text.replace(self.setter, shown), *error.args[1:]
            error.service = shown if error.service == self.setter else error.service
            raise

    def _setting(self, value: T, timeout: float | None) -> tuple[Setting, float]:
        """The service that sets it, and when that is over."""
        from pyzmp.channels.channel import Declared
        from pyzmp.channels.setting import Setting

        self._check_node("set(…)")
        signature = self.signature()
        signature.check(f"{self.name}.set", [value], {})
        self.checked(value, f"{self.name}.set(): value")
        setting = Setting(self.setter, node=self._node, declared=lambda: Declared(self._shown(), signature))
        if timeout is not None:
            setting = setting.with_options(timeout=timeout)
        return setting, time.monotonic() + setting.limit()

    def _late(self) -> CallTimeout:
        return CallTimeout(f"{self.name} of {self._node!r} was set, but this process has not heard so in time",
                           service=f"{self.name}.set", node=self._node, executed=True)

    # What it is.

    @property
    def setter(self) -> str:
        """The service by which its node is asked; what is offered as a service cannot have such a name."""
        return f"{self.name}/set"

    def signature(self) -> Signature:
        """What that service takes and gives: a value, and the position of the graph that has it."""
        if self._signature is None:
            def setter(value: Any) -> Any: ...
            setter.__annotations__ = {"value": self._annotated(), "return": tuple[int, str, int]}
            self._signature = Signature.of(setter)
        return self._signature

    def typed(self) -> Type:
        """The type of its values.  Raises InvalidAnnotation for one that cannot be checked."""
        if self._type is None:
            self._type = Type.of(self._annotated(), f"parameter {self._shown()}")
        return self._type

    def checked(self, value: Any, where: str = "") -> tuple[Any, bytes]:
        """*value* as its node has it, and as the graph has it.

        Raises TypeError for another type, CannotTravel, and ValueError for a period that is none.
        """
        from pyzmp.channels.graph import packed

        where = where or self._shown()
        value = self.typed().convert(value, where)
        if self.timed:
            seconds(value, where)
        encoded = packed(*codec.encode(value, where))
        if len(encoded) > VALUE:
            raise CannotTravel(type(value).__name__, where, f"it takes {len(encoded)} bytes, and every process has the "
                               f"values of all parameters, which take {VALUE} bytes at most; let a service return it")
        return value, encoded

    def _annotated(self) -> Any:
        """What its values are annotated to be: here, by a class above, or by the default."""
        if self._annotation is _Unread:
            owner = self._owner or object
            given = vars(owner).get("__annotations__", {}).get(self.name)
            above = (vars(base).get(self.name) for base in owner.__mro__[1:])
            inherited = next((found for found in above if isinstance(found, Parameter)), None)
            if given is not None:
                self._annotation = self._read(owner, given)
            elif inherited is not None:
                self._annotation = inherited._annotated()
            else:
                self._annotation = Any if self.default is None else type(self.default)
        return self._annotation

    def _read(self, owner: type, given: Any) -> Any:
        alone = type(owner.__name__, (), {"__annotations__": {self.name: given}, "__module__": owner.__module__})
        hint = hints_of(alone, f"parameter {self._shown()}", {owner.__name__: owner})[self.name]
        if get_origin(hint) is ClassVar:
            hint = get_args(hint)[0]
        if get_origin(hint) is Parameter:
            return get_args(hint)[0]
        if hint is Parameter:
            return Any if self.default is None else type(self.default)
        raise TypeError(f"parameter {self._shown()} is annotated {given}; write Parameter[…], or leave it out")

    def _shown(self) -> str:
        return f"{self._owner.__qualname__}.{self.name}" if self._owner is not None else "a parameter"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_type": None, "_signature": None}

    def __reduce__(self) -> Any:
        if self._node is not None:
            return _at, (self._owner, self.name, self._node)
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        with contextlib.suppress(PyzmpError):
            what = f": {self.typed().text}"
            return f"<Parameter {self._shown()}{what}{f' of {self._node!r}' if self._node is not None else ''}>"
        return f"<Parameter {self._shown()}>"


class _Unread:
    """Stands for an annotation that was not looked at."""


def _at(cls: type, name: str, node: str) -> Any:
    found: Parameter[Any] = inspect.getattr_static(cls, name)
    return found.of_node(node, cls)


def _living(instance: Any, verb: str) -> Values | None:
    """The values of *instance* where it lives here; RuntimeError where it lives in another process."""
    living = getattr(instance, "_living_values", None)
    return None if living is None else living(verb)


def _reached(here: runtime.Runtime, position: Sequence[Any]) -> Callable[[], bool]:
    counter, nonce, version = position
    wanted = Position(Epoch(counter, nonce), version)
    return lambda: here.replica.view.reached(wanted)
