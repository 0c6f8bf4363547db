"""Where the nodes of the behaviour suite live, and how they are reached: one suite runs over every place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq

import pyzmp
from pyzmp.launchers.forkserver import server


@pytest.fixture(scope="session", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's; so is the thread that frees what pyzmq has sent."""
    server.ensure_running()
    zmq.Frame(bytes(100_000), copy=False)


@dataclass
class Place:
    """A kind of node and the transport by which it is reached."""

    kind: str
    transport: str
    address: Callable[[], str | None]
    stack: ExitStack

    def settle(self, node: pyzmp.Node) -> pyzmp.Node:
        """Have *node*, which is not started, live here."""
        node.kind = self.kind  # type: ignore[assignment]
        node._socket_bind = self.address()
        return node

    def start(self, *nodes: pyzmp.Node) -> Any:
        """Start *nodes* here; they are shut down when the test ends.  Gives the first."""
        for node in nodes:
            self.stack.enter_context(self.settle(node))
        return nodes[0]


KINDS = ("process", "thread", "entity")
PLACES = [(kind, transport) for kind in KINDS for transport in ("memory", "inproc", "ipc", "tcp")
          if kind != "process" or transport in ("ipc", "tcp")]


def _place(kind: str, transport: str, domain: Path) -> Iterator[Place]:
    numbers = itertools.count()
    address: dict[str, Callable[[], str | None]] = {
        "default": lambda: None,
        "memory": lambda: None,
        "inproc": lambda: f"inproc://behaviour-{next(numbers)}",
        "ipc": lambda: f"ipc://{domain}/own-{next(numbers)}",
        "tcp": lambda: "tcp://127.0.0.1:*",
    }
    with ExitStack() as stack:
        if kind != "process":  # nothing leaves this process, so no registry of the host's needs to be there
            pyzmp.configure(registry="memory")
        yield Place(kind, transport, address[transport], stack)


@pytest.fixture(params=PLACES, ids="-".join)
def place(request: pytest.FixtureRequest, domain: Path) -> Iterator[Place]:
    """Each kind of node over each transport that reaches it."""
    yield from _place(*request.param, domain)


@pytest.fixture(params=KINDS)
def home(request: pytest.FixtureRequest, domain: Path) -> Iterator[Place]:
    """Each kind of node, at its own default address."""
    yield from _place(request.param, "default", domain)
