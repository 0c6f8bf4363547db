"""What flows are made of: stages, and the ``|`` that joins them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import typing
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar, get_args, get_origin

from typing_extensions import Self

from pyzmp.channels.declare import service
from pyzmp.channels.expecting import expecting
from pyzmp.channels.failing import Failing
from pyzmp.channels.joining import no_step
from pyzmp.channels.message import Message
from pyzmp.channels.service import Service
from pyzmp.channels.subscription import FullQueue, Subscription
from pyzmp.channels.terms import terms_of
from pyzmp.channels.topic import Topic
from pyzmp.flow.failing import own_part
from pyzmp.flow.naming import check_options, told_of, unique
from pyzmp.group import Group
from pyzmp.node import Node
from pyzmp.protocol.schema import Unresolved

P = TypeVar("P", bound="_Part")
Source: TypeAlias = "Topic[Any] | str | Stage | Flow"
Sources: TypeAlias = "Source | Sequence[Source]"


class _Part(Node):
    """What may stand on both sides of ``|``."""

    _own = ""  # its name where nobody has named it, nor a flow that it is in

    @property
    def shown(self) -> str:
        """What it is, for messages: ``Map(celsius)``, and its name, where it was given one."""
        raise NotImplementedError

    def _called(self, name: str | None, what: str) -> str:
        """The name to begin with."""
        self._own = "" if name is not None else unique(what)
        return self._own if name is None else name

    def _enter(self, groups: tuple[str, ...], name: str) -> None:
        super()._enter(groups, name or self._own)

    def check_types(self) -> None:
        """Raise TypeError, which names both types, where it could never take what comes, as far as that is known."""

    @property
    def output(self) -> Topic[Any]:
        raise NotImplementedError

    def listen_to(self, sources: Sources) -> None:
        raise TypeError(f"{self.shown} takes nothing, and so it stands at the beginning of a flow")

    def __ror__(self, sources: Sources) -> Self | Flow:
        if any(isinstance(source, Node) for source in _several(sources)):
            return Flow(None, [sources, typing.cast("Stage | Flow", self)])
        self.listen_to(sources)
        return self

    def __or__(self, part: P) -> P | Flow:  # asked first, and alone where both are of one class
        given: Any = part
        joins: Any = given.__ror__ if isinstance(given, _Part) else functools.partial(no_step, part=part)
        return joins(self)  # type: ignore[no-any-return]


class Stage(_Part):
    """A node with an `output`, which the right side of ``|`` takes; by default an entity.

    *type* annotates the values of its output; where it is left out the stage says what it knows.  The last *keep*
    values are kept for those who subscribe later.  The other options are those of `pyzmp.Node`.
    """

    kind = "entity"
    _about = ""  # what it was made with, for messages

    def __init__(self, name: str | None = None, *, type: Any = None, keep: int = 0, **options: Any) -> None:
        check_options(self.__class__, options)
        with told_of(self.__class__):
            super().__init__(self._called(name, self.what), **options)
            Topic(Any if type is None else type, keep=keep)  # raises for what cannot be
        self._named = name is not None
        self._said, self._keep = type, keep
        self._output: Topic[Any] | None = None

    @property
    def what(self) -> str:
        """Its class, and what it was made with: ``Map(celsius)``."""
        return f"{type(self).__name__}({self._about})"

    @property
    def shown(self) -> str:
        return self.what if self.name == self._own else f"{self.what} {self.name!r}"

    @property
    def output(self) -> Topic[Any]:
        """What it publishes, for subscribers: a topic named after the node as it is called now, ``cellar/output``."""
        return Topic(self._makes() if self._said is None else self._said, f"{self.name}/output", keep=self._keep)

    def _makes(self) -> Any:
        """The annotation of its values, where none was given."""
        return Any

    def on_start(self) -> None:
        self._output = self.output
        _ = self._output.subscribers  # used once, it is in the graph together with the node

    async def send(self, value: Any) -> None:
        """Publish *value*; waits where a subscriber wants that."""
        if self._output is None:
            raise RuntimeError(f"{self.shown} publishes nothing before its start")
        await self._output.apublish(value)

    def __repr__(self) -> str:
        said = super().__repr__()
        return said.replace(f"<{type(self).__name__} ", f"<{self.what} ", 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_output": None}


class Step(Stage):
    """A stage that takes what its sources publish, one value after the other, with `take`.

    *takes* annotates what it takes, where that is known: values are converted to it, and it may be a `pyzmp.Message`.
    The options *full*, *length*, *size* and *history* are those of `pyzmp.Topic.subscribe`.  What `take` raises is
    logged with the node and the topic, and counted; the step goes on with the next value.
    """

    full: FullQueue = "drop_oldest"
    history = 0

    def __init__(self, name: str | None = None, *, takes: Any = Any, full: FullQueue | None = None,
                 length: int | None = None, size: int = 8 << 20, history: int | None = None, **options: Any) -> None:
        super().__init__(name, **options)
        self._takes, self._sources, self._taken = takes, list[Source](), list[Subscription[Any]]()
        self._failing = Failing()
        self._terms: dict[str, Any] = {"full": self.full if full is None else full, "length": length, "size": size,
                                       "history": self.history if history is None else history}
        with told_of(type(self)):
            terms_of(**self._terms)  # raises for what cannot be

    async def take(self, value: Any) -> None:
        """Do with a value what this step is for: override it in a step of your own.  Here it is passed on."""
        await self.send(value_of(value))

    def listen_to(self, sources: Sources) -> None:
        """Take what *sources* publish.  ``sources | step`` does that, and keeps together what starts together."""
        if self._sources:
            raise ValueError(f"{self.shown} has its sources; give it several at once, as in [one, other] | step")
        self._sources = list(_several(sources))
        try:
            self.check_types()
        except TypeError:
            self._sources = []
            raise

    def check_types(self) -> None:
        taker = self._taker()
        for source in self._sources:
            with contextlib.suppress(Unresolved):  # a name that is defined later: looked up when it starts
                expecting(topic_of(source).selection(), taker, self.what)

    def on_start(self) -> None:
        if not self._sources:
            raise RuntimeError(f"{self.shown} has no source; write topic | step")
        super().on_start()
        self._failing = Failing()
        self.check_types()
        taker = self._taker()
        self._taken = [topic_of(source).subscribe(taker, **self._terms) for source in self._sources]

    def on_stop(self) -> None:
        self._failing.tell_rest()

    def _taker(self) -> Callable[[Message[Any]], Awaitable[None]]:
        """What takes the messages of all sources, each of which is a subscription."""
        turn, wants_messages = asyncio.Lock(), _is_message(self._takes)

        async def take(message: Message[Any]) -> None:
            async with turn:
                try:
                    await awaited(self.take(message if wants_messages else message.value))
                except Exception as error:
                    self._failing.raised(message, f"{self.what} of {self.name!r}", own_part(error))
        takes: Any = self._takes  # that is what values are converted to
        take.__annotations__["message"] = takes if wants_messages else Message[takes]
        take.__qualname__ = self.what
        return take

    @service(name="flow.counts")  # nobody's own service of that name is meant
    def counts(self) -> dict[str, int]:
        """How many values it has received, how many were dropped and lost on their way, and how many failed here."""
        counts = {what: sum(getattr(each, what) for each in self._taken)
                  for what in ("received", "dropped", "lost", "failed")}
        return {**counts, "failed": counts["failed"] + self._failing.count}

    def _makes(self) -> Any:
        return self._comes()

    def _comes(self) -> Any:
        """The annotation of what it takes: as it was said, else what its sources have in common."""
        if self._takes is not Any:
            return (*get_args(self._takes), Any)[0] if _is_message(self._takes) else self._takes
        kinds = [topic_of(source).annotation for source in self._sources]
        return kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else Any

    def __getstate__(self) -> dict[str, Any]:
        # It travels with the topics of its sources, under the names that they have by now, and not with nodes.
        return {**super().__getstate__(), "_sources": [topic_of(source) for source in self._sources], "_taken": []}


class Flow(_Part, Group):
    """Stages that start and stop as one, each of which takes what the one before it publishes; ``a | b`` makes one.

    They start in order.  What is published to the first once that has returned goes through all.  The first of *nodes*
    may be a topic, a name, a pattern, or a list of several sources.  A flow is a group, and so ``flow.name = "cellar"``
    names it, and the stages in it that have no name.
    """

    def __init__(self, name: str | None, nodes: Sequence[Sources]) -> None:
        for before, after in itertools.pairwise(nodes):
            if not isinstance(after, _Part):
                no_step(before, after)
                raise TypeError(f"a flow goes on with a step, which {after!r} is not")
        super().__init__(self._called(name, "Flow"),
                         [each for given in nodes for each in _several(given) if isinstance(each, Node)])
        for before, after in itertools.pairwise(nodes):
            typing.cast(_Part, after).listen_to(before)
        self._named = name is not None

    @property
    def shown(self) -> str:
        return self._joined if self.name == self._own else f"{self._joined} of the flow {self.name!r}"

    @property
    def _joined(self) -> str:
        return " | ".join(node.what if isinstance(node, Stage) else typing.cast(_Part, node).shown
                          for node in self.nodes)

    def check_types(self) -> None:
        for node in self.nodes:
            typing.cast(_Part, node).check_types()

    def _gather(self) -> None:
        for place, node in enumerate(self.nodes, 1):  # where nobody has named the flow, a step is called what it is
            node._enter((self.name, *self._groups), "" if self.name == self._own else f"{self.name}/{place}")

    @property
    def output(self) -> Topic[Any]:
        """What its last stage publishes, for subscribers."""
        return typing.cast(_Part, self.nodes[-1]).output

    def listen_to(self, sources: Sources) -> None:
        """Have its first step take what *sources* publish."""
        typing.cast(_Part, self.nodes[0]).listen_to(sources)
        self.check_types()

    def __repr__(self) -> str:
        said = super().__repr__()
        if "_nodes" in self.__dict__:
            said = said.replace(f"<{type(self).__name__} ", f"<{type(self).__name__} {self._joined} ", 1)
        return said


def _several(sources: Sources) -> Iterator[Source]:
    """One source, or those of a list.  Raises TypeError for what is none."""
    several = typing.cast("Sequence[Source]", sources if isinstance(sources, (list, tuple)) else [sources])
    if not several:
        raise TypeError("a flow begins with a source or several, such as [Class.reading, 'house/alerts'], got none")
    for source in several:
        if not isinstance(source, (Stage, Flow)):
            topic_of(source)
        yield source


def topic_of(source: Source) -> Topic[Any]:
    """The topic that *source* is, names, or publishes.  Raises TypeError for what is no source."""
    if isinstance(source, Topic):
        return source
    if isinstance(source, str):
        return Topic(Any, source)
    if isinstance(source, (Stage, Flow)):
        return source.output
    raise TypeError("a flow begins with a topic, such as Class.reading, the name or the pattern of topics, or a stage, "
                    f"got {source!r}" + ("; write Ghost(service)" if isinstance(source, Service) else ""))


def _is_message(annotation: Any) -> bool:
    return annotation is Message or get_origin(annotation) is Message


def value_of(taken: Any) -> Any:
    """The value, where a step takes messages."""
    return taken.value if isinstance(taken, Message) else taken


async def awaited(value: Any | Awaitable[Any]) -> Any:
    """What a function has given, or what there is to await of it."""
    return await value if inspect.isawaitable(value) else value
