"""Running nodes until they are told to stop."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from pyzmp.exceptions import NodeDied, StartError
from pyzmp.node import Node, check_nodes
from pyzmp.together import LISTEN

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def run(*nodes: Node, timeout: float | None = None) -> None:
    """Start *nodes* in order, and run until Ctrl-C, SIGTERM, SIGHUP (its terminal closes), or the end of all of them.

    Returns once they are stopped, in reverse order, each within *timeout* seconds where given; a start that is still
    under way is given up.
    Raises what a start raised, and NodeDied where a node has failed; the others are stopped then
    too.  A second Ctrl-C does not wait: it raises KeyboardInterrupt.  Outside of the main thread, which
    alone gets signals, it runs until the nodes have ended.
    """
    check_nodes(nodes, "run()")
    told = _Told()
    failed: list[Node] = []
    with _signals(told), contextlib.ExitStack() as stack:
        for node in nodes:
            if told.already:
                return
            if not node.is_alive():
                _start(node, told, timeout)
            stack.callback(node.shutdown, timeout=timeout)
        _watch(nodes, told, failed)
        while not told.already:
            told.wait()
    if failed:
        raise NodeDied(f"{failed[0].name!r} ended by itself with exit code {failed[0].exitcode}", node=failed[0].name)


class _Told:
    """That it is time to stop.  A queue, as an event's lock may be held by the very code that a signal interrupts."""

    def __init__(self) -> None:
        self.already = False
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def tell(self) -> None:
        self.already = True
        self._queue.put(None)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until one tells, or wakes, at most *timeout* seconds."""
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=timeout)

    def wake(self) -> None:
        """Let one that waits go on, although it is not time to stop."""
        self._queue.put(None)


def _start(node: Node, told: _Told, timeout: float | None) -> None:
    """Start *node*; when told to stop, end what that has begun, and return.

    Another thread starts it: this one hears of signals, and what handles them must not wait.
    """
    given_up, over, errors = threading.Event(), threading.Event(), list[BaseException]()

    def start() -> None:
        try:
            node._start_unless(given_up)
        except BaseException as error:
            errors.append(error)
        finally:
            over.set()
            told.wake()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(start,), name="pyzmp-start", daemon=True)
    thread.start()
    while not over.is_set() and not told.already:
        told.wait(LISTEN)
    if told.already:
        given_up.set()
        node._undo_start(timeout)
    thread.join()
    if errors and not (told.already and isinstance(errors[0], StartError)):
        raise errors[0]


def _watch(nodes: Sequence[Node], told: _Told, failed: list[Node]) -> None:
    """Tell when a node has failed, or the last one has ended."""
    lock, left = threading.Lock(), len(nodes)

    def wait(node: Node) -> None:
        nonlocal left
        node.join()
        with lock:
            left -= 1
            if node.exitcode and not told.already:
                failed.append(node)
            if failed or not left:
                told.tell()
    for node in nodes:
        threading.Thread(target=wait, args=(node,), name=f"pyzmp-run-{node.name}", daemon=True).start()


@contextlib.contextmanager
def _signals(told: _Told) -> Iterator[None]:
    """Let the signals that mean the end tell."""
    def tell(number: int, frame: FrameType | None) -> None:
        if told.already and number == signal.SIGINT:
            raise KeyboardInterrupt
        told.tell()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, tell) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
