"""The ``pyzmp`` command."""

from __future__ import annotations

import sys

import click

from pyzmp import selftest
from pyzmp.cli.keys import keys
from pyzmp.cli.record import record, recording, replay
from pyzmp.cli.registry import registry
from pyzmp.version import __version__


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyzmp")
@click.pass_context
def main(context: click.Context) -> None:
    """Nodes that talk over typed channels, on ZeroMQ.

    Without a command it tests itself: it starts real nodes of every kind, reaches them over every
    transport that this machine has, and says what works.  It exits with 0 when everything does,
    with 1 otherwise.
    """
    if context.invoked_subcommand is None:
        sys.exit(0 if selftest.run(click.echo) else 1)


main.add_command(keys)
main.add_command(record)
main.add_command(recording)
main.add_command(registry)
main.add_command(replay)
