"""Facts about the graph of nodes and channels, and what a registry and its followers tell each other.

A *fact* has a key and an owner, the process (`Member`) that alone may change it.  A *position* is
``(epoch, version)``: versions are contiguous from 1 in an epoch, and every registry process that
takes over begins a higher epoch.  How these make one history is in `pyzmp.protocol.graph`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from pyzmp.exceptions import AnnouncementRefused, MalformedMessage, NodeExists

SIZE = 1 << 20  # bytes of one message between a registry and a follower, at most
PIECE = 48 << 10  # bytes of facts that go into one message, unless one fact alone is larger

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
LONG = 16384  # characters of a text, at most
VALUE = 48 << 10  # bytes of a parameter's value, at most
Text = Annotated[str, msgspec.Meta(max_length=LONG)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Key = tuple[str, ...]


class Epoch(NamedTuple):
    """The reign of one registry process.  ``nonce`` tells two with the same counter apart."""

    counter: Count
    nonce: str


class Position(NamedTuple):
    """A place in the history; positions of one epoch are ordered by their version."""

    epoch: Epoch
    version: Count


class _Struct(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Immutable, and an array on the wire."""


class Member(_Struct, frozen=True, tag="member"):
    """A process that takes part: itself a fact, so that every view knows whose facts it holds.

    ``started`` tells two processes apart that got the same ``pid`` one after the other.  ``doubted`` is the
    registry's to say: its connection is cut, or it has yet to confirm in a new epoch what it owns.
    """

    id: Name
    host: Text
    pid: Count
    started: Text
    program: Text = ""
    doubted: bool = False

    @property
    def key(self) -> Key:
        return "member", self.id

    @property
    def owner(self) -> str:
        return self.id


class NodeFact(_Struct, frozen=True, tag="node"):
    """A node.  ``incarnation`` is the (epoch counter, version) of its registration, given by the log.

    ``groups`` are those that it is in, the innermost first.
    """

    name: Name
    owner: Name
    loop: Text
    addresses: tuple[Text, ...]
    kind: Text
    host: Text
    pid: Count
    cls: Text
    labels: tuple[tuple[Text, Text], ...] = ()
    incarnation: tuple[Count, Count] = (0, 0)
    groups: tuple[Name, ...] = ()

    @property
    def key(self) -> Key:
        return "node", self.name


class Trait:
    """Bits of `ServiceFact.traits`: what callers of a service should know besides its signature."""

    IDEMPOTENT = 1  # running it twice does no harm
    DEDUPLICATE = 2  # a repeated attempt is answered with the reply of the first, and not run again
    STREAM = 4  # its result is a stream


class ServiceFact(_Struct, frozen=True, tag="service"):
    """A service of a node: the ``classes`` that declare it, its ``schema``'s fingerprint, its signature as ``text``.

    ``traits`` are bits of `Trait`.
    """

    node: Name
    name: Name
    owner: Name
    classes: tuple[Text, ...] = ()
    schema: Text = ""
    text: Text = ""
    traits: Count = 0

    @property
    def key(self) -> Key:
        return "service", self.node, self.name


class ParameterFact(_Struct, frozen=True, tag="parameter"):
    """A named value of a node, encoded; ``text`` is its type.  ``settable``: others may ask the node to change it."""

    node: Name
    name: Name
    owner: Name
    value: Annotated[bytes, msgspec.Meta(max_length=VALUE)]
    text: Text = ""
    settable: bool = False

    @property
    def key(self) -> Key:
        return "parameter", self.node, self.name


class PublisherFact(_Struct, frozen=True, tag="publisher"):
    """A node publishes a topic: its ``schema``'s fingerprint, its type as ``text``.

    ``marks`` name the declarations that it comes from, as ``Class.attribute``: of each class that declares it.
    """

    node: Name
    topic: Name
    owner: Name
    schema: Text = ""
    text: Text = ""
    marks: tuple[Text, ...] = ()

    @property
    def key(self) -> Key:
        return "publisher", self.node, self.topic


class SubscriberFact(_Struct, frozen=True, tag="subscriber"):
    """A node listens to a topic, or to all that a pattern selects: its ``schema``'s fingerprint, its type as ``text``.

    With ``marks``, to those publishers only that have one of them; ``topic`` may then begin with the name of a group,
    for any member of it.
    """

    node: Name
    topic: Name
    owner: Name
    schema: Text = ""
    text: Text = ""
    marks: tuple[Text, ...] = ()

    @property
    def key(self) -> Key:
        return "subscriber", self.node, self.topic


Part = ServiceFact | ParameterFact | PublisherFact | SubscriberFact  # what belongs to a node, and goes with it
Fact = Member | NodeFact | Part
Provider = tuple[NodeFact, ServiceFact]


class Change(_Struct, frozen=True):
    """What goes together or not at all.  Deletions come first; a node takes its parts with it."""

    puts: tuple[Fact, ...] = ()
    deletes: tuple[Key, ...] = ()


class Refusal(_Struct, frozen=True):
    """Why one change of a `Propose` was not taken: a taken name, or (without an owner) the sentence in ``text``."""

    index: Count
    text: Text
    owner: Text = ""
    asker: Text = ""

    def error(self) -> Exception:
        return NodeExists(self.text, self.owner, self.asker) if self.owner else AnnouncementRefused(self.text)


class Join(_Struct, frozen=True, tag="join"):
    """Follower to registry: I am a member of *domain*, and will `Propose` all I own.

    ``number`` counts the member's sessions: what an earlier one has said does not count any more.
    """

    member: Member
    domain: Text = ""
    number: Count = 0


class Hold(_Struct, frozen=True, tag="hold"):
    """Follower to a new registry of *domain*: who was there in the epoch before, and the nodes that they had."""

    facts: tuple[Fact, ...]
    domain: Text = ""


class Propose(_Struct, frozen=True, tag="propose"):
    """Member to registry: changes of my own facts.  ``complete``: with what came before, these are all I own."""

    id: Count
    changes: tuple[Change, ...]
    complete: bool = False


class Follow(_Struct, frozen=True, tag="follow"):
    """Follower to registry: send what comes after *since*, or a snapshot, and then every commit."""

    since: Position | None = None


class Leave(_Struct, frozen=True, tag="leave"):
    """Member to registry: drop what I own, and tell me with a `Settled` of number 0."""


class Beat(_Struct, frozen=True, tag="beat"):
    """Registry to everybody, at once when a session opens and then regularly: where the history of *domain* is."""

    position: Position
    domain: Text = ""


class Snapshot(_Struct, frozen=True, tag="snapshot"):
    """Registry to a follower: everything at *position*, in pieces numbered from 0."""

    position: Position
    piece: Count
    last: bool
    facts: tuple[Fact, ...]


class Commit(_Struct, frozen=True, tag="commit"):
    """Registry to its followers: one step of the history.  ``gone`` are owners all of whose facts end.

    ``after`` is the version of the commit before it: who has that has missed nothing.  One that changes
    nothing says that all is known up to its position.
    """

    position: Position
    after: Count
    puts: tuple[Fact, ...] = ()
    deletes: tuple[Key, ...] = ()
    gone: tuple[Name, ...] = ()


class Settled(_Struct, frozen=True, tag="settled"):
    """Registry to a member: a `Propose` is in the history up to *position*, but for what is refused."""

    id: Count
    position: Position
    refusals: tuple[Refusal, ...] = ()


Message = Join | Hold | Propose | Follow | Leave | Beat | Snapshot | Commit | Settled

_encode = msgspec.msgpack.Encoder().encode
T = TypeVar("T")


@functools.cache
def _decoder() -> msgspec.msgpack.Decoder[Message]:
    """Made when first needed: it takes as long as the rest of this module."""
    return msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """The message in *data*; raises MalformedMessage, and nothing else, where there is none."""
    if len(data) > SIZE:
        raise MalformedMessage(f"a registry message of {len(data)} bytes; the limit is {SIZE}")
    try:
        return _decoder().decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise MalformedMessage(f"no message of a registry: {error}") from error


def proof(key: str) -> str:
    """How the id of a member with the public *key* ends, so that no other key can claim it; empty without one."""
    if not key:
        return ""
    import hashlib  # seldom needed, and costs to import

    return f"-{hashlib.sha256(key.encode()).hexdigest()[:20]}"


def fitting(fact: Fact) -> Fact:
    """*fact* as it may travel: a signature too long to be shown is cut short.

    Raises AnnouncementRefused for one that a registry could not read.
    """
    if isinstance(fact, ServiceFact) and len(fact.text) > LONG:
        fact = replace(fact, text=f"{fact.text[:LONG - 1]}…")
    try:
        decode(encode(Hold((fact,))))
    except (MalformedMessage, UnicodeEncodeError) as error:
        raise AnnouncementRefused(f"{fact.key[0]} {'/'.join(fact.key[1:])!r} cannot be announced: {error}") from error
    return fact


def split(change: Change, size: int = PIECE) -> list[Change]:
    """*change*, or where that is larger than *size* bytes what it says in parts, to be made in this order.

    One that puts parts of a node stands or falls with the one before that puts the node.
    """
    if len(_encode(change)) <= size:
        return [change]
    return [*(Change(deletes=part) for part in pieces(change.deletes, size) if part),
            *(Change(part) for part in pieces(change.puts, size) if part)]


def pieces(items: Iterable[T], size: int = PIECE) -> Iterator[tuple[T, ...]]:
    """The items in order, as many together as fit into *size* bytes; at least one tuple, which may be empty."""
    piece: list[T] = []
    room = size
    for item in items:
        taken = len(_encode(item))
        if piece and taken > room:
            yield tuple(piece)
            piece, room = [], size
        piece.append(item)
        room -= taken
    yield tuple(piece)
