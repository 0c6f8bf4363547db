"""The listening end of sessions: one asyncio loop, any number of addresses and of callers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Buffer, Goodbye, Hello, Message, Parcel, Welcome
from pyzmp.transport.address import Address, check_bind
from pyzmp.transport.context import Context
from pyzmp.transport.link import Frames, Listener
from pyzmp.transport.memory import MemoryListener
from pyzmp.transport.outbox import Outbox, Turn, guarded, soon

DRAIN = 256  # messages that one address hands over before something else is done
SLICE = 0.005  # seconds for which one address may keep the loop, unless one call takes longer
FAREWELL = 64  # turns after which a caller that left is forgotten, though there is more to read
LAST = 64  # times as much that is still read before a listener closes, at most
BLAMED = 1024  # peers whose first malformed message is remembered, at most
SESSIONS = 1024  # of callers with one key, at most: all processes of a host and their threads have the same

log = logging.getLogger("pyzmp.transport")


class Peer:
    """One caller of a `Server`, after its greeting.  Belongs to the server's loop."""

    __slots__ = ("_outbox", "_server", "hello", "key", "listener", "state", "user")

    def __init__(self, server: Server, listener: Listener | MemoryListener, key: bytes, hello: Hello,
                 user: str = "") -> None:
        self._server = server
        self.user = user  # the public key that it proved to have, where the listener speaks CURVE
        self.listener = listener
        self.key = key
        self.hello = hello
        self.state: object = None  # for the room above
        self._outbox = Outbox(partial(server.transmit, self), server.turn)

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send by the flush rule; dropped where the caller is gone.

        Raises CannotTravel for what goes beyond the limits of a message.
        """
        self._outbox.put(message, buffers)

    def send_encoded(self, encoded: bytes, buffers: Sequence[Buffer] = ()) -> None:
        """As `send`, for a message that is encoded already."""
        self._outbox.put_encoded(encoded, buffers)

    def look(self) -> None:
        """Hand over what has come now, for whoever holds up the loop and wants to know; nothing in other threads."""
        if asyncio._get_running_loop() is self._server.loop:
            self._server.read(str(self.listener.address))

    @property
    def is_read(self) -> bool:
        """Whether what has come from it is being handed over right now, or was just before."""
        return self._server.draining is self.listener

    def flush(self) -> None:
        """Let everything leave now."""
        self._outbox.flush()


class Server:
    """The listening end on *loop*, whose thread alone may use it.

    ``on_open`` is called when a caller has greeted, ``on_parcel`` for each of its messages, and
    ``on_end`` once when it is gone.  ``on_read`` is called when what has come was handed over, and
    again as long as it says that it did something.  *window* is what each caller may have open at once, in calls and
    bytes.  Whatever a peer sends, the server goes on: what is no message
    of ours is counted in ``malformed``, logged once per peer and dropped.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop, name: str, *,
                 on_parcel: Callable[[Peer, Parcel], object],
                 on_open: Callable[[Peer], object] = lambda peer: None,
                 on_end: Callable[[Peer], object] = lambda peer: None,
                 on_read: Callable[[], bool] = lambda: False,
                 window: tuple[int, int] = (0, 0)) -> None:
        self.loop = loop
        self.name = name
        self.turn = Turn(loop)
        self.malformed = 0
        self._window = window
        self._sessions: set[bytes] = set()
        self._users: Counter[str] = Counter()
        self._context = context
        self._on_parcel, self._on_open, self._on_end, self._on_read = on_parcel, on_open, on_end, on_read
        self._listeners: dict[str, Listener | MemoryListener] = {}
        self._peers: dict[tuple[str, bytes], Peer] = {}
        self._blamed: set[tuple[str, bytes]] = set()
        self._leaving: deque[tuple[int, tuple[str, bytes]]] = deque()
        self._turns = 0
        self.draining: Listener | MemoryListener | None = None  # the address whose turn it is
        self._due: set[str] = set()

    @property
    def peers(self) -> list[Peer]:
        """The callers that have greeted and are not gone."""
        return list(self._peers.values())

    @property
    def addresses(self) -> list[str]:
        """Where this server can be reached."""
        return list(self._listeners)

    def bind(self, address: str, *, insecure: bool = False, secure: bool = False) -> str:
        """Listen at *address* too; the address in full, with the port that was chosen for ``*``.

        TCP beyond loopback speaks CURVE unless *insecure*, and any TCP if *secure*; its public key is part
        of the address then.  Raises InvalidAddress and AddressInUse, which say what is wrong.
        """
        parsed: Address = check_bind(address, insecure=insecure, secure=secure, key=self._context.public_key)
        listener = (MemoryListener if parsed.scheme == "memory" else Listener)(self._context, parsed)
        bound = str(listener.address)
        self._listeners[bound] = listener
        listener.attach(self.loop, lambda: self._drain(bound))
        return bound

    def unbind(self, address: str) -> None:
        """Stop listening at *address*, once what has come is handed over; its callers are told."""
        listener = self._listeners.get(address)
        if listener is not None:
            if not self.loop.is_closed():
                self._read_all(address, listener)
            del self._listeners[address]
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
        if peer.listener is not self.draining and peer.listener.pending():
            self._drain_soon(str(peer.listener.address))  # sending took the notice that something came
        return done

    def _drain(self, address: str) -> None:
        listener = self._listeners.get(address)
        if listener is None or self.draining is not None:
            return
        self.draining, again = listener, True
        begun = self.turn.begin()
        try:
            again = self._receive(address, listener)
        finally:
            if begun and self.turn.end():  # sending may take the notice of what came meanwhile
                again = again or listener.pending()
            self.draining = None
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
        over = time.monotonic() + SLICE
        self._notice(address, listener)
        all_read = self._read(address, listener)
        while self._listeners.get(address) is listener and guarded(self._on_read):
            if time.monotonic() > over:
                return True
            all_read = self._read(address, listener)  # sending may have taken the notice of what came meanwhile
        return not all_read

    def read(self, address: str) -> None:
        """Hand over what has come at *address* now."""
        listener = self._listeners.get(address)
        if listener is not None:
            self._notice(address, listener)
            self._read(address, listener)
            self._drain_soon(address)

    def _read(self, address: str, listener: Listener | MemoryListener) -> bool:
        """Hand over what has come; False where there is more than a turn's worth."""
        room = DRAIN
        while room > 0 and (received := listener.receive()) is not None:
            room -= self._handle(address, listener, *received)
            if self._listeners.get(address) is not listener:
                return True
        if self._leaving:
            self._farewell(address if room > 0 else None)
        return room > 0

    def _read_all(self, address: str, listener: Listener | MemoryListener) -> None:
        """Hand over all that has come, but for a caller that goes on and on."""
        for _ in range(LAST):
            self._notice(address, listener)
            if self._read(address, listener):
                break

    def _notice(self, address: str, listener: Listener | MemoryListener) -> None:
        """Note who has left.  They are forgotten once what they sent before is handled, at the latest in some turns."""
        for key in listener.left():
            self._leaving.append((self._turns + FAREWELL, (address, key)))

    def _farewell(self, read: str | None) -> None:
        """Forget who has left the address that was *read* to its end, and who left long ago."""
        for _ in range(len(self._leaving)):
            due, place = self._leaving.popleft()
            if due <= self._turns or place[0] == read:
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
                peer = self._greeted(place, listener, message, frames.user)
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

    def _greeted(self, place: tuple[str, bytes], listener: Listener | MemoryListener, message: Message,
                 user: str) -> Peer | None:
        """The peer that *message* introduces, or None."""
        if type(message) is Goodbye:  # overtaken by the end of its own connection
            return None
        if type(message) is not Hello:
            self.blame(place, f"a {type(message).__name__} before the greeting")
            return None
        if message.loop not in ("", self.name):
            self._refuse(listener, place[1], f"the loop {message.loop} is gone; {self.name} listens at {place[0]} now")
            self._blamed.add(place)  # what it has sent behind the greeting is none of its faults
            return None
        if message.session in self._sessions:
            self.blame(place, "the greeting of a session that another connection has")
            self._refuse(listener, place[1], "this session belongs to another connection")
            return None
        if user and self._users[user] >= SESSIONS:
            self._blamed.add(place)
            self._refuse(listener, place[1], f"refused: the key {user} has {SESSIONS} sessions with {place[0]} already")
            return None
        peer = self._peers[place] = Peer(self, listener, place[1], message, user)
        self._users[user] += 1
        self._sessions.add(message.session)
        peer.send(Welcome(self.name, *self._window))
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
            self._sessions.discard(peer.hello.session)
            self._users[peer.user] -= 1
            if not self._users[peer.user]:
                del self._users[peer.user]
            guarded(self._on_end, peer)
