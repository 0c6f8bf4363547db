"""Fixtures for the tests of programs that use pyzmp; pytest finds them where pyzmp is installed.

``pyzmp_domain`` gives a test a world of its own, ``pyzmp_start`` starts nodes in it and stops them
again, and ``pyzmp_faults`` breaks them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyzmp.life import Kind
    from pyzmp.node import Node

GRACE = 1.0  # seconds in which what a test stopped may go on ending


class Start:
    """Starts nodes that end with the test: what the fixture ``pyzmp_start`` gives."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []

    def __call__(self, *nodes: Node, kind: Kind | None = None) -> None:
        """Start *nodes* in order, each as a *kind* where one is given; raises what a start raises."""
        for node in nodes:
            if kind is not None:
                node.kind = kind
            self._nodes.append(node)
            node.start()

    def shutdown(self) -> None:
        """Stop them, the last one first."""
        while self._nodes:
            self._nodes.pop().shutdown()


class Faults:
    """Breaks nodes that are processes, by their names: what the fixture ``pyzmp_faults`` gives.

    Each method raises LookupError for a node that is not there, and ValueError for one that lives in
    this very process.
    """

    def __init__(self) -> None:
        self._stopped: set[int] = set()

    def kill(self, node: str) -> None:
        """Kill the node's process, as by a lack of memory: nothing in it runs any more."""
        self._send(node, signal.SIGKILL)

    def stop(self, node: str) -> None:
        """Hold the node's process up, as a debugger or a lack of processors does, until `go_on` or the test's end."""
        self._stopped.add(self._send(node, signal.SIGSTOP))

    def go_on(self, node: str) -> None:
        """Let a process that was held up go on."""
        self._stopped.discard(self._send(node, signal.SIGCONT))

    def end(self) -> None:
        """Let all that are held up go on."""
        while self._stopped:
            _signal(self._stopped.pop(), signal.SIGCONT)

    @staticmethod
    def _send(node: str, number: int) -> int:
        pid = _pid(node)
        if pid == os.getpid():
            raise ValueError(f"{node!r} lives in the process of the test; start it with kind='process' to break it")
        _signal(pid, number)
        return pid


@pytest.fixture
def pyzmp_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a domain that is this test's own, in a directory of its own.

    At the end pyzmp forgets all that it knew.  A node that still runs then, and a thread that the
    test has started and not ended, fail the test; the nodes are ended.
    """
    from pyzmp import runtime
    from pyzmp.launchers.base import living
    from pyzmp.registry.domain import temporary_directory

    directory = temporary_directory("pyzmp-01234567")
    name = os.path.basename(directory)
    monkeypatch.setenv("PYZMP_DIR", directory)
    monkeypatch.setenv("PYZMP_DOMAIN", name)
    monkeypatch.delenv("PYZMP_REGISTRY", raising=False)
    runtime.reset()
    threads = set(threading.enumerate())
    try:
        yield name
        left = _nodes()
    finally:
        living.end()
        runtime.reset()
        shutil.rmtree(directory, ignore_errors=True)
    left += [f"thread {thread.name!r}" for thread in _running(threads)]
    if left:
        pytest.fail("the test left running: " + ", ".join(left), pytrace=False)


@pytest.fixture
def pyzmp_start(pyzmp_domain: str) -> Iterator[Start]:
    """``pyzmp_start(*nodes, kind=None)`` starts nodes in a domain of the test's own; they are stopped at its end."""
    start = Start()
    try:
        yield start
    finally:
        start.shutdown()


@pytest.fixture
def pyzmp_faults(pyzmp_domain: str) -> Iterator[Faults]:
    """``pyzmp_faults.kill(name)``, ``.stop(name)`` and ``.go_on(name)`` break and mend nodes that are processes."""
    faults = Faults()
    try:
        yield faults
    finally:
        faults.end()


def _pid(node: str) -> int:
    from pyzmp import runtime

    facts = runtime.current().facts()
    known = facts.node(node)
    if known is None:
        raise LookupError(f"there is no node {node!r}; there are {sorted(fact.name for fact in facts.nodes())}")
    return known.pid


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)


def _nodes() -> list[str]:
    """What still runs of the test's nodes; those that were killed are leaving the graph by themselves."""
    from pyzmp import runtime

    if not runtime.in_use():
        return []
    here = runtime.current()
    if here.wait_until(lambda: not here.facts().nodes(), GRACE):
        return []
    return [f"node {fact.name!r} ({fact.kind} of pid {fact.pid})" for fact in here.facts().nodes()]


def _running(before: set[threading.Thread]) -> list[threading.Thread]:
    """The threads that have come since *before* and do not end."""
    over = time.monotonic() + GRACE
    new = [thread for thread in threading.enumerate() if thread not in before and not _shared(thread)]
    for thread in new:
        thread.join(max(0.0, over - time.monotonic()))
    return [thread for thread in new if thread.is_alive()]


def _shared(thread: threading.Thread) -> bool:
    """Whether it is the thread that frees the memory which pyzmq has sent, or a thread that Python did not make."""
    return isinstance(thread, threading._DummyThread) or type(thread).__module__.startswith("zmq.")
