"""The registry's facts as keys of etcd: their names, the transactions that change them, and what a watch tells.

Everything of a domain lies under ``/pyzmp/<domain>/``: ``epoch``, ``member/<id>``, ``node/<name>``,
``part/<node>/<kind>/<name>``, and ``peer/<id>`` for where each member listens to those that look after it.  A fact
lives as long as the lease of its owner.  Positions are etcd's revisions.

Pure: requests and answers are the JSON objects of etcd's gateway, as Python knows them.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec
from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import facts
from pyzmp.protocol.facts import Change, Commit, Epoch, Fact, Key, Member, NodeFact, Position, Refusal
from pyzmp.protocol.graph import run_by

OPERATIONS = 100  # of one transaction; etcd takes 128
ROOM = 512 << 10  # bytes of the facts of one transaction; etcd takes 1.5 MiB of JSON

Json = dict[str, Any]


def text64(data: bytes) -> str:
    """*data* as the gateway has it."""
    return base64.b64encode(data).decode()


def from64(text: str) -> bytes:
    """What the gateway means; raises MalformedMessage."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise MalformedMessage(f"no base64: {error}") from error


class Peer(msgspec.Struct, frozen=True, array_like=True):
    """Where a member listens to those that look after it, and the lease that all it owns hangs on."""

    member: Member
    addresses: tuple[facts.Text, ...]
    lease: int = 0


class Stored(NamedTuple):
    """A fact as etcd has it, with the revision that put it and its lease."""

    fact: Fact
    revision: int
    lease: int


class Layout(msgspec.Struct, frozen=True):
    """The names of a domain's keys."""

    domain: str

    @property
    def root(self) -> str:
        return f"/pyzmp/{quote(self.domain, safe='')}/"

    @property
    def epoch(self) -> bytes:
        return f"{self.root}epoch".encode()

    def fact(self, key: Key) -> bytes:
        """The name of a fact's key."""
        kind, *names = (quote(part, safe="") for part in key)
        path = f"{kind}/{names[0]}" if len(names) == 1 else f"part/{names[0]}/{kind}/{'/'.join(names[1:])}"
        return f"{self.root}{path}".encode()

    def peer(self, member: str) -> bytes:
        """The name of the key that says where *member* listens."""
        return f"{self.root}peer/{quote(member, safe='')}".encode()

    def prefix(self, path: str = "") -> Json:
        """What a range or a watch of all below *path* says."""
        start = f"{self.root}{path}"
        return {"key": text64(start.encode()), "range_end": text64(f"{start[:-1]}0".encode())}

    def parts(self, node: str) -> Json:
        """As `prefix`, for the parts of *node*."""
        return self.prefix(f"part/{quote(node, safe='')}/")

    def read(self, name: bytes) -> Key:
        """Which key has that name: a fact's, ``("peer", id)`` or ``("epoch",)``; raises MalformedMessage."""
        try:
            path = name.decode()
            parts = tuple(unquote(part, errors="strict") for part in path.removeprefix(self.root).split("/"))
        except UnicodeDecodeError as error:
            raise MalformedMessage(f"a key that is no text: {name!r}") from error
        if path.startswith(self.root):
            if parts[0] == "part" and len(parts) == 4 and parts[2] not in {"node", "member", "peer"}:
                return parts[2], parts[1], parts[3]
            if (len(parts) == 2 and parts[0] in {"member", "node", "peer"}) or parts == ("epoch",):
                return parts
        raise MalformedMessage(f"no key of a registry: {path!r}")


# -- values --------------------------------------------------------------------------------------------------------

def written(fact: Fact) -> bytes:
    """The value of a fact's key."""
    return facts.encode(facts.Hold((fact,)))


def stored(layout: Layout, kv: Json) -> Stored:
    """The fact in an entry of a range or a watch; raises MalformedMessage where it is none of that key."""
    message = facts.decode(from64(kv.get("value", "")))
    if not isinstance(message, facts.Hold) or len(message.facts) != 1:
        raise MalformedMessage(f"{from64(kv['key'])!r} holds no fact")
    (fact,) = message.facts
    if layout.read(from64(kv["key"])) != fact.key:
        raise MalformedMessage(f"{from64(kv['key'])!r} holds a fact about {fact.key!r}")
    return Stored(_registered(fact, int(kv["create_revision"])), int(kv["mod_revision"]), int(kv.get("lease", 0)))


def _registered(fact: Fact, revision: int) -> Fact:
    """A node as one that was registered at *revision*, unless it was before."""
    if isinstance(fact, NodeFact) and fact.incarnation[1] == 0:
        return replace(fact, incarnation=(fact.incarnation[0], revision))
    return fact


def peer(kv: Json) -> Peer:
    """The peer in an entry of a range or a watch; raises MalformedMessage."""
    try:
        found = msgspec.msgpack.decode(from64(kv.get("value", "")), type=Peer)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedMessage(f"{from64(kv['key'])!r} holds no peer: {error}") from error
    return replace(found, lease=int(kv.get("lease", 0)))


def sorted_out(layout: Layout, kvs: Iterable[Json]) -> tuple[list[Stored], dict[str, Peer], list[str]]:
    """The facts and the peers among entries, and the faults of those that are neither."""
    known: list[Stored] = []
    peers: dict[str, Peer] = {}
    faults: list[str] = []
    for kv in kvs:
        try:
            key = layout.read(from64(kv["key"]))
            if key[0] == "peer":
                peers[key[1]] = peer(kv)
            elif key[0] != "epoch":
                known.append(stored(layout, kv))
        except MalformedMessage as error:
            faults.append(str(error))
    return known, peers, faults


def removal(kv: Json) -> Json:
    """The transaction that removes an entry that has not changed."""
    return {"compare": [{"key": kv["key"], "target": "MOD", "mod_revision": kv["mod_revision"]}],
            "success": [{"request_delete_range": {"key": kv["key"]}}]}


# -- epochs --------------------------------------------------------------------------------------------------------

def epoch_value(epoch: Epoch) -> bytes:
    """The value of the key ``epoch``."""
    return msgspec.json.encode(epoch)


def read_epoch(value: bytes) -> Epoch:
    """The epoch in the value of that key; raises MalformedMessage."""
    try:
        return msgspec.json.decode(value, type=Epoch)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedMessage(f"no epoch: {value[:100]!r}") from error


def next_epoch(found: Epoch | None, cluster: str, above: int, random: str) -> Epoch | None:
    """The epoch to begin, if none was *found* in that *cluster*, or none with a counter higher than *above*.

    Its nonce, the cluster and a random part, tells data that go on from data that began anew: a view of the one is
    no view of the other.
    """
    if found is not None and found.counter > above and found.nonce.startswith(f"{cluster}-"):
        return None
    return Epoch(max(above, found.counter if found is not None else 0) + 1, f"{cluster}-{random}")


def is_older(since: Position, epoch: Epoch, revision: int) -> bool:
    """Whether etcd, at *revision* of *epoch*, is behind a view at *since*: it was set back to an older copy."""
    return since.epoch == epoch and since.version > revision


def epoch_change(layout: Layout, before: bytes | None, after: Epoch) -> Json:
    """The transaction that begins an epoch, unless somebody else has begun one."""
    key = text64(layout.epoch)
    was: Json = ({"key": key, "target": "VALUE", "value": text64(before)} if before is not None
                 else {"key": key, "target": "CREATE", "create_revision": "0"})
    return {"compare": [was], "success": [{"request_put": {"key": key, "value": text64(epoch_value(after))}}],
            "failure": [{"request_range": {"key": key}}]}


# -- what a watch tells ----------------------------------------------------------------------------------------------

class Told(NamedTuple):
    """What an answer of a watch says: commits, who listens where (None: no more), faults, and another epoch."""

    commits: list[Commit]
    peers: dict[str, Peer | None]
    faults: list[str]
    epoch: bool


def fold(layout: Layout, position: Position, events: Iterable[Json]) -> Told:
    """The commits in *events* that follow *position*: one for each revision, with all that it put and deleted."""
    told = Told([], {}, [], False)
    batches: dict[int, tuple[list[Fact], list[Key]]] = {}
    for event in events:
        kv = event["kv"]
        revision = int(kv["mod_revision"])
        if revision <= position.version:
            continue
        puts, deletes = batches.setdefault(revision, ([], []))
        try:
            key = layout.read(from64(kv["key"]))
            gone = event.get("type") == "DELETE"
            if key[0] == "epoch":
                told = told._replace(epoch=True)
            elif key[0] == "peer":
                told.peers[key[1]] = None if gone else peer(kv)
            elif gone:
                deletes.append(key)
            else:
                puts.append(stored(layout, kv).fact)
        except MalformedMessage as error:
            told.faults.append(str(error))
    after = position.version
    for revision, (puts, deletes) in sorted(batches.items()):
        told.commits.append(Commit(Position(position.epoch, revision), after, tuple(puts), tuple(deletes)))
        after = revision
    return told


# -- what a member owns, and changing it -----------------------------------------------------------------------------

class Book:
    """What *member* owns in etcd, on its *lease*, in one epoch; and the transactions that change it.

    Nobody else changes it, but that all may end with the lease.  Nodes of others are in *seen*, as a transaction
    that failed has shown them; what was not shown is taken not to be there, and each transaction asks whether it is.

    A request without an answer may be made long after it was made again, by an etcd that was stopped.  Each asks
    whether the member's own key is as it was, and what ends or changes a fact puts that anew: no earlier one undoes it.
    """

    def __init__(self, layout: Layout, epoch: Epoch, member: Member, lease: int, own: Iterable[Stored] = ()) -> None:
        self.member = member
        self._layout, self._epoch, self._lease = layout, epoch, lease
        self.own: dict[Key, Stored] = {known.fact.key: known for known in own}
        self.fence = True  # put it with the next transaction: who knows what was asked for before, or was refused
        self.unconfirmed: dict[Key, None] = dict.fromkeys(key for key in self.own if key != member.key)

    def judge(self, index: int, change: Change, seen: Mapping[Key, Stored]) -> Refusal | None:
        """Why *change* cannot be, as far as is known."""
        asker = f"pid {self.member.pid} on {self.member.host}"
        self.fence |= bool(seen)  # what is refused now may be free when the request comes again
        for key in change.deletes:
            if anchor(key) in seen:
                return Refusal(index, f"{_named(key)} is not for {asker} to withdraw")
        new = {fact.key for fact in change.puts}
        for fact in change.puts:
            known = seen.get(anchor(fact.key))
            if known is not None and isinstance(known.fact, NodeFact) and isinstance(fact, NodeFact):
                return Refusal(index, fact.name, run_by(known.fact, fact.host), run_by(fact, fact.host))
            stands = anchor(fact.key) in self.own or anchor(fact.key) in new
            if known is not None or fact.owner != self.member.id or not stands:
                return Refusal(index, f"{_named(fact.key)} is not for {asker} to announce")
        return None

    def transaction(self, changes: Iterable[Change]) -> Json | None:
        """What makes *changes*, if all is as is known; None where they are made already."""
        puts, deletes = self._lists(changes)
        if not puts and not deletes:
            return None
        anchors = dict.fromkeys(anchor(key) for key in (self.member.key, *puts, *deletes))
        names = {key: text64(self._layout.fact(key)) for key in anchors}
        return {
            "compare": [self._same_epoch(), *(
                {"key": name, "target": "MOD", "mod_revision": str(self.own[key].revision if key in self.own else 0)}
                for key, name in names.items())],
            "success": [*self._deletions(deletes), *(
                {"request_put": {"key": text64(self._layout.fact(key)), "value": text64(written(fact)),
                                 "lease": str(self._lease)}} for key, fact in puts.items())],
            "failure": [{"request_range": {"key": name}} for name in (text64(self._layout.epoch), *names.values())],
        }

    def made(self, changes: Iterable[Change], revision: int) -> None:
        """Note that *changes* are made, at *revision* or before."""
        changes = tuple(changes)
        puts, deletes = self._lists(changes)
        for key in deletes:
            for known in [key, *(self._parts(key[1]) if key[0] == "node" else ())]:
                self.own.pop(known, None)
        for key, fact in puts.items():
            self.own[key] = Stored(_registered(fact, revision), revision, self._lease)
        self.fence = False
        for change in changes:
            for key in (*change.deletes, *(fact.key for fact in change.puts)):
                self.unconfirmed.pop(key, None)

    def position(self, changes: Iterable[Change]) -> int:
        """The revision that made those of *changes* that are there."""
        known = (self.own.get(fact.key) for change in changes for fact in change.puts)
        return max((found.revision for found in known if found is not None), default=0)

    def shown(self, fact: Fact, revision: int) -> None:
        """Note that somebody else has put *fact* for this member, at *revision*."""
        self.own[fact.key] = Stored(fact, revision, self._lease)

    def entrance(self, peer: Peer) -> Json:
        """The transaction that says where this member listens: it has confirmed all it owns."""
        return {"compare": [self._same_epoch()], "success": [{"request_put": {
            "key": text64(self._layout.peer(self.member.id)), "value": text64(msgspec.msgpack.encode(peer)),
            "lease": str(self._lease)}}]}

    def _same_epoch(self) -> Json:
        return {"key": text64(self._layout.epoch), "target": "VALUE", "value": text64(epoch_value(self._epoch))}

    def _lists(self, changes: Iterable[Change]) -> tuple[dict[Key, Fact], dict[Key, None]]:
        """What is to be put and deleted, without what is so already."""
        puts: dict[Key, Fact] = {}
        deletes: dict[Key, None] = {}
        for change in changes:
            deletes.update(dict.fromkeys(change.deletes))
            for fact in change.puts:
                known = self.own.get(fact.key)
                wanted = self._numbered(fact, known)
                if known is None or known.fact != wanted or known.lease != self._lease:
                    puts[fact.key] = wanted
        deletes = {key: None for key in deletes if key[0] == "node" or key in self.own or anchor(key) not in self.own}
        if deletes or self.fence or any(key in self.own for key in puts):
            puts.setdefault(self.member.key, self.member)
        return puts, deletes

    def _numbered(self, fact: Fact, known: Stored | None) -> Fact:
        """A node with its incarnation, whose revision is not known before it is registered."""
        if not isinstance(fact, NodeFact) or fact.incarnation != (0, 0):
            return fact
        mine = known.fact if known is not None else None
        return replace(fact, incarnation=mine.incarnation if isinstance(mine, NodeFact) else (self._epoch.counter, 0))

    def _deletions(self, deletes: Collection[Key]) -> Iterator[Json]:
        for key in deletes:
            if key in self.own:
                yield {"request_delete_range": {"key": text64(self._layout.fact(key))}}
                if key[0] == "node":
                    yield {"request_delete_range": self._layout.parts(key[1])}

    def _parts(self, node: str) -> list[Key]:
        return [key for key in self.own if len(key) > 2 and key[1] == node]


def anchor(key: Key) -> Key:
    """The key on which it depends whose *key* is: a part's is its node's."""
    return key if len(key) < 3 else ("node", key[1])


def steps(change: Change) -> list[Change]:
    """*change*, or what it says in parts that a transaction has room for, to be made in this order."""
    if len(change.puts) + 2 * len(change.deletes) <= OPERATIONS and not (change.puts and change.deletes):
        return [change]
    half = OPERATIONS // 2  # deleting a node takes two
    return [*(Change(deletes=change.deletes[at:at + half]) for at in range(0, len(change.deletes), half)),
            *(Change(change.puts[at:at + OPERATIONS]) for at in range(0, len(change.puts), OPERATIONS))]


def batches(changes: Sequence[Change]) -> Iterator[range]:
    """Which of *changes*, each one step, go into one transaction: it has room for them, and none needs another."""
    start, used, room, before, below = 0, 0, ROOM, set[Key](), set[Key]()
    for index, change in enumerate(changes):
        keys = {*change.deletes, *(fact.key for fact in change.puts)}
        anchors = {anchor(key) for key in keys}
        count = len(change.puts) + 2 * len(change.deletes)
        size = sum(len(written(fact)) for fact in change.puts)
        related = keys & (before | below) or anchors & before  # the one is decided by what the other has made
        if index > start and (used + count > OPERATIONS or size > room or related):
            yield range(start, index)
            start, used, room, before, below = index, 0, ROOM, set(), set()
        used, room = used + count, room - size
        before |= keys
        below |= anchors
    if len(changes) > start:
        yield range(start, len(changes))


def _named(key: Key) -> str:
    return f"{key[0]} {'/'.join(key[1:])!r}"
