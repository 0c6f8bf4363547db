"""A session with etcd that is, for the replica in this process, one with a registry.

It takes the messages of `pyzmp.protocol.facts` and gives their answers; what they mean in etcd is decided in
`pyzmp.protocol.etcd`.  When something is not as it should be the session ends, and the next one begins with all that
this process owns: whatever was done by then is found done.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage, RegistryUnavailable
from pyzmp.protocol import etcd, facts
from pyzmp.protocol.etcd import Book, Json, Layout, Peer, Stored
from pyzmp.protocol.facts import Beat, Change, Epoch, Key, Member, Position, Refusal, Settled, Snapshot
from pyzmp.registry.domain import LEASE, is_gone
from pyzmp.registry.etcd_ring import ANSWER, Asked, EtcdRefused, Lease, Ring, entries, missed

BEAT = 1.0  # seconds between two looks whether etcd answers
_PULSE = 1.5  # seconds in which it has to: before the replica takes its registry for dead, and wants another epoch
_PAGE = 500  # entries of one answer
_SETTLING = 0.1  # seconds between two looks who has confirmed what it owns, after etcd's data began anew
_CATCHING_UP = 0.3  # seconds in which a new watch has told what was before it; etcd takes a tenth
_BEATS = 2  # after which a watch has told what was there: else its connection has gone silent
_TRIES = 10  # of a transaction that others come before
_NOT_FOUND, _COMPACTED = 5, 11

log = logging.getLogger("pyzmp.registry")


class _Over(Exception):
    """This session has to end; the text says why."""


class EtcdLink:
    """One session in *epoch*, on the loop that runs; etcd was at *revision* when it was found."""

    def __init__(self, gateway: Asked, layout: Layout, lease: Lease, ring: Ring, epoch: Epoch, revision: int,
                 hear: Callable[[facts.Message], None], over: Callable[[str], None]) -> None:
        self._gateway, self._layout, self._lease, self._ring = gateway, layout, lease, ring
        self._epoch, self._revision = epoch, revision
        self._hear, self._over = hear, over
        self._open = True
        self._leaving = False
        self._book: Book | None = None
        self._member: Member | None = None
        self._held: dict[str, Member] = {}
        self._position: Position | None = None  # what the view has been told
        self._reached: int | None = None  # it is complete once it has been told up to here
        self._catching_up: asyncio.TimerHandle | None = None
        self._watched = ""
        self._beats: deque[int] = deque(maxlen=_BEATS + 1)  # where etcd was at the last ones since the watch began
        self._checked = 0  # up to where the watch has missed nothing
        self._queue: asyncio.Queue[facts.Message | Member] = asyncio.Queue()
        self._handlers: dict[type, Callable[[Any], Coroutine[Any, Any, None]]] = {
            facts.Join: self._join, facts.Hold: self._hold, facts.Propose: self._propose, facts.Follow: self._follow,
            facts.Leave: self._leave, Member: self._contradict}
        self._tasks: list[asyncio.Task[None]] = []
        self._following = False
        self._start(self._work)
        self._start(self._beat)

    def say(self, message: facts.Message) -> None:
        """Take a message of the replica's."""
        if self._open:
            self._queue.put_nowait(message)

    def close(self) -> None:
        """End the session; what etcd knows stays."""
        self._open = False
        self._ring.rest()
        if self._catching_up is not None:
            self._catching_up.cancel()
        for task in self._tasks:
            task.cancel()

    # -- its tasks -------------------------------------------------------------------------------------------------

    def _start(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._guarded(work, *arguments)))

    async def _guarded(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        try:
            await work(*arguments)
        except (_Over, RegistryUnavailable, EtcdRefused, MalformedMessage) as error:
            self._end(str(error))
        except Exception as error:
            log.exception("the session with %s failed", self._gateway.endpoint)
            self._end(repr(error))

    def _end(self, reason: str) -> None:
        if self._open:
            self.close()
            self._over(reason)

    async def _work(self) -> None:
        """Handle one message of the replica's after the other."""
        self._tell(Beat(Position(self._epoch, self._revision), self._layout.domain))
        while True:
            message = await self._queue.get()
            await self._handlers[type(message)](message)

    async def _beat(self) -> None:
        """See that etcd answers, in this epoch and where the watch is; and keep the lease."""
        key = {"key": etcd.text64(self._layout.epoch)}
        while True:
            await asyncio.sleep(BEAT)
            answer = await self._gateway.ask("kv/range", key, _PULSE)
            self._check_epoch(answer.get("kvs", []))
            if answer["header"]["cluster_id"] != self._epoch.nonce.partition("-")[0]:
                raise _Over(f"another cluster answers at {self._gateway.endpoint}")
            if self._watched not in ("", self._gateway.endpoint):
                raise _Over(f"{self._watched} did not answer, {self._gateway.endpoint} does")
            if self._book is not None and not self._leaving and not await self._lease.renewed():
                raise _Over("the lease of this process has ended")
            await self._check_watch(int(answer["header"]["revision"]))
            self._tell(self._where())

    async def _check_watch(self, revision: int) -> None:
        """See that the watch has told of all that was there some beats ago: a connection may be lost without a word."""
        self._beats.append(revision)
        position = self._position
        if not self._watched or position is None or len(self._beats) <= _BEATS:
            return
        known, due = max(position.version, self._checked), self._beats[0]
        silent = self._reached is None or (known < due and await missed(self._gateway, self._layout, known, due))
        if silent and self._position == position:
            raise _Over(f"the watch at {self._watched} is silent")
        self._checked = due

    def _where(self) -> Beat:
        """A beat that says whether the view is complete."""
        complete = self._position is not None and self._reached is not None and self._position.version >= self._reached
        position = self._position if complete else None
        if position is None:  # one that the view has not reached
            told = self._position.version + 1 if self._position is not None else 0
            position = Position(self._epoch, max(self._revision, told, self._reached or 0))
        return Beat(position, self._layout.domain)

    def _tell(self, message: facts.Message) -> None:
        if self._open:
            self._hear(message)

    def _check_epoch(self, kvs: Sequence[Json]) -> None:
        if [etcd.from64(kv.get("value", "")) for kv in kvs] != [etcd.epoch_value(self._epoch)]:
            raise _Over("etcd is in another epoch")

    # -- what this process owns ------------------------------------------------------------------------------------

    async def _join(self, message: facts.Join) -> None:
        member = self._member = replace(message.member, doubted=False)
        lease = await self._lease.held()
        known, _, _ = etcd.sorted_out(self._layout, await entries(self._gateway, self._layout, lease))
        mine = [one for one in known if one.fact.owner == member.id]
        self._book = Book(self._layout, self._epoch, member, lease, mine)
        await self._settle(self._book, [Change((member,))])

    async def _hold(self, message: facts.Hold) -> None:
        self._held.update((fact.id, fact) for fact in message.facts if isinstance(fact, Member))

    async def _propose(self, message: facts.Propose) -> None:
        book = self._book
        if book is None:
            raise MalformedMessage("a Propose before the Join")
        version, refusals = await self._settle(book, message.changes)
        if message.complete:
            if book.unconfirmed:
                version = max(version, (await self._settle(book, [Change(deletes=tuple(book.unconfirmed))]))[0])
            await self._enter(book)
        self._tell(Settled(message.id, Position(self._epoch, version), refusals))

    async def _enter(self, book: Book) -> None:
        """Have others look after this process, all of whose facts are there."""
        peer = Peer(book.member, self._ring.listen(book.member))
        answer = await self._gateway.ask("kv/txn", book.entrance(peer), ANSWER)
        if not answer.get("succeeded"):
            raise _Over("etcd is in another epoch")

    async def _leave(self, message: facts.Leave) -> None:
        self._leaving = True
        await self._lease.end()
        self._tell(Settled(0, Position(self._epoch, 0)))

    async def _contradict(self, message: Member) -> None:
        """This process lives, whatever others may think."""
        if self._book is not None and not self._leaving:
            await self._settle(self._book, [Change((replace(message, doubted=False),))])

    async def _settle(self, book: Book, changes: Sequence[Change]) -> tuple[int, tuple[Refusal, ...]]:
        """Make those of *changes* that may be; the revision that has them all, and why the others may not."""
        parts = [(index, step) for index, change in enumerate(changes) for step in etcd.steps(change)]
        refused: dict[int, Refusal] = {}
        version = 0
        for span in etcd.batches([step for _, step in parts]):
            part = [parts[at] for at in span if parts[at][0] not in refused]
            version = max(version, await self._make(book, part, refused))
        return version, tuple(refused.values())

    async def _make(self, book: Book, part: Sequence[tuple[int, Change]], refused: dict[int, Refusal]) -> int:
        """Make what fits into one transaction; the revision that has it."""
        seen: dict[Key, Stored] = {}
        for _ in range(_TRIES):
            judged = [(index, step, book.judge(index, step, seen)) for index, step in part]
            if any(refusal is not None for _, _, refusal in judged) and await self._bury(seen):
                continue
            taken = [step for _, step, refusal in judged if refusal is None]
            transaction = book.transaction(taken)
            made: Json = {"succeeded": True}
            if transaction is not None:
                made = await self._transact(transaction)
            if made.get("succeeded"):
                refused.update((index, refusal) for index, _, refusal in judged if refusal is not None)
                revision = int(made["header"]["revision"]) if transaction is not None and transaction["success"] else 0
                book.made(taken, revision)
                return max(revision, book.position(taken))
            await self._shown(book, made["responses"], transaction or {}, seen)
        raise _Over("others are always faster")

    async def _transact(self, transaction: Json) -> Json:
        try:
            return await self._gateway.ask("kv/txn", transaction, ANSWER)
        except EtcdRefused as error:
            if error.code == _NOT_FOUND:
                raise _Over("this process was taken for gone, and its lease ended") from error
            raise

    async def _shown(self, book: Book, responses: Sequence[Json], transaction: Json, seen: dict[Key, Stored]) -> None:
        """Learn from a transaction that failed what is there instead."""
        found = [said["response_range"].get("kvs", []) for said in responses]
        self._check_epoch(found[0])
        for asked, kvs in zip(transaction["failure"][1:], found[1:], strict=True):
            key = self._layout.read(etcd.from64(asked["request_range"]["key"]))
            if not kvs and key in book.own:
                raise _Over("this process was taken for gone, and what it owns is withdrawn")
            for kv in kvs:
                try:
                    known = etcd.stored(self._layout, kv)
                except MalformedMessage as error:  # nobody's, and in the way
                    log.warning("etcd holds what is no fact, which is removed: %s", error)
                    await self._gateway.ask("kv/txn", etcd.removal(kv), ANSWER)
                else:
                    (book.own if known.fact.owner == book.member.id else seen)[key] = known

    async def _bury(self, seen: dict[Key, Stored]) -> bool:
        """End the leases of those in the way whose processes are gone; whether there were any."""
        owners = {(known.fact.owner, known.lease) for known in seen.values()}
        buried = set()
        for owner, lease in owners:
            answer = await self._gateway.ask(
                "kv/range", {"key": etcd.text64(self._layout.fact(("member", owner)))}, ANSWER)
            known, _, _ = etcd.sorted_out(self._layout, answer.get("kvs", []))
            for member in (one.fact for one in known):
                if isinstance(member, Member) and is_gone(member) and lease:
                    await self._ring.end(member, lease)
                    buried.add(owner)
        for key in [key for key, known in seen.items() if known.fact.owner in buried]:
            del seen[key]
        return bool(buried)

    # -- what others own -------------------------------------------------------------------------------------------

    async def _follow(self, message: facts.Follow) -> None:
        if not self._following:  # asked again, while it is on its way
            self._following = True
            self._start(self._watch, message.since)

    async def _watch(self, since: Position | None) -> None:
        """Bring the view up to date, and keep it so."""
        if since is not None and etcd.is_older(since, self._epoch, self._revision):
            cluster = self._epoch.nonce.partition("-")[0]
            await self._begin(f"{cluster}-{secrets.token_hex(6)}", "etcd was set back to an older copy of its data")
        if since is not None and since.epoch == self._epoch:
            self._position = since
            self._ring.reset(await self._peers())
        else:
            if since is not None and since.epoch.nonce != self._epoch.nonce:
                await self._owners()
            self._position = await self._snapshot()
        self._watched = self._gateway.endpoint
        self._beats.clear()
        request = {**self._layout.prefix(), "start_revision": str(self._position.version + 1)}
        ended = await self._gateway.watch({"create_request": request}, self._told)
        raise _Over(ended)

    async def _begin(self, nonce: str, reason: str) -> None:
        """Begin a new epoch, in which all have to look at everything."""
        new = Epoch(self._epoch.counter + 1, nonce)
        await self._gateway.ask("kv/txn", etcd.epoch_change(self._layout, etcd.epoch_value(self._epoch), new), ANSWER)
        raise _Over(reason)

    async def _owners(self) -> None:
        """Wait until all that the view knows have confirmed what they own, or are gone; not longer than the lease."""
        loop = asyncio.get_running_loop()
        over = loop.time() + LEASE
        while loop.time() < over:
            there = await self._peers()
            if all(member in there or is_gone(fact) for member, fact in self._held.items()):
                break
            await asyncio.sleep(_SETTLING)

    async def _peers(self) -> dict[str, Peer]:
        kvs, _ = await self._all("peer/")
        return etcd.sorted_out(self._layout, kvs)[1]

    async def _snapshot(self) -> Position:
        """Tell the view all there is, but for what those own that are gone."""
        while True:
            kvs, revision = await self._all()
            known, peers, faults = etcd.sorted_out(self._layout, kvs)
            gone = [(one.fact, one.lease) for one in known if isinstance(one.fact, Member) and is_gone(one.fact)]
            if not [lease for _, lease in gone if lease]:
                break
            for member, lease in gone:
                await self._ring.end(member, lease)
        self._complain(faults)
        position = Position(self._epoch, revision)
        self._tell(Snapshot(position, 0, True, tuple(one.fact for one in known)))
        self._ring.reset(peers)
        return position

    async def _all(self, path: str = "") -> tuple[list[Json], int]:
        """All entries below *path*, as they were at one revision."""
        asked: Json = {**self._layout.prefix(path), "limit": str(_PAGE)}
        kvs: list[Json] = []
        while True:
            try:
                answer = await self._gateway.ask("kv/range", asked, ANSWER)
            except EtcdRefused as error:
                if error.code != _COMPACTED:
                    raise
                return await self._all(path)
            kvs += answer.get("kvs", [])
            asked.setdefault("revision", answer["header"]["revision"])
            if not answer.get("more"):
                return kvs, int(asked["revision"])
            asked["key"] = etcd.text64(etcd.from64(kvs[-1]["key"]) + b"\0")

    def _told(self, line: Json) -> None:
        """An answer of the watch."""
        try:
            self._take(line)
        except (_Over, MalformedMessage) as error:
            self._end(str(error))

    def _take(self, line: Json) -> None:
        result = line.get("result")
        if not self._open or self._position is None:
            return
        if result is None:
            raise _Over(f"{self._watched} ended the watch: {line.get('error', line)}")
        if result.get("canceled"):
            if "compact_revision" not in result:
                raise _Over(f"{self._watched} ended the watch: {result.get('cancel_reason', 'it does not say why')}")
            self._start(self._begin, self._epoch.nonce, "etcd has compacted what this process has not seen")
        elif result.get("created"):
            self._reached = int(result["header"]["revision"])
            late = self._reached > self._position.version
            self._catching_up = asyncio.get_running_loop().call_later(_CATCHING_UP if late else 0, self._caught_up)
        else:
            self._learn(result.get("events", []))

    def _caught_up(self) -> None:
        self._reached = 0
        self._tell(self._where())

    def _learn(self, events: Sequence[Json]) -> None:
        assert self._position is not None
        told = etcd.fold(self._layout, self._position, events)
        self._complain(told.faults)
        for commit in told.commits:
            self._position = commit.position
            self._tell(commit)
            self._notice(commit)
        self._ring.update(told.peers)
        if told.epoch:
            raise _Over("etcd is in another epoch")

    def _notice(self, commit: facts.Commit) -> None:
        """See what a commit says about members."""
        mine = self._member.key if self._member is not None else None
        if mine in commit.deletes and not self._leaving:
            raise _Over("this process was taken for gone, and what it owns is withdrawn")
        for fact in commit.puts:
            if isinstance(fact, Member) and fact.key == mine and fact.doubted and self._book is not None:
                self._book.shown(fact, commit.position.version)
                self._queue.put_nowait(fact)
            elif isinstance(fact, Member) and not fact.doubted:
                self._ring.contradicted(fact.id)

    def _complain(self, faults: Sequence[str]) -> None:
        for fault in faults:
            log.warning("etcd holds what is no fact, dropped: %s", fault)
