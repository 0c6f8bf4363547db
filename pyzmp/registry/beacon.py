"""A registry that tells where it is, by UDP on the local network.

A beacon carries no secret, and is believed by nobody: it says where to try.  Who listens tries what names
its own domain and a key that is let in anyway, and CURVE proves whether that key is there.  Keys are public:
so few addresses are kept in mind for each sender, and those that are the sender's own come first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

from pyzmp.exceptions import InvalidAddress, MalformedMessage, RegistryUnavailable
from pyzmp.registry.reach import at, host_of
from pyzmp.transport.address import Address, parse

PORT = 4243  # where beacons are sent to, unless another one is asked for
EVERYBODY = "255.255.255.255"
INTERVAL = 0.5  # seconds between two beacons
SIZE = 1024  # bytes of a beacon, at most
FRESH = 5 * INTERVAL  # seconds for which one that was heard is worth a try
MOST = 64  # registries that are kept in mind, at most
FEW = 4  # of those for one sender and key
OTHERS = 4  # of so many looks one is for those who say that a registry is where they are not
_Short = Annotated[str, msgspec.Meta(max_length=200)]

log = logging.getLogger("pyzmp.registry")


class Beacon(msgspec.Struct, frozen=True, array_like=True):
    """What is sent: the domain, and the address of its registry with the public key."""

    format: Literal["pyzmp-beacon-1"]
    domain: _Short
    address: _Short


def encode(domain: str, address: str) -> bytes:
    """The datagram for a registry of *domain* at *address*."""
    return msgspec.msgpack.encode(Beacon("pyzmp-beacon-1", domain, address))


def decode(data: bytes) -> tuple[str, Address]:
    """The domain and the address in a datagram; raises MalformedMessage, and nothing else, where it is none."""
    try:
        if len(data) > SIZE:
            raise MalformedMessage(f"a beacon of {len(data)} bytes; the limit is {SIZE}")
        beacon = msgspec.msgpack.decode(data, type=Beacon)
        address = parse(beacon.address)
    except (msgspec.MsgspecError, InvalidAddress, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise MalformedMessage(f"no beacon: {error}") from error
    if address.scheme != "tcp" or not address.key:
        raise MalformedMessage(f"no beacon: {beacon.address!r} is no TCP address with a public key")
    return beacon.domain, address


def place(text: str, host: str) -> tuple[str, int]:
    """Where ``HOST:PORT`` is, each of which may be missing; raises ValueError for what cannot be."""
    given, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    try:
        if port:
            parse(at(EVERYBODY, port))
        socket.inet_aton(given or EVERYBODY)
    except (InvalidAddress, OSError) as error:
        raise ValueError(f"{text!r} is no place for beacons; expected the broadcast address of a network, a : and a "
                         f"port, such as 10.0.0.255:{PORT}, each of which may be left out") from error
    return given or host, int(port or PORT)


class Sender:
    """Sends beacons for a registry of *domain* at each of the TCP *addresses*, on that interface's network.

    *where* is an address that all there listen to, and a port.  On *loop*, until it is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, domain: str, addresses: Sequence[str],
                 where: tuple[str, int]) -> None:
        self._loop, self._where = loop, where
        self._beacons = [(host_of(parse(address)), encode(domain, address)) for address in addresses]
        self._failing: set[str] = set()
        self._send()

    def close(self) -> None:
        """Send no more."""
        self._timer.cancel()

    def _send(self) -> None:
        self._timer = self._loop.call_later(INTERVAL, self._send)
        for host, beacon in self._beacons:
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:  # anew: interfaces come and go
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    made.bind((host, 0))
                    made.sendto(beacon, socket.MSG_DONTWAIT, self._where)
                self._failing.discard(host)
            except OSError as error:
                if host not in self._failing:
                    log.warning("no beacon can be sent from %s: %s", host, error)
                self._failing.add(host)


class Ear(asyncio.DatagramProtocol):
    """Listens for beacons of *domain* whose key *allows* lets in; the others are counted in ``dropped``.

    Belongs to one loop.  Several may listen at one place.
    """

    def __init__(self, domain: str, allows: Callable[[str], bool]) -> None:
        self.dropped = 0
        self._domain, self._allows = domain, allows
        self._heard: dict[str, tuple[float, str, str]] = {}  # by address: when, from where, and its key
        self._looks = 0
        self._news = asyncio.Event()
        self._socket: socket.socket | None = None
        self._transport: asyncio.BaseTransport | None = None

    async def open(self, where: tuple[str, int]) -> None:
        """Listen from now on, once; raises RegistryUnavailable where that cannot be."""
        if self._socket is not None:
            return
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
            made.setblocking(False)
            self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=made)
            self._socket = made
        except OSError as error:
            raise RegistryUnavailable(f"beacons cannot be listened for at UDP {where[0] or '*'}:{where[1]}: "
                                      f"{error.strerror}") from error
        finally:
            if self._socket is None:
                made.close()

    async def hear(self, timeout: float) -> str | None:
        """The address of a registry that was heard of lately, any of them; waits for one at most so long."""
        loop = asyncio.get_running_loop()
        over = loop.time() + timeout
        while not (fresh := [address for address, (heard, _, _) in self._heard.items() if loop.time() < heard + FRESH]):
            self._news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), max(0.0, over - loop.time()))
                continue
            return None
        own = [address for address in fresh if self._is_senders(address)]
        self._looks += 1
        return random.choice(own if own and self._looks % OTHERS else fresh)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            domain, address = decode(data)
            known = domain == self._domain and self._allows(address.key)
        except MalformedMessage as error:
            known, address = False, None
            log.debug("%s sent %s", addr[0], error)
        if not known or address is None:
            self.dropped += 1
            if self.dropped == 1:
                log.info("a beacon from %s was dropped: it is malformed, of another domain or has no key that is let "
                         "in here; later ones are counted", addr[0])
            return
        now = asyncio.get_running_loop().time()
        self._heard = {place: heard for place, heard in self._heard.items() if now <= heard[0] + FRESH}
        said = str(address)
        if said not in self._heard or not self._is_senders(said) or addr[0] == host_of(address):
            self._heard.pop(said, None)
            self._make_room(addr[0], address.key)
            self._heard[said] = now, addr[0], address.key
        self._news.set()

    def _make_room(self, sender: str, key: str) -> None:
        """Forget another one of *sender*'s, or any, where there are too many; those at their senders last."""
        same = [place for place, heard in self._heard.items() if heard[1:] == (sender, key)]
        if len(same) >= FEW or len(self._heard) >= MOST:
            among = same if len(same) >= FEW else list(self._heard)
            others = [place for place in among if not self._is_senders(place)]
            del self._heard[random.choice(others or among)]

    def _is_senders(self, address: str) -> bool:
        """Whether *address* is where the beacon came from that named it."""
        return self._heard[address][1] == host_of(parse(address))

    def close(self) -> None:
        """Listen no more."""
        if self._transport is not None:
            self._transport.close()
            self._transport = self._socket = None

    def close_inherited(self) -> None:
        """In a forked child: close the descriptor, and leave the rest to the parent."""
        if self._socket is not None:
            self._socket.close()
