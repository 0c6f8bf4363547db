"""What runs in a child process: the body under its control, and a thread that watches the parent."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver, process, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pyzmp.exceptions import PyzmpError
from pyzmp.launchers.base import DRAIN, Body, Control
from pyzmp.protocol import failure

log = logging.getLogger("pyzmp.launchers")

#: Seconds that a child has to stop by itself once its parent is gone.
ORPHAN = 0.5
#: The message that asks for the stop; all others are pickles of what the starter tells.
STOP = b"stop"


def pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None where there is none to be had."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not this system, or gone already
        return None


class _ChildControl(Control):
    """What the body gets, and the thread that watches the parent.

    The parent sends STOP, once, and values that it tells; the child sends one message: ("ready", value), or what it
    failed with.
    """

    def __init__(self, name: str, pipe: Connection) -> None:
        super().__init__(name)
        self.is_ready = self.terminated = False
        self._pid, self._pipe = os.getpid(), pipe
        self._woken, self._wake = os.pipe()

    def ready(self, value: Any = True) -> None:
        self.is_ready = True
        with contextlib.suppress(OSError):  # the parent is gone, as the watch will notice
            self._pipe.send(("ready", value))

    def failed(self, error: BaseException) -> None:
        """The body failed before it was ready."""
        # An error of ours raised here means this very start, so unlike one from a service it keeps its type.
        ours = error if isinstance(error, PyzmpError) and _picklable(error) else None
        with contextlib.suppress(OSError):
            self._pipe.send(("failed", (ours, failure.describe(error, node=self.name))))

    def watch(self) -> None:
        """Starts the watch.  Called in the main thread."""
        sys.excepthook = sys.__excepthook__  # not the fork server's
        signal.set_wakeup_fd(-1)  # a forked child's would be its parent's
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to the parent too, who decides
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=self._watch, name="pyzmp-watch", daemon=True).start()

    def _on_sigterm(self, signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_DFL)  # the next one is final
        if os.getpid() != self._pid:  # in a child that user code forked
            os.kill(os.getpid(), signum)
            return
        self.terminated = True
        os.write(self._wake, b"t")  # all else happens in the watch: this interrupts the main thread anywhere

    def _watch(self) -> None:
        parent = multiprocessing.parent_process()
        gone = {parent.sentinel}  # type: ignore[union-attr]
        # A descriptor of the parent itself is right even where a stranger's fork keeps the sentinel's pipe open.
        if (parent_itself := pidfd(parent.pid or 0)) is not None:  # type: ignore[union-attr]
            gone.add(parent_itself)
        final: float | None = None
        while not gone & set(woken := connection.wait(
                [*gone, self._pipe, self._woken], None if final is None else max(0.0, final - time.monotonic()))):
            if self._woken in woken:
                os.read(self._woken, 1)
                final = time.monotonic() + DRAIN
                if self.stop_requested:  # it was asked in peace before
                    self._elsewhere(self.request_hurry)
                    continue
            if self._pipe in woken and (message := self._heard()) != STOP:
                if message is None:
                    break
                self._elsewhere(functools.partial(self._pass_on, message))
                continue
            if not woken:
                os.kill(os.getpid(), signal.SIGTERM)
            self._stop()
        self._stop()
        time.sleep(ORPHAN)
        os.kill(os.getpid(), signal.SIGKILL)

    def _heard(self) -> bytes | None:
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            return None

    def _pass_on(self, message: bytes) -> None:
        self.told(pickle.loads(message))

    def _stop(self) -> None:
        self._elsewhere(self.request_stop)

    @staticmethod
    def _elsewhere(callback: Callable[[], object]) -> None:
        """Runs the callback in a thread of its own: the watch goes on whatever it does."""
        try:
            threading.Thread(target=callback, name="pyzmp-told", daemon=True).start()
        except RuntimeError:  # no thread to be had
            callback()


def _picklable(error: PyzmpError) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its attributes raise
        return False
    return type(error).__module__.startswith("pyzmp.")


class Process(process.BaseProcess):
    """What is sent to the child: multiprocessing's process, which runs a body under a control."""

    _start_method = None  # the child's default is the parent's
    control: _ChildControl

    def __init__(self, name: str, daemon: bool, authkey: bytes | None, pipe: Connection) -> None:
        super().__init__(name=name, daemon=daemon)
        if authkey is not None:
            self.authkey = authkey
        self.pipe = pipe
        self.body: Body | None = None  # forked with us
        self.payload = b""  # or sent
        self.streams: dict[int, int] = {}  # stdout and stderr, to what the fork server was passed for them
        self.environ = dict(os.environ)
        try:
            self.directory: Path | None = Path.cwd()
        except OSError:  # removed under us
            self.directory = None

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        if self.body is not None:
            atexit._clear()
            atexit.register(util._exit_function)  # type: ignore[attr-defined]
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        atexit._run_exitfuncs()
        util._flush_std_streams()  # type: ignore[attr-defined]
        if self.control.terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        return code

    def run(self) -> None:
        """Runs the body; ends with its status as :func:`sys.exit` would."""
        self.control = control = _ChildControl(self.name, self.pipe)
        control.watch()
        try:
            self._settle()
            body = pickle.loads(self.payload) if self.body is None else self.body
            status = body(control)
        except SystemExit:
            raise
        except BaseException as error:
            if control.is_ready:
                log.exception("%r failed", self.name)
            else:
                control.failed(error)
            sys.exit(1)
        sys.exit(status)

    def _settle(self) -> None:
        """Takes over what the parent has now, and the forkserver had not."""
        with contextlib.suppress(ImportError):
            import setproctitle

            # Before the environment changes: it finds the title's place by where that is.
            setproctitle.setproctitle(self.name)
        passed = forkserver.get_inherited_fds() or []
        for fd, index in self.streams.items():
            given = passed[index]
            os.dup2(given, fd)
            os.close(given)
        if os.environ != self.environ:
            os.environ.clear()
            os.environ.update(self.environ)
        if self.directory is not None:
            with contextlib.suppress(OSError):
                os.chdir(self.directory)
