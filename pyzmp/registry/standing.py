"""The registry of several hosts, which stands until it is told to end: what ``pyzmp registry`` runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from pyzmp.exceptions import InvalidAddress, RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.registry import beacon, keys, reach
from pyzmp.registry.domain import LEASE, Domain, Lock
from pyzmp.registry.process import GRACE, grace, supersession, watch
from pyzmp.registry.server import Registry
from pyzmp.transport.address import parse
from pyzmp.transport.context import Context

log = logging.getLogger("pyzmp.registry")


class Standing:
    """The registry of *domain* for its hosts, at the TCP addresses *binds*, all with the domain's key.

    *where* is the address and port to which beacons are sent, if any.  *say* gets a line for each address where
    others reach it, once.  Members on this host find it in the domain's directory, as any registry.
    """

    def __init__(self, domain: Domain, binds: Sequence[str], where: tuple[str, int] | None,
                 say: Callable[[str], object]) -> None:
        self._domain, self._where, self._say = domain, where, say
        self._binds = [_checked(bind) for bind in binds]
        self._told = asyncio.Event()

    def stop(self) -> None:
        """Have `serve` return soon; in the loop's thread."""
        self._told.set()

    async def serve(self) -> None:
        """Serve until it is stopped: one epoch, and a later one whenever that is superseded or a later one was seen.

        Raises RegistryUnavailable where another such registry of the domain runs on this host, AddressInUse and
        InvalidAddress for what cannot be bound.
        """
        self._domain.make()
        security = keys.security(self._domain)  # once: it outlives the directory
        self._binds = [f"{bind}#{security.keys.public}" for bind in self._binds]
        context = Context(lambda: security)
        above = 0
        try:
            while not self._told.is_set():
                above = await self._reign(context, above)
        finally:
            context.close()

    async def _reign(self, context: Context, above: int) -> int:
        """Serve one epoch, higher than *above*; the counter that the next one must be higher than."""
        loop, domain = asyncio.get_running_loop(), self._domain
        domain.make()
        with contextlib.ExitStack() as stack:
            stack.callback(_alone(domain).release)
            patience = GRACE if above else grace(domain)
            stood = reach.stands(domain)
            counter, lock = domain.claim(above)
            stack.callback(lock.release)
            if stood:  # also where this one cannot listen
                reach.note(lock, ())
            superseded = supersession(domain, counter)
            registry = Registry(context, loop, facts.Epoch(counter, os.urandom(8).hex()), lease=LEASE, linger=None,
                                domain=domain, domain_name=domain.name, superseded=superseded,
                                grace=patience)
            stack.callback(registry.close)
            self._binds = [registry.bind(bind) for bind in self._binds]  # a port that was chosen stays
            reached = [place for bind in self._binds for place in reach.spread(bind, reach.own())]
            reach.note(lock, dict.fromkeys(reach.host_of(parse(place)) for place in reached if reach.travels(place)))
            registry.bind(domain.registry(counter))
            self._tell(counter, reached)
            if self._where is not None:
                stack.callback(beacon.Sender(loop, domain.name, reached, self._where).close)
            reason = await self._until_over(registry, superseded)
            if self._told.is_set():
                reach.resign(lock)
            log.info("registry %d ends: %s", counter, reason)
            return max(counter, registry.later.result() if registry.later.done() else 0)

    async def _until_over(self, registry: Registry, superseded: Callable[[], str | None]) -> str:
        """Wait for the end of an epoch; the reason."""
        loop = asyncio.get_running_loop()
        watching, told = loop.create_task(watch(superseded)), loop.create_task(self._told.wait())
        ends: list[asyncio.Future[Any]] = [watching, told, registry.later, registry.left]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            told.cancel()
        if registry.later.done():
            return f"a member has seen epoch {registry.later.result()}"
        return next((end.result() for end in (watching, registry.left) if end.done()), "it was told to")

    def _tell(self, counter: int, reached: Sequence[str]) -> None:
        """Say where it is, the first time."""
        say, self._say = self._say, lambda line: None
        whom = "other hosts reach it" if any(map(reach.travels, reached)) else "only programs on this host reach it,"
        say(f"registry {counter} of domain {self._domain.name!r} serves; {whom} with")
        for place in reached:
            say(f"  PYZMP_REGISTRY='{place}'")


def _checked(bind: str) -> str:
    """*bind*, if it is a TCP address without a key; raises InvalidAddress."""
    address = parse(bind)
    if address.scheme != "tcp" or address.key:
        raise InvalidAddress(f"{bind}: a registry for other hosts listens at tcp://HOST:PORT, with this host's own key")
    return bind


def _alone(domain: Domain) -> Lock:
    """The right to be the standing registry of *domain* on this host."""
    lock = Lock.take(f"{domain.path}/standing.lock")
    if lock is None:
        raise RegistryUnavailable(f"another registry for several hosts serves {domain.name!r} on this host already, in "
                                  f"{domain.path}; end that one first")
    return lock
