"""A process that holds pyzmp in memory and forks a child whenever one is wanted.

It is multiprocessing's fork server, with four differences: it is our own, so that it loads our
modules and never the program's ``__main__``; processes that it forked use it for theirs; it removes
its socket, also after its starter was killed; and Ctrl-C does not reach it while it loads.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing import connection, forkserver, resource_tracker, spawn, util
from pathlib import Path
from types import TracebackType
from typing import Any

#: What a node in a process needs, besides what its starter has loaded: no child has to import any of it by itself.
PRELOAD = ("pyzmp.launchers.process", "pyzmp.launchers.shipping", "zmq", "msgspec", "asyncio", "logging", "hashlib",
           "encodings.ascii", "setproctitle", "pyzmp.here", "pyzmp.host", "pyzmp.channels.listening",
           "pyzmp.channels.published", "pyzmp.channels.service")


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds SIGINT back, in this thread and in a process that is started meanwhile, until that ignores it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Server(forkserver.ForkServer):
    """The way of this process to its fork server, which is started when first needed."""

    _forkserver_address: str | None
    _forkserver_alive_fd: int | None
    _forkserver_pid: int | None

    serving = False  # in the server itself, and in what it forked

    def ensure_running(self) -> None:
        """Starts the server unless it runs, or unless this process was forked by one."""
        with self._lock:  # type: ignore[attr-defined]
            resource_tracker.ensure_running()
            inherited: Any = forkserver._forkserver
            if self.serving and self._forkserver_alive_fd is None:
                self._forkserver_address = inherited._forkserver_address
                self._forkserver_alive_fd = inherited._forkserver_alive_fd
            if self._forkserver_pid is not None and os.waitpid(self._forkserver_pid, os.WNOHANG)[0]:
                self._forkserver_pid = None
                self._close()
            if self._forkserver_alive_fd is None:
                self._start()

    def _start(self) -> None:
        address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
        alive_r, alive_w = os.pipe()
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(address)
                listener.listen(128)
                loaded = [name[6:] for name in sys.modules if name[:6] == "pyzmp." and not name.endswith("__main__")]
                program = (f"import sys; sys.path[:] = {sys.path!r}; from pyzmp.launchers.forkserver import serve; "
                           f"serve({listener.fileno()}, {alive_r}, {address!r}, {loaded!r})")
                exe = spawn.get_executable()
                with interrupts_held():
                    pid = util.spawnv_passfds(
                        exe,  # type: ignore[arg-type]
                        [exe, *util._args_from_interpreter_flags(), "-c", program],  # type: ignore[attr-defined]
                        [listener.fileno(), alive_r])
        except BaseException:
            os.close(alive_w)
            _remove(address)
            raise
        finally:
            os.close(alive_r)
        self._forkserver_address, self._forkserver_alive_fd, self._forkserver_pid = address, alive_w, pid

    def _close(self) -> None:
        if self._forkserver_alive_fd is not None and not self.serving:
            os.close(self._forkserver_alive_fd)
        self._forkserver_address = self._forkserver_alive_fd = None

    def restart(self) -> None:
        """The server does not answer: the next need starts another."""
        with self._lock:  # type: ignore[attr-defined]
            if (pid := self._forkserver_pid) is not None:
                self._forkserver_pid = None
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            if self._forkserver_address is not None:
                _remove(self._forkserver_address)
            self._close()
            self.serving = False

    def after_fork(self) -> None:
        """In a forked child: the parent's server is not held up by it."""
        if self._forkserver_pid is not None:
            with contextlib.suppress(OSError):
                self._close()
        self.__init__()  # type: ignore[misc]


def _remove(address: str) -> None:
    with contextlib.suppress(OSError):
        Path(address).unlink()


server = Server()
os.register_at_fork(after_in_child=server.after_fork)


def _reported(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an error, unless it is a child's whose starter was gone before it had said what to run."""
    if kind is not EOFError:
        sys.__excepthook__(kind, error, trace)


def serve(listener: int, alive: int, address: str, rooms: list[str]) -> None:
    """What the server's own process runs, until nobody holds the other end of ``alive``.

    ``rooms`` are the modules of pyzmp that its starter has loaded.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it ends with its starter, and so after its children
    for name in (*PRELOAD, *(f"pyzmp.{room}" for room in rooms)):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    server.serving = True
    sys.excepthook = _reported
    try:
        forkserver.main(listener, alive, [])
    finally:
        _remove(address)
        with contextlib.suppress(OSError):  # the starter, where it still lives, has more in there
            Path(address).parent.rmdir()
