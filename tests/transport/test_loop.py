"""Sessions and servers: one suite over every kind of address, and both ways to drive a session."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from pyzmp.protocol.envelope import Buffer, Note, Parcel, Reply, Welcome
from pyzmp.transport import link
from pyzmp.transport.context import Context


def notes(count: int) -> list[Note]:
    return [Note(b"%d" % number) for number in range(count)]


def messages(caller: Any) -> list[Any]:
    return [parcel.message for parcel in caller.got]


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


# -- both drivers --------------------------------------------------------------------------------------------------


def test_a_thread_that_blocks_is_greeted_and_answered_in_order(
        behind: Any, context: Context, address: str, new_caller: Any) -> None:
    server = behind(address)
    caller = new_caller(context, server.addresses[0])
    for note in notes(500):
        caller.session.send(note)
    assert not caller.session.sent
    assert caller.until(lambda: len(caller.got) == 500)
    assert messages(caller) == notes(500)
    assert caller.session.welcome == Welcome("loop")
    caller.session.close()
    assert caller.ends == ["the session was closed here"]


def test_a_loop_is_greeted_and_answered_in_order(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        bound = echo.server.bind(address)
        caller = new_caller(context, bound, loop=running)
        for note in notes(5000):
            caller.session.send(note)
        assert await until(lambda: len(caller.got) == 5000)
        assert messages(caller) == notes(5000)
        assert [peer.hello for peer in echo.opened] == [caller.session.hello]
        caller.session.close()
        assert await until(lambda: echo.gone == echo.opened)
        assert echo.server.peers == []
        echo.server.close()
    run(test)


@pytest.mark.parametrize("blocking", [True, False], ids=["thread", "loop"])
def test_buffers_of_every_size_arrive(
        behind: Any, context: Context, address: str, new_caller: Any, until: Any, blocking: bool) -> None:
    server = behind(address)
    sizes = [0, 1, link.ZERO_COPY - 1, link.ZERO_COPY, 300_000, 20_000_000]
    buffers: list[Buffer] = [os.urandom(min(size, 1000)) * (size // min(size, 1000) if size else 0) for size in sizes]
    buffers.append(bytearray(b"array"))
    buffers.append(memoryview(b"x" * 100_000))

    def check(caller: Any) -> None:
        assert [bytes(buffer) for buffer in caller.got[0].buffers] == [bytes(buffer) for buffer in buffers]
        caller.session.close()

    async def test() -> None:
        caller = new_caller(context, server.addresses[0], loop=asyncio.get_running_loop())
        caller.session.send(Reply(1, b"", len(buffers)), buffers)
        assert await until(lambda: caller.got)
        check(caller)
    if blocking:
        caller = new_caller(context, server.addresses[0])
        caller.session.send(Reply(1, b"", len(buffers)), buffers)
        assert caller.until(lambda: caller.got)
        check(caller)
    else:
        run(test)


def test_the_receiver_shares_no_memory_with_the_sender(
        context: Context, kind: str, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    if kind not in ("memory", "inproc"):
        pytest.skip("the system copies")

    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        got: list[Parcel] = []
        echo.server._on_parcel = lambda peer, parcel: got.append(parcel)
        caller = new_caller(context, echo.server.bind(address), loop=running)
        content = bytearray(b"a" * 200_000)
        caller.session.send(Reply(1, b"", 1), [content])
        assert await until(lambda: got)
        content[:] = b"b" * len(content)
        assert bytes(got[0].buffers[0]) == b"a" * 200_000
        caller.session.close()
        echo.server.close()
    run(test)


def test_many_sessions_are_served_and_forgotten(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        bound = echo.server.bind(address)
        for _ in range(2):  # the second time on the descriptors of the first
            callers = [new_caller(context, bound, loop=running) for _ in range(30)]
            for number, caller in enumerate(callers):
                for _ in range(10):
                    caller.session.send(Note(b"%d" % number))
            assert await until(lambda: all(len(caller.got) == 10 for caller in callers))  # noqa: B023
            assert all({message.body for message in messages(caller)} == {b"%d" % number} for number,
                caller in enumerate(callers))
            assert len(echo.server.peers) == 30
            for caller in callers:
                caller.session.close()
            assert await until(lambda: echo.server.peers == [])
        assert len(echo.gone) == len(set(echo.gone)) == 60
        echo.server.close()
    run(test)


def test_what_was_sent_before_leaving_is_handled(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        bound = echo.server.bind(address)
        for _ in range(5):
            caller = new_caller(context, bound)
            assert caller.session.ended is None
            while not caller.session.sent:
                caller.session.pump()
                await asyncio.sleep(0)
            echo.seen.clear()
            for note in notes(1000):
                caller.session.send(note)
            caller.session.close()
            assert await until(lambda: echo.server.peers == [] and len(echo.seen) == 1000)
        assert echo.server.malformed == 0
        echo.server.close()
    run(test)


def test_the_answers_of_a_listener_that_leaves_arrive_before_its_end(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        for _ in range(20):
            echo = new_echo(context, running)
            bound = echo.server.bind(address)
            caller = new_caller(context, bound)
            while not echo.opened:
                caller.session.pump()
                await asyncio.sleep(0)
            for note in notes(100):
                echo.opened[0].send(note)
            echo.server.close()
            assert await asyncio.to_thread(caller.until, lambda: caller.ends)  # noqa: B023
            assert messages(caller) == notes(100)
            assert caller.ends == ["the listener closes"]
            assert echo.gone == echo.opened
    run(test)


# -- ends ----------------------------------------------------------------------------------------------------------


def test_where_nobody_listens_the_session_ends_at_once(
        context: Context, kind: str, place: Any, new_caller: Any) -> None:
    address = "tcp://127.0.0.1:9" if kind == "tcp" else place(kind)
    caller = new_caller(context, address)
    caller.session.send(Note(b"held"))
    assert caller.until(lambda: caller.ends, 1.0)
    assert caller.ends == ["nobody listens there"]
    assert not caller.session.sent
    caller.session.send(Note(b"dropped"))
    caller.session.close()
    assert len(caller.ends) == 1


def test_where_nobody_listens_a_loop_is_told(
        context: Context, kind: str, place: Any, new_caller: Any, until: Any) -> None:
    async def test() -> None:
        address = "tcp://127.0.0.1:9" if kind == "tcp" else place(kind)
        caller = new_caller(context, address, loop=asyncio.get_running_loop())
        assert await until(lambda: caller.ends, 1.0)
        assert caller.ends == ["nobody listens there"]
    run(test)


def test_a_caller_that_has_not_greeted_learns_that_the_listener_closed(
        context: Context, address: str, new_caller: Any, new_echo: Any) -> None:
    async def test() -> None:
        echo = new_echo(context, asyncio.get_running_loop())
        caller = new_caller(context, echo.server.bind(address))
        echo.server.close()
        assert await asyncio.to_thread(caller.until, lambda: caller.ends, 2.0)
    run(test)


@pytest.mark.parametrize("blocking", [True, False], ids=["thread", "loop"])
def test_a_caller_for_another_loop_is_sent_away(
        behind: Any, context: Context, address: str, new_caller: Any, until: Any, blocking: bool) -> None:
    server = behind(address)

    async def test() -> None:
        caller = new_caller(context, server.addresses[0], loop=asyncio.get_running_loop(), hello="older")
        caller.session.send(Note(b"for the older"))
        assert await until(lambda: caller.ends)
        assert caller.ends == [f"the loop older is gone; loop listens at {server.addresses[0]} now"]
    if blocking:
        caller = new_caller(context, server.addresses[0], hello="older")
        caller.session.send(Note(b"for the older"))
        assert caller.until(lambda: caller.ends)
        assert "the loop older is gone" in caller.ends[0]
    else:
        run(test)
    assert server.echo.seen == []
    assert server.echo.opened == []


def test_replies_after_the_end_do_no_harm(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        bound = echo.server.bind(address)
        caller = new_caller(context, bound, loop=running)
        assert await until(lambda: echo.opened)
        peer = echo.opened[0]
        caller.session.close()
        assert await until(lambda: echo.gone)
        peer.send(Note(b"late"))
        echo.server.close()
        for note in notes(200):  # a service that ends after its listener
            peer.send(note)
        peer.flush()
        echo.server.close()
        await asyncio.sleep(0)
    run(test)


def test_a_caller_in_memory_or_on_the_system_that_drops_its_link_is_noticed(
        context: Context, kind: str, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    if kind == "inproc":
        pytest.skip("has no connections to watch; a caller in the same process says goodbye")

    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        caller = new_caller(context, echo.server.bind(address), loop=running)
        assert await until(lambda: echo.opened)
        caller.session._link.close()  # without a goodbye
        assert await until(lambda: echo.gone, 1.0)
        echo.server.close()
    run(test)


# -- bad input -----------------------------------------------------------------------------------------------------
