"""The one history of the graph's changes, and views of it.

The registry's `Log` orders all changes into commits.  A `View` is what a process knows: always a
prefix of one epoch's history, and never an older one than before.

Pure: driven by messages alone.  One thread changes a `Log` or a `View`; lookups in its `Facts` may
come from any thread.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec.structs import replace

from pyzmp.protocol.facts import (
    SIZE,
    Beat,
    Change,
    Commit,
    Epoch,
    Fact,
    Hold,
    Key,
    Member,
    NodeFact,
    Position,
    Refusal,
    Snapshot,
    encode,
    pieces,
)
from pyzmp.protocol.index import Facts

TAIL = 4096  # commits that a log keeps for followers that missed some
LARGE = SIZE // 4  # bytes of what one commit puts, and deletes, at most: followers must be able to read it


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
        self._changes = 0  # odd in the midst of a change
        self._heard = 0.0
        self._doubts: dict[str, float] = {}  # the owners that are doubted, and since when

    def load(self, snapshot: Snapshot, now: float = 0.0) -> Outcome:
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
            self._become(facts, snapshot.position)
            before, self._doubts = self._doubts, {}
            self._doubt((fact for piece in taken for fact in piece.facts), before, now)
            self._heard = now
        return Outcome.APPLIED

    def apply(self, commit: Commit, now: float = 0.0) -> Outcome:
        """Take one commit, if it is the next one."""
        outcome = self._judge(commit.position)
        if outcome is not Outcome.GAP or not self._follows(commit):
            return outcome
        self._changes += 1
        try:
            self.facts.change(commit.puts, commit.deletes, commit.gone)
            self.position = commit.position
        finally:  # whoever reads meanwhile waits for it
            self._changes += 1
        self._doubt(commit.puts, self._doubts, now)
        for owner in commit.gone:
            self._doubts.pop(owner, None)
        self._heard = now
        return Outcome.APPLIED

    def whole(self) -> tuple[Position | None, list[Fact]]:
        """The position and every fact there, in no order, which belong together; any thread may ask."""
        while True:
            changes, position, facts = self._changes, self.position, self.facts.copied()
            if not changes % 2 and changes == self._changes:
                return position, facts

    def forget(self) -> None:
        """Know nothing, as before the first snapshot: for a view whose members are all known to be gone."""
        self._become(Facts(), None)
        self._doubts = {}

    def _become(self, facts: Facts, position: Position | None) -> None:
        self._changes += 1
        self.facts, self.position = facts, position
        self._changes += 1

    def hear(self, beat: Beat, now: float = 0.0) -> Outcome:
        """What a beat says about this view: that it is complete (DUPLICATE), misses something, or is another's."""
        outcome = self._judge(beat.position)
        if outcome is Outcome.DUPLICATE:
            self._heard = now
        return outcome

    def confirmed(self, owner: str, now: float) -> float:
        """Seconds since *owner* was last known to be connected to the registry; infinite where it is not known.

        *now* is of the clock by which the messages came: monotonic seconds in a replica.
        """
        if self.facts.get(("member", owner)) is None:
            return math.inf
        return max(0.0, now - self._doubts.get(owner, self._heard))

    def _doubt(self, puts: Iterable[Fact], before: Mapping[str, float], now: float) -> None:
        for fact in puts:
            if isinstance(fact, Member) and fact.doubted:
                self._doubts[fact.id] = before.get(fact.id, now)
            elif isinstance(fact, Member):
                self._doubts.pop(fact.id, None)

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

    def _follows(self, commit: Commit) -> bool:
        mine = self.position
        return mine is not None and mine.epoch == commit.position.epoch and mine.version == commit.after


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
            for part in self._facts.parts(fact.name):
                self.puts.pop(part.key, None)
        self.puts.pop(key, None)
        self.deletes[key] = None
        self._facts.change(deletes=(key,))


class Log:
    """The registry's side: puts all changes of one epoch in order, and keeps every fact to its owner.

    Each method that changes something returns its last commit, or None where nothing changed; `since` gives all
    that followers have to be sent.

    *credible* tells whether a node was, as it says of itself, registered before this epoch with its incarnation,
    where that is held against another owner.

    What followers *hold* of the epoch before is no part of the history.  It says for whom to wait, and keeps
    the names of nodes for those who had them.
    """

    def __init__(self, epoch: Epoch, credible: Callable[[NodeFact, NodeFact], bool] = lambda node, other: True) -> None:
        self.position = Position(epoch, 0)
        self._credible = credible
        self.facts = Facts()
        self._tail: deque[Commit] = deque(maxlen=TAIL)
        self._held: dict[str, dict[Key, Member | NodeFact]] = {}  # by owner
        self._reserved: dict[str, dict[str, NodeFact]] = {}  # what is held of nodes, by name and owner
        self._stale: dict[str, set[Key]] = {}  # by owner: what is in the graph, and has to be confirmed anew
        self._settled: set[str] = set()  # owners that have told all they own, or are gone

    @property
    def unconfirmed(self) -> list[str]:
        """The owners of facts of the epoch before that have not confirmed them."""
        return list(self._held)

    def held_of(self, owner: str) -> list[Member | NodeFact]:
        """What is held of an owner that has not confirmed it."""
        return list(self._held.get(owner, {}).values())

    def reserved(self, node: NodeFact) -> NodeFact | None:
        """What is held under the name of *node* for another owner, registered later than that."""
        known = self.facts.node(node.name)
        mine = known is not None and known.owner == node.owner
        found = [held for owner, held in self._reserved.get(node.name, {}).items() if owner != node.owner and (
                 held.incarnation > node.incarnation or not (mine or self._credible(node, held)))]
        return max(found, key=lambda held: held.incarnation, default=None)

    def hold(self, facts: Iterable[Fact]) -> set[str]:
        """Wait for the owners of facts of the epoch before, unless they have spoken since; those that are new."""
        new: set[str] = set()
        for fact in facts:
            if fact.owner in self._settled or not isinstance(fact, Member | NodeFact):
                continue
            if fact.owner not in self._held:
                new.add(fact.owner)
            self._held.setdefault(fact.owner, {})[fact.key] = fact
            if isinstance(fact, NodeFact):
                self._reserved.setdefault(fact.name, {})[fact.owner] = fact
        return new

    def release(self, owner: str) -> None:
        """Wait for *owner* no longer, which has not spoken in this epoch."""
        self._settled.add(owner)
        for fact in self._held.pop(owner, {}).values():
            if isinstance(fact, NodeFact):
                self._reserved[fact.name].pop(owner, None)
                if not self._reserved[fact.name]:
                    del self._reserved[fact.name]

    def join(self, member: Member) -> Commit | None:
        """Take a member in, for the first time or again: what it owned has to be confirmed anew."""
        draft = _Draft(self.facts)
        if self.facts.get(member.key) is not None:
            self._stale[member.id] = {fact.key for fact in self.facts.owned_by(member.id)} - {member.key}
        draft.put(member)
        return self._commit(draft)

    def doubt(self, owner: str) -> Commit | None:
        """Say that the connection of a member is cut."""
        draft = _Draft(self.facts)
        member = self.facts.get(("member", owner))
        if isinstance(member, Member):
            draft.put(replace(member, doubted=True))
        return self._commit(draft)

    def propose(self, member: Member, changes: Iterable[Change] = (), *,
                complete: bool = False) -> tuple[Commit | None, tuple[Refusal, ...]]:
        """Take those of a member's *changes* that may be; the others are refused, each by itself.

        *complete*: the member has now confirmed all it owns, so what is not confirmed ends.
        """
        draft = _Draft(self.facts)
        refusals: list[Refusal] = []
        draft.put(member)
        for index, change in enumerate(changes):
            refusal = self._refusal(index, member, change)
            if refusal is None:
                self._take(draft, change)
            else:
                refusals.append(refusal)
        if complete:
            stale = self._stale.pop(member.id, set())
            for key in stale:
                if len(key) < 3 or ("node", key[1]) not in stale:  # a node takes its parts with it
                    draft.delete(key)
            self.release(member.id)
        return self._commit(draft), tuple(refusals)

    def drop(self, owner: str) -> Commit | None:
        """Withdraw every fact of a process that has left or is gone."""
        self._stale.pop(owner, None)
        self.release(owner)
        if not self.facts.owned_by(owner):
            return None
        self.facts.change(gone=(owner,))
        return self._append(Commit(self._next(), self.position.version, gone=(owner,)))

    def forget(self) -> None:
        """Forget who has told all and is out of the graph: for when nobody is waited for any more."""
        self._settled = {owner for owner in self._settled if self.facts.get(("member", owner)) is not None}

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
            if known is not None and (known.owner != member.id or isinstance(known, Member)):
                return Refusal(index, f"{_named(key)} is not for pid {member.pid} on {member.host} to withdraw")
        for fact in change.puts:
            if fact.owner != member.id or isinstance(fact, Member):
                return Refusal(index, f"{_named(fact.key)} is not for pid {member.pid} on {member.host} to announce")
            if len(encode(Hold((fact,)))) > LARGE:
                return Refusal(index, f"{_named(fact.key)} is too large to be announced")
            if isinstance(fact, NodeFact):
                if len(set(fact.groups)) < len(fact.groups):
                    return Refusal(index, f"{_named(fact.key)} is in one group twice: {', '.join(fact.groups)}")
                other = self._rival(fact)
                if other is not None:
                    return Refusal(index, fact.name, run_by(other, fact.host), run_by(fact, fact.host))
            elif fact.node not in new and (("node", fact.node) in change.deletes
                                           or getattr(self.facts.node(fact.node), "owner", "") != member.id):
                return Refusal(index, f"{_named(fact.key)} is not for pid {member.pid} on {member.host} to announce")
        return None

    def _rival(self, fact: NodeFact) -> NodeFact | None:
        """Who has the name of *fact* by right, if not its owner: of two that had it before the epoch, the later."""
        known = self.facts.node(fact.name)
        if known is not None and known.owner != fact.owner and not self._supersedes(fact, known):
            return known
        return self.reserved(fact)

    def _supersedes(self, fact: NodeFact, known: NodeFact) -> bool:
        """Whether *fact* was registered before the epoch, and later than *known* was, if that was before it at all."""
        epoch = self.position.epoch.counter
        return fact.owner not in self._settled and fact.incarnation[0] < epoch and self._credible(fact, known) and (
            known.incarnation < fact.incarnation
            or (known.incarnation[0] < epoch and not self._credible(known, fact)))

    def _take(self, draft: _Draft, change: Change) -> None:
        for key in change.deletes:
            draft.delete(key)
        for fact in change.puts:
            self._stale.get(fact.owner, set()).discard(fact.key)
            draft.put(self._registered(draft, fact) if isinstance(fact, NodeFact) else fact)

    def _registered(self, draft: _Draft, fact: NodeFact) -> NodeFact:
        """*fact* with the incarnation that it has or gets.  A rival that has lost the name goes."""
        known = self.facts.node(fact.name)
        if known is not None and known.owner != fact.owner:
            draft.delete(fact.key)
            known = None
        for part in self.facts.parts(fact.name):
            if part.owner != fact.owner:
                draft.delete(part.key)
        now = self.position.epoch.counter, self.position.version + 1
        if (0, 0) < fact.incarnation < now:
            return fact
        known = known or self._reserved.get(fact.name, {}).get(fact.owner)
        return replace(fact, incarnation=known.incarnation if known is not None else now)

    def _next(self) -> Position:
        return Position(self.position.epoch, self.position.version + 1)

    def _commit(self, draft: _Draft) -> Commit | None:
        if not draft.puts and not draft.deletes:
            return None
        *before, deletes = pieces(draft.deletes, LARGE)
        puts, *after = pieces(draft.puts.values(), LARGE)
        for part in before:
            self._append(Commit(self._next(), self.position.version, deletes=part))
        commit = self._append(Commit(self._next(), self.position.version, puts, deletes))
        for more in after:
            commit = self._append(Commit(self._next(), self.position.version, more))
        return commit

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
