"""Bodies in threads of this process."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from pyzmp.exceptions import StartError
from pyzmp.launchers.base import Body, Control, Handle, Launcher, NotReady, living

log = logging.getLogger("pyzmp.launchers")


class _ThreadControl(Control):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.changed = threading.Condition()
        self.is_ready = self.ended = self.given_up = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.status: int | None = None

    def ready(self, value: Any = True) -> None:
        with self.changed:
            self.is_ready, self.value = True, value
            self.changed.notify_all()

    def run(self, body: Body) -> None:
        """Runs the body, and notes how it ended: what the thread does."""
        status: int | None = 1
        try:
            status = _status(body(self))
        except SystemExit as error:
            status = _status(error.code)
        except BaseException as error:  # it is the starter's, or the log's
            if self.is_ready:
                log.exception("%r failed", self.name)
            else:
                self.error = error
        finally:
            with self.changed:
                self.ended, self.status = True, status
                self.changed.notify_all()


def _status(status: Any) -> int:
    return 0 if status is None else int(status) if isinstance(status, int) else 1


class ThreadHandle(Handle):
    """A running thread.  Its exit code is the body's status, 0 for None, or 1 after an exception."""

    def __init__(self, body: Body, name: str) -> None:
        self._control = _ThreadControl(name)
        self._thread = threading.Thread(target=self._run, args=(body,), name=name, daemon=True)
        self._thread.start()
        self.ident = self._thread.ident

    def _run(self, body: Body) -> None:
        self._control.run(body)
        living.discard(self)

    def wait_ready(self, timeout: float) -> Any:
        control = self._control
        with control.changed:
            if not control.changed.wait_for(lambda: control.is_ready or control.ended or control.given_up, timeout):
                raise NotReady(f"{control.name!r} was not ready within {timeout:g} s")
        if control.is_ready:
            return control.value
        if control.error is not None:
            raise control.error
        if not control.ended:
            raise StartError(f"{control.name!r} was told to stop before it was ready")
        raise StartError(f"{control.name!r} ended with exit code {control.status} before it was ready")

    def request_stop(self) -> None:
        self._control.request_stop()

    def terminate(self) -> None:
        """Asks the thread to stop without waiting for anything: no more can be done to a thread."""
        self._control.request_hurry()

    def kill(self) -> None:
        """As `terminate`; and nobody waits for it to be ready any more."""
        self.terminate()
        with self._control.changed:
            self._control.given_up = True
            self._control.changed.notify_all()

    def join(self, timeout: float | None = None) -> bool:
        """Waits as promised; called by the thread itself, it does not wait."""
        if threading.current_thread() is self._thread:
            return False
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._control.changed:
            if not self._control.changed.wait_for(lambda: self._control.ended, timeout):
                return False
        self._thread.join(None if deadline is None else max(0.01, deadline - time.monotonic()))
        return True

    @property
    def exitcode(self) -> int | None:
        return self._control.status if self._control.ended else None


class ThreadLauncher(Launcher):
    """Runs each body in a daemon thread of its own; those still running at the interpreter's exit are asked to stop."""

    def launch(self, body: Body, *, name: str, daemon: bool = False, authkey: bytes | None = None,
               open_in: str = "the body") -> Handle:
        """As promised by :class:`Launcher`; a thread takes everything, so only ``body`` and ``name`` matter."""
        handle = ThreadHandle(body, name)
        living.add(handle)
        if not handle.is_alive():  # it may have ended, and discarded itself, before it was added
            living.discard(handle)
        return handle
