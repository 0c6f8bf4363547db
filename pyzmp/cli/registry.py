"""``pyzmp registry``: the registry of a domain for several hosts."""

from __future__ import annotations

import asyncio
import logging
import signal

import click

from pyzmp import runtime
from pyzmp.exceptions import PyzmpError
from pyzmp.registry import beacon as beacons
from pyzmp.registry.domain import Domain
from pyzmp.registry.standing import Standing


@click.command()
@click.option("--bind", "binds", multiple=True, required=True, metavar="tcp://ADDRESS:PORT",
              help="Where to listen; may be given several times.  * is every interface, as the port any that is free.")
@click.option("--domain", default=None, help="The domain; PYZMP_DOMAIN, or default, where it is not given.")
@click.option("--beacon", is_flag=False, flag_value="", default=None, metavar="[ADDRESS][:PORT]",
              help=f"Tell the local network where it is, at {beacons.EVERYBODY}:{beacons.PORT} or there.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def registry(binds: tuple[str, ...], domain: str | None, beacon: str | None, quiet: bool) -> None:
    """Serve a domain for several hosts, until Ctrl-C or SIGTERM.

    It says how others reach it.  Their programs need that as PYZMP_REGISTRY, and their host's public key authorised
    here: see pyzmp keys.  Programs on this host find it by themselves.
    """
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        where = None if beacon is None else beacons.place(beacon, beacons.EVERYBODY)
        home = Domain.named(domain or runtime.settings().domain)
        asyncio.run(_serve(Standing(home, binds, where, (lambda line: None) if quiet else click.echo)))
    except (PyzmpError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


async def _serve(standing: Standing) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, standing.stop)
    await standing.serve()
