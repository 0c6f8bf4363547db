"""``pyzmp record``, ``pyzmp replay`` and ``pyzmp recording``: the messages of topics in files."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from math import inf, isnan
from types import FrameType
from typing import Any, get_args

import click

from pyzmp.channels.terms import FullQueue
from pyzmp.exceptions import PyzmpError
from pyzmp.recording import Recording
from pyzmp.recording import record as begin
from pyzmp.recording import replay as play
from pyzmp.recording.file import nearest
from pyzmp.recording.replay import LEAD


def _file(command: Callable[..., None]) -> Callable[..., None]:
    """The file that a command is about."""
    return click.argument("path", metavar="FILE", type=click.Path(dir_okay=False))(command)


def _selected(command: Callable[..., None]) -> Callable[..., None]:
    """The options that select messages of a file."""
    for option in (
            click.option("--topic", "topics", multiple=True, metavar="TOPIC",
                         help="Only this topic, or all that a pattern selects; may be given several times."),
            click.option("--to", "end", default=None, metavar="TIME", help="Until before this time."),
            click.option("--from", "start", default=None, metavar="TIME",
                         help="From this time on: seconds after the first message, or as 2024-05-01T12:00:00.")):
        command = option(command)
    return command


@click.command()
@_file
@click.argument("topics", metavar="TOPIC...", nargs=-1, required=True)
@click.option("--full", type=click.Choice(get_args(FullQueue)), default="drop_oldest", show_default=True,
              help="What happens at a publisher to messages that cannot be written in time.")
@click.option("--size", type=click.IntRange(1, 1 << 20), default=64, show_default=True, metavar="MIB",
              help="How much of them waits there.")
@click.option("--history", type=click.IntRange(0), default=0, metavar="N",
              help="Begin with the last N messages, where publishers keep some.")
def record(path: str, topics: tuple[str, ...], full: FullQueue, size: int, history: int) -> None:
    """Write what topics publish into FILE, until Ctrl-C or SIGTERM.

    TOPIC is a full name or a pattern, such as 'kitchen/reading', 'sensors/*' or '**'.  A FILE that is there is
    appended to.  Publishers are not held up, unless by --full block; what is dropped is counted in FILE.
    In the end it says which of the topics nobody has published.
    """
    _log()
    with _told(), contextlib.suppress(_Over), _signals():
        with begin(path, *topics, full=full, size=size << 20, history=history) as recorder, contextlib.suppress(_Over):
            if recorder.cut_off is not None:
                click.echo(f"{path} was left unfinished {recorder.cut_off}", err=True)
            click.echo(f"recording into {path}; Ctrl-C ends it")
            recorder.wait()
        click.echo(f"{recorder.messages} messages, {recorder.dropped} dropped, {recorder.lost} lost")
        for sentence in recorder.unknown:
            click.echo(sentence, err=True)


@click.command()
@_file
@click.option("--pace", default="1", show_default=True, metavar="FACTOR", help="So many times as fast; max: at once.")
@click.option("--longest", type=click.FloatRange(0), default=inf, metavar="SECONDS", help="No pause is longer.")
@click.option("--rename", "renamed", multiple=True, metavar="OLD=NEW",
              help="Publish the topic OLD as NEW; may be given several times.")
@click.option("--subscribers", type=click.IntRange(0), default=0, metavar="N",
              help="Wait until each topic has so many subscribers.")
@click.option("--lead", type=click.FloatRange(0), default=LEAD, show_default=True, metavar="SECONDS",
              help="How long subscribers have to find the topics before it begins.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=None, metavar="SECONDS",
              help="How long to wait for them, and for one that wants to be waited for.")
@click.option("--now", is_flag=True, help="Give messages the time of the replay instead of their own.")
@_selected
def replay(path: str, pace: str, renamed: tuple[str, ...], topics: tuple[str, ...], start: str | None,
           end: str | None, **same: Any) -> None:
    """Publish what FILE has recorded, in its rhythm, as if its publishers were there.

    It exits with 1 where FILE is damaged; what comes before the damage is published.
    """
    _log()
    with _told(), contextlib.suppress(_Over), _signals():
        found, names = Recording(path), dict(map(_rename, renamed))
        for name in names.keys() - {publisher.topic for publisher in found.publishers}:
            near = nearest(name, (publisher.topic for publisher in found.publishers))
            raise click.BadParameter(f"{path} has no topic {name!r}{near}", param_hint="--rename")
        found.check(topics, patterns=True)
        done = play(path, *topics, pace=_pace(pace), rename=names,
                    start=_time(start, found, -inf), end=_time(end, found, inf), **same)
        missing = f"; {done.missing} were missing in the recording" if done.missing else ""
        click.echo(f"{done.messages} messages{missing}")
        _judge(found)


@click.group()
def recording() -> None:
    """Look into files of recorded messages, and cut them."""


@recording.command("list")
@_file
def show(path: str) -> None:
    """List the topics in FILE, with what is missing.

    It exits with 1 where FILE is damaged; what comes before the damage is listed.
    """
    with _told():
        found = Recording(path)
        began = [_shown(time) for time in found.sessions]
        click.echo(f"{path}: recorded {', '.join(began) or 'by nobody'}")
        for each in found.topics():
            missing = "".join(f", {count} {what}" for count, what in ((each.dropped, "dropped"), (each.lost, "lost"))
                              if count)
            times = f", {_shown(each.first)} to {_shown(each.last)}" if each.messages else ""
            what = f"{each.topic} of {each.node} ({each.text or 'Any'})"
            what = "".join(letter if letter.isprintable() else "?" for letter in what)  # whatever a file says
            click.echo(f"  {what}: {each.messages} messages{missing}{times}")
        _judge(found)


@recording.command()
@_file
@click.argument("out", type=click.Path(dir_okay=False))
@_selected
def cut(path: str, out: str, topics: tuple[str, ...], start: str | None, end: str | None) -> None:
    """Write some messages of FILE into OUT, which is new.

    Where FILE is damaged, what comes before the damage, and it exits with 1.
    """
    with _told():
        found = Recording(path)
        found.check(topics, patterns=True)
        count = found.cut(out, *topics, start=_time(start, found, -inf), end=_time(end, found, inf))
        click.echo(f"{count} messages")
        _judge(found)


def _judge(found: Recording) -> None:
    """Tell of damage, and exit with 1 where it is not merely an end in the middle of a message."""
    if found.damage is not None:
        click.echo(f"{found.path} is not read further than {found.damage}", err=True)
        if not found.damage.unfinished:
            raise SystemExit(1)


def _pace(text: str) -> float | None:
    if text == "max":
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(text) < inf:
            return float(text)
    raise click.BadParameter(f"expected a positive number or max, got {text!r}", param_hint="--pace")


def _rename(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise click.BadParameter(f"expected OLD=NEW, got {text!r}", param_hint="--rename")
    return old, new


def _time(text: str | None, found: Recording, default: float) -> float:
    """A time of a recording, in seconds since 1970."""
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        if not isnan(float(text)):
            return (found.first or 0.0) + float(text)
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    raise click.BadParameter(f"{text!r} is neither seconds nor a time such as 2024-05-01T12:00:00",
                             param_hint="--from/--to")


def _shown(time: float) -> str:
    try:
        return datetime.fromtimestamp(time).astimezone().isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{time:g}"


def _log() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")


class _Over(Exception):
    """A signal says that it is time to end."""


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM raise `_Over`."""
    def end(number: int, frame: FrameType | None) -> Any:
        raise _Over
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong is told in one line."""
    try:
        yield
    except FileNotFoundError as error:
        place = os.path.dirname(error.filename or "")
        missing = f"directory {place!r}" if place and not os.path.isdir(place) else f"file {error.filename!r}"
        raise click.ClickException(f"there is no {missing}") from error
    except FileExistsError as error:
        raise click.ClickException(f"the file {error.filename!r} is there already, and is not written over; name a new "
                                   "one, or remove it") from error
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise click.ClickException(told) from error
    except (PyzmpError, ValueError, LookupError) as error:
        raise click.ClickException(str(error)) from error
