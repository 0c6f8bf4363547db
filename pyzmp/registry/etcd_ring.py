"""Members of a domain in etcd look after each other: a lease is ended when its owner is gone, long before it expires.

Each member listens, and those that are to look after it keep a connection that ZeroMQ's own thread answers on: one
whose Python is busy stays connected, a process that was killed, stopped or cut off does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from pyzmp.exceptions import InvalidAddress, MalformedMessage, RegistryUnavailable
from pyzmp.protocol import etcd, ring
from pyzmp.protocol.envelope import Hello
from pyzmp.protocol.etcd import Json, Layout, Peer
from pyzmp.protocol.facts import Member, NodeFact
from pyzmp.protocol.ring import Evidence, Verdict
from pyzmp.registry import reach, remains
from pyzmp.registry.domain import LEASE, Domain, is_gone
from pyzmp.transport.address import parse
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.server import Server

TTL = 60  # seconds of a lease in etcd: longer than anything may hold up a process that lives
RENEWAL = 15.0  # seconds after which it is renewed
ANSWER = 2.0  # seconds in which etcd has to answer
_LOOK = 0.002  # seconds until the first look after a connection has ended
_LOOK_MOST = 0.25  # and between the later ones
_LOOK_CALM = 1.0  # and while it is there
_MOMENT, _MOMENTS = 0.01, 50  # seconds between two looks whether a killed process listens no more, and how many
_GREETING = 0.5  # seconds in which ZeroMQ's thread of a process that lives greets, at most
_NOT_FOUND = 5

log = logging.getLogger("pyzmp.registry")


class EtcdRefused(Exception):
    """What etcd says to a request that it does not take, with the number of its kind."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Asked(Protocol):
    """Where requests are made."""

    endpoint: str

    async def ask(self, path: str, body: Json, timeout: float) -> Json:
        """The answer; raises EtcdRefused, and RegistryUnavailable where nobody answers in *timeout* seconds."""

    async def watch(self, body: Json, hear: Callable[[Json], None]) -> str:
        """Have *hear* called with each answer; why there are no more."""


class Lease:
    """What all facts of this process hang on, through all of its sessions."""

    def __init__(self, gateway: Asked) -> None:
        self._gateway = gateway
        self._id = 0
        self._due = 0.0

    async def held(self) -> int:
        """Its number; a new lease where the one before has ended."""
        if not self._id or not await self._kept():
            new = secrets.randbits(62) + 1  # chosen here, so that it does no harm to ask twice
            try:
                await self._gateway.ask("lease/grant", {"ID": str(new), "TTL": str(TTL)}, ANSWER)
            except EtcdRefused as error:
                if "already exists" not in str(error):
                    raise
            self._id, self._due = new, asyncio.get_running_loop().time() + RENEWAL
        return self._id

    async def renewed(self) -> bool:
        """Renew it where that is due; False where it has ended."""
        return asyncio.get_running_loop().time() < self._due or await self._kept()

    async def end(self) -> None:
        """End it, and all that hangs on it."""
        ended, self._id = self._id, 0
        if ended:
            await revoke(self._gateway, ended)

    async def _kept(self) -> bool:
        now = asyncio.get_running_loop().time()
        answer = await self._gateway.ask("lease/keepalive", {"ID": str(self._id)}, ANSWER)
        kept = int(answer.get("result", {}).get("TTL", 0)) > 0
        if kept:
            self._due = now + RENEWAL
        return kept


async def revoke(gateway: Asked, lease: int) -> None:
    """End *lease*, unless it has ended."""
    try:
        await gateway.ask("lease/revoke", {"ID": str(lease)}, ANSWER)
    except EtcdRefused as error:
        if error.code != _NOT_FOUND:
            raise


class _Ward:
    """One member that is looked after."""

    def __init__(self, peer: Peer, address: str, *, met: bool) -> None:
        self.peer, self.address = peer, address
        self.evidence = Evidence(LEASE, met=met)
        self.session: Session | None = None
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.closed = False  # a wait that ends when its task is cancelled may forget of that

    @property
    def connected(self) -> bool:
        """Whether the other end has answered, be it ZeroMQ's thread only."""
        return self.session is not None and self.session.sent and self.session.ended is None

    def connect(self, context: Context, me: str) -> None:
        """Connect where that is not so."""
        if self.session is None or self.session.ended is not None:
            self.session = Session(context, self.address, Hello(session_id(), me), on_parcel=lambda _: None,
                                   on_end=lambda _: self.changed.set())
            self.session.attach(asyncio.get_running_loop())

    def close(self) -> None:
        """Look after it no more."""
        self.closed = True
        if self.task is not None:
            self.task.cancel()
        if self.session is not None:
            self.session.close()


class Ring:
    """Whom this process looks after, and where it listens to those that look after it.  Used on one loop."""

    def __init__(self, context: Context, domain: Domain, gateway: Asked, layout: Layout,
                 interfaces: Callable[[], Sequence[str]]) -> None:
        self._context, self._domain, self._gateway, self._layout = context, domain, gateway, layout
        self._interfaces = interfaces
        self._member: Member | None = None
        self._server: Server | None = None
        self._peers: dict[str, Peer] = {}
        self._wards: dict[str, _Ward] = {}
        self._met: set[str] = set()  # whom a connection has been made to, which a new session need not make again

    def listen(self, member: Member) -> tuple[str, ...]:
        """Where *member*, this process, listens from now on."""
        if self._server is None:
            self._member = member
            self._server = Server(self._context, asyncio.get_running_loop(), f"peer-{member.id}",
                                  on_open=lambda _: None, on_parcel=lambda *_: None, on_end=lambda _: None)
            self._server.bind(self._domain.address_for(f"peer {member.id}"))
            for host in self._interfaces():
                try:
                    self._server.bind(reach.at(host, "*"))
                except (InvalidAddress, OSError) as error:
                    log.warning("other hosts cannot look after this process, whose facts will outlive it for up to "
                                "%d s: %s", TTL, error)
        return tuple(self._server.addresses)

    def reset(self, peers: Mapping[str, Peer]) -> None:
        """These are the members."""
        self._peers = {member: peer for member, peer in peers.items() if _is_readable(peer)}
        if peers:
            self._met &= peers.keys()
        self._choose()

    def update(self, peers: Mapping[str, Peer | None]) -> None:
        """Some have come, or gone (None)."""
        for member, peer in peers.items():
            self._peers.pop(member, None)
            if peer is None:
                self._met.discard(member)
            elif _is_readable(peer):
                self._peers[member] = peer
        if peers:
            self._choose()

    def contradicted(self, member: str) -> None:
        """That member has said that it lives."""
        if member in self._wards:
            self._wards[member].evidence.contradicted()

    def rest(self) -> None:
        """Look after nobody."""
        self.reset({})

    def close(self) -> None:
        """End all of it."""
        self.rest()
        if self._server is not None:
            self._server.close()
            self._server = None

    async def end(self, member: Member, lease: int) -> None:
        """End what *member* owns; where it is known to be gone, its sockets too."""
        log.info("pid %d on %s (%s) is gone: ending its lease", member.pid, member.host, member.id)
        if is_gone(member):  # before its names are free: a node binds its address once it has its name
            await self._remove({*await self._sockets(lease), self._domain.address_for(f"peer {member.id}")})
        await revoke(self._gateway, lease)

    async def _remove(self, addresses: set[str]) -> None:
        """Remove sockets of a process that has ended; some of its threads may take a moment more."""
        for _ in range(_MOMENTS):
            addresses = {address for address in addresses if self._is_left(address)}
            if not addresses:
                break
            await asyncio.sleep(_MOMENT)

    def _is_left(self, address: str) -> bool:
        """Whether a socket is there still, that was to be removed."""
        remains.remove_dead(self._domain.path, address)
        return os.path.exists(address.removeprefix("ipc://"))

    def _choose(self) -> None:
        """Look after those that it falls to this process to look after."""
        me = self._member
        hosts = {member: f"{peer.member.host} {peer.member.started.rpartition(':')[0]}"
                 for member, peer in self._peers.items()}
        wanted = ring.watched(me.id, hosts) if me is not None else set()
        for member, ward in list(self._wards.items()):
            if member not in wanted or self._peers[member] != ward.peer:
                self._wards[member].close()
                (self._met.add if self._wards.pop(member).evidence.met else self._met.discard)(member)
        for member in wanted - set(self._wards):
            address = self._address(self._peers[member])
            if address is not None:  # else its lease alone decides
                ward = self._wards[member] = _Ward(self._peers[member], address, met=member in self._met)
                ward.task = asyncio.get_running_loop().create_task(self._look_after(ward))

    def _address(self, peer: Peer) -> str | None:
        here = self._member is not None and reach.same_host(peer.member, self._member)
        if here:
            return next((address for address in peer.addresses if address.startswith("ipc:")), None)
        return reach.nearest([address for address in peer.addresses if reach.travels(address)])

    async def _look_after(self, ward: _Ward) -> None:
        loop, pause, before = asyncio.get_running_loop(), _LOOK, asyncio.get_running_loop().time()
        member, assumed = ward.peer.member, 2 * _LOOK_CALM
        while True:
            ward.connect(self._context, self._member.id if self._member is not None else "")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ward.changed.wait(), pause)
                pause = _LOOK
            if ward.closed:
                return
            ward.changed.clear()
            now = loop.time()
            gone = is_gone(member)
            verdict = ward.evidence.look(connected=ward.connected, gone=gone, passed=min(now - before, assumed))
            if verdict is not Verdict.NOTHING and not gone and await _greets(ward.address):
                verdict = ward.evidence.look(connected=True, gone=False, passed=0)
            pause = _LOOK_CALM if ward.connected else min(2 * pause, _LOOK_MOST)
            before, assumed = now, 2 * pause  # this process may have been stopped meanwhile
            try:
                if verdict is Verdict.END:
                    await self.end(member, ward.peer.lease)
                elif verdict is Verdict.DOUBT:
                    await self._doubt(member)
            except (RegistryUnavailable, EtcdRefused) as error:
                log.debug("pid %d on %s cannot be reported: %s", member.pid, member.host, error)

    async def _doubt(self, member: Member) -> None:
        """Say in the graph that the member may be gone, unless it has changed meanwhile."""
        key = etcd.text64(self._layout.fact(member.key))
        answer = await self._gateway.ask("kv/range", {"key": key}, ANSWER)
        for kv in answer.get("kvs", []):
            with contextlib.suppress(MalformedMessage):
                known = etcd.stored(self._layout, kv)
                if isinstance(known.fact, Member) and not known.fact.doubted:
                    value = etcd.written(replace(known.fact, doubted=True))
                    await self._gateway.ask("kv/txn", {
                        "compare": [{"key": key, "target": "MOD", "mod_revision": kv["mod_revision"]}],
                        "success": [{"request_put": {"key": key, "value": etcd.text64(value),
                                                     "lease": str(known.lease)}}]}, ANSWER)

    async def _sockets(self, lease: int) -> list[str]:
        """Where the nodes on a lease listened."""
        found = await entries(self._gateway, self._layout, lease)
        nodes = [known.fact for known in etcd.sorted_out(self._layout, found)[0] if isinstance(known.fact, NodeFact)]
        return [address for node in nodes for address in node.addresses if address.startswith("ipc:")]


def _is_readable(peer: Peer) -> bool:
    """Whether that can be looked after; if not, it is named in the log."""
    try:
        for address in peer.addresses:
            if parse(address).rest.endswith(":*"):
                raise InvalidAddress(f"nobody listens at {address}, which names no port")
    except InvalidAddress as error:
        log.warning("etcd holds what is no peer, dropped: member %s: %s", peer.member.id, error)
        return False
    return True


async def _greets(address: str) -> bool:
    """Whether ZeroMQ's thread answers at a TCP *address*, as it does where Python, which CURVE needs, is held up."""
    if parse(address).scheme != "tcp":
        return False  # there a whole connection needs no Python
    asking = asyncio.ensure_future(_greeting(address))
    try:
        await asyncio.wait({asking}, timeout=_GREETING)
        return asking.done() and asking.exception() is None and bool(asking.result())
    finally:
        asking.cancel()


async def _greeting(address: str) -> bytes:
    """The first byte that who listens at a TCP *address* says of itself; none where it hangs up."""
    place = parse(address)
    reader, writer = await asyncio.open_connection(reach.host_of(place), int(place.rest.rpartition(":")[2]))
    try:
        return await reader.read(1)
    finally:
        writer.close()


async def entries(gateway: Asked, layout: Layout, lease: int) -> list[Json]:
    """What hangs on *lease* in this domain."""
    answer = await gateway.ask("lease/timetolive", {"ID": str(lease), "keys": True}, ANSWER)
    root = layout.root.encode()
    names = [name for name in answer.get("keys", []) if etcd.from64(name).startswith(root)]
    found: list[Json] = []
    for at in range(0, len(names), etcd.OPERATIONS):
        asked = [{"request_range": {"key": name}} for name in names[at:at + etcd.OPERATIONS]]
        answer = await gateway.ask("kv/txn", {"success": asked}, ANSWER)
        found += (kv for said in answer.get("responses", []) for kv in said["response_range"].get("kvs", []))
    return found


async def missed(gateway: Asked, layout: Layout, known: int, due: int) -> bool:
    """Whether anything of the domain was put or deleted after revision *known*, up to *due*."""
    domain = layout.prefix()
    answer = await gateway.ask("kv/txn", {"success": [
        {"request_range": {**domain, "revision": str(due), "min_mod_revision": str(known + 1), "limit": "1",
                           "keys_only": True}},
        {"request_range": {**domain, "revision": str(known), "count_only": True}}]}, ANSWER)
    now, before = (said["response_range"] for said in answer["responses"])
    return bool(now.get("kvs")) or int(now.get("count", 0)) < int(before.get("count", 0))
