"""The registry: it orders the changes of one epoch, and tells every follower.

It normally is a process of its own, started by `pyzmp.registry.domain` and running no user code.
Inside another process it serves ``registry="memory"``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

from pyzmp.exceptions import MalformedMessage, PyzmpError
from pyzmp.protocol import facts, graph
from pyzmp.protocol.envelope import Note, Parcel
from pyzmp.registry import remains
from pyzmp.registry.domain import BEAT, LEASE, LINGER, Domain, is_gone
from pyzmp.transport.context import Context
from pyzmp.transport.server import Peer, Server

_LOOK = 0.002  # seconds until the first look whether a process whose connection ended is gone
_LOOK_MOST = 0.25  # and between the later ones, at most

log = logging.getLogger("pyzmp.registry")


class _Seat:
    """What the registry knows about one session."""

    __slots__ = ("follows", "member")

    def __init__(self) -> None:
        self.member: facts.Member | None = None
        self.follows = False


class Registry:
    """One epoch of a domain's history, served on *loop*, whose thread alone may use it.

    ``left`` is done when nobody has been a member for *linger* seconds (None: never).  In *domain*
    the sockets of processes that were killed are removed.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop, epoch: facts.Epoch, *,
                 lease: float = LEASE, linger: float | None = LINGER, domain: Domain | None = None) -> None:
        self.log = graph.Log(epoch)
        self.left: asyncio.Future[str] = loop.create_future()
        self._loop, self._domain = loop, domain
        self._lease, self._linger = lease, linger
        self._began = loop.time()
        self._sockets: dict[str, dict[str, str]] = {}  # the addresses of each member's nodes, also earlier ones
        self._lost: dict[str, tuple[facts.Member, dict[str, str]]] = {}  # the same, of members that are none any more
        self._seats: dict[str, Peer] = {}  # the session of each member that has one
        self._leases: dict[str, asyncio.TimerHandle] = {}  # and when to look next for each that has none
        self._server = Server(context, loop, f"registry-{epoch.counter}", on_open=self._opened,
                              on_parcel=self._received, on_end=self._ended)
        self._handlers: dict[type, Callable[[Peer, Any], None]] = {
            facts.Join: self._join, facts.Hold: self._hold, facts.Propose: self._propose, facts.Follow: self._follow,
            facts.Leave: self._leave}
        self._rest = loop.call_later(linger, self._finish) if linger is not None else None
        self._heart = loop.call_later(BEAT, self._beat)

    @property
    def malformed(self) -> int:
        """How many messages were dropped because they are none."""
        return self._server.malformed

    def bind(self, address: str) -> str:
        """Listen at *address*; raises AddressInUse and InvalidAddress."""
        return self._server.bind(address)

    def close(self) -> None:
        """End every session, and listen no more."""
        self._server.close()
        for timer in (self._heart, self._rest, *self._leases.values()):
            if timer is not None:
                timer.cancel()

    def _opened(self, peer: Peer) -> None:
        peer.state = _Seat()
        self._send(peer, facts.Beat(self.log.position))

    def _received(self, peer: Peer, parcel: Parcel) -> None:
        try:
            if not isinstance(parcel.message, Note):
                raise MalformedMessage(f"a {type(parcel.message).__name__} for a registry")
            message = facts.decode(parcel.message.body)
            handler = self._handlers.get(type(message))
            if handler is None or (not isinstance(message, facts.Join | facts.Follow) and not _seat(peer).member):
                raise MalformedMessage(f"a {type(message).__name__} that is not this peer's to send")
        except MalformedMessage as error:
            self._server.blame((str(peer.listener.address), peer.key), f"{peer.hello.caller!r}: {error}")
        else:
            handler(peer, message)

    def _join(self, peer: Peer, message: facts.Join) -> None:
        member = message.member
        _seat(peer).member = member
        self._seats[member.id] = peer
        self._lost.pop(member.id, None)
        self._stop_looking(member.id)
        if self._rest is not None:
            self._rest.cancel()
        self._tell(self.log.join(member))

    def _hold(self, peer: Peer, message: facts.Hold) -> None:
        if self._loop.time() > self._began + self._lease:  # who has not been heard of by now is not waited for
            return
        members = [fact for fact in (*message.facts, *self.log.facts.all()) if isinstance(fact, facts.Member)]
        known = {member.id: member for member in members}
        gone = {member.id for member in known.values() if member.id not in self._seats and is_gone(member)}
        self._tell(self.log.hold(fact for fact in message.facts if fact.owner not in gone))
        for owner in self.log.unconfirmed:
            if owner not in self._seats and owner not in self._leases:
                self._look(known.get(owner, facts.Member(owner, "", 0, "")), self._loop.time() + self._lease, _LOOK)

    def _propose(self, peer: Peer, message: facts.Propose) -> None:
        member = _seat(peer).member
        if member is not None:
            commit, refusals = self.log.propose(member, message.changes, complete=message.complete)
            self._tell(commit)
            self._note_sockets(member.id, commit)
            self._send(peer, facts.Settled(message.id, self.log.position, refusals))

    def _note_sockets(self, owner: str, commit: facts.Commit | None) -> None:
        """Remember where a process's nodes listen: it may die after they have left, and before it listens no more."""
        for fact in commit.puts if commit is not None else ():
            if isinstance(fact, facts.NodeFact):
                self._sockets.setdefault(owner, {}).update(dict.fromkeys(fact.addresses, fact.name))

    def _follow(self, peer: Peer, message: facts.Follow) -> None:
        _seat(peer).follows = True
        missing = self.log.since(message.since)
        for part in self.log.snapshot() if missing is None else missing:
            self._send(peer, part)
        self._send(peer, facts.Beat(self.log.position))  # complete up to here

    def _leave(self, peer: Peer, message: facts.Leave) -> None:
        member = _seat(peer).member
        if member is not None:
            _seat(peer).member = None
            self._drop(member.id)
            self._send(peer, facts.Settled(0, self.log.position))

    def _ended(self, peer: Peer) -> None:
        member = _seat(peer).member
        if member is not None and self._seats.get(member.id) is peer:
            del self._seats[member.id]
            self._look(member, self._loop.time() + self._lease, _LOOK)

    def _look(self, member: facts.Member, end: float, pause: float) -> None:
        """Drop what *member* owns if its process is gone or its lease is over, else look again later."""
        now = self._loop.time()
        if now >= end or is_gone(member):
            self._drop(member.id)
        else:
            self._leases[member.id] = self._loop.call_later(
                min(pause, end - now), self._look, member, end, min(2 * pause, _LOOK_MOST))

    def _drop(self, owner: str) -> None:
        self._seats.pop(owner, None)
        self._stop_looking(owner)
        self._clear(owner)
        self._tell(self.log.drop(owner))
        if self._linger is not None and not self._seats and not self._leases:
            if self._rest is not None:
                self._rest.cancel()
            self._rest = self._loop.call_later(self._linger, self._finish)

    def _clear(self, owner: str) -> None:
        """Remove the sockets of a process that is gone.

        Before its facts end: a node binds its address once it has its name, which until then is this one's.
        """
        member = self.log.facts.get(("member", owner))
        sockets = self._sockets.pop(owner, {})
        if self._domain is None or not isinstance(member, facts.Member):
            return
        for fact in self.log.facts.owned_by(owner):
            if isinstance(fact, facts.NodeFact):
                sockets.update(dict.fromkeys(fact.addresses, fact.name))
        if sockets:
            self._lost[owner] = member, sockets
            self._bury()

    def _bury(self) -> None:
        """Remove the sockets of processes that are out of the graph, once they have ended: they may be stopped only."""
        assert self._domain is not None
        for owner, (member, sockets) in list(self._lost.items()):
            if owner in self._seats or not is_gone(member):
                continue
            del self._lost[owner]
            for address, name in sockets.items():
                other = self.log.facts.get(("node", name))
                if other is None or other.owner == owner:
                    remains.remove_dead(self._domain.path, address)

    def _stop_looking(self, owner: str) -> None:
        timer = self._leases.pop(owner, None)
        if timer is not None:
            timer.cancel()

    def _finish(self) -> None:
        if not self.left.done():
            self.left.set_result("nobody is a member any more")

    def _tell(self, commit: facts.Commit | None) -> None:
        """Send a commit to all who follow."""
        if commit is None:
            return
        note = Note(facts.encode(commit))
        for peer in self._server.peers:
            if _seat(peer).follows:
                peer.send(note)

    def _beat(self) -> None:
        self._heart = self._loop.call_later(BEAT, self._beat)
        if self._lost:
            self._bury()
        note = Note(facts.encode(facts.Beat(self.log.position)))
        for peer in self._server.peers:
            peer.send(note)

    def _send(self, peer: Peer, message: facts.Message) -> None:
        peer.send(Note(facts.encode(message)))


def _seat(peer: Peer) -> _Seat:
    assert isinstance(peer.state, _Seat)
    return peer.state


def _inode(path: str) -> int:
    return os.stat(path).st_ino


async def _watch(domain: Domain, counter: int) -> str:
    """Return, with the reason, when there is or was a later registry, or the directory is not the one it was."""
    directory = _inode(domain.path)
    while True:
        await asyncio.sleep(BEAT)
        later = max(domain.counters(), default=0)
        if later > counter:  # though it be dead by now: its members have seen its epoch, and go back to none
            return f"superseded by registry {later}"
        try:
            if _inode(domain.path) != directory:
                return "the directory was replaced"
        except OSError:
            return "the directory is gone"


async def _serve(domain: Domain, above: int, linger: float, lease: float, report: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, told.cancel)
    counter, lock = domain.claim(above)
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        context = Context()
        stack.callback(context.close)
        registry = Registry(context, loop, facts.Epoch(counter, os.urandom(8).hex()), lease=lease, linger=linger,
                            domain=domain)
        stack.callback(registry.close)
        registry.bind(domain.registry(counter))
        report(str(counter))
        watch = loop.create_task(_watch(domain, counter))
        done, _ = await asyncio.wait([told, registry.left, watch], return_when=asyncio.FIRST_COMPLETED)
        reason = next(iter(done))
        log.info("registry %d ends: %s", counter, "SIGTERM" if reason is told else reason.result())
        watch.cancel()


def main(arguments: list[str]) -> None:
    """Run a registry: ``directory above linger lease pipe``.  Its counter, or its error, goes into the pipe."""
    directory, above, linger, lease, pipe = arguments
    descriptor = int(pipe)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def report(text: str) -> None:
        nonlocal descriptor
        if descriptor >= 0:
            with contextlib.suppress(BrokenPipeError):  # the starter has given up; somebody else may come
                os.write(descriptor, text.encode()[:4096])
            os.close(descriptor)
            descriptor = -1

    try:
        asyncio.run(_serve(Domain(os.path.basename(directory), directory), int(above), float(linger), float(lease),
                           report))
    except (PyzmpError, OSError) as error:
        report(f"{type(error).__name__}: {error}")
        log.exception("the registry ended")
        raise SystemExit(1) from error
