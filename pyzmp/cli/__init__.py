"""The ``pyzmp`` command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module

import click

from pyzmp.version import __version__

PLACES: Mapping[str, str] = {"bench": "bench", "keys": "keys", "record": "record", "recording": "record",
                             "registry": "registry", "replay": "record"}  # the module of each command


class _Commands(click.Group):
    """Commands that are imported when they are asked for: each needs much that the others do not."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(PLACES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        found: click.Command | None = None
        if name in PLACES:
            found = getattr(import_module(f"pyzmp.cli.{PLACES[name]}"), name)
        return found


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyzmp")
@click.pass_context
def main(context: click.Context) -> None:
    """Nodes that talk over typed channels, on ZeroMQ.

    Without a command it tests itself: it starts real nodes of every kind, reaches them over every
    transport that this machine has, and says what works.  It exits with 0 when everything does,
    with 1 otherwise.
    """
    if context.invoked_subcommand is None:
        from pyzmp import selftest

        sys.exit(0 if selftest.run(click.echo) else 1)
