"""Messages, and batches of messages, to and from the frames of one ZeroMQ message.

The first frame is the *head*: one byte with the version of this format, then a MessagePack array of
messages, each an array of a number that tells its kind and its fields.  The frames after it are the
*buffers* of these messages, in order; each message says how many are its own.  So one ZeroMQ message
carries one message of ours or many.

Values inside messages (arguments, results) are bytes here, made by `pyzmp.protocol.codec`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec

from pyzmp.exceptions import CannotTravel, MalformedMessage
from pyzmp.protocol.codes import Code as Code  # noqa: PLC0414 - they are part of what this module says
from pyzmp.protocol.codes import Flag as Flag  # noqa: PLC0414

VERSION = 1
BATCH = 1024  # messages in one ZeroMQ message, at most
FRAMES = 1024  # frames in one ZeroMQ message, at most
SIZE = 1 << 30  # bytes of one ZeroMQ message
HEAD = 4  # bytes before the messages of a batch, at most
AROUND = 64  # bytes that an `Item` adds to its body, at most

LANES = 64  # loops in a chain, at most
NAME = 1024  # characters of a name, at most

Buffer = bytes | bytearray | memoryview
Name = Annotated[str, msgspec.Meta(max_length=NAME)]


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What all messages share: immutable, and arrays on the wire."""


class Hello(_Message, frozen=True, tag=1):
    """The first message of a session, from the caller.

    ``loop`` is the loop that the caller means to talk to, or empty for whichever listens there.
    ``session`` names this session, ``caller`` the process, and ``body`` is for the room above.
    """

    session: bytes
    caller: str
    loop: str = ""
    body: bytes = b""


class Welcome(_Message, frozen=True, tag=2):
    """The answer to `Hello`: the session stands.  ``calls`` and ``size`` are the window, in calls and bytes."""

    loop: str
    calls: int = 0
    size: int = 0


class Goodbye(_Message, frozen=True, tag=3):
    """The session ends by the sender's will; nothing sent after the last reply was looked at."""

    reason: str


class Lane(_Message, frozen=True):
    """A loop that is held up, and what holds it up, in words."""

    loop: Name
    what: Name


class Request(_Message, frozen=True, tag=4):
    """A call of ``service`` of ``node``.

    ``remaining`` is what is left of the deadline, in seconds.  ``incarnation`` is the registration
    of the node that the caller knows, (0, 0) for any.  ``chain`` are the loops that are held up until
    this call has ended, the first one first.  ``flags`` are those of `Flag`.  ``key`` names the call
    over all its attempts, where the service answers a repeated one without running again.
    """

    call: int
    node: Name
    service: Name
    remaining: float
    body: bytes
    buffers: int = 0
    incarnation: tuple[int, int] = (0, 0)
    flags: int = 0
    chain: Annotated[tuple[Lane, ...], msgspec.Meta(max_length=LANES)] = ()
    key: bytes = b""


class Reply(_Message, frozen=True, tag=5):
    """The result of a call."""

    call: int
    body: bytes
    buffers: int = 0


class Failure(_Message, frozen=True, tag=6):
    """A call that has no result.

    ``code`` is one of `Code`; ``executed`` says whether the service started; ``text`` is the
    sentence for the caller and ``body`` what `pyzmp.protocol.failure` made of an exception.  A caller
    for whom there was no room may try again after ``retry_after`` seconds.
    """

    call: int
    code: int
    text: str = ""
    executed: bool | None = None
    body: bytes = b""
    retry_after: float | None = None


class Cancel(_Message, frozen=True, tag=7):
    """The caller does not want the results any more of so many calls, from ``call`` on."""

    call: int
    count: int = 1


class Item(_Message, frozen=True, tag=8):
    """One item of a stream, numbered from 0; either side may send one."""

    call: int
    number: int
    body: bytes
    buffers: int = 0


class End(_Message, frozen=True, tag=9):
    """A stream has no more items."""

    call: int


class Credit(_Message, frozen=True, tag=10):
    """The receiver of a stream has room for so many more items and bytes.

    For call 0: so many one-way calls have ended, and leave so many bytes of the session's window.
    """

    call: int
    items: int
    size: int = 0


class Note(_Message, frozen=True, tag=11):
    """A message between a process and its registry, in the form of `pyzmp.protocol.graph`."""

    body: bytes


class Opened(_Message, frozen=True, tag=12):
    """The service that a stream comes from has begun; from now on its caller waits as long as it likes."""

    call: int


class Subscribe(_Message, frozen=True, tag=13):
    """The sender wants what ``node`` publishes as ``topic``, until it sends a `Cancel` of ``call``.

    ``call`` is its own number for the subscription, ``who`` the node that subscribes, if one does.  ``full``,
    ``length`` and ``size`` say what waits for it at most, and what happens then, as in `pyzmp.protocol.feed`.
    ``history`` are the messages from before that it wants.  ``shape`` is its type, as `pyzmp.protocol.fits` has it.
    ``since`` is the feed that it had messages of before, and the number that it expects next.  ``early`` says that
    it was there before it knew of the publisher: it wants all from the first message on.  ``packed`` says that it
    takes `Packed` messages too.
    """

    call: int
    node: Name
    topic: Name
    full: int = 0
    length: int = 0
    size: int = 0
    history: int = 0
    shape: bytes = b""
    since: tuple[bytes, int] = (b"", 0)
    who: Name = ""
    early: bool = False
    packed: bool = False


class Subscribed(_Message, frozen=True, tag=14):
    """A `Subscribe` stands: all from message ``number`` on is for it, of the feed that ``life`` names.

    ``shape`` is the type that is published.  Where it does not stand, the answer is a `Failure`.
    """

    call: int
    life: bytes
    number: int
    shape: bytes = b""


class Published(_Message, frozen=True, tag=15):
    """Messages for a subscription, numbered from ``number`` on: when each was published, and the values.

    The times are seconds since 1970.  Only one alone has buffers.
    """

    call: int
    number: int
    times: list[float]
    bodies: list[bytes]
    buffers: int = 0


class Packed(_Message, frozen=True, tag=21):
    """As `Published`, in two pieces: the times as doubles, little-endian, and as a buffer the values, as one array.

    Nothing is made for each message on its way: that is most of what a small one costs.
    """

    call: int
    number: int
    clocks: bytes
    buffers: int = 1


class Skipped(_Message, frozen=True, tag=16):
    """So many messages from ``number`` on were dropped for a subscription, whose queue was full."""

    call: int
    number: int
    count: int


class Taken(_Message, frozen=True, tag=17):
    """Of a subscription so many messages were taken in all, and there is room for so many more, and bytes."""

    call: int
    taken: int
    items: int = 0
    size: int = 0


class Ended(_Message, frozen=True, tag=18):
    """A subscription is over, as what it was for is: all messages before ``number`` were offered to it."""

    call: int
    number: int
    reason: str = ""


class Calls(_Message, frozen=True, tag=19):
    """So many calls of ``service`` of ``node``, numbered from ``call`` on, as that many `Request` would be.

    ``body`` is an array of their positional arguments, an array each.  None has others, buffers, flags or a key.
    """

    call: int
    node: Name
    service: Name
    remaining: float
    body: bytes
    count: int
    incarnation: tuple[int, int] = (0, 0)
    chain: Annotated[tuple[Lane, ...], msgspec.Meta(max_length=LANES)] = ()


class Results(_Message, frozen=True, tag=20):
    """The results of so many calls, from ``call`` on: an array of what the bodies of that many `Reply` would be."""

    call: int
    body: bytes
    count: int


Message = (Hello | Welcome | Goodbye | Request | Reply | Failure | Cancel | Item | End | Credit | Note | Opened
           | Subscribe | Subscribed | Published | Skipped | Taken | Ended | Calls | Results | Packed)


class Parcel(NamedTuple):
    """A message with its buffers."""

    message: Message
    buffers: Sequence[Buffer] = ()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message]).decode
_decode_one = msgspec.msgpack.Decoder(Message).decode
_LONE = b"\x01\x91"  # what a batch of one begins with
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)


encode: Callable[[Message], bytes] = _encode
"""One message, ready for `pack`; it can be packed any number of times."""


def tail(number: int, times: Sequence[float], bodies: Sequence[bytes], buffers: int) -> bytes:
    """What a `Published` says to whomever it is sent; `published` makes it one."""
    return _encode((number, times, bodies, buffers))[1:]  # without the head of the array


def published(call: int, tail: bytes) -> bytes:
    """The encoded `Published` for one subscription."""
    return b"\x96\x0f" + _encode(call) + tail


def size_of(body: bytes, buffers: Sequence[Buffer]) -> int:
    """The bytes of a value and its buffers, as windows and limits count them."""
    return len(body) + sum(memoryview(buffer).nbytes for buffer in buffers) if buffers else len(body)


def fitting(encoded: bytes, buffers: Sequence[Buffer], what: str = "the value", room: int = 0) -> int:
    """How many bytes a message takes with its buffers; raises CannotTravel where no peer would take it and *room* more.

    *what* names the value in the error.
    """
    size, most = size_of(encoded, buffers), SIZE - HEAD - room
    if size > most or len(buffers) >= FRAMES:
        raise CannotTravel("message", what, f"it takes {size} bytes and {len(buffers)} large buffers; "
                           f"the limits are {most} and {FRAMES - 1}")
    return size


def pack(messages: Sequence[bytes]) -> bytes:
    """The head of a batch of encoded messages, at most `BATCH` of them."""
    count = len(messages)
    if count == 1:
        return _LONE + messages[0]
    if count > BATCH:
        raise ValueError(f"a batch holds at most {BATCH} messages, got {count}")
    return b"\x01\xdc" + count.to_bytes(2, "big") + b"".join(messages)


def unpack(frames: Sequence[Buffer]) -> list[Parcel]:
    """The messages of one ZeroMQ message, with their buffers.

    Raises MalformedMessage for anything that is not a whole batch of this version, and nothing else.
    Takes no more memory than a small multiple of what the frames hold.
    """
    if len(frames) == 1 and frames[0][:2] == _LONE:  # nearly all of a lone call: in half of the time
        try:
            message = _decode_one(memoryview(frames[0])[2:])
            if not getattr(message, "buffers", 0):
                return [Parcel(message)]
        except _MALFORMED:  # said below in which way
            pass
    if not frames:
        raise MalformedMessage("a message without frames")
    head = memoryview(frames[0])
    if len(frames) > FRAMES:
        raise MalformedMessage(f"a message of {len(frames)} frames; the limit is {FRAMES}")
    if len(head) < 2:
        raise MalformedMessage(f"a head of {len(head)} bytes; expected the version and a batch of messages")
    if head[0] != VERSION:
        raise MalformedMessage(f"a message of version {head[0]} of the wire format; this is version {VERSION}")
    count = _count(head)
    if count > BATCH:
        raise MalformedMessage(f"a batch that claims {count} messages; the limit is {BATCH}")
    try:
        messages = _decode(head[1:])
    except _MALFORMED as error:
        raise MalformedMessage(f"not a batch of messages: {error}") from error
    return list(_with_buffers(messages, frames))


def _count(head: memoryview) -> int:
    """How many messages the batch claims to hold, read before anything is taken."""
    first = head[1]
    if first & 0xF0 == 0x90:
        return first & 0x0F
    if first in (0xDC, 0xDD):
        return int.from_bytes(head[2:4 if first == 0xDC else 6], "big")
    raise MalformedMessage(f"byte 0x{first:02x} where the array of messages should begin")


def _with_buffers(messages: Sequence[Message], frames: Sequence[Buffer]) -> Iterator[Parcel]:
    taken = 1
    for message in messages:
        buffers = getattr(message, "buffers", 0)
        if not 0 <= buffers <= len(frames) - taken:
            raise MalformedMessage(
                f"a {type(message).__name__} claims {buffers} buffers, {len(frames) - taken} are left")
        yield Parcel(message, frames[taken:taken + buffers])
        taken += buffers
    if taken != len(frames):
        raise MalformedMessage(f"{len(frames) - taken} frames belong to no message")
