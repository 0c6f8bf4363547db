"""The registry: it orders the changes of one epoch, and tells every follower.

What it decides is in `pyzmp.protocol.reign`; here are its sessions, its clock, and the processes and sockets of
its host.  It normally is a process of its own, started by `pyzmp.registry.domain` and running no user code.
Inside another process it serves ``registry="memory"``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from pyzmp.exceptions import InvalidAddress, MalformedMessage
from pyzmp.protocol import facts
from pyzmp.protocol.envelope import Goodbye, Note, Parcel
from pyzmp.protocol.graph import Log
from pyzmp.protocol.reign import NotAdmitted, Reign
from pyzmp.registry import reach, remains
from pyzmp.registry.domain import BEAT, LEASE, LINGER, Domain, is_gone, this_process
from pyzmp.transport.address import parse
from pyzmp.transport.context import Context
from pyzmp.transport.server import Peer, Server

_LOOK = 0.002  # seconds until the first look whether a process whose connection ended is gone
_LOOK_MOST = 0.25  # and between the later ones, at most
_MANY = 64  # sockets of one process that are remembered before a look whether they are still there
_LAST = 10 ** 17  # the counter of an epoch that is believed to have been, at most: there is room for others above

log = logging.getLogger("pyzmp.registry")


class Registry:
    """One epoch of a domain's history, served on *loop*, whose thread alone may use it.

    ``left`` is done, with the reason, when nobody has been a member for *linger* seconds (None: never), or when
    *superseded*, asked whenever this registry may have been stopped, says why it must not go on.  ``later`` is
    done when somebody has seen a later epoch, with its counter.  In the first *grace* seconds names that nobody
    had before wait for those who may have them.  Who is of another domain than *domain_name*, where both are
    named, is sent away.  In *domain* the sockets of processes that were killed are removed.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop, epoch: facts.Epoch, *,
                 lease: float = LEASE, linger: float | None = LINGER, domain: Domain | None = None,
                 domain_name: str = "", grace: float = 0.0,
                 superseded: Callable[[], str | None] = lambda: None) -> None:
        self.left: asyncio.Future[str] = loop.create_future()
        self.later: asyncio.Future[int] = loop.create_future()
        self._loop, self._domain, self._linger, self._superseded = loop, domain, linger, superseded
        self._reign: Reign[Peer] = Reign(epoch, loop.time(), self._send, is_gone, lease=lease, grace=grace,
                                         domain=domain_name, leaving=self._leaving)
        self._here = this_process()
        self._sockets: dict[str, dict[str, str]] = {}  # in the directory: of each near member's nodes, also earlier
        self._lost: dict[str, tuple[facts.Member, dict[str, str]]] = {}  # the same, of members that are none any more
        self._server = Server(context, loop, f"registry-{epoch.counter}", on_open=self._opened,
                              on_parcel=self._received, on_end=self._ended)
        self._rest = loop.call_later(linger, self._finish) if linger is not None else None
        self._looking: asyncio.TimerHandle | None = None
        self._pause = _LOOK
        self._heart = loop.call_later(BEAT, self._beat)

    @property
    def log(self) -> Log:
        """The history."""
        return self._reign.log

    @property
    def malformed(self) -> int:
        """How many messages were dropped because they are none, or not for their sender to say."""
        return self._server.malformed

    def bind(self, address: str) -> str:
        """Listen at *address*, also of TCP; raises AddressInUse and InvalidAddress."""
        return self._server.bind(address)

    def close(self) -> None:
        """End every session, and listen no more."""
        self._server.close()
        for timer in (self._heart, self._rest, self._looking):
            if timer is not None:
                timer.cancel()

    def _goes_on(self) -> bool:
        """Take note of the time; False where this registry has been stopped meanwhile and another has taken over."""
        if self._reign.pass_to(self._loop.time()) and (reason := self._superseded()) is not None:
            self._finish(reason)
        return not self.left.done()

    def _opened(self, peer: Peer) -> None:
        if self._goes_on():
            self._reign.opened(peer, peer.user)

    def _ended(self, peer: Peer) -> None:
        if self._goes_on():
            self._reign.ended(peer)
            self._look_in(_LOOK)

    def _received(self, peer: Peer, parcel: Parcel) -> None:
        if not self._goes_on():
            return
        try:
            if not isinstance(parcel.message, Note):
                raise MalformedMessage(f"a {type(parcel.message).__name__} for a registry")
            message = _checked(facts.decode(parcel.message.body))
            self._reign.receive(peer, message)
        except MalformedMessage as error:
            self._blame(peer, error)
        else:
            if 0 < self._reign.later < _LAST and not self.later.done():
                self.later.set_result(self._reign.later)
            self._attend()

    def _blame(self, peer: Peer, error: MalformedMessage) -> None:
        said_by = peer.hello.caller
        member = self._reign.member(peer)
        if member is not None:
            said_by = f"{said_by} ({member.program or 'a member'}, pid {member.pid} on {member.host})"
        self._server.blame((str(peer.listener.address), peer.key), f"{said_by}: {error}")
        if isinstance(error, NotAdmitted):
            log.warning("%s was sent away: %s", said_by, error)
            peer.send(Goodbye(f"the registry sent this peer away: {error}"))
            peer.flush()

    def _attend(self) -> None:
        """Look after those who are waited for, and rest when nobody is."""
        if self._reign.expectant and self._looking is None:
            self._look_in(_LOOK)
        if self._rest is not None and not self._reign.empty:
            self._rest.cancel()
            self._rest = None
        elif self._linger is not None and self._rest is None and self._reign.empty:
            self._rest = self._loop.call_later(self._linger, self._finish)

    def _look_in(self, pause: float) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._pause = pause
        self._looking = self._loop.call_later(min(pause, self._reign.next_look()), self._look)

    def _look(self) -> None:
        """Look who is gone, again and again as long as somebody may be."""
        self._looking = None
        if self._goes_on():
            self._reign.look()
            if self._reign.expectant:
                self._look_in(min(2 * self._pause, _LOOK_MOST))
            self._attend()

    def _leaving(self, member: facts.Member, owned: list[facts.Fact]) -> None:
        """Remove the sockets of a process that is gone.

        Before its facts end: a node binds its address once it has its name, which until then is this one's.
        """
        sockets = self._sockets.pop(member.id, {})
        for fact in owned:
            if isinstance(fact, facts.NodeFact):
                sockets.update(dict.fromkeys(self._own(fact), fact.name))
        if sockets and self._domain is not None and reach.same_host(member, self._here):
            self._lost[member.id] = member, sockets
            self._bury(self._domain)

    def _bury(self, domain: Domain) -> None:
        """Remove the sockets of processes that are out of the graph, once they have ended: they may be stopped only."""
        for owner, (member, sockets) in list(self._lost.items()):
            if self._reign.present(owner):
                del self._lost[owner]
            elif is_gone(member):
                del self._lost[owner]
                for address, name in sockets.items():
                    other = self.log.facts.node(name)
                    if other is None or other.owner == owner:
                        remains.remove_dead(domain.path, address)

    def _finish(self, reason: str = "nobody is a member any more") -> None:
        if not self.left.done():
            self.left.set_result(reason)

    def _beat(self) -> None:
        self._heart = self._loop.call_later(BEAT, self._beat)
        if self._goes_on():
            if self._lost and self._domain is not None:
                self._bury(self._domain)
            self._reign.beat()

    def _send(self, peers: Sequence[Peer], message: facts.Message) -> None:
        if isinstance(message, facts.Commit):
            self._note_sockets(message)
        if peers:
            note = Note(facts.encode(message))
            for peer in peers:
                peer.send(note)

    def _note_sockets(self, commit: facts.Commit) -> None:
        """Remember where a process's nodes listen: it may die after they have left, and before it listens no more."""
        for fact in commit.puts:
            if isinstance(fact, facts.Member) and fact.id not in self._sockets and reach.same_host(fact, self._here):
                self._sockets[fact.id] = {}
            elif isinstance(fact, facts.NodeFact) and (sockets := self._sockets.get(fact.owner)) is not None:
                for address in self._own(fact):
                    sockets[address] = fact.name
                    if len(sockets) >= _MANY and not len(sockets) & (len(sockets) - 1):  # seldom
                        self._sockets[fact.owner] = sockets = self._still_there(fact.owner, sockets)

    def _own(self, node: facts.NodeFact) -> list[str]:
        """Where *node* listens in the directory."""
        return [address for address in node.addresses
                if self._domain is not None and address.startswith(f"ipc://{self._domain.path}/")]

    def _still_there(self, owner: str, sockets: dict[str, str]) -> dict[str, str]:
        """Those of *sockets* whose nodes are in the graph, or that were not removed when they left."""
        known = {fact.name for fact in self.log.facts.owned_by(owner) if isinstance(fact, facts.NodeFact)}
        return {address: name for address, name in sockets.items()
                if name in known or os.path.lexists(address.removeprefix("ipc://"))}


def _checked(message: facts.Message) -> facts.Message:
    """*message*, if the nodes that it proposes are at addresses; raises MalformedMessage."""
    puts = (fact for change in message.changes for fact in change.puts) if isinstance(message, facts.Propose) else ()
    try:
        for fact in puts:
            for address in fact.addresses if isinstance(fact, facts.NodeFact) else ():
                parse(address)
    except InvalidAddress as error:
        raise MalformedMessage(f"a node at no address: {error}") from error
    return message
