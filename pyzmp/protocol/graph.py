"""The one history of the graph's changes, and views of it.

The registry's `Log` orders all changes into commits.  A `View` is what a process knows: always a
prefix of one epoch's history, and never an older one than before.

Pure: driven by messages alone.  One thread changes a `Log` or a `View`; lookups in its `Facts` may
come from any thread.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from pyzmp.protocol.facts import (
    Beat,
    Change,
    Commit,
    Epoch,
    Fact,
    Key,
    Member,
    NodeFact,
    Position,
    Provider,
    Refusal,
    ServiceFact,
    Snapshot,
    pieces,
)

TAIL = 4096  # commits that a log keeps for followers that missed some


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
    """A set of facts with its indexes.  One thread changes it; lookups may come from any thread."""

    def __init__(self) -> None:
        self._facts: dict[Key, Fact] = {}
        self._nodes: dict[str, NodeFact] = {}
        self._services: dict[str, dict[str, ServiceFact]] = {}  # by node
        self._pools: dict[str, _Pool] = {}  # by service

    def get(self, key: Key) -> Fact | None:
        return self._facts.get(key)

    def all(self) -> list[Fact]:
        """Every fact, members first and each node before its services."""
        return sorted(self._facts.copy().values(), key=lambda fact: _ORDER[type(fact)])

    def owned_by(self, owner: str) -> list[Fact]:
        return [fact for fact in self._facts.copy().values() if fact.owner == owner]

    def node(self, name: str) -> NodeFact | None:
        return self._nodes.get(name)

    def nodes(self) -> list[NodeFact]:
        return list(self._nodes.copy().values())

    def providers(self, service: str) -> tuple[Provider, ...]:
        """Who provides *service*: the same tuple, the very object, until that changes."""
        pool = self._pools.get(service)
        return pool.all() if pool is not None else ()

    def provider(self, node: str, service: str) -> tuple[Provider, ...]:
        """The one node of that name as a provider of *service*, or nothing."""
        fact, by = self._services.get(node, {}).get(service), self._nodes.get(node)
        return () if fact is None or by is None else ((by, fact),)

    def services_of(self, node: str) -> list[ServiceFact]:
        return list(self._services.get(node, {}).copy().values())

    def services(self) -> dict[str, tuple[Provider, ...]]:
        """The providers of every service that has some, by its name."""
        found = ((name, pool.all()) for name, pool in self._pools.copy().items())
        return {name: providers for name, providers in found if providers}

    def change(self, puts: Iterable[Fact] = (), deletes: Iterable[Key] = (), gone: Sequence[str] = ()) -> None:
        """Apply one change: deletions first.  A node takes its services with it."""
        for key in deletes:
            self._delete(key)
        for owner in gone:
            for fact in self.owned_by(owner):
                self._delete(fact.key)
        for fact in puts:
            self._put(fact)

    def _put(self, fact: Fact) -> None:
        self._facts[fact.key] = fact
        if isinstance(fact, NodeFact):
            self._nodes[fact.name] = fact
            for service in self._services.get(fact.name, {}).values():
                self._pool(service.name).set(fact.name, (fact, service))
        elif isinstance(fact, ServiceFact):
            self._services.setdefault(fact.node, {})[fact.name] = fact
            node = self._nodes.get(fact.node)
            if node is not None:
                self._pool(fact.name).set(fact.node, (node, fact))

    def _delete(self, key: Key) -> None:
        fact = self._facts.pop(key, None)
        if isinstance(fact, NodeFact):
            for service in self._services.pop(fact.name, {}).values():
                self._facts.pop(service.key, None)
                self._drop(fact.name, service.name)
            del self._nodes[fact.name]
        elif isinstance(fact, ServiceFact):
            self._services[fact.node].pop(fact.name, None)
            self._drop(fact.node, fact.name)

    def _pool(self, service: str) -> _Pool:
        return self._pools.setdefault(service, _Pool())

    def _drop(self, node: str, service: str) -> None:
        pool = self._pools.get(service)
        if pool is not None:
            pool.set(node, None)
            if not pool.members:
                del self._pools[service]


_ORDER: Mapping[type, int] = {Member: 0, NodeFact: 1, ServiceFact: 2}


class Outcome(enum.Enum):
    """What a view did with a message."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # nothing new
    GAP = "gap"  # something is missing: ask for what follows the view's position
    FOREIGN = "foreign"  # of an older epoch, or of another registry's with the same counter: never for this view


class View:
    """What one process knows: the state after a prefix of one epoch's history.

    ``position`` is None before the first snapshot; it never goes back.
    """

    def __init__(self) -> None:
        self.position: Position | None = None
        self.facts = Facts()
        self._pieces: list[Snapshot] = []

    def load(self, snapshot: Snapshot) -> Outcome:
        """Take a piece of a snapshot; the view switches to it, all at once, with its last piece."""
        outcome = self._judge(snapshot.position)
        if outcome is not Outcome.GAP:  # what lies ahead, in this epoch or a later one, is what a snapshot is for
            return outcome
        if snapshot.piece == 0:
            self._pieces = []
        elif len(self._pieces) != snapshot.piece or self._pieces[0].position != snapshot.position:
            return Outcome.GAP
        self._pieces.append(snapshot)
        if snapshot.last:
            taken, self._pieces = self._pieces, []
            facts = Facts()
            facts.change(fact for piece in taken for fact in piece.facts)
            self.facts, self.position = facts, snapshot.position
        return Outcome.APPLIED

    def apply(self, commit: Commit) -> Outcome:
        """Take one commit, if it is the next one."""
        outcome = self._judge(commit.position)
        if outcome is not Outcome.GAP or not self._follows(commit.position):
            return outcome
        self.facts.change(commit.puts, commit.deletes, commit.gone)
        self.position = commit.position
        return Outcome.APPLIED

    def forget(self) -> None:
        """Know nothing, as before the first snapshot: for a view whose members are all known to be gone."""
        self.position, self.facts = None, Facts()

    def hear(self, beat: Beat) -> Outcome:
        """What a beat says about this view: that it is complete (DUPLICATE), misses something, or is another's."""
        return self._judge(beat.position)

    def reached(self, position: Position) -> bool:
        """Whether the view contains *position*, or follows a later registry."""
        mine = self.position
        if mine is None or mine.epoch == position.epoch:
            return mine is not None and mine.version >= position.version
        return mine.epoch.counter > position.epoch.counter

    def _judge(self, position: Position) -> Outcome:
        mine = self.position
        if mine is None or position.epoch.counter > mine.epoch.counter:
            return Outcome.GAP
        if position.epoch != mine.epoch:
            return Outcome.FOREIGN
        return Outcome.DUPLICATE if position.version <= mine.version else Outcome.GAP

    def _follows(self, position: Position) -> bool:
        mine = self.position
        return mine is not None and mine.epoch == position.epoch and mine.version + 1 == position.version


class _Draft:
    """A commit in the making: changes its facts at once, and remembers what a view must do to follow."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.puts: dict[Key, Fact] = {}
        self.deletes: dict[Key, None] = {}

    def put(self, fact: Fact) -> None:
        if self._facts.get(fact.key) != fact:
            self.puts[fact.key] = fact
            self._facts.change(puts=(fact,))

    def delete(self, key: Key) -> None:
        fact = self._facts.get(key)
        if fact is None:
            return
        if isinstance(fact, NodeFact):
            for service in self._facts.services_of(fact.name):
                self.puts.pop(service.key, None)
        self.puts.pop(key, None)
        self.deletes[key] = None
        self._facts.change(deletes=(key,))


class Log:
    """The registry's side: puts all changes of one epoch in order, and keeps every fact to its owner.

    Each method that changes something returns the commit to send to the followers, or None where
    nothing changed.
    """

    def __init__(self, epoch: Epoch) -> None:
        self.position = Position(epoch, 0)
        self.facts = Facts()
        self._tail: deque[Commit] = deque(maxlen=TAIL)
        self._held: dict[Key, str] = {}
        self._settled: set[str] = set()

    @property
    def unconfirmed(self) -> set[str]:
        """The owners of facts of the epoch before that have not confirmed them."""
        return set(self._held.values())

    def join(self, member: Member) -> Commit | None:
        """Take a member in, for the first time or again: what it owned has to be confirmed anew."""
        draft = _Draft(self.facts)
        for fact in self.facts.owned_by(member.id):
            self._held[fact.key] = member.id
        self._put(draft, member)
        return self._commit(draft)

    def hold(self, facts: Iterable[Fact]) -> Commit | None:
        """Take over facts of the epoch before, unconfirmed, unless their owner has spoken since."""
        draft = _Draft(self.facts)
        for fact in facts:
            if fact.owner not in self._settled and self.facts.get(fact.key) is None and self._stands(fact):
                draft.put(fact)
                self._held[fact.key] = fact.owner
        return self._commit(draft)

    def propose(self, member: Member, changes: Iterable[Change] = (), *,
                complete: bool = False) -> tuple[Commit | None, tuple[Refusal, ...]]:
        """Take those of a member's *changes* that may be; the others are refused, each by itself.

        *complete*: the member has now confirmed all it owns, so what is still held of it ends.
        """
        draft = _Draft(self.facts)
        refusals: list[Refusal] = []
        self._put(draft, member)
        for index, change in enumerate(changes):
            refusal = self._refusal(index, member, change)
            if refusal is None:
                self._take(draft, change)
            else:
                refusals.append(refusal)
        if complete:
            self._settle(draft, member.id)
        return self._commit(draft), tuple(refusals)

    def drop(self, owner: str) -> Commit | None:
        """Withdraw every fact of a process that has left or is gone."""
        self._forget(owner)
        if not self.facts.owned_by(owner):
            return None
        self.facts.change(gone=(owner,))
        return self._append(Commit(self._next(), gone=(owner,)))

    def snapshot(self) -> Iterator[Snapshot]:
        """Everything, in pieces to be sent one after the other with no commit in between."""
        parts = list(pieces(self.facts.all()))
        for number, part in enumerate(parts):
            yield Snapshot(self.position, number, number == len(parts) - 1, part)

    def since(self, position: Position | None) -> list[Commit] | None:
        """The commits after *position*, or None where only a snapshot helps."""
        if position is None or position.epoch != self.position.epoch:
            return None
        missing = self.position.version - position.version
        return list(self._tail)[len(self._tail) - missing:] if 0 <= missing <= len(self._tail) else None

    def _refusal(self, index: int, member: Member, change: Change) -> Refusal | None:
        new = {fact.name for fact in change.puts if isinstance(fact, NodeFact)}
        for key in change.deletes:
            known = self.facts.get(key)
            if known is not None and known.owner != member.id:
                return Refusal(index, f"{_named(key)} is not for pid {member.pid} on {member.host} to withdraw")
        for fact in change.puts:
            known = self.facts.get(fact.key)
            other = known is not None and known.owner != member.id
            if other and isinstance(fact, NodeFact) and isinstance(known, NodeFact):
                # What is held may be a life of the node that ended before: the later registration has the name.
                if fact.key in self._held and fact.incarnation > known.incarnation:
                    continue
                return Refusal(index, fact.name, run_by(known, fact.host), run_by(fact, fact.host))
            if fact.owner != member.id or not (self._stands(fact) or fact.key[1] in new):
                return Refusal(index, f"{_named(fact.key)} is not for pid {member.pid} on {member.host} to announce")
        return None

    def _stands(self, fact: Fact) -> bool:
        """Whether the node that a service belongs to is there, and its owner's."""
        node = self.facts.node(fact.node) if isinstance(fact, ServiceFact) else fact
        return node is not None and node.owner == fact.owner

    def _take(self, draft: _Draft, change: Change) -> None:
        for key in change.deletes:
            draft.delete(key)
            self._held.pop(key, None)
        for fact in change.puts:
            self._put(draft, fact)

    def _put(self, draft: _Draft, fact: Fact) -> None:
        known = self.facts.get(fact.key)
        if known is not None and known.owner != fact.owner:  # held for somebody who has lost the name since
            draft.delete(fact.key)
            known = None
        if isinstance(fact, NodeFact) and fact.incarnation == (0, 0):
            now = self.position.epoch.counter, self.position.version + 1
            fact = replace(fact, incarnation=known.incarnation if isinstance(known, NodeFact) else now)
        self._held.pop(fact.key, None)
        draft.put(fact)

    def _settle(self, draft: _Draft, owner: str) -> None:
        for key in [key for key, held in self._held.items() if held == owner]:
            draft.delete(key)
        self._forget(owner)

    def _forget(self, owner: str) -> None:
        self._settled.add(owner)
        self._held = {key: held for key, held in self._held.items() if held != owner}

    def _next(self) -> Position:
        return Position(self.position.epoch, self.position.version + 1)

    def _commit(self, draft: _Draft) -> Commit | None:
        if not draft.puts and not draft.deletes:
            return None
        return self._append(Commit(self._next(), tuple(draft.puts.values()), tuple(draft.deletes)))

    def _append(self, commit: Commit) -> Commit:
        self.position = commit.position
        self._tail.append(commit)
        return commit


def run_by(node: NodeFact, host: str) -> str:
    """Whose a node is, for somebody on *host*: ``pid 4242 as Thermometer``."""
    place = "" if node.host == host else f" on {node.host}"
    return f"pid {node.pid}{place} as {node.cls.rpartition('.')[2] or node.kind}"


def _named(key: Key) -> str:
    return f"{key[0]} {'/'.join(key[1:])!r}" if key else "a fact without a name"
