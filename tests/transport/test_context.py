"""What the links of a process share, and what becomes of it when the process forks."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pyzmp.exceptions import AddressInUse
from pyzmp.transport import context as context_module
from pyzmp.transport.address import parse
from pyzmp.transport.context import Context, _release, socket_name
from pyzmp.transport.link import Connection, Listener
from pyzmp.transport.security import Access, Keys, Security
from tests.campaigns.history import SCALE

HEAD = """
import asyncio, os, sys, time
from pyzmp.protocol.envelope import Hello
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.server import Server

def fork(context, hook):
    if os.fork() == 0:
        hook()
        print("child", os.getpid(), flush=True)
        time.sleep(60)

async def main(context, hook):
    loop = asyncio.get_running_loop()
    server = Server(context, loop, "loop", on_parcel=lambda peer, parcel: None)
    bound = [server.bind(address) for address in sys.argv[2:]]
    session = Session(context, sys.argv[1], Hello(session_id(), "parent"), on_parcel=print, on_end=print)
    session.attach(loop)
    print(*bound, flush=True)
    while len(server.peers) < len(bound) or session.welcome is None:
        await asyncio.sleep(0.001)
    fork(context, hook)
    await asyncio.sleep(60)
"""
DIRECTLY = HEAD + """
context = Context()
asyncio.run(main(context, context.close_inherited))
"""
BY_RUNTIME = HEAD + """
import pyzmp, pyzmp.runtime
pyzmp.configure(registry="memory")
asyncio.run(main(pyzmp.runtime.current().context, lambda: None))
"""


@pytest.fixture
def forked(script: Any) -> Iterator[Any]:
    """``forked(source, *argv)`` starts a program that forks; it and its child are killed in the end."""
    processes: list[subprocess.Popen[str]] = []
    children: list[int] = []

    def start(source: str, *argv: str) -> Any:
        process: Any = subprocess.Popen([sys.executable, "-W", "ignore", "-c", source, *argv], env=script.environment(),
                                        stdout=subprocess.PIPE, text=True)
        processes.append(process)
        process.bound = process.stdout.readline().split()
        process.children = children
        return process
    yield start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.leaves("sockets")  # a killed process cannot remove its own
@pytest.mark.parametrize("source", [DIRECTLY, BY_RUNTIME], ids=["directly", "by-runtime"])
def test_a_forked_child_does_not_keep_a_killed_parent_alive(
        forked: Any, context: Context, domain: Path, behind: Any, new_caller: Any, eventually: Any,
        source: str) -> None:
    ours = behind("ipc://" + str(domain / "ours"))
    parent = forked(source, ours.addresses[0], f"ipc://{domain}/parent", "tcp://127.0.0.1:*", "tcp://localhost:*")
    callers = [new_caller(context, bound) for bound in parent.bound]
    assert len(callers) == 3
    for caller in callers:
        assert caller.until(lambda caller=caller: caller.session.welcome)
    child = int(parent.stdout.readline().split()[1])
    parent.children.append(child)
    parent.kill()
    parent.wait()
    killed = time.monotonic()
    for caller in callers:
        assert caller.until(lambda caller=caller: caller.ends, 1.0)
    eventually(lambda: ours.echo.gone, 1.0)
    assert time.monotonic() - killed < 1.0
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(str(domain / "parent"))
    for bound in parent.bound:
        Listener(context, parse(bound)).close()
    os.kill(child, 0)  # lived on all the while


def test_a_forked_child_keeps_the_users_own_descriptors(context: Context, domain: Path) -> None:
    listener = Listener(context, parse("tcp://127.0.0.1:*"))
    connection = Connection(context, listener.address)
    mine, other = socket.socketpair()
    server = socket.create_server(("127.0.0.1", 0))
    client, file = socket.create_connection(server.getsockname()), (domain / "file").open("w")
    with mine, other, server, client, file:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                context.close_inherited()
                for kept in (mine, other, server, client, file):
                    os.fstat(kept.fileno())
                port = socket_name(listener.address)[1]
                status = 2 if any(port in names(number) for number in range(256)) else 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(reader)
        os.close(writer)
    connection.close()
    listener.close()


def names(number: int) -> list[int]:
    """The ports that a descriptor has to do with."""
    try:
        with socket.socket(fileno=os.dup(number)) as copy:
            found = [copy.getsockname()]
            try:
                found.append(copy.getpeername())
            except OSError:
                pass
            return [name[1] for name in found if isinstance(name, tuple)]
    except OSError:
        return []


@pytest.mark.parametrize(("text", "known"), [
    ("tcp://127.0.0.1:80", ("127.0.0.1", 80)), ("tcp://[::1]:80", ("::1", 80)), ("tcp://0.0.0.0:80", ("", 80)),
    ("tcp://localhost:80", ("", 80)), ("ipc:///tmp/x", "/tmp/x")])
def test_a_socket_is_known_by_what_the_system_calls_it(context: Context, text: str, known: Any) -> None:
    address = parse(text)
    assert socket_name(address) == known
    context.uses(address)
    assert context._knows("/tmp/x" if known == "/tmp/x" else ("::1" if "::" in text else "127.0.0.1", 80, 0, 0))
    assert not context._knows(("127.0.0.1", 81))
    assert not context._knows("")
    context.leaves(address)
    assert not context._names


def test_counts_stay_right_between_threads(context: Context) -> None:
    addresses = [parse(f"tcp://127.0.0.1:{port}") for port in range(1, 20)]

    def churn() -> None:
        for _ in range(300):
            for address in addresses:
                context.uses(address)
            for address in addresses:
                context.leaves(address)
    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not context._names


def test_threads_share_one_context_of_zeromqs() -> None:
    for _ in range(20):
        context = Context()
        made: list[Any] = []
        threads = [threading.Thread(target=lambda: made.append(context.socket(zmq.PAIR))) for _ in range(4)]  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({end.context.underlying for end in made}) == 1
        for end in made:
            end.close()
        context.close()


def test_a_session_of_another_thread_does_not_hold_up_the_end(context: Context) -> None:
    listener = Listener(context, parse("tcp://127.0.0.1:*"))
    connection = Connection(context, listener.address)
    thread = threading.Thread(target=connection.wait, args=(0.3,))
    thread.start()
    listener.close()
    zeromqs = context._zmq
    began = time.monotonic()
    context.close()
    assert time.monotonic() - began < 0.2 * SCALE
    thread.join()
    connection.close()
    zeromqs.term()  # type: ignore[union-attr]


def test_a_context_can_be_used_again_after_its_end(context: Context) -> None:
    for _ in range(3):
        Listener(context, parse("tcp://127.0.0.1:*")).close()
        context.close()
        context.close()


@pytest.mark.parametrize(("limit", "most"), [(resource.RLIM_INFINITY, 65000), (1 << 20, 65000), (1024, 960), (64, 256)])
def test_the_number_of_sockets_follows_the_limit_of_descriptors(
        monkeypatch: pytest.MonkeyPatch, limit: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert context_module._most_sockets() == most


def test_nothing_stays_at_the_address_of_a_thread_that_is_too_busy_to_end(domain: Path) -> None:
    context = Context()
    listener = Listener(context, parse(f"ipc://{domain}/busy"))
    assert (domain / "busy").is_socket()
    left = context._zmq
    context.close()
    assert not (domain / "busy").exists()
    listener.close()
    assert left is not None
    left.term()


def test_keys_are_got_once_and_when_they_are_first_needed() -> None:
    asked: list[Security] = []

    def get() -> Security:
        asked.append(Security(Keys.make(), Access()))
        return asked[-1]
    context = Context(get)
    Listener(context, parse("tcp://127.0.0.1:*")).close()
    assert not asked
    keys = {context.public_key() for _ in range(3)}
    assert len(asked) == 1
    assert keys == {asked[0].keys.public}
    assert asked[0].keys.secret not in repr(vars(context))
    context.close()


def test_a_process_without_keys_has_no_public_one(context: Context) -> None:
    assert (context.security(), context.public_key()) == (None, "")
    with pytest.raises(ConnectionError, match="this process has no keys"):
        context.security_for(parse(f"tcp://127.0.0.1:1#{Keys.make().public}"))


@pytest.mark.parametrize("room", [2, 4])
def test_without_room_for_who_is_asked_nobody_listens(room: int) -> None:
    keys = Keys.make()
    context = Context(lambda: Security(keys, Access()))
    where = parse(f"tcp://127.0.0.1:*#{keys.public}")
    context._zmq = zmq.Context()
    context._zmq.set(zmq.MAX_SOCKETS, room)
    with pytest.raises(AddressInUse, match="no more sockets"):
        Listener(context, where)
    context.close()
    listener = Listener(context, where)
    listener.close()
    context.close()


def test_what_is_lost_in_a_forked_child_is_left_to_the_parent(context: Context) -> None:
    watched = context.socket(zmq.DEALER)
    monitor = context.monitor(watched, zmq.EVENT_ALL)
    _release(watched, monitor, os.getpid() + 1)
    assert not watched.closed
    assert not monitor.closed
    for _ in range(2):
        _release(watched, monitor, os.getpid())
    assert watched.closed
    assert monitor.closed
