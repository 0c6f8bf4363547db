"""How a class declares what its nodes listen to: ``@subscribe``."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import msgspec

from pyzmp.channels.selection import Selection
from pyzmp.protocol.schema import Unresolved
from pyzmp.protocol.topics import Pattern

if TYPE_CHECKING:
    from pyzmp.channels.message import Message
    from pyzmp.channels.terms import FullQueue, Terms
    from pyzmp.channels.topic import Topic

T = TypeVar("T")
S_contra = TypeVar("S_contra", contravariant=True)
H = TypeVar("H", bound=Callable[..., Any])

ATTRIBUTE = "__pyzmp_subscribe__"


class Listens(msgspec.Struct, frozen=True):
    """What ``@subscribe`` puts on a method: what it is called for, and how much waits for it."""

    topic: Any
    full: str
    length: int | None
    size: int
    history: int

    def selection(self) -> Selection:
        """The publishers that it is for."""
        if isinstance(self.topic, str):
            return Selection(self.topic, Pattern(self.topic))
        selection: Selection = self.topic.selection()
        return selection

    def handled(self, handler: Callable[..., Any]) -> Selection:
        """The same, with the type that the bound *handler* expects; InvalidAnnotation where nobody knows that."""
        from pyzmp.channels.expecting import expecting

        return expecting(self.selection(), handler, f"handler {getattr(handler, '__qualname__', handler)}", known=True)

    def terms(self, who: str) -> Terms:
        """What the node *who* asks them for."""
        from pyzmp.channels.terms import terms_of

        return terms_of(self.full, self.length, self.size, self.history, who=who)


class _Handles(Protocol[T]):
    @overload
    def __call__(self, f: Callable[[S_contra, Message[T]], Any], /) -> Callable[[S_contra, Message[T]], Any]: ...
    @overload
    def __call__(self, f: Callable[[S_contra, T], Any], /) -> Callable[[S_contra, T], Any]: ...


class _HandlesAny(Protocol):
    def __call__(self, f: H, /) -> H: ...


@overload
def subscribe(topic: Topic[T], /, *, full: FullQueue = ..., length: int | None = ..., size: int = ...,
              history: int = ...) -> _Handles[T]: ...
@overload
def subscribe(topic: str, /, *, full: FullQueue = ..., length: int | None = ..., size: int = ...,
              history: int = ...) -> _HandlesAny: ...
def subscribe(topic: Any = None, /, *, full: FullQueue = "drop_oldest", length: int | None = None,
              size: int = 8 << 20, history: int = 0) -> Any:
    """Declare a method to be called with what the publishers of *topic* publish, while its node runs.

    *topic* is a topic, of a class for all its nodes or of one, or a name or a pattern of names, such as
    ``sensors/**``.  The method takes the value, or a `Message` where it is annotated so; it may be ``async``, and the
    next message then waits until it has ended.  What it raises is logged, and it goes on.  A method may have several
    of these.

    At most *length* messages, and *size* bytes at each publisher, wait for it.  *full* says what happens then: the
    oldest are dropped, or the newest; ``"latest"`` keeps only the latest; with ``"block"`` publishers wait.
    *history* are the last messages from before, as far as the publisher keeps them, that it gets too.
    """
    listens = Listens(topic, full, length, size, history)
    listens.terms("")
    if not isinstance(topic, str) and not hasattr(topic, "selection"):
        raise TypeError(f"@subscribe takes a topic, a name or a pattern of names, got {topic!r}; write "
                        "@pyzmp.subscribe(Sensor.reading)")
    if isinstance(topic, str):
        listens.selection()

    def mark(function: H) -> H:
        if not inspect.isfunction(function):
            if inspect.isfunction(getattr(function, "function", None)):
                raise TypeError(f"{function.__qualname__} is a service, and @subscribe would make it a handler; make "
                                "it one or the other")
            raise TypeError(f"@subscribe goes on a plain method, that gets the node as self, got {function!r}")
        within = function.__qualname__.rpartition(".")[0]
        if function.__name__ != "<lambda>" and (not within or within.endswith("<locals>")):
            raise TypeError(f"@subscribe goes on a method of a class of nodes, and {function.__qualname__} is none; in "
                            f"a program write topic.subscribe({function.__name__})")
        setattr(function, ATTRIBUTE, (listens, *getattr(function, ATTRIBUTE, ())))
        return function
    return mark


def listening_of(cls: type) -> dict[str, tuple[Listens, ...]]:
    """The handlers of *cls*: attribute, and what it is called for."""
    return {attribute: getattr(found, ATTRIBUTE) for attribute, found in _members(cls).items()
            if hasattr(found, ATTRIBUTE)}


def check_handlers(cls: type, members: Mapping[str, Any]) -> None:
    """Raise TypeError for a handler among these *members* of *cls* that could not work."""
    for attribute, found in members.items():
        shown = f"{cls.__qualname__}.{attribute}"
        if hasattr(getattr(found, "__func__", None), ATTRIBUTE):
            raise TypeError(f"{shown} is a handler inside of a {type(found).__name__}; a handler is a plain method, "
                            "that gets the node as self")
        if hasattr(getattr(found, "function", None), ATTRIBUTE):
            raise TypeError(f"{shown} is a service and a handler; make it one or the other")
        if hasattr(found, ATTRIBUTE):
            from pyzmp.channels.expecting import check_argument, expecting

            check_argument(found, f"handler {shown}", bound=False)
            for listens in getattr(found, ATTRIBUTE):
                with contextlib.suppress(Unresolved):  # a name that is defined later: looked up again at the start
                    expecting(listens.selection(), found.__get__(object()), f"handler {shown}")
        elif any(hasattr(vars(base).get(attribute), ATTRIBUTE) for base in cls.__mro__):
            raise TypeError(f"{shown} overrides a handler of {cls.__qualname__} without being one; put @subscribe on "
                            "it too")


def _members(cls: type) -> Mapping[str, Any]:
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        members.update(vars(base))
    return members
