"""What a registry decides in its epoch: whom it answers, for whom it waits, and whom it gives up.

A new epoch settles before views switch to it.  Whoever comes from an earlier epoch says first who was there
and what nodes they had; until all of those have spoken for themselves, are known to be gone, or the lease is
over, nobody is answered who is not in the epoch yet: views stay what they are.

Pure: driven by messages and by the time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import facts
from pyzmp.protocol.facts import Change, Epoch, Fact, Member, NodeFact, Refusal
from pyzmp.protocol.graph import Log

HEARD = 0.1  # seconds more for those whose names are too new for the first who tells of the epoch before
STEP = 1.0  # seconds that count of the time between two turns, at most: more is time in which it was stopped

S = TypeVar("S", bound=Hashable)


class NotAdmitted(MalformedMessage):
    """Somebody is not who he says, or has come to the wrong registry: his session ends."""


class _Seat:
    """What is known about one session.  ``user`` is the public key that its peer has proved to have."""

    __slots__ = ("follows", "member", "refused", "user", "waits")

    def __init__(self, user: str) -> None:
        self.user = user
        self.member: Member | None = None
        self.follows = False
        self.waits = False  # until the epoch has settled
        self.refused = False


class _Claim(NamedTuple):
    """The changes of one proposal that wait until it is known whose the names are that they are about."""

    session: Any
    member: Member
    id: int
    changes: list[tuple[int, Change]]
    refusals: list[Refusal]


class Reign(Generic[S]):
    """One epoch, with the sessions *S* of those who follow it.

    *send* gets each message and whom it is for.  *gone* tells whether a member's process is known to have
    ended.  *leaving* is told of each owner right before its facts end.  In the first *grace* seconds nobody
    gets a name that he has not had before: its owner may not have found this registry yet.  They are over *heard*
    seconds after somebody has told of the epoch before: then only names that were new to him too can be lost.
    """

    def __init__(self, epoch: Epoch, now: float, send: Callable[[Sequence[S], facts.Message], None],
                 gone: Callable[[Member], bool], *, lease: float, grace: float = 0.0, heard: float = HEARD,
                 domain: str = "",
                 leaving: Callable[[Member, list[Fact]], None] = lambda member, owned: None) -> None:
        self.log = Log(epoch, self._credible)
        self._told = self.log.position
        self.later = 0  # the counter of a later epoch, or another one of the same counter, that somebody has seen
        self._send, self._gone, self._leaving = send, gone, leaving
        self._lease, self._grace, self._heard, self._domain = lease, grace, heard, domain
        self._now = now
        self._time = 0.0  # seconds of this epoch in which it was not stopped
        self._seats: dict[S, _Seat] = {}
        self._current: dict[str, tuple[int, S]] = {}  # the number and session of each member that has one
        self._users: dict[str, str] = {}  # of each member
        self._vouched: dict[tuple[str, str, tuple[int, int]], set[str]] = {}  # for registrations before, by what keys
        self._absent: dict[str, tuple[float, int]] = {}  # until when members without a session stay, and its number
        self._claims: list[_Claim] = []
        self._looked = False, 0  # whether the grace was over, and how many were unconfirmed, when claims were looked at
        self._handlers: dict[type, Callable[[S, _Seat, Any], None]] = {
            facts.Join: self._join, facts.Hold: self._hold, facts.Propose: self._propose, facts.Follow: self._follow,
            facts.Leave: self._leave}

    @property
    def empty(self) -> bool:
        """Whether nobody is a member, or is waited for."""
        return not (self._current or self._absent or self.log.unconfirmed)

    @property
    def expectant(self) -> bool:
        """Whether `look` may find something to do soon."""
        return bool(self._absent or self.log.unconfirmed or self._claims)

    def member(self, session: S) -> Member | None:
        """Who speaks in *session*, if it has said so."""
        seat = self._seats.get(session)
        return seat.member if seat is not None else None

    def present(self, owner: str) -> bool:
        """Whether the member *owner* has a session."""
        return owner in self._current

    def pass_to(self, now: float) -> bool:
        """Let the time go on; whether this registry was stopped meanwhile.  To be called before all else.

        What it was stopped counts towards no lease: nobody could be heard.
        """
        passed = now - self._now
        self._now = now
        self._time += min(passed, STEP)
        return passed > STEP

    def opened(self, session: S, user: str = "") -> None:
        """A session has begun."""
        self._seats[session] = _Seat(user)
        self._send((session,), self._beat())

    def ended(self, session: S) -> None:
        """A session is over.  What its member owns stays for the lease."""
        seat = self._seats.pop(session, None)
        self._claims = [claim for claim in self._claims if claim.session != session]
        if seat is not None and seat.member is not None and self._speaks(session, seat.member):
            number, _ = self._current.pop(seat.member.id)
            self._absent[seat.member.id] = self._time + self._lease, number

    def receive(self, session: S, message: facts.Message) -> None:
        """Handle what came; raises MalformedMessage for what is not for this session to say."""
        seat = self._seats.get(session)
        handler = self._handlers.get(type(message))
        if seat is None or seat.refused or handler is None or (
                seat.member is None and isinstance(message, facts.Propose | facts.Leave)):
            raise MalformedMessage(f"a {type(message).__name__} that is not this peer's to send")
        try:
            handler(session, seat, message)
        except NotAdmitted:
            seat.refused, seat.follows = True, False
            self.ended(session)
            self._seats[session] = seat
            raise

    def beat(self) -> None:
        """Tell everybody where the history is."""
        self._send(tuple(session for session, seat in self._seats.items() if not seat.refused), self._beat())

    def look(self) -> None:
        """Drop who is gone or has been away for the lease, and doubt who is away."""
        for owner in self.log.unconfirmed:
            patience = self._lease * (2 if owner in self._current else 1)  # who is connected will speak any moment
            if self._time >= patience or self._is_gone(owner):
                self._release(owner)
        for owner, (end, _) in list(self._absent.items()):
            member = self.log.facts.get(("member", owner))
            if not isinstance(member, Member) or self._time >= end or self._gone(member):
                self._drop(owner)
            else:
                self._tell(self.log.doubt(owner))
        self._settle()

    def next_look(self) -> float:
        """Seconds until the next lease is over, or the grace."""
        ends = [end for end, _ in self._absent.values()]
        if self.log.unconfirmed:
            ends.append(self._lease * (1 if self._time < self._lease else 2))
        if self._claims and self._time < self._grace:
            ends.append(self._grace)
        return max(0.0, min(ends, default=self._time + self._lease) - self._time)

    def _join(self, session: S, seat: _Seat, message: facts.Join) -> None:
        member = replace(message.member, doubted=False)
        if message.domain and self._domain and message.domain != self._domain:
            raise NotAdmitted(f"this registry is of the domain {self._domain!r}, and this peer of {message.domain!r}")
        if self._users.get(member.id, seat.user) != seat.user or not member.id.endswith(facts.proof(seat.user)):
            raise NotAdmitted(f"the member {member.id!r} of another key")
        if seat.member is not None and seat.member.id != member.id:
            raise NotAdmitted(f"the member {member.id!r} in a session of {seat.member.id!r}")
        seat.member = member
        number, _ = self._current.get(member.id) or self._absent.get(member.id, (0, 0))[::-1]
        if message.number < number:  # overtaken by a later session of the same process
            return
        self._users[member.id] = seat.user
        self._current[member.id] = message.number, session
        self._absent.pop(member.id, None)
        self._tell(self.log.join(member))

    def _hold(self, session: S, seat: _Seat, message: facts.Hold) -> None:
        if seat.member is None and seat.user and self._domain and message.domain != self._domain:
            raise MalformedMessage(f"a Hold of the domain {message.domain!r}; this registry is of {self._domain!r}")
        late = self._time >= self._lease  # who has not been heard of by then is not waited for
        for fact in () if late else message.facts:
            if isinstance(fact, NodeFact):
                self._vouched.setdefault((fact.owner, fact.name, fact.incarnation), set()).add(
                    facts.proof(seat.user))
        for owner in self.log.hold(fact for fact in message.facts if not late or fact.owner in self._current):
            if self._is_gone(owner):
                self._release(owner)
        if self._claims:
            nodes = {(fact.owner, fact.name): fact for fact in message.facts if isinstance(fact, NodeFact)}
            self._claims = [_known(claim, nodes) for claim in self._claims]
            self._settle(again=True)

    def _propose(self, session: S, seat: _Seat, message: facts.Propose) -> None:
        member = seat.member
        if member is None or not self._speaks(session, member):
            return
        for change in message.changes:
            self._check(seat, change)
        waiting = {name for claim in self._claims if claim.session == session for _, one in claim.changes
                   for name in _nodes(one)}
        claim = _Claim(session, member, message.id, list(enumerate(message.changes)), [])
        claim = self._advance(claim, waiting, complete=message.complete)
        if claim.changes:
            self._claims.append(claim)
        self._settle()

    def _advance(self, claim: _Claim, waiting: set[str], *, complete: bool = False) -> _Claim:
        """Take what need not wait any more; and answer, where that is all.  *waiting*: names that are waited for."""
        now: list[tuple[int, Change]] = []
        later: list[tuple[int, Change]] = []
        for index, change in claim.changes:
            if self._waits(claim.member, change) or not waiting.isdisjoint(_nodes(change)):
                waiting |= _nodes(change)
                later.append((index, change))
            else:
                now.append((index, change))
        if now or complete:
            claim.refusals.extend(self._take(claim.member, now, complete=complete))
        if not later:
            self._send((claim.session,), facts.Settled(claim.id, self.log.position, tuple(claim.refusals)))
        return claim._replace(changes=later)

    def _take(self, member: Member, changes: list[tuple[int, Change]], *, complete: bool = False) -> list[Refusal]:
        commit, refusals = self.log.propose(member, [change for _, change in changes], complete=complete)
        self._tell(commit)
        return [replace(refusal, index=changes[refusal.index][0]) for refusal in refusals]

    @staticmethod
    def _check(seat: _Seat, change: Change) -> None:
        """Where the peer has proved a key, no node of its listens with another one."""
        for fact in change.puts:
            for address in fact.addresses if isinstance(fact, NodeFact) and seat.user else ():
                key = address.partition("#")[2]
                if key and key != seat.user:
                    raise NotAdmitted(f"the node {fact.key[1]!r} at {address}, which is the key of somebody else")

    def _credible(self, node: NodeFact, other: NodeFact) -> bool:
        """Whether the owner of *node* is believed when it had that before the epoch, to the cost of *other*'s.

        Anybody may say so.  It counts as long as others are waited for, and between two of one key, or where
        somebody with another key than its owner's knew of it.
        """
        if self._time >= 2 * self._lease:
            return False
        mine, others = ("".join(owner.partition("-")[1:]) for owner in (node.owner, other.owner))  # as `facts.proof`
        vouched = self._vouched.get((node.owner, node.name, node.incarnation), set())
        return mine in ("", others) or not vouched <= {mine}

    def _waits(self, member: Member, change: Change) -> bool:
        """Whether a change is about a name that may be somebody else's, who has yet to speak."""
        for fact in change.puts:
            if isinstance(fact, NodeFact):
                if self.log.reserved(fact) is not None:
                    return True
                known = (0, 0) < fact.incarnation < (self.log.position.epoch.counter, 0)
                if self._time < self._grace and not known and self.log.facts.get(fact.key) is None:
                    return not any(fact.key == held.key for held in self.log.held_of(member.id))
        return False

    def _follow(self, session: S, seat: _Seat, message: facts.Follow) -> None:
        seen, epoch = message.since and message.since.epoch, self.log.position.epoch
        if seen and seen != epoch and seen.counter >= epoch.counter:
            self.later = max(self.later, seen.counter)
            return
        if seen and seen != epoch:  # all names that are known there have been told before
            self._grace = min(self._grace, self._time + self._heard)
        if self.log.unconfirmed and seen != epoch:
            seat.waits = True
        else:
            self._answer((session,), message.since)

    def _answer(self, sessions: Sequence[S], since: facts.Position | None) -> None:
        for session in sessions:
            self._seats[session].follows, self._seats[session].waits = True, False
        missing = self.log.since(since)
        for part in self.log.snapshot() if missing is None else missing:
            self._send(sessions, part)
        self._send(sessions, self._beat())  # complete up to here

    def _leave(self, session: S, seat: _Seat, message: facts.Leave) -> None:
        member, seat.member = seat.member, None
        if member is not None and self._speaks(session, member):
            self._claims = [claim for claim in self._claims if claim.session != session]
            self._drop(member.id)
            self._settle()
        self._send((session,), facts.Settled(0, self.log.position))

    def _settle(self, *, again: bool = False) -> None:
        """Go on with what has waited, where it need not any more.  *again*: look though nobody has spoken since."""
        state = self._time >= self._grace, len(self.log.unconfirmed)
        if self._claims and (again or state != self._looked):
            self._looked = state
            claims, self._claims = self._claims, []
            waiting: dict[S, set[str]] = {}
            for claim in claims:
                left = self._advance(claim, waiting.setdefault(claim.session, set()))
                if left.changes:
                    self._claims.append(left)
        if self.log.unconfirmed:
            return
        asked = [session for session, seat in self._seats.items() if seat.waits]
        if asked:
            self._answer(asked, None)

    def _speaks(self, session: S, member: Member) -> bool:
        """Whether *session* is the one by which the member speaks."""
        return self._current.get(member.id, (0, None))[1] == session

    def _is_gone(self, owner: str) -> bool:
        return owner not in self._current and any(
            isinstance(fact, Member) and self._gone(fact) for fact in self.log.held_of(owner))

    def _release(self, owner: str) -> None:
        """Wait no longer for an owner that was there in the epoch before."""
        held = self.log.held_of(owner)
        if owner not in self._current:
            for member in held:
                if isinstance(member, Member):
                    self._leaving(member, [fact for fact in held if fact is not member])
        self.log.release(owner)

    def _drop(self, owner: str) -> None:
        self._current.pop(owner, None)
        self._absent.pop(owner, None)
        self._users.pop(owner, None)
        member = self.log.facts.get(("member", owner))
        if isinstance(member, Member):
            self._leaving(member, [fact for fact in self.log.facts.owned_by(owner) if fact is not member])
        self._tell(self.log.drop(owner))
        if self._time >= 2 * self._lease:
            self._vouched.clear()
            self.log.forget()

    def _tell(self, commit: facts.Commit | None) -> None:
        """Send a commit, the last one, to all who follow, and those before it that they have not been sent."""
        if commit is not None:
            told, self._told = self._told, commit.position
            for one in self.log.since(told) or (commit,):
                self._send([session for session, seat in self._seats.items() if seat.follows], one)

    def _beat(self) -> facts.Beat:
        return facts.Beat(self.log.position, self._domain)


def _known(claim: _Claim, nodes: Mapping[tuple[str, str], NodeFact]) -> _Claim:
    """*claim*, with the incarnations of those of its nodes that were registered in the epoch before."""
    def known(fact: Fact) -> Fact:
        held = nodes.get((fact.owner, fact.name)) if isinstance(fact, NodeFact) else None
        if held is None or not isinstance(fact, NodeFact) or fact.incarnation != (0, 0):
            return fact
        return replace(fact, incarnation=held.incarnation)

    return claim._replace(changes=[(index, replace(change, puts=tuple(known(fact) for fact in change.puts)))
                                   for index, change in claim.changes])


def _nodes(change: Change) -> set[str]:
    """The names of the nodes that a change is about."""
    return {key[1] for key in (*change.deletes, *(fact.key for fact in change.puts)) if len(key) > 1}
