"""Links over ZeroMQ: a DEALER that calls, a ROUTER that listens, and the monitors that tell of their connections.

A link moves frames and tells when a connection opens and ends; what the frames mean is not its
business.  It never blocks but in `wait`, and is used by one thread at a time.
`pyzmp.transport.memory` is its twin without sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import zmq
from msgspec.structs import replace

from pyzmp.exceptions import AddressInUse, InvalidAddress
from pyzmp.protocol.envelope import FRAMES, SIZE, Buffer
from pyzmp.transport.address import Address, check_free, parse
from pyzmp.transport.context import Context, Watched
from pyzmp.transport.readiness import Doorbell, Readiness, descriptor, readable
from pyzmp.transport.refusal import ASKING, Refusal
from pyzmp.transport.security import REFUSED, Guests, secure_caller, secure_listener

HEARTBEAT = 1000  # milliseconds between the heartbeats of a connection
HEARTBEAT_TIMEOUT = 3000  # milliseconds without an answer after which it has ended
HANDSHAKE = 3000  # milliseconds in which a connection must be ready
NEVER = 1 << 30  # milliseconds until a lost connection would be made again: it is closed long before
QUEUE = 65536  # messages in a socket's own queue: far above any window, so that it never decides
CLOSING = 1000  # milliseconds that the end of a listener may take, at most
REBIND = 1.0  # seconds in which a port that was just left may still be taken
ZERO_COPY = 1 << 19  # bytes from which on a frame is sent without a copy, of whose end a thread of pyzmq has to hear
PATIENCE = 86400.0  # seconds that one wait takes, at most: the system counts in milliseconds, with 31 bits
LOOK = 0.05  # seconds after which a thread looks again at what cannot wake it

# As plain numbers: arithmetic with pyzmq's enumerations costs more than what it is about.
_MORE, _NOW, _NOW_MORE = (int(number) for number in (zmq.RCVMORE, zmq.NOBLOCK, zmq.NOBLOCK | zmq.SNDMORE))
_send_frame: Callable[..., object] = zmq.backend.Socket.send  # without what pyzmq does for kinds that we have not
_OPENED = zmq.EVENT_HANDSHAKE_SUCCEEDED
_ENDED: Mapping[int, str] = MappingProxyType({
    zmq.EVENT_CLOSED: "nobody listens there",
    zmq.EVENT_CONNECT_RETRIED: "nobody listens there",
    zmq.EVENT_DISCONNECTED: "the connection ended",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "the handshake failed: what listens there does not speak ZeroMQ's protocol",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the handshake failed: refused",
})
_OPTIONS = ((zmq.HEARTBEAT_IVL, HEARTBEAT), (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT), (zmq.HANDSHAKE_IVL, HANDSHAKE),
            (zmq.SNDHWM, QUEUE), (zmq.RCVHWM, QUEUE), (zmq.MAXMSGSIZE, SIZE))
_CLOSED = zmq.EVENT_CLOSED | zmq.EVENT_CLOSE_FAILED
_CALLER_EVENTS: int = _OPENED
for _event in _ENDED:
    _CALLER_EVENTS |= _event


class Frames(list[Buffer]):
    """The frames of one message, as received.  ``source`` is the descriptor they came through, or -1.

    ``user`` is the public key that the sender has proved to have, on what comes first through a connection with CURVE.
    """

    source = -1
    user = ""


class Connection:
    """The caller's end: one connection to one listener.  Once ended it stays so; there is no reconnecting.

    ``opened`` is True once the handshake is done, ``ended`` the reason once it is over, else None.  An address
    with a key is spoken to over CURVE, if its listener proves that key, with the keys of *context*.
    Raises ConnectionError where that has none, and where there is no room for its sockets.
    """

    def __init__(self, context: Context, address: Address) -> None:
        self.address = address
        self.opened = False
        self.ended: str | None = None
        self._context = context
        security = context.security_for(address)
        self._socket, self._monitor, self._lost = _watched(self, context, zmq.DEALER, address, _CALLER_EVENTS)
        if security is not None:
            secure_caller(self._socket, security.keys, address.key)
        own = security.keys.public if security is not None else ""
        self._refusal = Refusal(address, own, HANDSHAKE / 1000, context.socket)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready, self._bell = Readiness(context.waiting), Doorbell(self._monitor)
        self._ready.watch(self._socket)
        self._ready.watch(self._monitor)
        # Not -1, with which ZeroMQ throws away what has come but was not received when the connection ends.
        self._socket.set(zmq.RECONNECT_IVL, NEVER)
        self._socket.set(zmq.CONNECT_TIMEOUT, HANDSHAKE)
        self._copies = address.scheme == "inproc"  # else both sides would share the sender's memory
        context.uses(address)
        if address.scheme == "inproc":  # has no handshake to watch, and would wait for a listener for ever
            self._listener = context.listener(address)
            self.opened = self._listener is not None
            self.ended = None if self.opened else "nobody listens there"
        try:
            if self.ended is None:
                self._socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.ended = f"the address cannot be connected to: {error.strerror}"

    def attach(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        """Have *loop* call *wake* whenever there may be something to `update` or `receive`."""
        self._loop, self._wake = loop, wake
        self._await_answer()
        for end in (self._socket, self._monitor):
            loop.add_reader(descriptor(end), wake)
        loop.call_soon(wake)  # what came before is not told again

    def wait(self, timeout: float) -> None:
        """Block until there is something to `update` or `receive`, or *timeout* seconds are over."""
        if self.address.scheme == "inproc":
            timeout = min(timeout, LOOK)  # the end of its listener wakes nobody
        if self._refusal.inquiry is not None:
            timeout = min(timeout, ASKING)  # nor does a peer that does not say what it speaks
        if not ((self._bell.rung and self._bell.rings()) or readable(self._socket)):  # what comes now, the wait is told
            self._ready.wait(int(min(max(0.0, timeout), PATIENCE) * 1000) + 1)

    def update(self) -> None:
        """Bring ``opened`` and ``ended`` up to date."""
        while self._bell.rings():
            event, value = _event_of(self._monitor)
            if event == _OPENED:
                self.opened = True
            elif self.ended is None and self._refusal.inquiry is None:
                self.ended = _ENDED.get(event)
                if self.ended is not None and event & REFUSED:
                    self.ended = self._refusal.begin(event, value, self.ended)
                    self._await_answer()
        if self._refusal.inquiry is not None and self.ended is None:
            self.ended = self._refusal.end()
        if self._copies and self.ended is None and self._context.listener(self.address) != self._listener:
            self.ended = "the connection ended"

    def _await_answer(self) -> None:
        """Have whoever drives this connection look again when the peer has said what it speaks, or did not in time."""
        if self._refusal.inquiry is not None:
            self._ready.watch(self._refusal.inquiry.socket)
            if self._loop is not None:
                self._loop.add_reader(descriptor(self._refusal.inquiry.socket), self._wake)
                self._loop.call_later(1.1 * ASKING, self._wake)

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send one message; False where the connection has no room for it or is over."""
        try:
            _send(self._socket, frames, copies=self._copies)
        except zmq.ZMQError:
            return False
        return True

    def receive(self) -> Frames | None:
        """The frames of the next message, or None where none is there.  An oversized message is empty frames."""
        if self._loop is not None and not readable(self._socket):  # a thread has waited, and knows that there is one
            return None
        try:
            first = self._socket.recv(_NOW)
        except zmq.Again:
            return None
        return _gather(self._socket, first)

    def pending(self) -> bool:
        """Whether `receive` or `update` has something, which ZeroMQ's descriptor may not tell again after a send."""
        return not self._socket.closed and (self._bell.rings() or readable(self._socket))

    def close(self) -> None:
        """Give the connection up.  What was sent may still leave.  Once is enough, twice does no harm."""
        if self._socket.closed:
            return
        lost = self.ended is not None  # then nothing can leave any more
        self.ended = self.ended or "the connection was closed here"
        if self._loop is not None and not self._loop.is_closed():
            inquiry = self._refusal.inquiry
            for end in (self._socket, self._monitor, *([inquiry.socket] if inquiry is not None else [])):
                self._loop.remove_reader(descriptor(end))
        self._refusal.close()
        self._context.leaves(self.address)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0 if lost else None)
        self._lost.detach()


class Listener:
    """The listening end: any number of connections, each with a routing key that is told with each message.

    An address with a key, which is that of *context*, speaks CURVE: in comes only whom the `Access` of *context*
    lets in, and who is there is cut as soon as it does not any more.
    """

    def __init__(self, context: Context, address: Address) -> None:
        self._context = context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = False  # whether there should be something to receive
        self._keys: dict[int, bytes] = {}
        self._known: set[bytes] = set()
        try:
            security = context.security_for(address, listens=True)
            events = zmq.EVENT_DISCONNECTED | _CLOSED | (REFUSED if security is not None else 0)
            self._socket, self._monitor, self._lost = _watched(self, context, zmq.ROUTER, address, events)
        except ConnectionError as error:
            raise AddressInUse(errno.EMFILE, f"{address} cannot be bound: {error}") from error
        self._bell = Doorbell(self._monitor)
        self.guests: Guests | None = None
        if security is not None:
            secure_listener(self._socket, security)
            self.guests = Guests(security.access, self._known, address.endpoint)
        self._copies = address.scheme == "inproc"
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.BACKLOG, 1024)
        if address.scheme == "ipc":
            self._socket.set(zmq.IPC_FILTER_UID, os.getuid())
        try:
            self.address = self._bind(address)
        except BaseException:
            self._discard()
            raise
        context.uses(self.address, listens=True)

    def _bind(self, address: Address) -> Address:
        if address.scheme == "ipc":
            check_free(address)
        over = time.monotonic() + REBIND
        while True:
            try:
                self._socket.bind(address.endpoint)
                return replace(parse(cast(bytes, self._socket.last_endpoint).decode()), key=address.key)
            except zmq.ZMQError as error:
                # A port that was just left stays taken for a moment, while its last connections go.
                if error.errno != errno.EADDRINUSE or address.scheme != "tcp" or time.monotonic() > over:
                    raise _bind_error(address, error) from error
                time.sleep(0.01)

    def attach(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        """Have *loop* call *wake* whenever there may be something to `receive` or somebody `left`."""
        def told() -> None:
            self._told = True
            wake()
        self._loop = loop
        loop.add_reader(descriptor(self._socket), told)
        loop.add_reader(descriptor(self._monitor), wake)
        loop.call_soon(wake)

    def receive(self) -> tuple[bytes, Frames] | None:
        """The next message and the key of its connection, or None.  An oversized message is empty frames."""
        while self._told or readable(self._socket):  # to receive and get an exception would take three times as long
            self._told = False
            try:
                key = self._socket.recv(_NOW)
            except zmq.Again:
                return None
            first = self._socket.recv(copy=False)  # there is always one behind the key, which ZeroMQ puts before it
            if key in self._known or self._copies:
                lone = not (first.more or self._copies)
                return key, Frames((first.bytes,)) if lone else _gather(self._socket, first.bytes)
            frames = _gather(self._socket, first.bytes)
            frames.source = first.get(zmq.SRCFD)
            if self.guests is None or self.guests.admits(key, first, frames.source):
                frames.user = self.guests.user(frames.source) if self.guests is not None else ""
                return key, frames
        return None

    def knows(self, key: bytes, source: int) -> None:
        """Remember that the connection *key* uses the descriptor *source*, so that `left` can name it."""
        if source >= 0:
            self._keys[source] = key
            self._known.add(key)
            if self.guests is not None and not self.guests.allows(source):
                self._known.discard(key)  # it was revoked since its message was received

    def left(self) -> Iterator[bytes]:
        """The keys of the connections that have ended since the last time."""
        while self._bell.rings():
            event, value = _event_of(self._monitor)
            key = self._keys.pop(value, None) if event == zmq.EVENT_DISCONNECTED else None
            if self.guests is not None:
                self.guests.note(event, value)
            if key is not None:
                self._known.discard(key)
                yield key

    def wait(self, timeout: float) -> None:
        """Block until there is something to `receive`, or *timeout* seconds are over; by the millisecond."""
        self._socket.poll(math.ceil(timeout * 1000))

    def pending(self) -> bool:
        """Whether there is something to `receive`, which ZeroMQ's descriptor may not tell again after a send."""
        return not self._socket.closed and (self._bell.rings() or readable(self._socket))

    def send(self, key: bytes, frames: Sequence[Buffer]) -> bool:
        """Send one message to the connection *key*; False where it is gone or has no room."""
        try:
            self._socket.send(key, _NOW_MORE)
            _send(self._socket, frames, copies=self._copies)
        except zmq.ZMQError:
            return False
        return True

    def close(self) -> None:
        """Stop listening, with nothing left at the address, and end every connection; what was sent may still leave."""
        if self._socket.closed:
            return
        if self.address.scheme == "ipc":
            # Before the end of the listener: afterwards somebody else's may be at the path.
            with contextlib.suppress(OSError):
                os.unlink(self.address.rest)
        if self._loop is not None and not self._loop.is_closed():
            for end in (self._socket, self._monitor):
                self._loop.remove_reader(descriptor(end))
        self._context.leaves(self.address, listens=True)
        self._discard()

    def _discard(self) -> None:
        """Close, and wait until ZeroMQ's own thread has let go of the address, which takes it some 60 µs.

        The monitor goes first: connections that are still to end would have that thread wait for one that is gone.
        """
        if self.guests is not None:
            self.guests.close()
        if hasattr(self, "address"):
            self._socket.unbind(self.address.endpoint)  # of inproc too, where a close frees the name at a later moment
            while not self._copies and self._bell.rings(CLOSING):
                if _event_of(self._monitor)[0] & _CLOSED:
                    break
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._lost.detach()  # not called: at the interpreter's end that would do nothing


def _watched(owner: object, context: Context, kind: int, address: Address, events: int) -> Watched:
    """As `Context.watched`, with the options of a link to *address*.  ConnectionError where there is no room."""
    options = (*_OPTIONS, (zmq.IPV6, address.rest.startswith("[")))
    try:
        return context.watched(owner, kind, options, events)
    except zmq.ZMQError as error:
        raise ConnectionError(f"ZeroMQ makes no more sockets: {error.strerror}") from error


def _send(end: zmq.Socket[bytes], frames: Sequence[Buffer], *, copies: bool) -> None:
    left = len(frames)
    for frame in frames:
        left -= 1
        # Only the first frame can find the queue full: ZeroMQ takes a message whole or not at all.
        small = copies or (len(frame) if type(frame) is bytes else memoryview(frame).nbytes) < ZERO_COPY
        _send_frame(end, frame, _NOW_MORE if left else _NOW, small)


def _gather(end: zmq.Socket[bytes], first: Buffer) -> Frames:
    """The rest of a message behind *first*, which stops being kept beyond the limits: its frames are empty then."""
    frames = Frames([first])
    size = len(first)
    while end.get(_MORE):
        frame = end.recv(copy=False)
        size += len(frame)
        if len(frames) <= FRAMES and size <= SIZE:
            frames.append(frame.buffer)
    if len(frames) > FRAMES or size > SIZE:
        frames.clear()
    return frames


def _event_of(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    head, _ = monitor.recv_multipart()
    event, value = struct.unpack("=hi", head)
    return event & 0xFFFF, value


def _bind_error(address: Address, error: zmq.ZMQError) -> AddressInUse | InvalidAddress:
    if error.errno in (errno.EINVAL, errno.ENODEV, errno.EADDRNOTAVAIL, zmq.EPROTONOSUPPORT):
        return InvalidAddress(f"{address.endpoint} cannot be bound: {error.strerror}")
    return AddressInUse(error.errno, f"{address.endpoint} cannot be bound: {error.strerror}")
