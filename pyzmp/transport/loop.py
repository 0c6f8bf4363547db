"""Sessions: links with a greeting, batches and a turn of the loop, on both sides.

A `Session` is the caller's end.  It is driven by whoever calls `pump`: an asyncio loop that it is
attached to, or a thread that blocks in `wait`.  A `Server` is the listening end, on one asyncio
loop, with any number of addresses; each caller that has greeted is a `Peer`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Buffer, Goodbye, Hello, Message, Parcel, Welcome
from pyzmp.transport.address import Address, check_bind, parse
from pyzmp.transport.context import Context
from pyzmp.transport.link import Connection, Frames, Listener
from pyzmp.transport.memory import MemoryConnection, MemoryListener
from pyzmp.transport.outbox import Outbox, Turn, guarded, soon

DRAIN = 256  # messages that one address handles before the loop's other business has its turn
FAREWELL = 64  # turns after which a caller that left is forgotten, though there is more to read
BLAMED = 1024  # peers whose first malformed message is remembered, at most
NO_ROOM = "the connection ended or has no room"

log = logging.getLogger("pyzmp.transport")


class Session:
    """The caller's end of one connection, used by one thread or loop.

    It opens by itself; what is sent before that waits, and leaves right behind the greeting.  Once
    ``ended`` (the reason, as text) it stays so.  ``on_parcel`` gets what arrives, ``on_end`` is
    called once with the reason; both run in `pump`.
    """

    def __init__(self, context: Context, address: str, hello: Hello, *, on_parcel: Callable[[Parcel], object],
                 on_end: Callable[[str], object]) -> None:
        parsed = parse(address)
        self.address = address
        self.hello = hello
        self.welcome: Welcome | None = None
        self.ended: str | None = None
        self.sent = False  # whether anything has left
        self.malformed = 0
        self._greeted = False
        self._pumping = False
        self._due = False
        self._on_parcel = on_parcel
        self._on_end = on_end
        self._held: list[tuple[Message, Sequence[Buffer]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link = _connect(context, parsed)
        self._outbox = Outbox(self._transmit, Turn(None))

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let *loop*, which is the running one, pump from now on."""
        self._loop = loop
        self._outbox = Outbox(self._transmit, Turn(loop))
        self._link.attach(loop, self.pump)

    def wait(self, timeout: float) -> None:
        """Block until there is something to `pump`, or *timeout* seconds are over."""
        self._link.wait(timeout)

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send, or hold until the session is open.  After the end it is dropped: ``on_end`` was told.

        Raises CannotTravel for what goes beyond the limits of a message.
        """
        if self.ended is not None:
            return
        if self._greeted:
            self._outbox.put(message, buffers)
        else:
            envelope.size_of(envelope.encode(message), buffers)
            self._held.append((message, buffers))

    def pump(self) -> None:
        """Handle all that has happened to the connection."""
        if self.ended is not None or self._pumping:
            return
        self._pumping = again = True
        try:
            again = self._pump()
        finally:
            self._pumping = False
            if again:  # also after a Ctrl-C: what is left is not told again
                self._pump_soon()

    def _pump_soon(self) -> None:
        """Pump in the loop's next turn, where there is one; once, however often it is asked for."""
        if not self._due:
            self._due = soon(self._loop, self._pump_due)

    def _pump_due(self) -> None:
        self._due = False
        self.pump()

    def _pump(self) -> bool:
        """As `pump`; True where there is more than a turn's worth."""
        self._link.update()
        over = self._link.ended  # looked at first: what came before the end is handled before it
        if self._link.opened and not self._greeted and over is None:
            self._greet()
        # A thread that waits is told of what is left, unless the connection is over.
        for _ in range(1 if self._loop is None and over is None else DRAIN):
            frames = self._link.receive() if self.ended is None else None
            if frames is None:
                break
            self._handle(frames)
        else:
            return True
        if over is not None:
            self._end(over)
        return False

    def catch_up(self) -> None:
        """Handle what happened while nobody was looking, for a thread that comes back to the session."""
        if self.ended is None and (self._link.pending() or not self._greeted):
            self.pump()

    def close(self) -> None:
        """End the session; the listener is told, if it is there still."""
        self.catch_up()
        if self.ended is None and self._greeted:
            self._outbox.put(Goodbye("closed by the caller"), ())
            self._outbox.flush()
        self._end("the session was closed here")

    def _greet(self) -> None:
        self._greeted = True
        held, self._held = [(self.hello, ()), *self._held], []
        for message, buffers in held:
            self._outbox.put(message, buffers)

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        done = self._link.send(frames)
        self.sent |= done
        if not done:
            if not soon(self._loop, self._end, NO_ROOM):
                self._end(NO_ROOM)
        elif self._loop is not None and not self._pumping and self._link.pending():
            self._pump_soon()  # sending took the notice that something has come
        return done

    def _handle(self, frames: Sequence[Buffer]) -> None:
        try:
            parcels = envelope.unpack(frames)
        except MalformedMessage as error:
            self.malformed += 1
            if self.malformed == 1:
                log.warning("%s sent a malformed message, dropped: %s", self.address, error)
            return
        for parcel in parcels:
            message = parcel.message
            if self.ended is not None:
                return
            if type(message) is Welcome:
                self.welcome = message
            elif type(message) is Goodbye:
                self._end(message.reason)
            else:
                guarded(self._on_parcel, parcel)

    def _end(self, reason: str) -> None:
        if self.ended is None:
            self.ended = reason
            self._held = []
            self._link.close()
            guarded(self._on_end, reason)


def _connect(context: Context, address: Address) -> Connection | MemoryConnection:
    if address.scheme == "memory":
        return MemoryConnection(context, address)
    try:
        return Connection(context, address)
    except ConnectionError as error:  # no room for its sockets: a session that has ended
        return MemoryConnection(context, address, str(error))


class Peer:
    """One caller of a `Server`, after its greeting.  Belongs to the server's loop."""

    __slots__ = ("_outbox", "hello", "key", "listener", "state")

    def __init__(self, server: Server, listener: Listener | MemoryListener, key: bytes, hello: Hello) -> None:
        self.listener = listener
        self.key = key
        self.hello = hello
        self.state: object = None  # for the room above
        self._outbox = Outbox(lambda frames: server.transmit(self, frames), server.turn)

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send by the flush rule; dropped where the caller is gone.

        Raises CannotTravel for what goes beyond the limits of a message.
        """
        self._outbox.put(message, buffers)

    def flush(self) -> None:
        """Let everything leave now."""
        self._outbox.flush()


class Server:
    """The listening end on *loop*, whose thread alone may use it.

    ``on_open`` is called when a caller has greeted, ``on_parcel`` for each of its messages, and
    ``on_end`` once when it is gone.  Whatever a peer sends, the server goes on: what is no message
    of ours is counted in ``malformed``, logged once per peer and dropped.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop, name: str, *,
                 on_parcel: Callable[[Peer, Parcel], object],
                 on_open: Callable[[Peer], object] = lambda peer: None,
                 on_end: Callable[[Peer], object] = lambda peer: None) -> None:
        self.loop = loop
        self.name = name
        self.turn = Turn(loop)
        self.malformed = 0
        self._context = context
        self._on_parcel, self._on_open, self._on_end = on_parcel, on_open, on_end
        self._listeners: dict[str, Listener | MemoryListener] = {}
        self._peers: dict[tuple[str, bytes], Peer] = {}
        self._blamed: set[tuple[str, bytes]] = set()
        self._leaving: deque[tuple[int, tuple[str, bytes]]] = deque()
        self._turns = 0
        self._draining: Listener | MemoryListener | None = None
        self._due: set[str] = set()

    @property
    def peers(self) -> list[Peer]:
        """The callers that have greeted and are not gone."""
        return list(self._peers.values())

    @property
    def addresses(self) -> list[str]:
        """Where this server can be reached."""
        return list(self._listeners)

    def bind(self, address: str, *, insecure: bool = False) -> str:
        """Listen at *address* too; the address in full, with the port that was chosen for ``*``.

        Raises InvalidAddress and AddressInUse, which say what is wrong.
        """
        parsed: Address = check_bind(address, insecure=insecure)
        listener = (MemoryListener if parsed.scheme == "memory" else Listener)(self._context, parsed)
        bound = str(listener.address)
        self._listeners[bound] = listener
        listener.attach(self.loop, lambda: self._drain(bound))
        return bound

    def unbind(self, address: str) -> None:
        """Stop listening at *address*, once what has come is handled; its callers are told."""
        self._drain(address)
        listener = self._listeners.pop(address, None)
        if listener is not None:
            for place, peer in list(self._peers.items()):
                if place[0] == address:
                    peer.send(Goodbye("the listener closes"))
                    peer.flush()
                    self._forget(place)
            self._blamed = {place for place in self._blamed if place[0] != address}
            self._leaving = deque(entry for entry in self._leaving if entry[1][0] != address)
            listener.close()

    def close(self) -> None:
        """Stop listening everywhere."""
        for address in list(self._listeners):
            self.unbind(address)

    def transmit(self, peer: Peer, frames: Sequence[Buffer]) -> bool:
        """Send frames to *peer* now; False where it is gone."""
        done = peer.listener.send(peer.key, frames)
        if peer.listener is not self._draining and peer.listener.pending():
            self._drain_soon(str(peer.listener.address))  # sending took the notice that something came
        return done

    def _drain(self, address: str) -> None:
        listener = self._listeners.get(address)
        if listener is None or self._draining is not None:
            return
        self._draining, again = listener, True
        begun = self.turn.begin()
        try:
            again = self._receive(address, listener)
        finally:
            if begun and self.turn.end():  # sending may take the notice of what came meanwhile
                again = again or listener.pending()
            self._draining = None
            if again:  # also after a Ctrl-C: what is left is not told again
                self._drain_soon(address)

    def _drain_soon(self, address: str) -> None:
        """Drain in the loop's next turn; once, however often it is asked for."""
        if address not in self._due and soon(self.loop, self._drain_due, address):
            self._due.add(address)

    def _drain_due(self, address: str) -> None:
        self._due.discard(address)
        self._drain(address)

    def _receive(self, address: str, listener: Listener | MemoryListener) -> bool:
        """Handle what has come; True where there is more than a turn's worth."""
        self._turns += 1
        self._notice(address, listener)
        room = DRAIN
        while room > 0 and (received := listener.receive()) is not None:
            room -= self._handle(address, listener, *received)
            if self._listeners.get(address) is not listener:
                return False
        self._farewell(all_read=room > 0)
        return room <= 0

    def _notice(self, address: str, listener: Listener | MemoryListener) -> None:
        """Note who has left.  They are forgotten once what they sent before is handled, at the latest in some turns."""
        self._leaving.extend((self._turns + FAREWELL, (address, key)) for key in listener.left())

    def _farewell(self, *, all_read: bool) -> None:
        for _ in range(len(self._leaving)):
            due, place = self._leaving.popleft()
            if due <= self._turns or (all_read and self._draining is self._listeners.get(place[0])):
                self._forget(place)
            else:
                self._leaving.append((due, place))

    def _handle(self, address: str, listener: Listener | MemoryListener, key: bytes, frames: Frames) -> int:
        """Handle one ZeroMQ message; how many of ours it held, or 1."""
        place = (address, key)
        peer = self._peers.get(place)
        if peer is None:
            self._notice(address, listener)  # a descriptor is used again: its old connection is noted first
            listener.knows(key, frames.source)
        try:
            parcels = envelope.unpack(frames)
        except MalformedMessage as error:
            first = self.blame(place, str(error))
            if first and frames and len(frames[0]) and frames[0][0] != envelope.VERSION:
                self._refuse(listener, key, str(error))
            return 1
        for parcel in parcels:
            message = parcel.message
            if peer is None:
                peer = self._greeted(place, listener, message)
            elif type(message) is Hello:
                self.blame(place, "a second Hello")
            elif type(message) is Goodbye:
                self._forget(place)
                break
            else:
                guarded(self._on_parcel, peer, parcel)
            if self._peers.get(place) is not peer or peer is None:
                break
        return max(1, len(parcels))

    def _greeted(self, place: tuple[str, bytes], listener: Listener | MemoryListener, message: Message) -> Peer | None:
        """The peer that *message* introduces, or None."""
        if type(message) is Goodbye:  # overtaken by the end of its own connection
            return None
        if type(message) is not Hello:
            self.blame(place, f"a {type(message).__name__} before the greeting")
            return None
        if message.loop not in ("", self.name):
            self._refuse(listener, place[1], f"the loop {message.loop} is gone; {self.name} listens at {place[0]} now")
            return None
        peer = self._peers[place] = Peer(self, listener, place[1], message)
        peer.send(Welcome(self.name))
        guarded(self._on_open, peer)
        return peer

    @staticmethod
    def _refuse(listener: Listener | MemoryListener, key: bytes, reason: str) -> None:
        listener.send(key, [envelope.pack([envelope.encode(Goodbye(reason))])])

    def blame(self, place: tuple[str, bytes], reason: str) -> bool:
        """Count a malformed message, and log the first of each peer; whether it was the first."""
        self.malformed += 1
        if place in self._blamed or len(self._blamed) >= BLAMED:
            return False
        self._blamed.add(place)
        log.warning("%s: a peer sent a malformed message, dropped: %s", place[0], reason)
        return True

    def _forget(self, place: tuple[str, bytes]) -> None:
        self._blamed.discard(place)
        peer = self._peers.pop(place, None)
        if peer is not None:
            guarded(self._on_end, peer)


def session_id() -> bytes:
    """A new name for a session."""
    return os.urandom(16)
