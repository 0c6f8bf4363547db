"""Threads that run an asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

T = TypeVar("T")

log = logging.getLogger("pyzmp.node")


class LoopThread:
    """A daemon thread that runs an asyncio loop until it is closed."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run *coroutine* on the loop, from another thread, and block until it has ended.

        Raises TimeoutError after *timeout* seconds; the coroutine is cancelled then.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As `run`, and await the end on the running loop; *coroutine* is cancelled with whoever awaits it.

        Without the future of `asyncio.run_coroutine_threadsafe`, which any thread could block on: half as large.
        """
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        task: list[asyncio.Task[T]] = []

        def settle() -> None:
            if done.done():
                task[0].cancelled() or task[0].exception()  # nobody waits any more
            elif task[0].cancelled():
                done.cancel()
            elif (error := task[0].exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(task[0].result())

        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle)

        def begin() -> None:
            task.append(self.loop.create_task(coroutine))
            task[0].add_done_callback(ended)
        self.loop.call_soon_threadsafe(begin)
        try:
            result: T = await done
            return result
        except asyncio.CancelledError:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(lambda: task[0].cancel())  # noqa: PLW0108 - it may yet have to begin
            raise

    def close(self, timeout: float | None = None) -> None:
        """End the loop and its thread; one that is still busy after *timeout* seconds ends when it turns again."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)


class Mark(asyncio.Event):
    """An `asyncio.Event` that is small while nobody waits for it: every node has several."""

    __slots__ = ("_futures", "_marked")

    def __init__(self) -> None:
        self._marked = False
        self._futures: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        return self._marked

    def set(self) -> None:
        self._marked = True
        futures, self._futures = self._futures, None
        for future in futures or ():
            if not future.done():
                future.set_result(None)

    def clear(self) -> None:
        self._marked = False

    async def wait(self) -> Literal[True]:
        if not self._marked:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._futures = [*(each for each in self._futures or () if not each.done()), future]
            await future
        return True


def run_alone(coroutine: Coroutine[Any, Any, T], patience: float) -> T:
    """Run *coroutine* on a loop of its own, in this thread.

    As `asyncio.run`, but that tasks which have not ended *patience* seconds after they were cancelled are left behind.
    """
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(coroutine)
    finally:
        if tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            _, left = loop.run_until_complete(asyncio.wait(tasks, timeout=patience))
            if left:
                log.warning("%d tasks have not ended with their loop: %s", len(left), left)
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


async def awaited(value: object) -> None:
    """Await *value*, where it can be awaited."""
    if inspect.isawaitable(value):
        await value


def call_in(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """Have *loop* call back, from any thread; one that has ended does not."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)
