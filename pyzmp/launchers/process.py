"""Bodies in processes of their own, by forkserver, spawn or fork.

The child never runs or imports the parent's ``__main__``: what that defines travels by value.  A
thread in the child watches its parent.  It takes a stop request, and when the parent is gone it asks
the body to stop and kills the process half a second later.  It needs the GIL for that: a call into C
that holds the GIL for longer holds up the end of the process for as long.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from multiprocessing import (
    connection,
    popen_fork,
    popen_forkserver,
    popen_spawn_posix,
    process,
    resource_tracker,
    spawn,
    util,
)
from multiprocessing.connection import Connection
from multiprocessing.context import reduction, set_spawning_popen  # type: ignore[attr-defined]
from multiprocessing.forkserver import read_signed
from typing import Any

from pyzmp.exceptions import StartError
from pyzmp.launchers.base import Body, Handle, Launcher, NotReady, living
from pyzmp.launchers.child import STOP, Process, pidfd
from pyzmp.launchers.forkserver import interrupts_held, server
from pyzmp.protocol import failure

#: The exit code where the real one cannot be known, as in multiprocessing.
UNKNOWN = 255
#: Milliseconds that a child which is asked to stop has to read what it was told before.
ROOM = 100


@contextlib.contextmanager
def _passed_on(*fds: int) -> Iterator[None]:
    """Closes, in this process, the descriptors that are the child's."""
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def _write(fd: int, data: memoryview) -> None:
    with contextlib.suppress(BrokenPipeError), open(fd, "wb", closefd=False) as pipe:  # who waits will see that it died
        pipe.write(data)


class _Fork(popen_fork.Popen):
    sentinel: int  # readable when the process has ended

    def __init__(self, process: Process, body: Body, open_in: str, ours: Connection) -> None:
        self.body, self.open_in, self.ours = body, open_in, ours
        self.fds: list[int] = []
        try:
            super().__init__(process)
        except BaseException:
            self.close()
            raise

    def _launch(self, process: Process) -> None:
        process.body = self.body
        watched, held = os.pipe()
        self.sentinel, ending = os.pipe()
        self.fds = [held, self.sentinel]
        with _passed_on(watched, ending), interrupts_held():
            self.pid = os.fork()
            if self.pid == 0:
                self._run(process, watched)

    def _run(self, process: Process, watched: int) -> None:
        """In the child; does not return."""
        code = 1
        try:
            self.ours.close()
            for fd in self.fds:
                os.close(fd)
            code = process._bootstrap(parent_sentinel=watched)
        finally:
            os._exit(code)

    def close(self) -> None:
        """Closes what the parent holds of the child."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)

    def status(self) -> int:
        """The exit code of the process, which has just ended."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # somebody else waited for it, or SIGCHLD is ignored
            return UNKNOWN

    def _pickled(self, process: Process) -> memoryview:
        from pyzmp.launchers import shipping  # cloudpickle is only loaded here

        buffer = io.BytesIO()
        set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            process.payload = shipping.dumps(self.body, name=process.name, open_in=self.open_in)
            reduction.dump(_preparation(process), buffer)
            reduction.dump(process, buffer)
        finally:
            set_spawning_popen(None)
        return buffer.getbuffer()


class _Spawn(_Fork):
    DupFd = popen_spawn_posix._DupFd

    def duplicate_for_child(self, fd: int) -> int:
        self.passed.append(fd)
        return fd

    def _launch(self, process: Process) -> None:
        tracker = resource_tracker.getfd()
        self.passed: list[int] = [tracker]  # type: ignore[list-item]
        data = self._pickled(process)
        watched, held = os.pipe()
        self.sentinel, ending = os.pipe()
        self.fds = [held, self.sentinel]
        with _passed_on(watched, ending), interrupts_held():
            self.pid = util.spawnv_passfds(
                spawn.get_executable(),  # type: ignore[arg-type]
                spawn.get_command_line(tracker_fd=tracker, pipe_handle=watched),
                [*self.passed, watched, ending])
        _write(held, data)


class _ForkServer(_Fork):
    DupFd = popen_forkserver._DupFd

    def duplicate_for_child(self, fd: int) -> int:
        self.passed.append(fd)
        return len(self.passed) - 1

    def _launch(self, process: Process) -> None:
        self.passed: list[int] = []
        process.streams = {fd: self.duplicate_for_child(fd) for fd in (1, 2) if _is_open(fd)}
        data = self._pickled(process)
        try:
            self._ask(data)
        except (OSError, EOFError):  # the server died: it gets one successor
            server.restart()
            self._ask(data)

    def _ask(self, data: memoryview) -> None:
        self.sentinel, write = server.connect_to_new_process(self.passed)
        self.fds = [self.sentinel, write]
        try:
            self.pid = read_signed(self.sentinel)
        except BaseException:
            self.close()
            raise
        _write(write, data)

    def status(self) -> int:
        try:
            return read_signed(self.sentinel) if connection.wait([self.sentinel], 1.0) else UNKNOWN
        except (OSError, EOFError):  # the server died before its child
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)  # nobody could tell any more when it ends
            return UNKNOWN


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _preparation(child: Process) -> dict[str, Any]:
    """The preparation data of multiprocessing, without anything of ``__main__``."""
    original = process.ORIGINAL_DIR  # type: ignore[attr-defined]
    data = {"name": child.name, "authkey": child.authkey, "sys_path": [entry or original or "" for entry in sys.path],
            "sys_argv": sys.argv, "orig_dir": original,
            "log_to_stderr": util._log_to_stderr}  # type: ignore[attr-defined]
    if (method := multiprocessing.get_start_method(allow_none=True)) is not None:
        data["start_method"] = method
    if util._logger is not None:  # type: ignore[attr-defined]
        data["log_level"] = util._logger.getEffectiveLevel()  # type: ignore[attr-defined]
    return data


class ProcessHandle(Handle):
    """A started process.  Its descriptors are closed as soon as it has been seen to end and nobody waits on them."""

    ends_silently = True

    def __init__(self, name: str, popen: _Fork, pipe: Connection) -> None:
        self._name, self._popen, self._pipe = name, popen, pipe
        self.ident = popen.pid
        self._pidfd = pidfd(popen.pid)
        # A descriptor of the process itself is right even where its own children, or the lack of its fork
        # server, keep the sentinel from telling the truth.
        self._ended = popen.sentinel if self._pidfd is None else self._pidfd
        self._lock = threading.RLock()
        self._unsent: deque[bytes] = deque()
        self._sending = threading.Lock()  # of whoever writes, for as long as a child that does not read holds it up
        self._exitcode: int | None = None
        self._waiting = 0  # threads that wait on the descriptors
        self._asked = False
        self._said: tuple[str, Any] | None = None  # the child's one message

    def wait_ready(self, timeout: float) -> Any:
        with self._held() as over:
            if not over and self._said is None:
                connection.wait([self._pipe, self._ended], timeout)
                self._hear()
        if self._said is None and not self.join(0):
            raise NotReady(f"{self._name!r} was not ready within {timeout:g} s")
        said: tuple[str, Any] = self._said or ("ended", None)
        kind, value = said
        if kind == "ready":
            return value
        self.join(1.0)  # it ends at once: better that its exit code is known
        if kind == "ended":
            raise StartError(f"{self._name!r} ended with exit code {self._exitcode} before it was ready")
        ours, described = value
        if ours is None:
            raise failure.rebuild(described)
        raise ours from failure.rebuild(described)

    def _hear(self) -> None:
        """Takes what the child said, if it has said something."""
        with self._lock:
            if self._said is None:
                try:
                    self._said = self._pipe.recv() if self._pipe.poll() else None
                except (EOFError, OSError):
                    self._said = ("ended", None)

    @contextlib.contextmanager
    def _held(self) -> Iterator[bool]:
        """Keeps the descriptors open, or another thread closed what we wait on, and a stranger got its number.

        Gives whether they are closed already, as the process was seen to end.
        """
        with self._lock:
            over = self._exitcode is not None
            self._waiting += 1
        try:
            yield over
        finally:
            with self._lock:
                self._waiting -= 1
                if self._exitcode is not None and not self._waiting:
                    self.disown()

    def request_stop(self) -> None:
        """As promised; a child that has long not read what it was told is not asked."""
        with self._lock:
            asked, self._asked = self._asked, True
        with self._held() as over:
            if not asked and not over and (self._sending.locked() or self._has_room()):
                self._send(STOP)

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._pipe, select.POLLOUT)
        return bool(poll.poll(ROOM))

    def tell(self, value: Any) -> None:
        from pyzmp.launchers import shipping  # cloudpickle is only loaded here

        self._send(shipping.dumps(value, name=self._name, open_in="the node"))

    def _send(self, data: bytes) -> None:
        """Sends to the child, in this thread or in one that is sending."""
        self._unsent.append(data)
        while self._unsent and self._sending.acquire(blocking=False):
            try:
                with self._held() as over, contextlib.suppress(OSError):  # it is ending
                    while self._unsent:
                        message = self._unsent.popleft()
                        if not over:
                            self._pipe.send_bytes(message)
            finally:
                self._sending.release()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._exitcode is not None:
                return
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signum)
            else:
                os.kill(self._popen.pid, signum)

    def join(self, timeout: float | None = None) -> bool:
        with self._held() as over:
            if not over and connection.wait([self._ended], timeout):
                self._reap()
        return self._exitcode is not None

    def _reap(self) -> None:
        with self._lock:
            if self._exitcode is None:
                self._hear()
                self._exitcode = self._popen.status()
                living.discard(self)

    @property
    def exitcode(self) -> int | None:
        self.join(0)
        return self._exitcode

    def disown(self) -> None:
        self._pipe.close()
        self._popen.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.disown()


def default_authkey() -> bytes:
    """The authkey of this process, which its children get unless they are given another."""
    return multiprocessing.current_process().authkey


class ProcessLauncher(Launcher):
    """Runs each body in a process of its own.

    ``start_method`` is "forkserver", "spawn" or "fork"; None means the environment's PYZMP_START_METHOD, else
    forkserver where there is one, else spawn.
    """

    WAYS: Mapping[str, type[_Fork]] = {"fork": _Fork, "spawn": _Spawn, "forkserver": _ForkServer}

    def __init__(self, start_method: str | None = None) -> None:
        chosen = start_method or os.environ.get("PYZMP_START_METHOD")
        here = multiprocessing.get_all_start_methods()
        if chosen is not None and chosen not in here:
            raise ValueError(f"start_method: expected one of {', '.join(map(repr, here))}, got {chosen!r}")
        self._way = self.WAYS[chosen or ("forkserver" if "forkserver" in here else "spawn")]

    def launch(self, body: Body, *, name: str, daemon: bool = False, authkey: bytes | None = None,
               open_in: str = "the body") -> Handle:
        """As promised by :class:`Launcher`.

        Raises Unsendable (a StartError and TypeError) where something cannot be carried, and StartError where
        the system gives no process.
        """
        ours, theirs = multiprocessing.Pipe()
        try:
            child = Process(name, daemon, authkey, theirs)
            handle = ProcessHandle(name, self._way(child, body, open_in, ours), ours)
        except (OSError, EOFError) as error:
            ours.close()
            raise StartError(f"cannot start {name!r}: the system gives no process: {error}") from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        living.add(handle)
        return handle
