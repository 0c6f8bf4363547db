"""The process of a registry: it claims its place in the directory of its domain, serves, and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable

from pyzmp.exceptions import PyzmpError
from pyzmp.protocol import facts
from pyzmp.registry.domain import BEAT, Domain
from pyzmp.registry.server import Registry
from pyzmp.transport.context import Context

GRACE = 0.5  # seconds in which one member of the epoch before, at least, finds a new one: that one knows all names
_RESTED = b"rested"  # in the lock file of a registry that has ended with its last member

log = logging.getLogger("pyzmp.registry")


def _inode(path: str) -> int:
    return os.stat(path).st_ino


def supersession(domain: Domain, counter: int) -> Callable[[], str | None]:
    """What says why the registry *counter* must not go on, or None.

    There is or was a later one, or the directory is not the one it was.
    """
    directory = _inode(domain.path)

    def look() -> str | None:
        later = max(domain.counters(), default=0)
        if later > counter:  # though it be dead by now: its members have seen its epoch, and go back to none
            return f"superseded by registry {later}"
        try:
            return None if _inode(domain.path) == directory else "the directory was replaced"
        except OSError:
            return "the directory is gone"

    return look


async def watch(superseded: Callable[[], str | None]) -> str:
    """Return the reason once there is one."""
    while True:
        reason = superseded()
        if reason is not None:
            return reason
        await asyncio.sleep(BEAT)


def grace(domain: Domain) -> float:
    """For how long the next registry waits with names that are new to it: their owners may not have found it yet.

    Not where the one before has ended with its last member, or where there was none.
    """
    with contextlib.suppress(OSError):
        for counter in domain.counters()[:1]:
            with open(domain.lock(counter), "rb") as file:
                return 0.0 if file.read() == _RESTED else GRACE
    return 0.0


async def _serve(domain: Domain, above: int, linger: float, lease: float, report: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, told.cancel)
    patience = grace(domain)
    counter, lock = domain.claim(above)
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        context = Context()
        stack.callback(context.close)
        superseded = supersession(domain, counter)
        registry = Registry(context, loop, facts.Epoch(counter, os.urandom(8).hex()), lease=lease, linger=linger,
                            domain=domain, domain_name=domain.name, superseded=superseded, grace=patience)
        stack.callback(registry.close)
        registry.bind(domain.registry(counter))
        report(str(counter))
        watching = loop.create_task(watch(superseded))
        done, _ = await asyncio.wait([told, registry.left, watching], return_when=asyncio.FIRST_COMPLETED)
        reason = next(iter(done))
        log.info("registry %d ends: %s", counter, "SIGTERM" if reason is told else reason.result())
        watching.cancel()
        if registry.left.done() and superseded() is None:
            os.pwrite(lock.descriptor, _RESTED, 0)


def main(arguments: list[str]) -> None:
    """Run a registry: ``directory above linger lease pipe``.  Its counter, or its error, goes into the pipe."""
    directory, above, linger, lease, pipe = arguments
    descriptor = int(pipe)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def report(text: str) -> None:
        nonlocal descriptor
        if descriptor >= 0:
            with contextlib.suppress(BrokenPipeError):  # the starter has given up; somebody else may come
                os.write(descriptor, text.encode()[:4096])
            os.close(descriptor)
            descriptor = -1

    try:
        asyncio.run(_serve(Domain(os.path.basename(directory), directory), int(above), float(linger), float(lease),
                           report))
    except (PyzmpError, OSError) as error:
        report(f"{type(error).__name__}: {error}")
        log.exception("the registry ended")
        raise SystemExit(1) from error
