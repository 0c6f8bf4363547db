"""Functions that are called with what comes, on a loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from pyzmp.channels import handling
from pyzmp.channels.handling import Handling
from pyzmp.channels.message import Joined, Message
from pyzmp.channels.opening import Opening
from pyzmp.protocol import codec
from pyzmp.protocol.batch import Batch
from pyzmp.protocol.envelope import Published
from tests.conftest import SCALE

place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="outside")


class Lamp:
    node, topic, shape = "lamp", "lamp/light", b"it"


def batch(*values: Any, number: int = 0) -> Batch:
    source: Any = Lamp()
    return Batch(source, Published(1, number, [1.0] * len(values), [codec.encode(value)[0] for value in values]), ())


class Told:
    """Counts what the handling asks for."""

    def __init__(self) -> None:
        self.acknowledged = self.wanted = 0

    def acknowledge(self) -> None:
        self.acknowledged += 1

    def wants(self) -> None:
        self.wanted += 1


def made(handler: Callable[[Any], Any], *, messages: bool = False,
         on_event: Callable[[Any], object] | None = None) -> tuple[Handling, Told]:
    context = contextvars.copy_context()
    context.run(place.set, "inside")
    found = Handling("eye", asyncio.get_running_loop(), context, Opening(None), handler, messages=messages,
                     on_event=on_event)
    told = Told()
    found.acknowledge, found.wants = told.acknowledge, told.wants
    return found, told


async def until(condition: Callable[[], object]) -> None:
    async def look() -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)
    await asyncio.wait_for(look(), 10 * SCALE)


def done(handling: Handling, count: int) -> Callable[[], bool]:
    return lambda: handling.received == count and handling.hungry


def test_a_function_is_called_at_once_in_order_and_in_its_context() -> None:
    async def main() -> None:
        got: list[Any] = []
        handling, told = made(lambda value: got.append((value, place.get())))
        handling.put(batch("a", "b"))
        assert got == [("a", "inside"), ("b", "inside")]
        assert (handling.received, handling.hungry, told.acknowledged, told.wanted) == (2, True, 1, 1)
        handling.put(None)
    asyncio.run(main())


def test_events_come_in_their_place_and_messages_say_whose_they_are() -> None:
    async def main() -> None:
        got: list[Any] = []
        handling, _ = made(got.append, messages=True, on_event=got.append)
        joined = Joined("lamp/light", "lamp")
        handling.put(joined)
        handling.put(batch("a"))
        assert got == [joined, Message("a", "lamp/light", "lamp", 0, 1.0)]
    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_what_a_handler_raises_is_logged_and_counted_and_it_goes_on(error: BaseException,
                                                                    caplog: pytest.LogCaptureFixture) -> None:
    got: list[Any] = []

    def handler(value: Any) -> None:
        got.append(value)
        if value == 2:
            raise error

    async def ahandler(value: Any) -> None:
        handler(value)

    async def main() -> None:
        for function in (handler, ahandler):
            got.clear()
            handling, _ = made(function)
            handling.put(batch(1, 2, 3))
            await until(done(handling, 3))
            assert (got, handling.failed) == ([1, 2, 3], 1)
            assert f"lamp/light of 'lamp': the handler {function.__qualname__} of 'eye' raised" in caplog.text
    asyncio.run(main())


def test_what_an_event_callback_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        got: list[Any] = []
        handling, _ = made(got.append, on_event=lambda event: 1 / 0)
        handling.put(Joined("lamp/light", "lamp"))
        handling.put(batch(1))
        assert got == [1]
        assert "ZeroDivisionError" in caplog.text
    asyncio.run(main())


def test_a_coroutine_ends_before_the_next_message_is_handled() -> None:
    async def main() -> None:
        got: list[Any] = []
        go_on = asyncio.Event()

        async def handler(value: Any) -> None:
            got.append((value, place.get()))
            await go_on.wait()
            got.append(value)
        handling, told = made(handler)
        handling.put(batch("a", "b"))
        handling.put(batch("c", number=2))
        await until(lambda: got)
        await asyncio.sleep(0)
        assert got == [("a", "inside")]
        assert (handling.received, handling.hungry, told.wanted) == (0, False, 0)
        go_on.set()
        await until(lambda: handling.hungry)
        assert got[1:] == ["a", ("b", "inside"), "b", ("c", "inside"), "c"]
        assert (handling.received, told.acknowledged) == (3, 2)
    asyncio.run(main())


def test_slow_handlers_leave_the_loop_to_others_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handling, "TURN", 0.0)

    async def main() -> None:
        got: list[Any] = []
        slow, _ = made(got.append)
        turns: list[int] = []

        def turn() -> None:
            turns.append(len(got))
            if len(got) < 20:
                asyncio.get_running_loop().call_soon(turn)
        turn()
        slow.put(batch(*range(20)))
        await until(lambda: len(got) == 20)
        assert got == list(range(20))
        assert len(turns) > 10
    asyncio.run(main())


def test_what_a_handler_brings_about_comes_behind_what_is_there() -> None:
    async def main() -> None:
        got: list[Any] = []

        def handler(value: Any) -> None:
            got.append(value)
            if value == 1:
                found.put(batch(3, number=2))
        found, _ = made(handler)
        found.put(batch(1, 2))
        assert got == [1, 2, 3]
    asyncio.run(main())


def test_nothing_is_handled_once_it_is_closed_also_by_the_handler() -> None:
    async def main() -> None:
        got: list[Any] = []

        def handler(value: Any) -> None:
            got.append(value)
            found.close()

        async def ahandler(value: Any) -> None:
            handler(value)
        for function in (handler, ahandler):
            got.clear()
            found, told = made(function)
            found.put(batch(*range(100)))
            await until(lambda: got)
            await asyncio.sleep(0)
            found.put(batch(1))
            await asyncio.sleep(0)
            assert (got, told.wanted, found.failed) == ([0], 0, 0)
    asyncio.run(main())


def test_a_coroutine_that_runs_is_cancelled_when_it_is_closed() -> None:
    async def main() -> None:
        got: list[str] = []

        async def handler(value: Any) -> None:
            got.append("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                got.append("cancelled")
                raise
        found, _ = made(handler)
        found.put(batch(1, 2))
        await until(lambda: got)
        found.close()
        await until(lambda: len(got) == 2)
        await asyncio.sleep(0)
        assert (got, found.failed) == (["begun", "cancelled"], 0)
    asyncio.run(main())


def test_a_coroutine_that_its_loop_has_left_ends_when_it_is_collected() -> None:
    got: list[str] = []

    async def handler(value: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            got.append("ended")

    async def main() -> None:
        found, _ = made(handler)
        found._busy = True
        found.put(batch(1, 2))
        coroutine = found._handle_all()
        coroutine.send(None)
        coroutine.close()
        assert (got, found.failed) == (["ended"], 0)
    asyncio.run(main())


def test_a_ctrl_c_in_the_main_thread_is_passed_on_and_it_goes_on() -> None:
    got: list[Any] = []

    def handler(value: Any) -> None:
        got.append(value)
        if value == 1:
            raise KeyboardInterrupt

    async def ahandler(value: Any) -> None:
        handler(value)

    loop = asyncio.new_event_loop()

    async def begin(function: Any) -> Handling:
        return made(function)[0]
    for function in (handler, ahandler):
        got.clear()
        found = loop.run_until_complete(begin(function))
        loop.call_soon(found.put, batch(0, 1, 2))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(until(lambda: False))
        loop.run_until_complete(until(done(found, 3)))
        assert (got, found.failed) == ([0, 1, 2], 1)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize("awaits", [False, True])
def test_a_handler_that_always_fails_is_logged_in_two_lines(awaits: bool, caplog: pytest.LogCaptureFixture) -> None:
    def handler(value: Any) -> None:
        raise ValueError(value)

    async def ahandler(value: Any) -> None:
        handler(value)

    async def main() -> None:
        handling, _ = made(ahandler if awaits else handler)
        handling.put(batch(*range(100)))
        await until(done(handling, 100))
        assert handling.failed == 100
        first, = [record for record in caplog.records if record.name == "pyzmp.topic"]
        assert first.exc_info is not None
        handling.close()
        lines = [record for record in caplog.records if record.name == "pyzmp.topic"]
        assert [record.getMessage().partition("'eye' ")[2] for record in lines] == [
            "raised; it goes on", "raised 99 more times, at last ValueError: 99"]
    asyncio.run(main())


def test_what_a_plain_function_gives_to_be_awaited_is_awaited_in_order(caplog: pytest.LogCaptureFixture) -> None:
    got: list[Any] = []

    async def slowly(value: int) -> None:
        await asyncio.sleep(0)
        got.append((value, place.get()))
        if value == 0:
            raise ValueError

    async def main() -> None:
        handling, told = made(lambda value: slowly(value) if value != 3 else got.append((3, "inside")))
        handling.put(batch(*range(3)))
        handling.put(batch(3, 4, number=3))
        await until(done(handling, 5))
        assert got == [(value, "inside") for value in range(5)]
        assert (handling.failed, told.acknowledged) == (1, 2)
        handling.put(batch(5))
        assert handling.close() is not None
        await asyncio.sleep(0)
        assert len(got) == 5
    asyncio.run(main())
