"""What one process announces: its own facts, and the changes that the registry has yet to settle."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from pyzmp.exceptions import NodeExists
from pyzmp.protocol import facts, graph
from pyzmp.protocol.facts import Change, Fact, Key, Position

log = logging.getLogger("pyzmp.registry")


class _Item:
    """A change to propose, and who waits for it, each with the keys that are new with what it has asked for.

    ``unsettled`` counts the parts that it was sent in.
    """

    __slots__ = ("change", "unsettled", "waiting")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.unsettled = 0
        self.waiting: dict[asyncio.Future[Position], tuple[Key, ...]] = {}

    def succeed(self, position: Position) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_result(position)

    def fail(self, error: Exception) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may wait for it, as for what undoes something given up


class Announcer:
    """Announces and withdraws for *member*, over one session after the other; used on *loop* only.

    *say* sends a message on the session there is, *reached* tells whether the view contains a
    position.  Changes made in one turn of the loop travel together.
    """

    def __init__(self, member: facts.Member, loop: asyncio.AbstractEventLoop, say: Callable[[facts.Message], None],
                 reached: Callable[[Position], bool], domain: str = "") -> None:
        self._member, self._loop, self._say, self._reached, self._domain = member, loop, say, reached, domain
        self._own: dict[str, dict[Key, Fact]] = {}  # by node
        self._queue: list[_Item] = []
        self._sent: dict[int, list[_Item]] = {}
        self._unreached: list[tuple[Position, _Item]] = []
        self._numbers = itertools.count(1)
        self._joins = itertools.count(1)
        self._contested: set[str] = set()  # names of own nodes that were seen as another's
        self._flushing = False
        self._open = False

    def announce(self, new: Iterable[Fact]) -> asyncio.Future[Position]:
        """Ask for facts to be put; NodeExists at once where this process has a node of that name.

        AnnouncementRefused at once for what no registry could read.
        """
        change = Change(puts=tuple(facts.fitting(fact) for fact in new))
        for fact in change.puts:
            self._check(fact)
        new_keys = tuple(fact.key for fact in change.puts if fact.key not in self._own.get(fact.key[1], {}))
        for fact in change.puts:
            self._own.setdefault(fact.key[1], {})[fact.key] = fact
        return self._ask(change, new_keys)

    def withdraw(self, keys: Iterable[Key]) -> asyncio.Future[Position]:
        """Ask for facts to be taken out; they are not announced again, whatever becomes of this."""
        change = Change(deletes=tuple(keys))
        for key in change.deletes:
            self._disown(key)
        return self._ask(change)

    def give_up(self, asked: asyncio.Future[Position]) -> None:
        """Nobody waits for *asked* any more: withdraw what was new with it.

        What was another value of something known stays, as it is true: registries will hear of it.
        """
        items = [*self._queue, *itertools.chain(*self._sent.values()), *(item for _, item in self._unreached)]
        asked.cancel()
        new_keys = next((item.waiting[asked] for item in items if asked in item.waiting), ())
        if new_keys:
            self.withdraw(new_keys)

    def introduce(self) -> None:
        """Tell the registry of a new session who this is and all that it owns; what is unsettled is part of that."""
        self._open = True
        self._say(facts.Join(self._member, self._domain, next(self._joins)))
        items = {node: _Item(Change(puts=tuple(own.values()))) for node, own in self._own.items()}
        rest = _Item(Change())
        settled = (item for _, item in self._unreached)  # before the view could show it: another registry decides anew
        for item in (*settled, *itertools.chain(*self._sent.values()), *self._queue):
            nodes = {fact.key[1] for fact in item.change.puts}
            items.get(nodes.pop() if nodes else "", rest).waiting.update(item.waiting)
        self._sent, self._queue, self._unreached = {}, [], []
        self._propose([*items.values(), rest], complete=True)

    def interrupt(self) -> None:
        """The session ended: what comes now waits for the next."""
        self._open = False

    def learn(self, known: Iterable[Fact]) -> None:
        """Own nodes as the registry has them, with their incarnations; and names of theirs that are another's."""
        for fact in known:
            own = self._own.get(fact.key[1], {}).get(fact.key) if isinstance(fact, facts.NodeFact) else None
            if not isinstance(own, facts.NodeFact) or not isinstance(fact, facts.NodeFact):
                continue
            if fact.owner == self._member.id:
                self._own[fact.name][fact.key] = replace(own, incarnation=fact.incarnation)
            else:
                self._contested.add(fact.name)

    def review(self, node: Callable[[str], facts.NodeFact | None]) -> None:
        """The view is complete: own no longer the nodes that were lost while no registry heard of this process."""
        if self._contested and not (self._sent or self._queue or self._unreached):
            contested, self._contested = self._contested, set()
            for name in contested:
                other = node(name)
                if other is not None and other.owner != self._member.id and name in self._own:
                    self._disown(other.key)
                    log.error("this process was away for too long: the node %r is now run by %s", name,
                              graph.run_by(other, self._member.host))

    def settle(self, message: facts.Settled) -> None:
        """The registry has decided on a proposal."""
        refused = {refusal.index: refusal for refusal in message.refusals}
        for index, item in enumerate(self._sent.pop(message.id, [])):
            item.unsettled -= 1
            if index in refused:
                self._refuse(item, refused[index].error())
            elif not item.unsettled:
                self._unreached.append((message.position, item))
        self.arrive()

    def arrive(self) -> None:
        """Tell those whose change the view has reached."""
        unreached, self._unreached = self._unreached, []
        for position, item in unreached:
            if self._reached(position):
                item.succeed(position)
            else:
                self._unreached.append((position, item))

    def close(self, error: Exception) -> bool:
        """Tell those who wait that all ends, and the registry; whether there is one that will answer."""
        told = self._open
        if told:
            self._say(facts.Leave())
        for item in (*self._queue, *itertools.chain(*self._sent.values()), *(item for _, item in self._unreached)):
            item.fail(error)
        self._open = False
        return told

    def _check(self, fact: Fact) -> None:
        known = self._own.get(fact.key[1], {}).get(fact.key)
        if isinstance(known, facts.NodeFact) and isinstance(fact, facts.NodeFact) and (
                fact.incarnation != known.incarnation or fact.incarnation == (0, 0)):
            raise NodeExists(fact.name, graph.run_by(known, fact.host), graph.run_by(fact, fact.host))

    def _disown(self, key: Key) -> None:
        of_node = self._own.get(key[1], {})
        of_node.pop(key, None)
        if key[0] == "node" or not of_node:
            self._own.pop(key[1], None)

    def _ask(self, change: Change, new_keys: tuple[Key, ...] = ()) -> asyncio.Future[Position]:
        asked: asyncio.Future[Position] = self._loop.create_future()
        item = _Item(change)
        item.waiting[asked] = new_keys
        self._queue.append(item)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return asked

    def _flush(self) -> None:
        self._flushing = False
        if self._open and self._queue:
            queue, self._queue = self._queue, []
            self._propose(queue, complete=False)

    def _propose(self, items: Sequence[_Item], *, complete: bool) -> None:
        changes = [(item, change) for item in items for change in facts.split(item.change)]
        for item, _ in changes:
            item.unsettled += 1
        remaining = iter(changes)
        parts = list(facts.pieces(change for _, change in changes))
        for place, part in enumerate(parts, 1):
            number = next(self._numbers)
            self._sent[number] = [item for item, _ in itertools.islice(remaining, len(part))]
            self._say(facts.Propose(number, part, complete and place == len(parts)))

    def _refuse(self, item: _Item, error: Exception) -> None:
        later = {fact.key for other in (*itertools.chain(*self._sent.values()), *self._queue) if other is not item
                 for fact in other.change.puts}
        for fact in item.change.puts:
            if fact.key not in later:  # else it was withdrawn and is announced again
                self._disown(fact.key)
        if not item.waiting:
            log.error("the registry took back what this process had announced: %s", error)
        item.fail(error)
