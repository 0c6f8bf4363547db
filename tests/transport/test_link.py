"""Links over ZeroMQ with real processes: their ends, their addresses, and what hostile peers may send."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pyzmp.exceptions import AddressInUse, InvalidAddress
from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Goodbye, Hello, Note, Request
from pyzmp.transport import link, loop
from pyzmp.transport.address import parse
from pyzmp.transport.context import Context
from pyzmp.transport.link import Connection, Listener
from pyzmp.transport.loop import Session, session_id
from tests.campaigns.history import SCALE

SERVER = """
import asyncio, sys
from pyzmp.transport.context import Context
from pyzmp.transport.server import Server
async def main():
    context = Context()
    def answer(peer, parcel):
        seen[0] += 1
        peer.send(parcel.message, parcel.buffers)
    seen = [0]
    server = Server(context, asyncio.get_running_loop(), "loop", on_parcel=answer)
    print(server.bind(sys.argv[1]), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(seen[0], len(server.peers), server.malformed, flush=True)
    server.close()
    context.close()
asyncio.run(main())
"""
CALLER = """
import sys
from pyzmp.protocol.envelope import Hello
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
session = Session(Context(), sys.argv[1], Hello(session_id(), "caller"), on_parcel=print, on_end=print)
while session.welcome is None:
    session.wait(1.0)
    session.pump()
print("greeted", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=["ipc", "tcp"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def program(script: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``program(source, *argv)`` starts a program and waits for its first line, which is in ``.first``."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *argv: str) -> subprocess.Popen[str]:
        process: Any = subprocess.Popen([sys.executable, "-c", source, *argv], env=script.environment(),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        process.first = process.stdout.readline().strip()
        return process  # type: ignore[no-any-return]
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()  # type: ignore[union-attr]
        process.stdout.close()  # type: ignore[union-attr]


# -- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.leaves("sockets")  # a killed process cannot remove its own
@pytest.mark.parametrize("blocking", [True, False], ids=["thread", "loop"])
def test_a_killed_listener_is_noticed(
        program: Any, context: Context, address: str, new_caller: Any, until: Any, blocking: bool) -> None:
    server = program(SERVER, address)

    async def test() -> None:
        caller = new_caller(context, server.first, loop=asyncio.get_running_loop())
        assert await until(lambda: caller.session.welcome)
        server.kill()
        assert await until(lambda: caller.ends, 1.0)
    if blocking:
        caller = new_caller(context, server.first)
        assert caller.until(lambda: caller.session.welcome)
        server.kill()
        began = time.monotonic()
        assert caller.until(lambda: caller.ends, 1.0)
        assert time.monotonic() - began < 1.0 * SCALE
        assert caller.ends == ["the connection ended"]
    else:
        asyncio.run(test())


def test_a_killed_caller_is_noticed(program: Any, context: Context, address: str, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        echo = new_echo(context, asyncio.get_running_loop())
        bound = echo.server.bind(address)
        caller = await asyncio.to_thread(program, CALLER, bound)
        assert caller.first == "greeted"
        assert len(echo.server.peers) == 1
        caller.kill()
        assert await until(lambda: echo.gone, 1.0)
        assert echo.server._listeners[bound]._keys == {}
        echo.server.close()
    asyncio.run(test())


@pytest.mark.leaves("sockets")
def test_a_stopped_listener_is_noticed_by_its_heartbeat(program: Any, context: Context, address: str, new_caller: Any,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    faster = {zmq.HEARTBEAT_IVL: 100, zmq.HEARTBEAT_TIMEOUT: 300}
    monkeypatch.setattr(link, "_OPTIONS", [(option, faster.get(option, value)) for option, value in link._OPTIONS])
    server = program(SERVER, address)
    caller = new_caller(context, server.first)
    assert caller.until(lambda: caller.session.welcome)
    server.send_signal(signal.SIGSTOP)
    try:
        assert caller.until(lambda: caller.ends, 2.0)
    finally:
        server.send_signal(signal.SIGCONT)


@pytest.mark.leaves("sockets")
def test_nothing_sent_to_a_killed_listener_reaches_the_next_one(
        program: Any, context: Context, address: str, new_caller: Any) -> None:
    first = program(SERVER, address)
    caller = new_caller(context, first.first)
    assert caller.until(lambda: caller.session.welcome)
    first.kill()
    first.wait()
    for _ in range(100):
        caller.session.send(Note(b"for the first"))
    second = program(SERVER, first.first)
    assert second.first == first.first
    other = new_caller(context, second.first)
    other.session.send(Note(b"for the second"))
    assert other.until(lambda: other.got)
    for _ in range(20):
        caller.session.send(Note(b"for the first"))
    assert caller.until(lambda: caller.ends)
    other.session.close()
    seen, _, malformed = second.communicate("\n")[0].split()
    assert (seen, malformed) == ("1", "0")


@pytest.mark.parametrize("silent", [True, False])
def test_a_listener_that_does_not_shake_hands_ends_the_session(context: Context, new_caller: Any, silent: bool,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_OPTIONS", [*link._OPTIONS, (zmq.HANDSHAKE_IVL, 100)])
    with socket.create_server(("127.0.0.1", 0)) as other:
        caller = new_caller(context, f"tcp://127.0.0.1:{other.getsockname()[1]}")
        connection, _ = other.accept()
        with connection:
            if not silent:
                connection.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03" + b"nonsense" * 20)
            assert caller.until(lambda: caller.ends, 2.0)
    assert not caller.session.sent


# -- addresses -----------------------------------------------------------------------------------------------------


def test_an_address_is_free_as_soon_as_its_listener_is_closed(context: Context, address: str) -> None:
    where = parse(address)
    for _ in range(200):
        listener = Listener(context, where)
        where = listener.address
        listener.close()
        listener.close()
    if where.scheme == "ipc":
        assert not os.path.lexists(where.rest)


def test_an_address_is_free_also_after_callers_were_there(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        where = address
        for _ in range(20):
            echo = new_echo(context, asyncio.get_running_loop())
            where = echo.server.bind(where)
            caller = new_caller(context, where, loop=asyncio.get_running_loop())
            assert await until(lambda: caller.session.welcome)  # noqa: B023
            echo.server.close()
            assert await until(lambda: caller.ends)  # noqa: B023
    asyncio.run(test())


def test_callers_that_end_after_their_listener_was_closed_hold_nobody_up(
        context: Context, address: str, place: Any, kind: str, until: Any) -> None:
    def opened(connection: Connection) -> bool:
        connection.update()
        return connection.opened

    listener = Listener(context, parse(address))
    others = []
    with zmq.Context() as another, contextlib.ExitStack() as callers:
        for _ in range(8):
            caller = callers.enter_context(another.socket(zmq.DEALER))
            caller.set(zmq.LINGER, 0)
            caller.set(zmq.RCVHWM, 1)
            caller.connect(listener.address.endpoint)
            caller.send(b"hello")
            listener.wait(10)
            received = listener.receive()
            assert received is not None
            for _ in range(32):  # more than the caller takes: some of it is still to leave
                assert listener.send(received[0], [bytes(1 << 20)])
        listener.close()
        for step in range(2):  # while the callers are there, and after their end
            other = Listener(context, parse(place(kind)))
            connection = Connection(context, other.address)
            assert asyncio.run(until(functools.partial(opened, connection)))
            others += [connection, other]
            if step == 0:
                callers.close()
    for end in others:
        end.close()


def refused(context: Context, path: Path | str) -> str:
    with pytest.raises(AddressInUse) as caught:
        Listener(context, parse(f"ipc://{path}"))
    assert str(path) in str(caught.value)
    assert caught.value.errno
    return str(caught.value)


def test_nothing_but_a_dead_socket_is_replaced(context: Context, domain: Path) -> None:
    file, folder, living, dead = domain / "file", domain / "folder", domain / "living", domain / "dead"
    file.write_text("precious")
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(living))
        server.listen()
        assert "not a socket of this user" in refused(context, file)
        assert "not a socket of this user" in refused(context, folder)
        assert "somebody listens there" in refused(context, living)
        for name, target in [("to-file", file), ("to-living", living), ("to-nothing", domain / "nothing")]:
            (domain / name).symlink_to(target)
            assert "not a socket of this user" in refused(context, domain / name)
            assert (domain / name).is_symlink()
    assert file.read_text() == "precious"
    assert living.exists()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dead))
    Listener(context, parse(f"ipc://{dead}")).close()
    assert not dead.exists()
    living.unlink()


def test_a_listener_whose_queue_is_full_is_a_living_one(context: Context, domain: Path) -> None:
    path = domain / "full"
    one, two = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX) as server, one, two:
        server.bind(str(path))
        server.listen(0)
        for waiting in (one, two):
            waiting.setblocking(False)
            waiting.connect_ex(str(path))
        assert "somebody listens there" in refused(context, path)
    path.unlink()


@pytest.mark.parametrize("path", ["/proc/pyzmp-socket", "/no/such/folder/s", "/dev/null/s"])
def test_where_no_socket_can_be_made_the_reason_is_told(context: Context, path: str) -> None:
    assert "cannot be bound: " in refused(context, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_named(context: Context, domain: Path) -> None:
    folder = domain / "folder"
    folder.mkdir(0o500)
    assert "Permission denied" in refused(context, folder / "s")


def test_a_port_that_is_taken_is_named(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "REBIND", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(
            AddressInUse, match=f"{taken.getsockname()[1]} cannot be bound: Address already in use"):
        Listener(context, parse(f"tcp://127.0.0.1:{taken.getsockname()[1]}"))


def test_an_address_of_another_host_is_named(context: Context) -> None:
    with pytest.raises(InvalidAddress, match=r"tcp://192\.0\.2\.1:4242 cannot be bound"):
        Listener(context, parse("tcp://192.0.2.1:4242"))


def test_without_room_for_a_socket_a_listener_is_refused(context: Context, address: str) -> None:
    context.socket(zmq.PAIR).close(0)
    context._zmq.set(zmq.MAX_SOCKETS, 10)  # type: ignore[union-attr]
    taken = []
    try:
        with pytest.raises(zmq.ZMQError):
            while True:
                taken.append(context.socket(zmq.PAIR))
        for _ in range(3):  # with no room, and with room for fewer sockets than it takes
            with pytest.raises(AddressInUse, match="no more sockets"):
                Listener(context, parse(address))
            taken.pop().close(0)
            time.sleep(0)
            if len(taken) < 8:
                break
    finally:
        for end in taken:
            end.close(0)


# -- hostile peers -------------------------------------------------------------------------------------------------


def hostile(count: int, seed: int) -> Iterator[list[bytes]]:
    """Random frames, mutated batches, messages of many frames, and empty ones."""
    chance = random.Random(seed)
    good = [envelope.pack([envelope.encode(Request(number, "n", "s", 1.0, b"body",
        0))] * number) for number in range(1, 6)]
    good.append(envelope.pack([envelope.encode(Hello(b"s", "c"))]))
    many = [b"\x01\x90", *[b""] * 1500]
    for number in range(count):
        case = number % 4
        if number % 1000 == 0:
            yield many
        elif case == 0:
            yield [chance.randbytes(chance.randrange(60))]
        elif case == 1:
            yield [b"\x01" + chance.randbytes(chance.randrange(60)) for _ in range(chance.randrange(1, 4))]
        elif case == 2:
            head = bytearray(chance.choice(good))
            for _ in range(chance.randrange(4)):
                head[chance.randrange(len(head))] = chance.randrange(256)
            yield [bytes(head)]
        else:
            yield chance.choice([[b""], [b"", b""], [b"\x01\xdd\xff\xff\xff\xff"], [b"\x01\x91\xdd\xff\xff\xff\xff"]])


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_hundred_thousand_hostile_messages_leave_a_server_as_it_was(
        program: Any, context: Context, place: Any, new_caller: Any) -> None:
    server = program(SERVER, place("ipc"))
    settled = 0
    caller = new_caller(context, server.first)
    for part in range(20):
        with context.socket(zmq.DEALER) as dealer:
            dealer.set(zmq.RCVTIMEO, 5000)
            dealer.connect(server.first)
            for frames in hostile(5_000, part):
                dealer.send_multipart(frames)
            # Behind the flood on its own connection, so that the next part finds the server's queue empty.
            dealer.send(envelope.pack([envelope.encode(Goodbye(""))]))
            dealer.send(envelope.pack([envelope.encode(Hello(b"", "raw", "nobody's"))]))
            while b"nobody's" not in dealer.recv():
                pass
        caller.session.send(Note(b"%d" % part))
        assert caller.until(lambda: len(caller.got) == part + 1, 5.0)  # noqa: B023
        settled = settled if part > 4 else resident(server.pid)
    grown = resident(server.pid) - settled
    assert grown < 5_000_000
    caller.session.close()
    _, peers, malformed = map(int, server.communicate("\n")[0].split())
    assert malformed > 50_000
    assert peers <= 2


def left_open(context: Context) -> list[object]:
    return [made for made in context._made if not made.closed]


def test_what_a_ctrl_c_interrupts_is_closed_and_holds_nobody_up(behind: Any, context: Context, place: Any,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    (address,) = behind(place("ipc")).addresses
    before = len(left_open(context))
    parsed, made = parse(address), 0

    class Interrupted(Connection):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            raise KeyboardInterrupt

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt
    while made < 100:
        made += 1
        with pytest.raises(KeyboardInterrupt):
            Interrupted(context, parsed)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "Outbox" if made % 2 else "soon", interrupted)
            patch.setattr(Context, "monitor", interrupted if made % 5 == 0 else Context.monitor)
            with contextlib.suppress(KeyboardInterrupt):
                Session(context, address, Hello(session_id(), "test"), on_parcel=print, on_end=print)
    gc.collect()
    assert len(left_open(context)) == before
    connection = Connection(context, parsed)  # over ZeroMQ's one thread for all of them
    over = time.monotonic() + 5
    while not connection.opened and time.monotonic() < over:
        connection.wait(0.05)
        connection.update()
    assert connection.opened
    connection.close()
