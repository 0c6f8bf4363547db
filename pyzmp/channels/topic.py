"""Topics: what nodes publish, and everybody may subscribe to."""

from __future__ import annotations

import contextlib
import copyreg
import inspect
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, get_args, get_origin, overload

from pyzmp import runtime
from pyzmp.channels.call import running_node, serving
from pyzmp.channels.joining import no_step
from pyzmp.channels.mistakes import assigned, check_declared, check_demand, elsewhere
from pyzmp.channels.selection import Selection
from pyzmp.exceptions import PyzmpError, TopicEnded
from pyzmp.protocol import codec
from pyzmp.protocol.annotations import hints_of
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.limits import is_one
from pyzmp.protocol.schema import Type, Unresolved
from pyzmp.protocol.topics import Pattern, check_topic_name

if TYPE_CHECKING:
    from pyzmp.channels.accounts import Asking
    from pyzmp.channels.message import Event, Message
    from pyzmp.channels.published import Published
    from pyzmp.channels.subscription import FullQueue, Subscription
    from pyzmp.protocol.accounts import SubscriberAccount
    from pyzmp.protocol.envelope import Buffer
    from pyzmp.publisher import Publisher

T = TypeVar("T")

_SIZED, _SMALL = frozenset[type]({bytes, str}), 1024  # what has a length, and is small up to which one
_clock = time.time  # noqa: TID251  subscribers are told when each message was published
_new_type = type


class Topic(Generic[T]):
    """A stream of values of one type, which is published in one place or several, and subscribed to anywhere.

    As a class attribute it belongs to the nodes of the class: each publishes ``node/attribute``, and on an instance
    it is that node's own.  With a *name*, such as ``"house/alerts"``, it belongs to nobody: any node and any program
    publishes it; a pattern of names, such as ``"sensors/**"``, is only to subscribe to.  The last *keep* messages are
    kept for those who subscribe later and ask for a history.
    *type* is what each value must be; for a union annotate, ``x: Topic[float | None] = Topic(float | None)``.

    A value that was published is not to be changed any more: large buffers and arrays in it are not copied.
    """

    @overload
    def __init__(self, type: type[T], name: str | None = None, /, *, keep: int = 0) -> None: ...
    @overload
    def __init__(self, type: Any, name: str | None = None, /, *, keep: int = 0) -> None: ...
    def __init__(self, type: Any, name: str | None = None, /, *, keep: int = 0) -> None:
        check_declared(Topic, type, name, keep)
        self.keep = keep
        selects = isinstance(name, str) and "*" in name
        self._given = None if name is None else Pattern(name).text if selects else check_topic_name(name)
        self._annotation = type
        self._owner: _new_type | None = None
        self._attribute = ""
        self._node: str | None = None
        self._instance: Callable[[], Any] | None = None
        self._publisher: Publisher | None = None  # of a node's own
        self._program: Publisher | None = None  # of a full name, by a program without nodes
        self._type: Type | None = None
        with contextlib.suppress(Unresolved):  # a name that is defined later: looked up again when it is needed
            self.typed()

    def __set_name__(self, owner: type, name: str) -> None:
        if self._owner is None and self._given is None:
            self._owner, self._attribute = owner, name

    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Topic[T]:
        if instance is None or self._given is not None:
            return self
        try:
            return instance.__dict__[self._attribute]  # type: ignore[no-any-return]
        except (KeyError, AttributeError):
            return self._bound(instance)

    def __set__(self, instance: object, value: Any) -> NoReturn:
        raise assigned(self, instance, value)

    def _bound(self, instance: object) -> Topic[T]:
        bound = self._like(_instance=weakref.ref(instance), _owner=type(instance))
        if hasattr(instance, "_living_topics"):  # then it is dropped where the instance is sent
            vars(instance)[self._attribute] = bound
        return bound

    def of_node(self, node: str, cls: type) -> Topic[T]:
        """The topic of the one node of that name, or of any in the group, which is of *cls*."""
        return self._like(_node=node, _owner=cls)

    def _like(self, **changes: Any) -> Topic[T]:
        other: Topic[T] = object.__new__(type(self))
        with contextlib.suppress(Unresolved):
            self.typed()
        vars(other).update(vars(self), _publisher=None, _declared=self.mark, **changes)
        return other
    _declared = ""  # the mark of what this was made from

    # What it is.

    @property
    def name(self) -> str:
        """Its full name; of a class's topic, the class's and the attribute's."""
        if self._given is not None:
            return self._given
        node = self._node if self._instance is None else getattr(self._instance(), "name", None)
        return f"{node}/{self._attribute}" if node is not None else self._shown()

    @property
    def attribute(self) -> str:
        """The attribute that it is of its class; empty for one with a full name."""
        return self._attribute

    @property
    def annotation(self) -> Any:
        """The type of its values, as it was given."""
        return self._annotation

    @property
    def is_bound(self) -> bool:
        """Whether it is that of one instance."""
        return self._instance is not None

    @property
    def full_name(self) -> str | None:
        """The name that it was given, where it belongs to no node."""
        return self._given

    @property
    def mark(self) -> str:
        """What publishers of it announce for each class that declares it."""
        return self._declared or (f"{self._owner.__qualname__}.{self._attribute}" if self._owner is not None else "")

    def typed(self) -> Type:
        """The type of its values.  Raises InvalidAnnotation for one that cannot be checked."""
        if self._type is None:
            self._type = Type.of(self._annotation, f"topic {self._shown()}")
        return self._type

    def check_annotation(self) -> None:
        """Raise TypeError where the class annotates the attribute as something else than this is."""
        if self._owner is None or (given := vars(self._owner).get("__annotations__", {}).get(self._attribute)) is None:
            return
        alone = type(self._owner.__name__, (), {"__annotations__": {self._attribute: given},
                                                "__module__": self._owner.__module__})
        hint = hints_of(alone, f"topic {self._shown()}", {self._owner.__name__: self._owner})[self._attribute]
        if get_origin(hint) is ClassVar:
            hint = get_args(hint)[0]
        if get_origin(hint) is not Topic and hint is not Topic:
            raise TypeError(f"topic {self._shown()} is annotated {given}; write Topic[…], or leave it out")
        if get_args(hint) and Type.of(get_args(hint)[0]).fingerprint != self.typed().fingerprint:
            raise TypeError(f"topic {self._shown()} is annotated {given}, and made as Topic({self.typed().text}); "
                            "write the same type twice")

    def selection(self) -> Selection:
        """Which publishers this stands for, for those who subscribe."""
        if self._given is not None:
            return Selection(self._given, Pattern(self._given), type=self.typed())
        if self._owner is None:
            raise TypeError("this topic has no name: make it an attribute of a class of nodes, or give it a full name, "
                            'Topic(…, "house/alerts")')
        node = self._node if self._instance is None else self._alive().name
        return Selection(self.name, None, self.mark, node or "", self.typed())

    # Publishing.

    def publish(self, value: T, /, *, timeout: float | None = None) -> None:
        """Publish *value*: at once, and without waiting for anybody, but for subscriptions with ``full="block"``.

        Where these have no room it waits for it, *timeout* seconds at most (by default as long as a call may take),
        and raises PublishTimeout; nothing was published then.  On a loop where that would wait for itself it raises
        DeadlockError; use `apublish`.  Raises TypeError for a value of another type, and CannotTravel.  Any thread of
        the process where the node lives may publish; before its start nobody gets it.
        """
        publisher, kind = self._publisher or self._place("publish(…)"), type(value)
        it: Any = value
        # A small value that nobody can change any more is encoded later, together with others: a third of the time.
        if publisher is not None and kind in publisher.quick and timeout is None and (
                kind not in _SIZED or (len(it) <= _SMALL and (kind is bytes or it.isascii()))):
            pending, now = publisher.pending, _clock()
            pending += (now, value)  # as `pyzmp.gathering` has it
            if not publisher.since <= now < publisher.due:
                publisher.off()
            return
        if timeout is not None:
            seconds(timeout)
        encoded = self._encoded(value)
        if publisher is not None and publisher.over:
            publisher = self._place("publish(…)")
        if publisher is not None:
            publisher.put(*encoded, None, timeout)

    async def apublish(self, value: T, /, *, timeout: float | None = None) -> None:
        """As `publish`, in a coroutine, which waits without blocking its loop."""
        publisher, encoded = self._place("apublish(…)"), self._encoded(value)
        if timeout is not None:
            seconds(timeout)
        if publisher is not None:
            await publisher.aput(*encoded, None, timeout)

    def put(self, body: bytes, buffers: Sequence[Buffer] = (), time: float | None = None, *,
            timeout: float | None = None) -> None:
        """Publish an encoded value as it is, which was published before at *time*, in seconds since 1970."""
        publisher = self._place("put(…)")
        if publisher is not None:
            publisher.put(body, buffers, time, timeout, alone=not is_one(body))

    def _encoded(self, value: T) -> tuple[bytes, Sequence[Buffer]]:
        where = f"{self.name}: value"
        return codec.encode(self.typed().convert(value, where), where)  # as its type has it: so `fits` can tell

    def _place(self, verb: str) -> Publisher | None:
        """Where this is published: by the node that it is of or that runs here, or by the program.

        None before the start.  Raises TypeError and RuntimeError where only somebody else may publish it.
        """
        if self._given is not None:
            if "*" in self._given:
                raise TypeError(f"{self._given!r} is a pattern, which selects topics to subscribe to; {verb} is for a "
                                "full name")
            node = running_node.get()
            published: Published | None = None if node is None else node._living_topics()
            if published is not None:
                return published.named(self)
            if self._program is None or self._program.over:
                from pyzmp.program import Program

                here = runtime.current()
                self._program = Program.of(here).publisher(self._given, self.typed(), self.keep, patience)
            return self._program
        if self._instance is None:
            raise elsewhere(self.name, self._attribute, self._node, self._owner, verb)
        living = getattr(self._alive(), "_living_topics", None)
        if living is None:
            raise TypeError(f"{self._shown()}: {self._owner.__name__ if self._owner else 'its class'} is no class of "
                            "nodes; only nodes publish what is their own")
        published = living(f"{self._attribute}.{verb}")
        if published is None and self._alive().exitcode is not None:
            raise TopicEnded(f"{self.name} cannot be published any more: {self._alive().name!r} has stopped") from None
        self._publisher = None if published is None else published.of(self._attribute)
        return self._publisher

    def _alive(self) -> Any:
        instance = self._instance() if self._instance is not None else None
        if instance is None:
            raise RuntimeError(f"{self._shown()} was the topic of a node that is gone")
        return instance

    # Who subscribes.

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are to this very publisher: of the node, or the program, that asks.

        0 before its start and after its end, and of a full name where nothing was published here yet.
        """
        with contextlib.suppress(TopicEnded):
            publisher = self._known() if self._given is not None else self._place("subscribers")
            return 0 if publisher is None else publisher.subscribers
        return 0

    def _known(self) -> Publisher | None:
        """Where a full name is published here already."""
        from pyzmp.program import Program

        node = running_node.get()
        published: Published | None = None if node is None else node._living_topics()
        return (published or Program).known(self.name)

    def wait_for_subscribers(self, count: int = 1, *, timeout: float) -> None:
        """Wait for *count* subscriptions, which get all that is published then.

        TimeoutError after *timeout* seconds; DeadlockError in ``on_start``, before whose end there can be none.
        """
        self._started("wait_for_subscribers()").wait_for(_number(count), seconds(timeout))

    async def await_for_subscribers(self, count: int = 1, *, timeout: float) -> None:
        """As `wait_for_subscribers`, in a coroutine."""
        await self._started("await_for_subscribers()").await_for(_number(count), seconds(timeout))

    def on_demand(self, callback: Callable[[bool], object]) -> None:
        """Have *callback* called with True when the first subscriber comes, and with False when the last is gone.

        At once with True where there are some.  It is called on the node's loop, and in a thread of its own in a
        program without nodes; what it raises is logged.  It ends with the node.
        """
        check_demand(callback, self.name)
        self._started("on_demand(…)").on_demand(callback)

    def _started(self, verb: str) -> Publisher:
        publisher = self._place(verb)
        if publisher is None:
            raise RuntimeError(f"{self.name}: nobody subscribes to a node before its start; call {verb} in its code")
        return publisher

    def accounts(self, timeout: float | None = None) -> list[SubscriberAccount]:
        """What became of what was published, as its publishers know it: one account for each subscription.

        Also of the last 64 that have ended.  Asks the publishers, and raises what calls raise.
        """
        mine = self._here()
        return mine.accounts() if mine is not None else self._asking(timeout).all()

    async def aaccounts(self, timeout: float | None = None) -> list[SubscriberAccount]:
        """As `accounts`, in a coroutine."""
        mine = self._here()
        return mine.accounts() if mine is not None else await self._asking(timeout).aall()

    def _asking(self, timeout: float | None) -> Asking:
        from pyzmp.channels.accounts import Asking

        return Asking(self.selection(), timeout, self._program)

    def _here(self) -> Publisher | None:
        """The one publisher of this, where that is here."""
        if self._instance is None:
            return None
        with contextlib.suppress(RuntimeError):  # it lives elsewhere
            return self._place("accounts()")
        return None

    # Subscribing.

    def subscribe(self, callback: Callable[[T], object] | Callable[[Message[T]], object] | None = None, /, *,
                  timeout: float | None = None, full: FullQueue = "drop_oldest", length: int | None = None,
                  size: int = 8 << 20, history: int = 0,
                  on_event: Callable[[Event], object] | None = None) -> Subscription[T]:
        """Subscribe to all that publish this, also to those that come later: `pyzmp.channels.subscription`."""
        from pyzmp.channels.subscription import subscribe_to

        return subscribe_to(self.selection(), callback, timeout=timeout, full=full, length=length, size=size,
                            history=history, on_event=on_event)

    async def asubscribe(self, callback: Callable[[T], object] | Callable[[Message[T]], object] | None = None, /, *,
                         timeout: float | None = None, full: FullQueue = "drop_oldest", length: int | None = None,
                         size: int = 8 << 20, history: int = 0,
                         on_event: Callable[[Event], object] | None = None) -> Subscription[T]:
        """As `subscribe`, in a coroutine."""
        from pyzmp.channels.subscription import asubscribe_to

        return await asubscribe_to(self.selection(), callback, timeout=timeout, full=full, length=length, size=size,
                                   history=history, on_event=on_event)

    # As a value.

    if not TYPE_CHECKING:  # to a type checker it is the step on the right that joins
        def __or__(self, part: Any) -> Any:
            return no_step(self, part)

    def _shown(self) -> str:
        if self._given is not None:
            return self._given
        return self._declared or (f"{self._owner.__qualname__}.{self._attribute}" if self._owner is not None
                                  else "a topic without a name")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_type": None, "_publisher": None, "_program": None,
                "_instance": None}

    def __reduce__(self) -> Any:
        node = self._node if self._instance is None else self._alive().name
        if node is not None:
            return _at, (self._owner, self._attribute, node)
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        text = "<Topic" if self._given is None and self._owner is None else f"<Topic {self.name}"
        with contextlib.suppress(PyzmpError):
            text += f": {self.typed().text}"
        publisher = self._publisher or self._program
        if publisher is not None and not publisher.over:
            text += f", {publisher.subscribers} subscriber{'s' * (publisher.subscribers != 1)}"
        return f"{text}>"


def patience(timeout: float | None) -> float:
    """How long a publisher waits for room: *timeout*, or as long as calls take; no longer than the call served here."""
    limit = runtime.current().settings.timeout if timeout is None else seconds(timeout)
    outer = serving.get()
    return limit if outer is None or outer.over else min(limit, max(0.0, outer.remaining))


def _number(count: int) -> int:
    from pyzmp.channels.channel import count as checked

    return checked(count, "count")


def _at(cls: type, attribute: str, node: str) -> Any:
    found: Topic[Any] = inspect.getattr_static(cls, attribute)
    return found.of_node(node, cls)
