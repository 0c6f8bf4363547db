"""A restartable place where a loop runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from typing_extensions import Self

from pyzmp.exceptions import StartError
from pyzmp.launchers.base import DRAIN, Control, Handle, Launcher, NotReady, end

__all__ = ["DRAIN", "START", "CoProcess", "Step"]

#: Seconds: the longest start where no timeout is given, and what a shutdown waits after SIGTERM and after SIGKILL.
START, TERMINATE, KILL = 30.0, 1.0, 1.0


def graces(timeout: float | None) -> tuple[float, float, float]:
    """The shares of a shutdown: to stop by itself, after it was terminated, and after it was killed."""
    return (DRAIN, TERMINATE, KILL) if timeout is None else (timeout * 0.8, timeout * 0.15, timeout * 0.05)


class Step:
    """One turn of a loop: calls the target with ``timedelta``, the seconds since its last call."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._target, self._args, self._kwargs = target, args, kwargs
        self._last = time.monotonic()

    def __call__(self) -> Any:
        """Calls the target; what it returns ends the loop unless it is None."""
        now = time.monotonic()
        timedelta, self._last = now - self._last, now
        return self._target(*self._args, **{**self._kwargs, "timedelta": timedelta})


class _Life:
    """What a CoProcess has in one process only: it is neither pickled nor carried by a fork."""

    __slots__ = ("astarting", "control", "handle", "here", "home", "listening", "pid", "published", "ready", "starting",
                 "values")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.starting = threading.RLock()  # held by the one thread that starts
        self.astarting = asyncio.Lock()  # the same among the tasks of a loop
        self.handle: Handle | None = None  # what start() made, also while it waits for readiness
        self.ready = False
        self.control: Control | None = None  # of the loop, in the place where it runs
        self.home: Any = None  # what a subclass has where it lives
        self.values: Any = None  # of its parameters, likewise
        self.published: Any = None  # its topics, likewise
        self.listening: Any = None  # what it subscribes to, likewise
        self.here: _Here | None = None  # of the loop, where run() runs it


class _Here(Control):
    """The control of a loop that run() runs in the calling thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.thread = threading.get_ident()
        self.ended = threading.Event()
        self.status: Any = 1  # what it is after an exception


class CoProcess:
    """A restartable process that calls a target over and over.

    ``target`` is called in the child with ``args`` and ``kwargs`` and the keyword ``timedelta``, the
    seconds since the last call, again and again without pause and at least once, until it returns
    something other than None or the process is asked to stop.  An int that it returns is the exit
    code (as of any process: modulo 256); anything else is treated as :func:`sys.exit` does: printed to
    stderr, with the exit code 1.  Asked to stop, the exit code is 0.  Instead of passing a target,
    subclasses override :meth:`task`; with neither there is nothing to call, and the process waits
    until it is asked to stop.

    ``context_manager(*args, **kwargs)`` is entered in the child before :meth:`start` returns and left
    before :meth:`shutdown` returns; what it yields (a value, or a tuple of values) comes first in the
    target's arguments, None adds nothing.

    The instance is sent to the process as it is when it starts: its attributes are seen there, and
    what happens to them there is not seen here.  ``start_method`` is "forkserver", "spawn" or "fork";
    None means the environment's PYZMP_START_METHOD, else forkserver where there is one, else spawn.

    start, shutdown and all others may be called from any thread.
    """

    _open_in = "the context manager"  # what Unsendable recommends

    def __init__(self, name: str | None = None,
                 context_manager: Callable[..., AbstractContextManager[Any]] | None = None,
                 target: Callable[..., Any] | None = None, args: tuple[Any, ...] | None = None,
                 kwargs: dict[str, Any] | None = None, *, start_method: str | None = None) -> None:
        self._name = str(uuid.uuid4()) if name is None else name
        self._context_manager, self._target = context_manager, target
        self._args, self._kwargs = tuple(args or ()), dict(kwargs or {})
        self._start_method = start_method
        self._daemon = False
        self._authkey: bytes | None = None

    # What subclasses override.

    def task(self, *args: Any, **kwargs: Any) -> Any:
        """Called over and over in the child where no target was passed."""

    def _launcher(self) -> Launcher:
        from pyzmp.launchers.process import ProcessLauncher  # multiprocessing costs to import, and is seldom all used

        return ProcessLauncher(self._start_method)

    def _body(self, control: Control) -> Any:
        """What runs in the new place."""
        with self._entered(self._args, self._kwargs) as (args, kwargs):
            control.ready(True)
            return self._loop(control, args, kwargs)

    # Pieces of a body.

    def _entered(self, args: tuple[Any, ...],
                 kwargs: dict[str, Any]) -> AbstractContextManager[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Enters the context manager, if there is one; gives the target's arguments."""
        if self._context_manager is None:
            return contextlib.nullcontext((args, kwargs))
        return self._inside(self._context_manager, args, kwargs)

    @staticmethod
    @contextlib.contextmanager
    def _inside(entered: Callable[..., AbstractContextManager[Any]], args: tuple[Any, ...],
                kwargs: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        with entered(*args, **kwargs) as value:
            front = () if value is None else value if isinstance(value, tuple) else (value,)
            yield (*front, *args), kwargs

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        return Step(self.task if self._target is None else self._target, args, kwargs)

    def _idle(self) -> bool:
        return self._target is None and getattr(self.task, "__func__", None) is CoProcess.task

    def _loop(self, control: Control, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._idle():
            control.wait_stop()
        step = self._step(args, kwargs)
        while (status := step()) is None and not control.stop_requested:
            pass
        return 0 if status is None else status

    # Starting and stopping.

    def start(self, timeout: float | None = None) -> Any:
        """Starts it and waits until it has entered its context and is about to loop; gives a true value.

        Gives False when ``timeout`` seconds were over before; the process is then ended.  Raises the
        process's own error where it failed while starting, and StartError where it ended before it was
        ready, or was not ready in 30 s although no timeout was given.  A running one is shut down and
        started again.
        """
        life = self._life
        deadline = time.monotonic() + (START if timeout is None else timeout)
        with life.starting:
            self.shutdown()
            life.ready, life.here = False, None
            life.handle = handle = self._launcher().launch(self._live, name=self.name, daemon=self.daemon,
                                                           authkey=self._authkey, open_in=self._open_in)
            try:
                value = handle.wait_ready(max(0.0, deadline - time.monotonic()))
            except NotReady:
                end([handle], 0.3, 0.3, KILL)
                if timeout is None:
                    raise StartError(f"{self.name!r} was not ready within {START:g} s of its start and was ended; "
                                     "pass a timeout to start() to wait for longer") from None
                return False
            except BaseException:
                end([handle], 0.3, 0.3, KILL)
                raise
            life.ready = True
            return value

    def shutdown(self, join: bool = True, timeout: float | None = None) -> int | None:
        """Asks it to stop, waits until it has ended, and gives its exit code; None if it was never started.

        One that has not stopped after 5 s (four fifths of ``timeout``, where given) is terminated, and then
        killed, within ``timeout`` seconds.  With ``join=False`` it is only asked.  Called again it gives
        the same code.  Called by the loop itself it asks, and does not wait.
        """
        life = self._life
        if life.here is not None:
            code: int | None = self._leave(life.here, join, timeout)
            return code
        if life.handle is None:
            if life.control is not None:
                life.control.request_stop()
            return None
        if join:
            end([life.handle], *graces(timeout))
        else:
            life.handle.request_stop()
        return life.handle.exitcode

    @staticmethod
    def _leave(here: _Here, join: bool, timeout: float | None) -> Any:
        here.request_stop()
        if join and here.thread != threading.get_ident():
            here.ended.wait(timeout)
        return here.status if here.ended.is_set() else None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the loop in the calling thread, inside the context manager; gives the status that ended it.

        Arguments that are passed replace those of the constructor.  :meth:`shutdown` from another thread
        stops it.
        """
        life, here, own = self._life, _Here(self.name), (self._args, self._kwargs)
        if self.is_alive():
            raise RuntimeError(f"{self.name!r} runs already; shut it down before you run it here")
        life.handle, life.here = None, here
        self._args, self._kwargs = args or self._args, kwargs or self._kwargs
        try:
            here.status = status = self._live(here)
            return status
        finally:
            self._args, self._kwargs = own
            life.control = None
            here.ended.set()

    def _live(self, control: Control) -> Any:
        self._life.control = control
        return self._body(control)

    def terminate(self) -> None:
        """Sends SIGTERM: the loop is drained, then the process dies of the signal (exit code -15)."""
        if (handle := self._life.handle) is not None:
            handle.terminate()

    def join(self, timeout: float | None = None) -> None:
        """Waits until it has ended, at most ``timeout`` seconds."""
        life = self._life
        if life.here is not None:
            life.here.ended.wait(timeout)
        elif life.handle is not None:
            life.handle.join(timeout)

    # What it is.

    def is_alive(self) -> bool:
        """Whether it runs."""
        life = self._life
        if life.here is not None:
            return not life.here.ended.is_set()
        return life.handle.is_alive() if life.handle is not None else life.control is not None

    def has_started(self) -> bool:
        """Whether it was started and got ready, even if it has ended since."""
        return self._life.ready

    @property
    def name(self) -> str:
        """Its name, a uuid where none was given; settable while it does not run."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._refuse_while_alive("name")
        self._name = name

    @property
    def daemon(self) -> bool:
        """As in :class:`multiprocessing.Process`; either way none outlives the interpreter that started it."""
        return self._daemon

    @daemon.setter
    def daemon(self, daemon: bool) -> None:
        self._refuse_while_alive("daemon")
        self._daemon = daemon

    @property
    def authkey(self) -> bytes:
        """As in :class:`multiprocessing.Process`."""
        from pyzmp.launchers.process import default_authkey

        return default_authkey() if self._authkey is None else self._authkey

    @authkey.setter
    def authkey(self, authkey: bytes) -> None:
        self._refuse_while_alive("authkey")
        self._authkey = bytes(authkey)

    @property
    def exitcode(self) -> int | None:
        """None before it is started and while it runs; negative for the signal that it died of."""
        handle = self._life.handle
        return None if handle is None else handle.exitcode

    @property
    def ident(self) -> int | None:
        """The process's id; None before it is started."""
        handle = self._life.handle
        return None if handle is None else handle.ident

    def _refuse_while_alive(self, attribute: str) -> None:
        if self.is_alive():
            raise RuntimeError(f"{self.name!r} runs; set its {attribute} before it is started")

    @property
    def _life(self) -> _Life:
        life: _Life | None = self.__dict__.get("_life_here")
        if life is None or life.pid != os.getpid():
            life = self.__dict__["_life_here"] = _Life()
        return life

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_life_here"}

    def __enter__(self) -> Self:
        if not self.is_alive():
            self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        handle = self._life.handle
        if self.is_alive():
            state = "running here" if handle is None else f"running pid {handle.ident}"
        else:
            state = "not started" if handle is None else f"stopped with exit code {handle.exitcode}"
        return f"<{type(self).__name__} {self._name!r} process {state}>"
