"""Finding the registry to follow: inside this process, on this host, at an address, or by beacon."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from pyzmp.exceptions import InvalidAddress, RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.registry import reach, remains
from pyzmp.registry.domain import FRESH, LEASE, LINGER, Domain, Lock, Starting
from pyzmp.registry.link import Native, NativeLink
from pyzmp.transport.address import parse
from pyzmp.transport.context import Context

if TYPE_CHECKING:
    from pyzmp.registry.server import Registry

START = 10.0  # seconds in which a registry's process must be ready
COURTESY = 3.0  # seconds for which another process may keep the start lock before it counts as stuck
HEARING = 1.0  # seconds for which one look listens for beacons
_ASK = 0.03  # seconds between two looks whether it has finished: all members look, and it needs the processor
_TRIES = 8  # starts of a registry that is killed on its way
_EXPECTED = ("expected nothing, for one of this host's own, or memory, tcp://HOST:PORT#KEY, beacon, "
             "beacon://ADDRESS:PORT or etcd://HOST:PORT,HOST:PORT")


class Link(Protocol):
    """One session with a registry, in the loop's thread."""

    def say(self, message: facts.Message) -> None:
        """Send; dropped once the session has ended."""

    def close(self) -> None:
        """End the session.  Once is enough, twice does no harm."""


class Place(Protocol):
    """A registry that was found."""

    address: str  # for messages, and to tell one from another
    counter: int  # of its epoch where that is known beforehand, else 0

    def open(self, hear: Callable[[facts.Message], None], over: Callable[[str], None]) -> Link:
        """Begin a session, in the running loop: *hear* gets its messages, *over* once the reason when it ended.

        It may end at once, before this returns.  The first message is a `Beat`.
        """


class Finder(Protocol):
    """Where a replica gets its registries from."""

    @property
    def place(self) -> str:
        """Where is looked, for messages."""

    async def find(self, above: int, *, start: bool) -> Place | None:
        """A registry with a counter higher than *above*, started where *start* says so; None where there is none.

        Raises RegistryUnavailable, which says why.
        """

    def interfaces(self) -> Sequence[str] | None:
        """The addresses of ours at which other hosts reach what listens; None where the domain has this host only.

        As the registry that was found last makes it; from any thread.
        """

    def close(self) -> None:
        """End what is inside this process."""

    def close_inherited(self) -> None:
        """In a forked child: close the descriptors that are the parent's."""


def check_registry(text: object) -> str:
    """*text*, if it says where a registry is; raises ValueError, which says why not."""
    if not isinstance(text, str):
        raise TypeError(f"registry: expected a text, got {text!r}")
    scheme, _, rest = text.partition("://")
    try:
        if scheme == "tcp":
            _check_remote(text)
        elif scheme == "beacon":
            from pyzmp.registry import beacon  # seldom needed, and costs to import

            beacon.place(rest, "")
        elif scheme == "etcd" and rest:
            from pyzmp.registry import etcd_places

            etcd_places.endpoints(text)
        elif text not in ("", "memory"):
            raise ValueError(_EXPECTED)
    except ValueError as error:
        shown = re.sub(r"//.*@", "//…@", text)  # without a password
        raise ValueError(f"registry: {shown!r} names none: {error}") from error
    return text


def _check_remote(text: str) -> None:
    address = parse(text)
    if address.rest.endswith((":*", ":0")) or address.rest.startswith("*"):
        raise InvalidAddress("its host and its port have to be said")
    host = reach.host_of(address)
    try:
        if not reach.is_number(host):
            host.encode("idna")
    except UnicodeError as error:
        raise InvalidAddress(f"{host} is no name of a host: {error}") from error


def finder_for(registry: str, context: Context, domain: Domain | None, loop: asyncio.AbstractEventLoop) -> Finder:
    """What finds the *registry*, which is checked, of *domain*: None for one inside this process."""
    scheme, _, rest = registry.partition("://")
    if domain is None:
        return Inside(context, loop)
    if scheme == "tcp":
        return AtAddress(context, domain, registry)
    if scheme == "beacon":
        return ByBeacon(context, domain, rest)
    if scheme == "etcd":
        from pyzmp.registry.etcd import Etcd  # an extra

        return Etcd(context, domain, registry)
    return OnHost(context, domain)


class Inside:
    """A registry inside this process, for nobody else."""

    place = "this process"

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context, self._loop = context, loop
        self._registry: Registry | None = None
        self._address = ""

    async def find(self, above: int, *, start: bool) -> Native | None:
        if self._registry is None:
            from pyzmp.registry.server import Registry  # seldom needed here, and costs to import

            epoch = facts.Epoch(1, os.urandom(8).hex())
            self._registry = Registry(self._context, self._loop, epoch, linger=None)
            self._address = self._registry.bind(f"memory://registry-{epoch.nonce}-{epoch.counter}")
        return Native(self._context, self._address, 1)

    def interfaces(self) -> None:
        return None

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def close_inherited(self) -> None:
        pass


class OnHost:
    """The registry of a domain on this host, in a process of its own.

    Where that served several hosts, and was not told to end, none is started: the others do not find another one.
    """

    def __init__(self, context: Context, domain: Domain, *, lease: float = LEASE, linger: float = LINGER) -> None:
        self._context, self._domain = context, domain
        self._lease, self._linger = lease, linger
        self._lock: Lock | None = None
        self._starting: Starting | None = None
        self._counter = 0
        self._waits = False  # for somebody to start it

    @property
    def place(self) -> str:
        path = self._domain.path
        return path if not self._waits else (
            f"{path}, whose registry for several hosts is gone without having been told to; start it again with pyzmp "
            f"registry, or end it for good by removing {path}/registry-*.lock")

    async def find(self, above: int, *, start: bool) -> Native | None:
        if start:
            self._domain.make()
        elif not self._domain.exists():
            return None
        counter = self._domain.current(above)
        if counter is None and reach.stands(self._domain):
            counter = self._domain.current()  # it may have been stopped only
            self._waits = counter is None
        elif counter is None and start:
            counter = await self._start(above)
        self._counter = counter or self._counter
        return None if counter is None else Native(self._context, self._domain.registry(counter), counter)

    def interfaces(self) -> Sequence[str] | None:
        return reach.noted(self._domain, self._counter)

    def close(self) -> None:
        pass

    def close_inherited(self) -> None:
        if self._lock is not None:
            self._lock.close_inherited()
        if self._starting is not None:
            os.close(self._starting.pipe)

    async def _start(self, above: int) -> int:
        """Start a registry, or wait for the one that another process starts."""
        loop = asyncio.get_running_loop()
        stuck = loop.time() + COURTESY
        self._lock = self._domain.start_lock()
        while self._lock is None and loop.time() < stuck:
            await asyncio.sleep(_ASK)
            counter = self._domain.current(above)
            if counter is not None:
                return counter
            self._lock = self._domain.start_lock()
        try:
            counter = self._domain.current(above)
            for _ in range(_TRIES):
                counter = counter or await self._started(above)
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None
        if counter is None:
            raise RegistryUnavailable(f"the registry's process failed to start: {self._domain.last_words()}")
        return counter

    async def _started(self, above: int) -> int | None:
        loop = asyncio.get_running_loop()
        self._starting = starting = self._domain.start(above, self._linger, self._lease)
        ready = asyncio.Event()
        loop.add_reader(starting.pipe, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), START)
        except asyncio.TimeoutError as error:
            raise RegistryUnavailable(f"the registry's process was not ready after {START:g} s") from error
        else:
            loop.remove_reader(starting.pipe)
            return starting.outcome()
        finally:
            self._starting = None
            if starting.pipe >= 0:
                loop.remove_reader(starting.pipe)
                starting.abandon()


class Elsewhere:
    """What those have in common who find a registry that may be on another host: this one has none to look after it."""

    def __init__(self, context: Context, domain: Domain) -> None:
        self._context, self._domain = context, domain
        self._prepared = False
        self._interfaces: Sequence[str] = []

    def prepare(self) -> None:
        """Make the directory for the sockets of this host's nodes, once without those that killed ones have left."""
        self._domain.make()
        if not self._prepared:
            self._prepared = True
            remains.sweep(self._domain.path, time.time() - FRESH)  # noqa: TID251  what files tell

    async def look_up(self, registry: str) -> None:
        """Look through which interface the one at the address *registry* is reached; a name, beside the loop."""
        if reach.is_number(reach.host_of(parse(registry))):
            self._interfaces = reach.interfaces(registry)
        else:
            self._interfaces = await asyncio.get_running_loop().run_in_executor(None, reach.interfaces, registry)

    def interfaces(self) -> Sequence[str]:
        return self._interfaces

    def close(self) -> None:
        pass

    def close_inherited(self) -> None:
        pass


class AtAddress(Elsewhere):
    """A registry on any host, at a TCP address.  It proves the key in that, or else the domain's own."""

    def __init__(self, context: Context, domain: Domain, address: str) -> None:
        super().__init__(context, domain)
        self._address = parse(address)
        self.place = self._address.endpoint

    async def find(self, above: int, *, start: bool) -> Native:
        """It, whatever its counter: it begins again above those that its members have seen."""
        if start:
            self.prepare()
        await self.look_up(self.place)
        if self._address.key:
            return Native(self._context, str(self._address))
        return _Own(self._context, str(replace(self._address, key=self._context.public_key())))


class ByBeacon(Elsewhere):
    """A registry that tells on the local network where it is, at *where*, as ``ADDRESS:PORT``."""

    def __init__(self, context: Context, domain: Domain, where: str) -> None:
        from pyzmp.registry import beacon  # seldom needed, and costs to import

        super().__init__(context, domain)
        self._where = beacon.place(where, "")
        self._ear = beacon.Ear(domain.name, self._allows)
        self._found = ""

    @property
    def place(self) -> str:
        return (f"the beacons of domain {self._domain.name!r} at UDP port {self._where[1]}, where those of "
                f"{self._found or 'none that is let in here'} were heard and {self._ear.dropped} others dropped")

    async def find(self, above: int, *, start: bool) -> Native | None:
        """One that was heard of, whatever its counter; None after a while without."""
        if start:
            self.prepare()
        security = self._context.security()
        if security is not None:
            security.access.refresh()
        await self._ear.open(self._where)
        found = await self._ear.hear(HEARING)
        self._found = found or self._found
        if found is not None:
            await self.look_up(found)
        return None if found is None else Native(self._context, found)

    def _allows(self, key: str) -> bool:
        security = self._context.security()
        return security is not None and security.access.allows(key)

    def close(self) -> None:
        self._ear.close()

    def close_inherited(self) -> None:
        self._ear.close_inherited()


class _Own(Native):
    """A registry that is expected to prove the domain's own key, as no other was said."""

    def open(self, hear: Callable[[facts.Message], None], over: Callable[[str], None]) -> NativeLink:
        def told(reason: str) -> None:
            over(f"{reason}; that is the domain's own key on this host, since none stands behind the address: give "
                 "the registry's, as tcp://HOST:PORT#KEY" if reason.startswith("refused: the key of") else reason)

        return super().open(hear, told)
