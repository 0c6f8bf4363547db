"""The graph of nodes, services, topics and parameters, as its users see it: a value, waited for and watched."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from pyzmp import runtime
from pyzmp.channels.channel import Channel
from pyzmp.channels.wanted import Wanted
from pyzmp.channels.watch import Watch
from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.facts import (
    Epoch,
    Fact,
    Member,
    NodeFact,
    ParameterFact,
    Position,
    PublisherFact,
    ServiceFact,
    SubscriberFact,
)
from pyzmp.protocol.index import GROUP
from pyzmp.protocol.outcomes import unknown
from pyzmp.protocol.topics import Pattern

T = TypeVar("T")
_packed = msgspec.msgpack.Encoder().encode


class GraphService(msgspec.Struct, frozen=True):
    """A service of a node; ``signature`` is a text such as ``(n: int = 10) -> float``."""

    node: str
    name: str
    signature: str

    def __str__(self) -> str:
        return f"{self.name}{self.signature}"


class GraphParameter(msgspec.Struct, frozen=True):
    """A parameter of a node; ``type`` is a text, and ``settable`` tells whether others may set it."""

    node: str
    name: str
    type: str
    settable: bool
    encoded: bytes

    @property
    def value(self) -> Any:
        """Its value, as one without types arrives: a dataclass is a dict.  Raises MalformedMessage for no value."""
        return unpacked(self.encoded)

    def __str__(self) -> str:
        try:
            shown = repr(self.value)
        except MalformedMessage as error:  # whoever announced it
            shown = f"<{error}>"
        return f"{self.name}: {self.type} = {shown if len(shown) <= 60 else f'{shown[:59]}…'}"


class GraphNode(msgspec.Struct, frozen=True):
    """A node: what it is, where it lives and what it offers.

    ``kind`` is ``process``, ``thread``, ``entity`` or ``group``, or ``program`` for one that publishes by itself;
    ``cls`` the qualified name of its class; ``groups`` are those that it is in, the innermost first.  ``publishes``
    are names of topics, and ``subscribes`` names or patterns of them.
    ``confirmed`` is how long ago, in seconds before the snapshot, the registry last knew its process to be there.
    """

    name: str
    kind: str
    cls: str
    host: str
    pid: int
    addresses: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    groups: tuple[str, ...]
    services: tuple[GraphService, ...]
    parameters: tuple[GraphParameter, ...]
    publishes: tuple[str, ...]
    subscribes: tuple[str, ...]
    confirmed: float

    def service(self, name: str) -> GraphService:
        """Its service of that name; raises LookupError."""
        return _found(self.services, name, f"of node {self.name!r}", "service")

    def parameter(self, name: str) -> GraphParameter:
        """Its parameter of that name; raises LookupError."""
        return _found(self.parameters, name, f"of node {self.name!r}", "parameter")

    def __str__(self) -> str:
        grouped = f", in {self.groups[0]}" if self.groups else ""
        head = f"{self.name}: {self.cls}, {self.kind} of pid {self.pid} on {self.host}{grouped}"
        topics = [f"publishes {name}" for name in self.publishes] + [f"listens to {name}" for name in self.subscribes]
        return "\n".join([head, *(f"  {part}" for part in (*self.services, *self.parameters, *topics))])


class GraphTopic(msgspec.Struct, frozen=True):
    """A topic: its ``type`` as a text, and the names of the nodes that publish it and of those that listen.

    A node listens also where a pattern of its selects the topic.  ``apart`` are those publishers and subscribers
    that have nothing to do with each other nevertheless: where a node listens to what one class declares, and
    another publishes a topic of the same name.
    """

    name: str
    type: str
    publishers: tuple[str, ...]
    subscribers: tuple[str, ...]
    apart: frozenset[tuple[str, str]] = frozenset()


class Edge(msgspec.Struct, frozen=True):
    """What one node publishes and another listens to."""

    topic: str
    publisher: str
    subscriber: str


class Graph(msgspec.Struct, frozen=True):
    """What a process knew of the graph at one moment: a value, that never changes and can be sent to others.

    All of it belongs together: it is what came of the first ``version`` changes in the reign of one registry, which
    ``epoch`` names; before any was found, ``epoch`` is None and all is empty.  ``stale_since`` is None while that
    registry is followed, and else the moment at which it was lost, by `time.monotonic` of the process that took the
    snapshot; ``age`` is the same in seconds before it, 0 while it is followed.  Everything is in the order of its name.
    """

    nodes: tuple[GraphNode, ...]
    services: tuple[GraphService, ...]
    topics: tuple[GraphTopic, ...]
    parameters: tuple[GraphParameter, ...]
    epoch: Epoch | None
    version: int
    stale_since: float | None
    age: float

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Who publishes what to whom."""
        return tuple(Edge(topic.name, publisher, subscriber) for topic in self.topics
                     for publisher in topic.publishers for subscriber in topic.subscribers
                     if (publisher, subscriber) not in topic.apart)

    def node(self, name: str) -> GraphNode:
        """The node of that name; raises LookupError, which names the nearest one."""
        return _found(self.nodes, name, f"among the {len(self.nodes)} that are known", "node")

    def providers(self, service: str) -> tuple[GraphNode, ...]:
        """The nodes that provide a service of that name, whatever their class."""
        if not isinstance(service, str):
            raise TypeError(f"providers() takes the name of a service, got {service!r}; write service.name")
        return tuple(self.node(found.node) for found in self.services if found.name == service)

    def members(self, group: str) -> tuple[GraphNode, ...]:
        """The nodes that are in *group*, also by way of another group."""
        return tuple(node for node in self.nodes if group in node.groups)

    def topic(self, name: str) -> GraphTopic:
        """The topic of that name; raises LookupError."""
        return _found(self.topics, name, f"among the {len(self.topics)} that are known", "topic")

    def __contains__(self, node: object) -> bool:
        return _at(self.nodes, node) is not None if isinstance(node, str) else False

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(part)} {name[:len(name) - (len(part) == 1)]}" for name, part in (
            ("nodes", self.nodes), ("services", self.services), ("parameters", self.parameters),
            ("topics", self.topics)) if part or name == "nodes")
        return f"<Graph of {parts}, {self._where()}>"

    def __str__(self) -> str:
        return "\n".join([self._where(), *map(str, self.nodes)])

    def _where(self) -> str:
        if self.epoch is None:
            return "no registry found"
        fresh = "up to date" if self.stale_since is None else f"not heard of for {self.age:.1f} s"
        return f"version {self.version} of epoch {self.epoch.counter}, {fresh}"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_Named)


def _at(among: Sequence[N], name: str) -> N | None:
    place = bisect_left(among, name, key=lambda each: each.name)
    return among[place] if place < len(among) and among[place].name == name else None


def _found(among: Sequence[N], name: str, where: str, what: str) -> N:
    if not isinstance(name, str):
        raise TypeError(f"the name of a {what} is a str, got {name!r}")
    found = _at(among, name)
    if found is None:
        text = unknown(name, [each.name for each in among], where).replace("nobody provides", f"there is no {what}", 1)
        raise LookupError(text)
    return found


def packed(body: bytes, buffers: Sequence[Any]) -> bytes:
    """The value of a parameter as the graph has it: what the codec gave, in one piece."""
    return _packed((body, [bytes(buffer) for buffer in buffers]))


def unpacked(encoded: bytes) -> Any:
    """The value that `packed` was made from; raises MalformedMessage for what is none."""
    try:
        body, buffers = msgspec.msgpack.decode(encoded, type=tuple[bytes, list[bytes]])
    except msgspec.MsgspecError as error:
        raise MalformedMessage(f"no value of a parameter: {error}") from error
    return codec.decode(body, buffers)


# Taking one.


class _Taken(msgspec.Struct, frozen=True):
    """What one process knows at one moment."""

    position: Position | None
    facts: list[Fact]
    stale_since: float | None

    @classmethod
    def now(cls, here: runtime.Runtime) -> _Taken:
        position, facts = here.replica.view.whole()
        return cls(position, facts, here.replica.stale_since)

    def same(self, other: _Taken | None) -> bool:
        """Whether nothing is different but, perhaps, how many changes there were."""
        return other is not None and self.stale_since == other.stale_since and self.facts == other.facts

    def graph(self, here: runtime.Runtime) -> Graph:
        now = time.monotonic()
        parts: dict[tuple[type, str], list[Any]] = {}  # by kind and node
        for fact in self.facts:
            if not isinstance(fact, (Member, NodeFact)):
                parts.setdefault((type(fact), fact.node), []).append(fact)
        seen: dict[str, float] = {}  # by process
        nodes = []
        for node in sorted((fact for fact in self.facts if isinstance(fact, NodeFact)), key=lambda node: node.name):
            if node.owner not in seen:
                seen[node.owner] = here.replica.view.confirmed(node.owner, now)
            nodes.append(_node(node, parts, seen[node.owner]))
        services = sorted((part for node in nodes for part in node.services), key=lambda part: part.name)
        parameters = sorted((part for node in nodes for part in node.parameters), key=lambda part: part.name)
        return Graph(
            tuple(nodes), tuple(services), _topics(self.facts), tuple(parameters),
            self.position.epoch if self.position else None, self.position.version if self.position else 0,
            self.stale_since, 0.0 if self.stale_since is None else max(0.0, now - self.stale_since))


def _node(node: NodeFact, parts: Mapping[tuple[type, str], list[Any]], confirmed: float) -> GraphNode:
    name = node.name
    services = [GraphService(name, part.name, part.text) for part in parts.get((ServiceFact, name), ())]
    parameters = [GraphParameter(name, part.name, part.text, part.settable, part.value)
                  for part in parts.get((ParameterFact, name), ())]
    return GraphNode(
        name, node.kind, node.cls, node.host, node.pid, node.addresses, node.labels, node.groups,
        tuple(sorted(services, key=lambda part: part.name)), tuple(sorted(parameters, key=lambda part: part.name)),
        tuple(sorted(part.topic for part in parts.get((PublisherFact, name), ()))),
        tuple(sorted(part.topic for part in parts.get((SubscriberFact, name), ()))), confirmed)


def _topics(facts: Iterable[Fact]) -> tuple[GraphTopic, ...]:
    """The topics that are published, and those that are listened to by their names."""
    published: dict[str, list[PublisherFact]] = {}
    listening: dict[tuple[str, tuple[str, ...]], list[SubscriberFact]] = {}  # by what they select
    members: dict[str, list[str]] = {}  # by group
    for fact in facts:
        if isinstance(fact, PublisherFact):
            published.setdefault(fact.topic, []).append(fact)
        elif isinstance(fact, SubscriberFact):
            listening.setdefault((fact.topic, fact.marks), []).append(fact)
        elif isinstance(fact, NodeFact):
            members.update({fact.name: members.get(fact.name, [])} if fact.kind == GROUP else {})
            for group in fact.groups:
                members.setdefault(group, []).append(fact.name)
    heard = {name: _Heard(found[0].text, {fact.node for fact in found}, {}) for name, found in published.items()}
    for (topic, marks), subscribers in listening.items():
        for name in _chosen(topic, marks, published, members):
            publishers = {fact.node for fact in published.get(name, ()) if not marks or {*marks} & {*fact.marks}}
            if publishers or name == topic:
                by = heard.setdefault(name, _Heard(subscribers[0].text, set(), {})).by
                for fact in subscribers:
                    by[fact.node] = by.get(fact.node, set()) | publishers
    return tuple(heard[name].topic(name) for name in sorted(heard))


class _Heard(NamedTuple):
    """A topic: who publishes it, and whose messages each subscriber gets."""

    text: str
    publishers: set[str]
    by: dict[str, set[str]]

    def topic(self, name: str) -> GraphTopic:
        return GraphTopic(
            name, self.text, tuple(sorted(self.publishers)), tuple(sorted(self.by)),
            frozenset((publisher, one) for one, known in self.by.items() for publisher in self.publishers - known))


def _chosen(topic: str, marks: Iterable[str], published: Iterable[str], members: Mapping[str, list[str]]) -> list[str]:
    """The names of the topics that a subscriber's fact is about."""
    if "*" in topic:
        try:
            pattern = Pattern(topic)
        except ValueError:  # whoever announced it
            return []
        return [name for name in published if pattern.matches(name)]
    node, _, attribute = topic.rpartition("/")
    return [f"{member}/{attribute}" for member in members[node]] if marks and node in members else [topic]


def _look(here: runtime.Runtime, seen: _Taken | None) -> tuple[_Taken, Callable[[], Graph]] | None:
    taken = _Taken.now(here)
    return None if taken.same(seen) else (taken, lambda: taken.graph(here))


def _snapshot(here: runtime.Runtime) -> Graph:
    return _Taken.now(here).graph(here)


class KnownGraph(msgspec.Struct, frozen=True):
    """The graph as this process knows it: ``pyzmp.graph()`` gives a snapshot of it.

    It is kept up to date by itself, and looked up here, without asking anybody.
    """

    def __call__(self) -> Graph:
        """All that this process knows, now.

        Its very first look waits for a registry, at most a second; while none is followed, any other 0.1 s.
        """
        here = runtime.current()
        here.facts()
        return _snapshot(here)

    async def acall(self) -> Graph:
        """As a call of it, in a coroutine."""
        here = runtime.current()
        await here.alook()
        return _snapshot(here)

    def watch(self, callback: Callable[[Graph], object] | None = None, *, timeout: float | None = None) -> Watch[Graph]:
        """Follow the graph: as it is now, and then after each change, the latest each time.

        To iterate over in ``for`` or ``async for``, which with a *timeout* raise TimeoutError when nothing has
        changed for so many seconds.  Or with a *callback*, which is called with each `Graph` in a thread of its own
        until the watch is closed, or the node has ended whose code made it.

        To wait in ``for`` on a loop with nodes that serve raises DeadlockError.
        """
        watch = Watch("the graph", _look, timeout)
        return watch if callback is None else watch.call(callback)

    def wait_for(self, what: str | Channel[..., Any] | Callable[[Graph], object], *, timeout: float,
                 providers: int = 1) -> Graph:
        """Block until *what* is there, at most *timeout* seconds; the snapshot in which it is.

        *what* is the name of a node, a service such as ``Class.method``, which so many nodes are to provide, or
        any condition: it is called with snapshots, in this thread, until what it returns is true.  That it raises
        LookupError, as ``graph.node(name)`` does, means not yet.  Raises TimeoutError, with what is known instead,
        DeadlockError where to wait would hold up nodes that serve on the loop that runs here, and
        RegistryUnavailable when pyzmp ends meanwhile.  Wakes up on the changes themselves.
        """
        wanted, limit = Wanted(what, providers, _snapshot), seconds(timeout)
        wanted.check_waiting()
        wanted.here.wait_until(wanted.holds, limit)
        return wanted.graph or wanted.missing(timeout)

    async def await_for(self, what: str | Channel[..., Any] | Callable[[Graph], object], *, timeout: float,
                        providers: int = 1) -> Graph:
        """As `wait_for`, in a coroutine."""
        wanted, limit = Wanted(what, providers, _snapshot), seconds(timeout)
        await wanted.here.await_until(wanted.holds, limit)
        return wanted.graph or wanted.missing(timeout)

    def __repr__(self) -> str:
        return "<pyzmp.graph>"


graph = KnownGraph()
