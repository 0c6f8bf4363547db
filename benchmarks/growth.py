"""The time of a call and of a lookup in a large graph, and of a node with many callers, beside that with few."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from crowd import connected
from harness import QUICK, compare, count, world
from msgspec.structs import replace

import pyzmp
from pyzmp import runtime
from pyzmp.protocol.facts import Fact

SERVICES = 10, 100 if QUICK else 10_000
CONNECTIONS = 1, 10 if QUICK else 1_000


class Echo(pyzmp.Node):
    """The node that is called."""

    @pyzmp.service
    def echo(self, value: int) -> int:
        """The value."""
        return value


def each(work: Callable[[], object], number: int) -> Callable[[], float]:
    """A candidate: microseconds that *work* takes each time, so many times in a row."""
    def run() -> float:
        began = time.perf_counter()
        for _ in range(number):
            work()
        return (time.perf_counter() - began) / number * 1e6
    return run


@contextlib.contextmanager
def providers(number: int) -> Iterator[None]:
    """So many services more in the graph, one of each of as many nodes, which no process runs."""
    here = runtime.current()
    echo, = here.facts().services_of("echo")
    node = here.facts().node("echo")
    assert node is not None
    mine: list[Fact] = []
    for place in range(number):
        mine.append(replace(node, name=f"other-{place}", owner=here.member.id, incarnation=(0, 0), addresses=()))
        mine.append(replace(echo, node=f"other-{place}", name=f"service-{place}", owner=here.member.id, classes=()))
    for begin in range(0, len(mine), 500):
        here.run(here.replica.announce(mine[begin:begin + 500]))
    try:
        yield
    finally:
        for begin in range(0, len(mine), 500):
            here.run(here.replica.withdraw([fact.key for fact in mine[begin:begin + 500:2]]))


def works() -> dict[str, Callable[[], float]]:
    """What is timed."""
    at = Echo.at("echo").echo
    return {"call": each(lambda: at(1), count(1000, least=10)),
            "Class.at(name).service(...)": each(lambda: Echo.at("echo").echo(1), count(1000, least=10)),
            "Class.at(name).service": each(lambda: Echo.at("echo").echo.providers, count(3000, least=10)),
            "discover": each(lambda: pyzmp.discover("echo/echo"), count(3000, least=10)),
            "discover by its name": each(lambda: pyzmp.discover("echo"), count(3000, least=10))}


def grown(what: str, around: Callable[[int], contextlib.AbstractContextManager[None]], few: int, many: int) -> None:
    """Time each with *few*, then with *many*, and both again, so that the machine's own moods show."""
    took: dict[str, dict[int, list[float]]] = {}
    for number in (few, many, few, many):
        with around(number):
            for name, run in works().items():
                run()
                took.setdefault(name, {few: [], many: []})[number] += [min(run(), run()) for _ in range(3)]
    for name, figures in took.items():
        recorded = {f"{number:,}": iter(found).__next__ for number, found in figures.items()}
        compare(f"{name}, as {what} grow", "µs", recorded, rounds=5, target={f"{many:,}": 1.1})


if __name__ == "__main__":
    with world(), Echo("echo", kind="process") as node:
        (_, address), = Echo.echo.providers
        grown("services", providers, *SERVICES)
        grown("connections", lambda number: connected(address, number - 1), *CONNECTIONS)
