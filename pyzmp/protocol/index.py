"""The facts of a graph, with what lookups need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import force_setattr

from pyzmp.protocol.facts import (
    Fact,
    Key,
    Member,
    NodeFact,
    ParameterFact,
    Part,
    Provider,
    PublisherFact,
    ServiceFact,
    SubscriberFact,
)
from pyzmp.protocol.topics import Pattern

GROUP = "group"  # the kind of a node that stands for those that are in it
SELECTIONS = 1024  # of publishers that are remembered
ALIKE = 4096  # values that many facts may have which are remembered


class _Pool:
    """The providers of one service, and the tuple made of them when it was last asked for."""

    __slots__ = ("built", "changes", "members")

    def __init__(self) -> None:
        self.members: dict[str, Provider] = {}
        self.changes = 0
        self.built: tuple[int, tuple[Provider, ...]] = (0, ())

    def set(self, node: str, provider: Provider | None) -> None:
        if provider is None:
            self.members.pop(node, None)
        else:
            self.members[node] = provider
        self.changes += 1  # after the change, so that no reader takes what it built before for fresh

    def all(self) -> tuple[Provider, ...]:
        changes, providers = self.built
        while changes != self.changes:
            changes = self.changes
            providers = tuple(self.members.copy().values())  # a copy is made at one stroke, whoever writes meanwhile
            self.built = changes, providers
        return providers


class Facts:
    """A set of facts with its indexes.  One thread changes it; lookups may come from any thread.

    ``version`` is another object after each change: what was looked up while it was the same is as it was.
    """

    def __init__(self) -> None:
        self.version = object()
        self._facts: dict[Key, Fact] = {}
        self._nodes: dict[str, NodeFact] = {}
        self._parts: dict[str, dict[Key, Part]] = {}  # by node
        self._pools: dict[tuple[str, str], _Pool] = {}  # by service and group; all there are have no group
        self._members: dict[str, dict[str, NodeFact]] = {}  # by group
        self._topics: dict[tuple[type, str], dict[str, PublisherFact | SubscriberFact]] = {}
        self._marked: dict[str, dict[Key, PublisherFact]] = {}
        self._selected: dict[tuple[Pattern | None, str, str], tuple[PublisherFact, ...]] = {}  # what was asked for
        self._alike: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._facts)

    def get(self, key: Key) -> Fact | None:
        return self._facts.get(key)

    def all(self) -> list[Fact]:
        """Every fact, members first and each node before its parts."""
        return in_order(self.copied())

    def copied(self) -> list[Fact]:
        """Every fact, in no order, at one stroke."""
        return list(self._facts.copy().values())

    def owned_by(self, owner: str) -> list[Fact]:
        return [fact for fact in self._facts.copy().values() if fact.owner == owner]

    def node(self, name: str) -> NodeFact | None:
        return self._nodes.get(name)

    def nodes(self) -> list[NodeFact]:
        return list(self._nodes.copy().values())

    def members(self, group: str) -> list[NodeFact]:
        """The nodes that are in *group*, also by way of another group."""
        return list(self._members.get(group, {}).copy().values())

    def providers(self, service: str) -> tuple[Provider, ...]:
        """Who provides *service*: the same tuple, the very object, until that changes."""
        pool = self._pools.get((service, ""))
        return pool.all() if pool is not None else ()

    def provider(self, node: str, service: str) -> tuple[Provider, ...]:
        """The one node of that name as a provider of *service*, or nothing; where it is a group, those in it."""
        by = self._nodes.get(node)
        if by is not None and by.kind == GROUP:
            pool = self._pools.get((service, node))
            return pool.all() if pool is not None else ()
        fact = self._facts.get(("service", node, service))
        return ((by, fact),) if by is not None and isinstance(fact, ServiceFact) else ()

    def parts(self, node: str) -> list[Part]:
        """What belongs to a node."""
        return list(self._parts.get(node, {}).copy().values())

    def services_of(self, node: str) -> list[ServiceFact]:
        return [part for part in self.parts(node) if isinstance(part, ServiceFact)]

    def services(self) -> dict[str, tuple[Provider, ...]]:
        """The providers of every service that has some, by its name."""
        found = ((name, pool.all()) for (name, group), pool in self._pools.copy().items() if not group)
        return {name: providers for name, providers in found if providers}

    def parameter(self, node: str, name: str) -> ParameterFact | None:
        fact = self._facts.get(("parameter", node, name))
        return fact if isinstance(fact, ParameterFact) else None

    def publishers(self, topic: str) -> list[PublisherFact]:
        found = self._topics.get((PublisherFact, topic), {}).copy().values()
        return [fact for fact in found if isinstance(fact, PublisherFact)]

    def subscribers(self, topic: str) -> list[SubscriberFact]:
        found = self._topics.get((SubscriberFact, topic), {}).copy().values()
        return [fact for fact in found if isinstance(fact, SubscriberFact)]

    def selected(self, *, name: Pattern | None = None, mark: str = "", node: str = "") -> tuple[PublisherFact, ...]:
        """The publishers of the topics that *name* selects, that have the *mark*, and are the *node* or in it.

        What is not given selects all.  The same tuple, the very object, until publishers, nodes or groups change, so
        that it can be asked for after every change.
        """
        known = self._selected  # before it is looked up, so that nobody keeps there what a change has made old
        found = known.get((name, mark, node))
        if found is None:
            found = tuple(fact for fact in self._candidates(name, mark, node)
                          if (not mark or mark in fact.marks) and (name is None or name.matches(fact.topic)))
            if len(known) < SELECTIONS:
                known[name, mark, node] = found
        return found

    def _candidates(self, name: Pattern | None, mark: str, node: str) -> Iterable[PublisherFact]:
        """Some publishers, all among them that are selected."""
        if node:
            by = self._nodes.get(node)
            nodes = [each.name for each in self.members(node)] if by is not None and by.kind == GROUP else [node]
            return [part for each in nodes for part in self.parts(each) if isinstance(part, PublisherFact)]
        if name is not None and name.plain:
            return self.publishers(name.text)
        if mark:
            return list(self._marked.get(mark, {}).copy().values())
        return [fact for kind, topic in self._topics.copy()
                if kind is PublisherFact and (name is None or name.matches(topic)) for fact in self.publishers(topic)]

    def change(self, puts: Iterable[Fact] = (), deletes: Iterable[Key] = (), gone: Sequence[str] = ()) -> None:
        """Apply one change: deletions first.  A node takes its parts with it."""
        try:
            for key in deletes:
                self._delete(key)
            for owner in gone:
                for fact in self.owned_by(owner):
                    self._delete(fact.key)
            for fact in puts:
                self._put(fact)
        finally:
            self.version = object()

    def _share(self, fact: Fact) -> None:
        """Have what many facts say alike in memory once: of a node among thousands that is most."""
        if len(self._alike) > ALIKE:
            self._alike.clear()
        for field in _ALIKE.get(type(fact), ()):
            value = getattr(fact, field)
            force_setattr(fact, field, self._alike.setdefault(value, value))

    def _put(self, fact: Fact) -> None:
        self._share(fact)
        key = fact.key
        known = self._facts.get(key)
        self._facts[key] = fact
        if isinstance(fact, NodeFact):
            self._nodes[fact.name] = fact
            for group in known.groups if isinstance(known, NodeFact) else ():
                if group not in fact.groups:
                    self._leave(fact.name, group)
            for group in fact.groups:
                self._members.setdefault(group, {})[fact.name] = fact
            for service in self.services_of(fact.name) if fact.name in self._parts else ():
                self._provide(fact, service)
        elif not isinstance(fact, Member):
            self._parts.setdefault(fact.node, {})[key] = fact
            node = self._nodes.get(fact.node)
            if isinstance(fact, PublisherFact | SubscriberFact):
                self._unmark(known)
                self._enter(fact)
            elif isinstance(fact, ServiceFact) and node is not None:
                self._provide(node, fact)
        if isinstance(fact, NodeFact | PublisherFact):
            self._selected = {}

    def _delete(self, key: Key) -> None:
        fact = self._facts.pop(key, None)
        if isinstance(fact, NodeFact):
            for part in self._parts.pop(fact.name, {}).values():
                self._facts.pop(part.key, None)
                self._forget(fact, part)
            for group in fact.groups:
                self._leave(fact.name, group)
            del self._nodes[fact.name]
        elif fact is not None and not isinstance(fact, Member):
            parts = self._parts[fact.node]
            del parts[key]
            if not parts:
                del self._parts[fact.node]
            self._forget(self._nodes.get(fact.node), fact)
        if isinstance(fact, NodeFact | PublisherFact):
            self._selected = {}

    def _forget(self, node: NodeFact | None, part: Part) -> None:
        """Take what belonged to *node* out of the indexes."""
        if isinstance(part, ServiceFact):
            for group in ("", *(node.groups if node is not None else ())):
                self._drop(part.node, part.name, group)
        elif isinstance(part, PublisherFact | SubscriberFact):
            place = type(part), part.topic
            self._topics[place].pop(part.node, None)
            if not self._topics[place]:
                del self._topics[place]
            self._unmark(part)

    def _enter(self, fact: PublisherFact | SubscriberFact) -> None:
        self._topics.setdefault((type(fact), fact.topic), {})[fact.node] = fact
        if isinstance(fact, PublisherFact):
            for mark in fact.marks:
                self._marked.setdefault(mark, {})[fact.key] = fact

    def _unmark(self, fact: Fact | None) -> None:
        if isinstance(fact, PublisherFact):
            for mark in fact.marks:
                marked = self._marked.get(mark, {})
                marked.pop(fact.key, None)
                if not marked:
                    self._marked.pop(mark, None)

    def _provide(self, node: NodeFact, service: ServiceFact) -> None:
        for group in ("", *node.groups):
            self._pools.setdefault((service.name, group), _Pool()).set(node.name, (node, service))

    def _leave(self, node: str, group: str) -> None:
        members = self._members.get(group, {})
        if members.pop(node, None) is not None and not members:
            del self._members[group]
        for service in self.services_of(node):
            self._drop(node, service.name, group)

    def _drop(self, node: str, service: str, group: str) -> None:
        pool = self._pools.get((service, group))
        if pool is not None:
            pool.set(node, None)
            if not pool.members:
                del self._pools[service, group]


_ALIKE: Mapping[type, Sequence[str]] = {NodeFact: ("owner", "loop", "addresses", "kind", "host", "cls", "groups"),
                                        ServiceFact: ("name", "owner", "classes", "schema", "text")}
_ORDER: Mapping[type, int] = {Member: 0, NodeFact: 1}


def in_order(facts: Iterable[Fact]) -> list[Fact]:
    """The facts, members first and each node before its parts."""
    return sorted(facts, key=lambda fact: _ORDER.get(type(fact), 2))
