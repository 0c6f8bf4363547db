"""``pyzmp bench``: how fast pyzmp is on this machine."""

from __future__ import annotations

import signal

import click

from pyzmp import bench as benchmark
from pyzmp.exceptions import PyzmpError


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, metavar="N",
              help="How often each is measured; the figure is the median.")
def bench(rounds: int) -> None:
    """Measure calls and messages of pyzmp beside raw pyzmq, on this machine.

    A blocking call, calls as futures, map, and a topic, each between two processes over ipc: by a node, and by what one
    would write with pyzmq and msgpack, with one message for each.  Both run in turn, so that what else the machine does
    disturbs both; the ratio is what counts.  It takes less than half a minute, and leaves nothing behind.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as Ctrl-C does: with everything put away
    try:
        benchmark.run(click.echo, rounds)
    except (PyzmpError, OSError) as error:
        raise click.ClickException(str(error)) from error
