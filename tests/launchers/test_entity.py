"""Bodies as tasks on a loop.  That an entity behaves as any node does is shown by the behaviour of nodes."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pyzmp.exceptions import StartError
from pyzmp.launchers.base import Control, NotReady, living
from pyzmp.launchers.entity import EntityHandle, EntityLauncher


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def body(status: Any = None, error: BaseException | None = None, ready: bool = True) -> Any:
    def launched(control: Control) -> Any:
        async def live() -> Any:
            if ready:
                control.ready("value")
            stop = asyncio.Event()
            running = asyncio.get_running_loop()
            control.on_stop(lambda: running.call_soon_threadsafe(stop.set))
            await stop.wait()
            if error is not None:
                raise error
            return status
        return live()
    return launched


def launch(loop: asyncio.AbstractEventLoop, **how: Any) -> EntityHandle:
    return EntityLauncher(loop).launch(body(**how), name="entity")


@pytest.mark.parametrize(("status", "code"), [(None, 0), (3, 3), ("text", 1)])
def test_its_life(loop: asyncio.AbstractEventLoop, status: Any, code: int) -> None:
    handle = launch(loop, status=status)
    assert handle.wait_ready(5) == "value"
    assert handle.is_alive()
    assert handle.exitcode is None
    handle.request_stop()
    assert handle.join(5)
    assert handle.exitcode == code
    assert not handle.is_alive()


def test_an_error_before_it_is_ready_is_the_starters(loop: asyncio.AbstractEventLoop) -> None:
    handle = launch(loop, error=ValueError("bent"), ready=False)
    handle.request_stop()
    with pytest.raises(ValueError, match="bent"):
        handle.wait_ready(5)
    assert handle.join(5)
    assert handle.exitcode == 1


def test_an_end_before_it_is_ready_is_told(loop: asyncio.AbstractEventLoop) -> None:
    handle = launch(loop, status=4, ready=False)
    handle.request_stop()
    with pytest.raises(StartError, match="'entity' ended with exit code 4 before it was ready"):
        handle.wait_ready(5)


def test_not_ready_in_time_it_goes_on_until_it_is_cancelled(loop: asyncio.AbstractEventLoop) -> None:
    handle = launch(loop, ready=False)
    with pytest.raises(NotReady, match=r"was not ready within 0.05 s"):
        handle.wait_ready(0.05)
    assert handle.is_alive()
    handle.terminate()
    assert handle.join(5)


def test_a_terminated_one_is_cancelled_wherever_it_waits(loop: asyncio.AbstractEventLoop) -> None:
    def launched(control: Control) -> Any:
        async def live() -> None:
            control.ready()
            await asyncio.sleep(60)
        return live()
    handle = EntityLauncher(loop).launch(launched, name="entity")
    handle.wait_ready(5)
    handle.kill()
    assert handle.join(5)
    assert handle.exitcode == 1


def test_on_its_own_loop_only_the_awaiting_forms_wait() -> None:
    async def main() -> None:
        handle = launch(asyncio.get_running_loop())
        with pytest.raises(RuntimeError, match=r"write await node.astart\(\)"):
            handle.wait_ready(1)
        assert await handle.await_ready(5) == "value"
        assert not handle.join(5)  # does not wait for itself
        handle.request_stop()
        await handle.ajoin()
        assert handle.exitcode == 0
    asyncio.run(main())


def test_with_its_loop_it_has_ended() -> None:
    async def main() -> EntityHandle:
        handle = launch(asyncio.get_running_loop())
        await handle.await_ready(5)
        return handle
    handle = asyncio.run(main())  # which cancels what is left
    assert handle.join(5)
    assert handle.exitcode == 1


def test_one_that_ended_before_it_was_noted_is_not_kept(
        loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    add = living.add

    def late(handle: Any) -> None:
        handle.request_stop()
        assert handle.join(5)
        add(handle)
    monkeypatch.setattr(living, "add", late)
    assert launch(loop) not in living._handles


def test_nobody_waits_for_the_start_of_an_entity_that_was_killed(loop: asyncio.AbstractEventLoop) -> None:
    gate = threading.Event()

    async def live(control: Control) -> None:
        gate.wait()  # holds up the loop
        control.ready()
        await asyncio.sleep(60)
    handle = EntityLauncher(loop).launch(live, name="n")
    handle.kill()
    with pytest.raises(StartError, match="'n' was told to stop before it was ready"):
        handle.wait_ready(60)
    gate.set()
    assert handle.join(5)
    assert handle.exitcode == 1


def test_a_start_that_is_given_up_on_its_loop_says_nothing() -> None:
    said: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))
        handle = EntityLauncher(loop).launch(body(error=ValueError("late"), ready=False), name="n")
        waiting = asyncio.ensure_future(handle.await_ready(60))
        await asyncio.sleep(0)
        waiting.cancel()
        handle.request_stop()
        assert await handle.ajoin(5)
        with pytest.raises(asyncio.CancelledError):
            await waiting
    asyncio.run(main())
    gc.collect()
    assert said == []
