"""``pyzmp keys``: the keys of a domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import click

from pyzmp import runtime
from pyzmp.exceptions import PyzmpError
from pyzmp.registry import keys as files
from pyzmp.registry.domain import Domain

# A key may begin with any of Z85's characters, - among them, and is no option then.
_TAKES_KEY: Mapping[str, Any] = MappingProxyType(
    {"ignore_unknown_options": True, "help_option_names": ["--help"]})


@click.group()
def keys() -> None:
    """Say whose keys may connect from other hosts.

    What listens beyond loopback is encrypted, and both sides prove who they are.  Each host has a key pair for a
    domain (PYZMP_DOMAIN), made on first use in the domain's directory (below PYZMP_DIR) and shared by all that runs
    there.  A process of another host is let in once the key of its host is authorised here.

    pyzmp keys export prints the key of one host; pyzmp keys authorise lab 'KEY' lets it in on another, where it is
    called lab.  Keys hold characters that mean something to a shell, so put them between single quotes.
    """


@keys.command()
def show() -> None:
    """Show this host's public key and all others.

    It changes nothing, and never shows a secret key.
    """
    with _domain() as domain:
        own = files.own(domain)
        click.echo(f"domain      {domain.name}, in {domain.path}")
        click.echo(f"own key     {own.public if own else 'none yet; pyzmp keys export makes one'}")
        found = files.authorised(domain)
        click.echo(f"authorised  {len(found) or 'nobody else'}")
        for entry in found:
            click.echo(f"  {entry.name}  {entry.key}  {entry.comment}".rstrip())


@keys.command()
def export() -> None:
    """Print this host's public key, for another host to authorise.

    A key pair is made where there is none.
    """
    with _domain() as domain:
        click.echo(files.export(domain))


@keys.command(context_settings=dict(_TAKES_KEY))
@click.argument("name")
@click.argument("key", type=click.UNPROCESSED)
@click.option("--comment", default="", help="Why it is there, for whoever reads the list.")
def authorise(name: str, key: str, comment: str) -> None:
    """Let the host with the public key KEY in, called NAME here.

    Nodes that run let it in within seconds.  A NAME that is there gets the new KEY, and the old one is revoked.
    """
    with _domain() as domain:
        files.authorise(domain, name, key, comment)
        click.echo(f"{name} is authorised in {domain.name}")


@keys.command(context_settings=dict(_TAKES_KEY))
@click.argument("name", type=click.UNPROCESSED)
def revoke(name: str) -> None:
    """Let the key called NAME in no more; the key itself will do too.

    Nodes that run cut what it has open within seconds.
    """
    with _domain() as domain:
        gone = files.revoke(domain, name)
        click.echo(f"{gone.name} is revoked in {domain.name}")


@contextlib.contextmanager
def _domain() -> Iterator[Domain]:
    """The domain of the environment; what goes wrong is told in one line."""
    try:
        yield Domain.named(runtime.settings().domain)
    except (PyzmpError, ValueError, LookupError) as error:
        raise click.ClickException(str(error)) from error
