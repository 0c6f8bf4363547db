"""The twin without sockets: its races, and that the two sides share nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from pyzmp.transport.address import parse
from pyzmp.transport.context import Context
from pyzmp.transport.memory import MemoryConnection, MemoryListener


def pair(context: Context) -> tuple[MemoryListener, MemoryConnection]:
    listener = MemoryListener(context, parse("memory://x"))
    return listener, MemoryConnection(context, parse("memory://x"))


def test_what_is_sent_is_a_copy(context: Context) -> None:
    listener, connection = pair(context)
    buffer = bytearray(b"before")
    connection.send([b"head", buffer, memoryview(buffer)])
    buffer[:] = b"after!"
    received = listener.receive()
    assert received is not None
    assert received[1] == [b"head", b"before", b"before"]


def test_answers_that_nobody_slept_for_do_not_add_up(context: Context) -> None:
    listener, connection = pair(context)
    key = next(iter(listener._peers))
    for _ in range(1000):
        listener.send(key, [b"x"])
        assert connection.receive() is not None
    began = time.monotonic()
    for _ in range(3):
        connection.wait(0.05)
    assert time.monotonic() - began > 0.09  # one of them may return at once, not a thousand


def test_a_long_wait_is_no_error_and_is_woken(context: Context) -> None:
    listener, connection = pair(context)
    thread = threading.Thread(target=connection.wait, args=(1e300,))
    thread.start()
    listener.close()
    thread.join(5)
    assert not thread.is_alive()
    assert connection.ended is not None


def test_a_listener_whose_loop_is_closed_is_gone(context: Context) -> None:
    listener, connection = pair(context)
    loop = asyncio.new_event_loop()
    listener.attach(loop, lambda: None)
    loop.close()
    assert not connection.send([b"x"])


def test_ends_that_close_at_the_same_moment_do_no_harm(context: Context) -> None:
    errors: list[BaseException] = []

    def leave(connections: list[MemoryConnection]) -> None:
        try:
            for connection in connections:
                connection.close()
        except BaseException as error:
            errors.append(error)

    for _ in range(50):
        listener = MemoryListener(context, parse("memory://x"))
        connections = [MemoryConnection(context, parse("memory://x")) for _ in range(100)]
        thread = threading.Thread(target=leave, args=(connections,))
        thread.start()
        listener.close()
        thread.join()
    assert errors == []
    assert not context.memory


def test_connecting_while_the_listener_closes_ends(context: Context) -> None:
    for _ in range(100):
        listener = MemoryListener(context, parse("memory://x"))
        made: list[MemoryConnection] = []
        thread = threading.Thread(target=lambda: made.extend(  # noqa: B023
            MemoryConnection(context, parse("memory://x")) for _ in range(20)))
        thread.start()
        listener.close()
        thread.join()
        assert all(connection.ended is not None for connection in made)


def test_nothing_is_lost_between_threads(context: Context) -> None:
    listener, connection = pair(context)
    key = next(iter(listener._peers))
    count = 20_000

    def serve() -> None:
        for number in range(count):
            listener.send(key, [number.to_bytes(4, "big")])

    thread = threading.Thread(target=serve)
    thread.start()
    got: list[int] = []
    over = time.monotonic() + 10
    while len(got) < count and time.monotonic() < over:
        connection.wait(1.0)
        while (frames := connection.receive()) is not None:
            got.append(int.from_bytes(frames[0], "big"))
    thread.join()
    assert got == list(range(count))


def test_an_interrupt_while_a_loop_is_woken_does_not_silence_it(context: Context) -> None:
    listener, connection = pair(context)

    class Loop:
        calls = 0

        def call_soon(self, callback: Any) -> None: ...

        def call_soon_threadsafe(self, callback: Any) -> None:
            Loop.calls += 1
            if Loop.calls == 1:
                raise KeyboardInterrupt
            if Loop.calls == 2:  # as by a signal's handler
                connection.send([b"inner"])
                assert Loop.calls == 3
    listener.attach(Loop(), print)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        connection.send([b"interrupted"])
    connection.send([b"outer"])
    connection.send([b"more"])
    assert Loop.calls == 3
    listener.waker._turn()
    connection.send([b"again"])
    assert Loop.calls == 4
