"""A caller whose handshake failed hears why, whoever hung up first."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from pyzmp.transport import refusal
from pyzmp.transport.address import Address
from pyzmp.transport.context import Context
from pyzmp.transport.link import Connection
from pyzmp.transport.refusal import Inquiry, Refusal
from pyzmp.transport.security import NO_DETAIL, Access, Keys, Security
from tests.campaigns.history import SCALE

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"
ABRUPT = "the handshake failed"  # what a plain caller is told where nothing else is known


@pytest.fixture
def peer() -> Iterator[Callable[..., Address]]:
    """``peer(says)`` hangs up on the first caller, and says to later ones what *says* is, or hangs up where it is None.

    The first caller has the address with a key.
    """
    made: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(server: socket.socket, says: bytes | None) -> None:
        first, _ = server.accept()
        first.recv(10)  # what it says is no more read than answered
        first.close()
        try:
            second, _ = server.accept()
        except OSError:
            return
        made.append(second)
        if says is None:
            second.close()
        else:
            second.sendall(says)

    def start(says: bytes | None) -> Address:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(5)
        made.append(server)
        threads.append(threading.Thread(target=serve, args=(server, says)))
        threads[-1].start()
        return Address("tcp", f"127.0.0.1:{server.getsockname()[1]}")
    yield start
    for thread in threads:
        thread.join()
    for end in made:
        end.close()


@pytest.fixture
def keyed() -> Iterator[Context]:
    """A context with keys."""
    keys = Keys.make()
    made = Context(lambda: Security(keys, Access()))
    yield made
    made.close()


CURVE, NULL = GREETING[:-1] + b"\x00CURVE".ljust(21, b"\0"), GREETING[:-1] + b"\x00NULL".ljust(21, b"\0")
PLAIN, WITH_KEY = False, True
OTHER_KEY = "refused: the key of {} is not the one"


@pytest.mark.parametrize(("says", "key", "reason"), [
    (CURVE, PLAIN, "refused: {} wants CURVE"), (NULL, PLAIN, ABRUPT), (None, PLAIN, ABRUPT), (b"", PLAIN, ABRUPT),
    (b"HTTP/1.1 400 Bad Request, and what follows", PLAIN, ABRUPT),
    (NULL, WITH_KEY, "refused: no CURVE is spoken at {}"), (CURVE, WITH_KEY, OTHER_KEY),
    (None, WITH_KEY, OTHER_KEY), (b"", WITH_KEY, OTHER_KEY)])
@pytest.mark.parametrize("blocking", [True, False], ids=["thread", "loop"])
def test_a_caller_that_was_hung_up_on_hears_why(
        peer: Any, keyed: Context, says: bytes | None, key: bool, reason: str, blocking: bool) -> None:
    where = peer(says)
    where = Address("tcp", where.rest, Keys.make().public if key else "")
    began = time.monotonic()
    connection = Connection(keyed, where)

    async def test() -> None:
        over = asyncio.get_running_loop().create_future()

        def wake() -> None:
            connection.update()
            if connection.ended is not None and not over.done():
                over.set_result(None)
        connection.attach(asyncio.get_running_loop(), wake)
        await asyncio.wait_for(over, 2.0)
        connection.close()
    if blocking:
        while connection.ended is None and time.monotonic() < began + 2.0:
            connection.wait(2.0)
            connection.update()
    else:
        asyncio.run(test())
    assert time.monotonic() - began < 1.0 * SCALE
    assert str(connection.ended).startswith(reason.format(where.endpoint))
    connection.close()


def test_a_connection_that_is_given_up_asks_no_more(peer: Any, keyed: Context) -> None:
    connection = Connection(keyed, peer(b""))
    while connection._refusal.inquiry is None:
        connection.wait(1.0)
        connection.update()
    asked = connection._refusal.inquiry.socket
    connection.close()
    assert asked.closed


def test_a_loop_may_take_over_while_the_peer_is_asked(peer: Any, keyed: Context, until: Any) -> None:
    connection = Connection(keyed, peer(CURVE))
    while connection._refusal.inquiry is None:
        connection.wait(1.0)
        connection.update()

    async def test() -> None:
        connection.attach(asyncio.get_running_loop(), connection.update)
        assert await until(lambda: connection.ended, 1.0)
        connection.close()
    asyncio.run(test())
    assert "wants CURVE" in str(connection.ended)


def test_a_peer_that_says_nothing_is_asked_for_half_a_second(context: Context) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        inquiry = Inquiry(context.socket(zmq.STREAM), Address("tcp", f"127.0.0.1:{mute.getsockname()[1]}"))
        began = time.monotonic()
        while inquiry.answer() is None:
            inquiry.socket.poll(100)
        assert refusal.ASKING <= time.monotonic() - began < refusal.ASKING + 0.3
        assert inquiry.answer() == ""
        inquiry.socket.close()


def test_without_room_for_another_socket_it_stays_open() -> None:
    def full(kind: int) -> zmq.Socket[bytes]:
        raise zmq.ZMQError(zmq.ENOTSUP)
    assert Refusal(Address("tcp", "127.0.0.1:1"), "", 3.0, full).begin(NO_DETAIL, 32, "as ever") == "as ever"
