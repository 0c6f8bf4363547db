"""What a process has one of: its settings, and its `Runtime`.

That is made when it is first needed, and so is what it is made of imported.  A forked child makes one of its own.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from pyzmp.protocol.deadline import seconds
from pyzmp.settings import Settings

if TYPE_CHECKING:
    from pyzmp.here import Runtime

__all__ = ["Runtime", "Settings", "configure", "current", "in_use", "inherit", "reset", "settings"]


class _State:
    """The one piece of state of the process: its settings, and its runtime once it has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._runtime: Runtime | None = None
        self._inherited: list[Runtime] = []

    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_environment()
        return self._settings

    def current(self) -> Runtime:
        """The runtime of this process, made now where there is none."""
        runtime = self._runtime
        if runtime is None:
            from pyzmp.here import Runtime

            with self._lock:
                runtime = self._runtime = self._runtime or Runtime(self.settings(), self.forget)
        return runtime

    def in_use(self) -> bool:
        return self._runtime is not None

    def inherit(self, settings: Settings) -> None:
        with self._lock:
            if self._runtime is None:
                self._settings = settings

    def configure(self, changes: dict[str, Any]) -> None:
        with self._lock:
            if self._runtime is not None:
                raise RuntimeError("configure() comes before the first use of pyzmp; this process has used it already, "
                                   f"with {self.settings()}")
            self._settings = self.settings().changed(changes)

    def forget(self, runtime: Runtime) -> None:
        if self._runtime is runtime:
            self._runtime = None

    def reset(self) -> None:
        """End the runtime, if there is one, and forget the settings: as in a new process."""
        if self._runtime is not None:
            self._runtime.close()
        self._settings = None

    def after_fork(self) -> None:
        """In a forked child: close what the parent's runtime holds, and start without one.

        The parent's objects are kept, so that nothing of them is finalised here.
        """
        self._lock = threading.Lock()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            self._inherited.append(runtime)
            for held in (runtime.context, runtime.replica, runtime.sessions, *runtime.hosts.values()):
                held.close_inherited()


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.after_fork)


current = _state.current  # every call asks for it


def in_use() -> bool:
    """Whether this process has a runtime, and so has used pyzmp."""
    return _state.in_use()


def settings() -> Settings:
    """The settings of this process."""
    return _state.settings()


def inherit(settings: Settings) -> None:
    """Take over the settings of the process that started this one, unless it has used pyzmp already."""
    _state.inherit(settings)


def reset() -> None:
    """End the runtime of this process and forget its settings, for tests that need a process as new."""
    _state.reset()


def configure(*, domain: str | None = None, registry: str | None = None, timeout: float | None = None,
              interface: str | None = None) -> None:
    """Set, before pyzmp is first used, what differs from the environment's ``PYZMP_*``.

    *domain* names the world of nodes that see each other.  *registry* is ``"memory"`` to keep
    everything inside this process, or says where the registry of several hosts is: ``tcp://HOST:PORT#KEY``,
    ``beacon``, or ``etcd://HOST:PORT,HOST:PORT``.  *timeout* is the default of calls, in seconds.  *interface* is the
    name or the address of the network's interface where nodes are reached from other hosts, or several with commas
    between; by default the one that leads to the registry.  The processes that this one starts inherit all of it.
    Raises RuntimeError once pyzmp was used.
    """
    changes = {"domain": domain, "registry": registry, "interface": interface,
               "timeout": None if timeout is None else seconds(timeout)}
    _state.configure({name: value for name, value in changes.items() if value is not None})


if not TYPE_CHECKING:
    def __getattr__(name: str) -> Any:
        if name != "Runtime":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from pyzmp.here import Runtime

        return Runtime
