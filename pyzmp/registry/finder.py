"""Finding the registry to follow: the one that is there, one to be started, or one inside this process."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Protocol

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.registry.domain import LEASE, LINGER, Domain, Lock, Starting
from pyzmp.transport.context import Context

if TYPE_CHECKING:
    from pyzmp.registry.server import Registry

START = 10.0  # seconds in which a registry's process must be ready
COURTESY = 3.0  # seconds for which another process may keep the start lock before it counts as stuck
_ASK = 0.01  # seconds between two looks whether it has finished


class Finder(Protocol):
    """Where a replica gets its registries from."""

    place: str  # for messages: where is looked

    async def find(self, above: int, *, start: bool) -> str | None:
        """The address of a registry with a counter higher than *above*, started where *start* says so; None without.

        The address ends with ``-`` and the counter.  Raises RegistryUnavailable, which says why.
        """

    def close(self) -> None:
        """End what is inside this process."""

    def close_inherited(self) -> None:
        """In a forked child: close the descriptors that are the parent's."""


class Inside:
    """A registry inside this process, for nobody else."""

    place = "this process"

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context, self._loop = context, loop
        self._registry: Registry | None = None
        self._address = ""

    async def find(self, above: int, *, start: bool) -> str | None:
        if self._registry is None:
            from pyzmp.registry.server import Registry  # seldom needed here, and costs to import

            epoch = facts.Epoch(1, os.urandom(8).hex())
            self._registry = Registry(self._context, self._loop, epoch, linger=None)
            self._address = self._registry.bind(f"memory://registry-{epoch.nonce}-{epoch.counter}")
        return self._address

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def close_inherited(self) -> None:
        pass


class OnHost:
    """The registry of a domain on this host, in a process of its own."""

    def __init__(self, domain: Domain, *, lease: float = LEASE, linger: float = LINGER) -> None:
        self.place = domain.path
        self._domain = domain
        self._lease, self._linger = lease, linger
        self._lock: Lock | None = None
        self._starting: Starting | None = None

    async def find(self, above: int, *, start: bool) -> str | None:
        if start:
            self._domain.make()
        elif not self._domain.exists():
            return None
        counter = self._domain.current(above)
        if counter is None and start:
            counter = await self._start(above)
        return None if counter is None else self._domain.registry(counter)

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
            # One that was killed on its way, with others, is no reason to give up.
            counter = self._domain.current(above) or await self._started(above) or await self._started(above)
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
