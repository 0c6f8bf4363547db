"""What a launcher is: it runs a body in a new place, and hands back a handle on it.

The body gets a :class:`Control`: it says that it is ready, and learns that it is to stop.  The one
who launched it gets a :class:`Handle`: it waits for readiness, asks for the stop, and learns the
exit code.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

#: Seconds that a body has to stop once it was asked to, where nobody says otherwise.
DRAIN = 5.0
#: How long whatever still runs when the interpreter exits may take: to stop, then after SIGTERM, then after SIGKILL.
EXIT_DRAIN, EXIT_TERMINATE, EXIT_KILL = 0.8, 0.3, 0.4


class Signal:
    """Something that happens once, and who is to be called when it does.  A twentieth of a `threading.Event`."""

    __slots__ = ("_callbacks", "_lock", "asked")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked = False
        self._callbacks: list[Callable[[], object]] = []

    def on(self, callback: Callable[[], object]) -> None:
        """Call *callback* once it has happened; at once where it has."""
        with self._lock:
            if not self.asked:
                self._callbacks.append(callback)
                return
        callback()

    def ask(self) -> None:
        """It happens now."""
        with self._lock:
            self.asked = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it has happened, at most *timeout* seconds; whether it has."""
        if not self.asked:
            event = threading.Event()
            self.on(event.set)
            event.wait(timeout)
            with self._lock, contextlib.suppress(ValueError):
                self._callbacks.remove(event.set)
        return self.asked


class Control:
    """What the launched side holds.  Every method may be called from any thread."""

    __slots__ = ("_early", "_hurrying", "_listener", "_lock", "_stopping", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._stopping, self._hurrying = Signal(), Signal()
        self._listener: Callable[[Any], object] | None = None
        self._early: list[Any] = []

    def ready(self, value: Any = True) -> None:
        """Says, once, that the body is ready; ``value`` is what :meth:`Handle.wait_ready` gives."""

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Calls ``callback`` once, as soon as a stop is asked for; at once where it already was.

        It runs in a thread of the launcher's (or in this one), so it must not block.
        """
        self._stopping.on(callback)

    def on_hurry(self, callback: Callable[[], object]) -> None:
        """Calls ``callback`` as :meth:`on_stop` does, once the stop is not to wait for anything any more."""
        self._hurrying.on(callback)

    @property
    def stop_requested(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping.asked

    def wait_stop(self, timeout: float | None = None) -> bool:
        """Waits until a stop is asked for, at most ``timeout`` seconds; whether it was."""
        return self._stopping.wait(timeout)

    def request_stop(self) -> None:
        """Asks the body to stop: runs the callbacks in this thread."""
        self._stopping.ask()

    def request_hurry(self) -> None:
        """Asks the body to stop without waiting for anything: runs the callbacks in this thread."""
        self._stopping.ask()
        self._hurrying.ask()

    def on_told(self, callback: Callable[[Any], object]) -> None:
        """Calls ``callback`` with each value that the starter tells, also the earlier ones.

        It runs in a thread of the launcher's (or in this one).
        """
        with self._lock:
            self._listener = callback
            early, self._early = self._early, []
        for value in early:
            callback(value)

    def told(self, value: Any) -> None:
        """The starter told this ``value``."""
        with self._lock:
            if self._listener is None:
                self._early.append(value)
                return
        self._listener(value)


#: What is launched; it returns its exit status, None meaning 0.
Body = Callable[[Control], Any]


class NotReady(TimeoutError):
    """The body was not ready in time (and not a TimeoutError of the body's own)."""


class Handle(ABC):
    """What the starter holds.  Every method may be called from any thread of the process that launched."""

    __slots__ = ()

    ident: int | None
    ends_silently = False  # so that somebody must look whether it has ended

    @abstractmethod
    def wait_ready(self, timeout: float) -> Any:
        """Waits until the body is ready and gives the value that it said so with.

        Raises the body's own error where it failed before, StartError where it ended before, and
        NotReady (a TimeoutError) after ``timeout`` seconds; the body then still runs.
        """

    @abstractmethod
    def request_stop(self) -> None:
        """Asks the body to stop, and returns at once."""

    def tell(self, value: Any) -> None:
        """Hands ``value`` to the body, who gets it in its callback of :meth:`Control.on_told`.  Raises Unsendable."""
        raise NotImplementedError

    @abstractmethod
    def terminate(self) -> None:
        """SIGTERM, where there is a process."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL, where there is a process."""

    @abstractmethod
    def join(self, timeout: float | None = None) -> bool:
        """Waits until it has ended, at most ``timeout`` seconds; whether it has."""

    @property
    @abstractmethod
    def exitcode(self) -> int | None:
        """None while it runs; then the exit status, or the negative number of the signal that it died of."""

    def disown(self) -> None:
        """Called in the child after a fork: lets go of what belongs to the parent."""

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.exitcode is None


class Launcher(ABC):
    """Starts bodies in one kind of place."""

    @abstractmethod
    def launch(self, body: Body, *, name: str, daemon: bool = False, authkey: bytes | None = None,
               open_in: str = "the body") -> Handle:
        """Runs ``body(control)`` in a new place; its return value is the exit status, None meaning 0.

        ``daemon`` and ``authkey`` are those of :class:`multiprocessing.Process`.  ``open_in`` says, in the
        error for something that cannot be taken to the new place, where it should be opened instead.
        """


def end(handles: Iterable[Handle], drain: float, terminate: float, kill: float) -> None:
    """Ends all of them, in parallel: asked to stop, after ``drain`` seconds terminated, then killed."""
    left = list(handles)
    for ask, grace in (("request_stop", drain), ("terminate", terminate), ("kill", kill)):
        deadline = time.monotonic() + grace
        for handle in left:
            getattr(handle, ask)()
        left = [handle for handle in left if not handle.join(max(0.0, deadline - time.monotonic()))]


class Living:
    """What this process launched and what has not been seen to end; ends it when the interpreter exits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: set[Handle] = set()
        self._watching = False

    def add(self, handle: Handle) -> None:
        """Holds the handle until it is discarded or the interpreter exits."""
        if handle.ends_silently:
            for other in list(self._handles):
                other.is_alive()  # reaps, and so discards, what ended unobserved
        with self._lock:
            self._handles.add(handle)
            watching, self._watching = self._watching, True
        if not watching:
            # multiprocessing runs its finalizers before it joins its own children, in processes that it
            # started as well as in the main one, and only in the process that registered them.
            from multiprocessing.util import Finalize

            Finalize(None, self.end, exitpriority=100)

    def discard(self, handle: Handle) -> None:
        """The handle was seen to end."""
        self._handles.discard(handle)

    def end(self) -> None:
        """Ends everything in a bounded time, and says nothing about it."""
        end(list(self._handles), EXIT_DRAIN, EXIT_TERMINATE, EXIT_KILL)

    def after_fork(self) -> None:
        """In a forked child: what the parent launched is none of the child's business."""
        handles = self._handles
        self.__init__()  # type: ignore[misc]
        for handle in handles:
            with contextlib.suppress(OSError):
                handle.disown()


living = Living()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=living.after_fork)


def at_exit(callback: Callable[[], object]) -> Any:
    """Have *callback* called when the interpreter exits, after everything launched has ended; ``cancel()`` undoes it.

    Only in this process, not in those that it forks.
    """
    from multiprocessing.util import Finalize

    return Finalize(None, callback, exitpriority=50)
