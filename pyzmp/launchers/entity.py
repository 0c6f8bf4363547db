"""Bodies as tasks on an asyncio loop of this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from pyzmp.exceptions import StartError
from pyzmp.launchers.base import Body, Control, Handle, Launcher, NotReady, Signal, living

T = TypeVar("T")

log = logging.getLogger("pyzmp.launchers")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run what blocks in a daemon thread of its own: given up, it holds up neither the loop's end nor the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = function(*args)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, value, error)
    threading.Thread(target=run, name=f"pyzmp-{function.__name__}", daemon=True).start()
    return await future


class EntityControl(Control):
    """What an entity's body gets."""

    __slots__ = ("_error", "_settled", "_value", "answered", "is_ready")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.answered = Signal()
        self.is_ready = self._settled = False
        self._value: Any = None
        self._error: BaseException | None = None

    def ready(self, value: Any = True) -> None:
        self.is_ready = True
        self.settle(value, None)

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Say what the start came to; only the first word counts."""
        with self._lock:
            if self._settled:
                return
            self._settled, self._value, self._error = True, value, error
        self.answered.ask()

    def answer(self) -> Any:
        """What the start came to; raises what it failed with."""
        if self._error is not None:
            raise self._error
        return self._value


class EntityHandle(Handle):
    """A task on a loop.  Its exit code is the body's status, 0 for None, or 1 after an exception."""

    __slots__ = ("_aended", "_control", "_ended", "_loop", "_status", "_task", "ident")

    def __init__(self, body: Body, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.ident = os.getpid()
        self._loop = loop
        self._control = EntityControl(name)
        self._status: int | None = None
        self._ended = Signal()
        self._aended: asyncio.Event | None = None  # once somebody waits for it on its loop
        self._task: asyncio.Task[None] | None = None
        if asyncio._get_running_loop() is loop:
            self._begin(body)
        else:
            loop.call_soon_threadsafe(self._begin, body)

    def _begin(self, body: Body) -> None:
        self._task = self._loop.create_task(self._run(body))

    async def _run(self, body: Body) -> None:
        status: int | None = 1
        try:
            # An entity's body gives the coroutine that is the entity.
            status = await cast("Coroutine[Any, Any, int | None]", body(self._control))
        except asyncio.CancelledError:
            self._fail(StartError(f"{self._control.name!r} was cancelled before it was ready"))
        except BaseException as error:
            if self._control.is_ready:
                log.exception("%r failed", self._control.name)
            else:
                self._fail(error)
        finally:
            self._status = _exit_code(status)
            self._fail(StartError(f"{self._control.name!r} ended with exit code {self._status} before it was ready"))
            self._ended.ask()
            living.discard(self)
            if self._aended is not None:
                self._aended.set()

    def _fail(self, error: BaseException) -> None:
        self._control.settle(None, error)

    def lives_here(self) -> bool:
        """Whether its loop is the one that runs in this thread."""
        return asyncio._get_running_loop() is self._loop

    def wait_ready(self, timeout: float) -> Any:
        """As promised; raises RuntimeError on the entity's own loop, which could then not start it."""
        if self.lives_here():
            raise RuntimeError(f"{self._control.name!r} is started on the loop that runs here; write await "
                               "node.astart()")
        if not self._control.answered.wait(timeout):
            raise NotReady(f"{self._control.name!r} was not ready within {timeout:g} s")
        return self._control.answer()

    async def await_ready(self, timeout: float) -> Any:
        """As `wait_ready`, on the running loop."""
        loop, ready = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle() -> None:
            if not ready.done():
                ready.set_result(None)

        def tell() -> None:
            if asyncio._get_running_loop() is loop:
                settle()
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(settle)
        self._control.answered.on(tell)
        await asyncio.wait({ready}, timeout=timeout)
        if not ready.done():
            raise NotReady(f"{self._control.name!r} was not ready within {timeout:g} s")
        return self._control.answer()

    def request_stop(self) -> None:
        self._control.request_stop()

    def terminate(self) -> None:
        """Asks it to stop without waiting for anything."""
        self._control.request_hurry()

    def kill(self) -> None:
        """Cancels the task: as far as one can go with an entity.  Nobody waits for it to be ready any more."""
        self._fail(StartError(f"{self._control.name!r} was told to stop before it was ready"))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)  # after its first step: a task without one would never say its end

    def join(self, timeout: float | None = None) -> bool:
        """Waits as promised; on the entity's own loop, or where that is closed, it does not wait."""
        over = None if timeout is None else time.monotonic() + timeout
        while not self._ended.asked and not self.lives_here() and not self._loop.is_closed():
            left = 0.5 if over is None else min(0.5, over - time.monotonic())
            if left <= 0:
                break
            self._ended.wait(left)
        return self._ended.asked or self._loop.is_closed()

    async def ajoin(self, timeout: float | None = None) -> bool:
        """Waits on the running loop until it has ended, at most *timeout* seconds; whether it has."""
        if not self.lives_here():
            return await in_thread(self.join, timeout)
        if not self._ended.asked:
            self._aended = self._aended or asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._aended.wait(), timeout)
        return self._ended.asked

    @property
    def exitcode(self) -> int | None:
        if self._status is None and self._loop.is_closed():
            return 1
        return self._status if self._ended.asked else None


def _exit_code(status: Any) -> int:
    return 0 if status is None else int(status) if isinstance(status, int) else 1


class EntityLauncher(Launcher):
    """Runs bodies as tasks of *loop*.  A body gives a coroutine, which is the entity's whole life."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def launch(self, body: Body, *, name: str, daemon: bool = False, authkey: bytes | None = None,
               open_in: str = "the body") -> EntityHandle:
        """As promised by `Launcher`; an entity takes everything, so only ``body`` and ``name`` matter."""
        handle = EntityHandle(body, name, self._loop)
        living.add(handle)
        if not handle.is_alive():  # it may have ended, and discarded itself, before it was added
            living.discard(handle)
        return handle
