"""What flows are made of: stages, and the ``|`` that joins them."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import typing
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar, get_args, get_origin

from typing_extensions import Self

from pyzmp.channels.declare import service
from pyzmp.channels.message import Message
from pyzmp.channels.service import Service
from pyzmp.channels.subscription import FullQueue, Subscription
from pyzmp.channels.terms import terms_of
from pyzmp.channels.topic import Topic
from pyzmp.group import Group
from pyzmp.node import Node

P = TypeVar("P", bound="_Part")
Source: TypeAlias = "Topic[Any] | str | Stage | Flow"
Sources: TypeAlias = "Source | Sequence[Source]"


class _Part(Node):
    """What may stand on both sides of ``|``."""

    @property
    def output(self) -> Topic[Any]:
        raise NotImplementedError

    def listen_to(self, sources: Sources) -> None:
        raise TypeError(f"{self!r} takes nothing, and so it stands at the beginning of a flow")

    def __ror__(self, sources: Sources) -> Self | Flow:
        if any(isinstance(source, Node) for source in _several(sources)):
            return Flow(None, [sources, typing.cast("Stage | Flow", self)])
        self.listen_to(sources)
        return self

    def __or__(self, part: P) -> P | Flow:  # asked first, and alone where both are of one class
        joins: Any = getattr(part, "__ror__", None)
        return NotImplemented if joins is None else joins(self)


class Stage(_Part):
    """A node with an `output`, which the right side of ``|`` takes; by default an entity.

    *type* annotates the values of its output; where it is left out the stage says what it knows.  The last *keep*
    values are kept for those who subscribe later.  The other options are those of `pyzmp.Node`.
    """

    kind = "entity"

    def __init__(self, name: str | None = None, *, type: Any = None, keep: int = 0, **options: Any) -> None:
        super().__init__(name, **options)
        self._said, self._keep = type, keep
        Topic(Any if type is None else type, keep=keep)  # raises for what cannot be
        self._output: Topic[Any] | None = None

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
            raise RuntimeError(f"{self.name!r} publishes nothing before its start")
        await self._output.apublish(value)

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
        self._terms: dict[str, Any] = {"full": self.full if full is None else full, "length": length, "size": size,
                                       "history": self.history if history is None else history}
        terms_of(**self._terms)  # raises for what cannot be

    async def take(self, value: Any) -> None:
        """Do with a value what this step is for: override it in a step of your own.  Here it is passed on."""
        await self.send(value_of(value))

    def listen_to(self, sources: Sources) -> None:
        """Take what *sources* publish.  ``sources | step`` does that, and keeps together what starts together."""
        if self._sources:
            raise ValueError(f"{self.name!r} has its sources; give it several at once, as in [one, other] | step")
        self._sources = list(_several(sources))

    def on_start(self) -> None:
        if not self._sources:
            raise RuntimeError(f"{self.name!r} has no source; write topic | step")
        super().on_start()
        turn = asyncio.Lock()

        async def take(value: Any) -> None:
            async with turn:  # of all sources, each of which is a subscription
                await awaited(self.take(value))
        take.__annotations__["value"] = self._takes  # that is what values are converted to
        take.__qualname__ = f"{type(self).__name__}.take"
        self._taken = [topic_of(source).subscribe(take, **self._terms) for source in self._sources]

    @service(name="flow.counts")  # nobody's own service of that name is meant
    def counts(self) -> dict[str, int]:
        """How many values it has received, how many were dropped and lost on their way, and how many failed here."""
        return {what: sum(getattr(each, what) for each in self._taken)
                for what in ("received", "dropped", "lost", "failed")}

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
        super().__init__(name, [each for given in nodes for each in _several(given) if isinstance(each, Node)])
        for before, after in itertools.pairwise(nodes):
            if not isinstance(after, _Part):
                raise TypeError(f"a flow goes on with a step, which {after!r} is not")
            after.listen_to(before)

    @property
    def output(self) -> Topic[Any]:
        """What its last stage publishes, for subscribers."""
        return typing.cast(_Part, self.nodes[-1]).output

    def listen_to(self, sources: Sources) -> None:
        """Have its first step take what *sources* publish."""
        typing.cast(_Part, self.nodes[0]).listen_to(sources)


def _several(sources: Sources) -> Iterator[Source]:
    """One source, or those of a list.  Raises TypeError for what is none."""
    for source in typing.cast("Sequence[Source]", sources if isinstance(sources, (list, tuple)) else [sources]):
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
