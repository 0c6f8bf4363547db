"""What the tests of the transport share: addresses of each kind, and a context that is closed at the end."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pyzmp.protocol.envelope import Hello, Parcel
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.server import Peer, Server

KINDS = ["memory", "inproc", "ipc", "tcp"]
SYSTEM = ["ipc", "tcp"]


@pytest.fixture(scope="session", autouse=True)
def _threads_of_zeromq() -> None:
    """What lets go of buffers that were sent without a copy is the process's, and no single test's."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as two:
        one.bind("inproc://buffers")
        two.connect("inproc://buffers")
        one.send(bytes(1 << 20), copy=False)
        two.recv()


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def place(domain: Path) -> Callable[[str], str]:
    """``place(kind)`` is an address where nobody listens; for TCP one with ``*``."""
    count = itertools.count()

    def make(kind: str) -> str:
        number = next(count)
        return {"tcp": "tcp://127.0.0.1:*", "ipc": f"ipc://{domain}/s{number}"}.get(kind, f"{kind}://place-{number}")
    return make


@pytest.fixture
def address(kind: str, place: Callable[[str], str]) -> str:
    return place(kind)


class Echo:
    """A server that answers each message with itself, on a loop in a thread of its own or a given one."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop, name: str = "loop") -> None:
        self.opened: list[Peer] = []
        self.gone: list[Peer] = []
        self.seen: list[Any] = []
        self.server = Server(context, loop, name, on_parcel=self.arrived, on_open=self.opened.append,
                             on_end=self.gone.append)

    def arrived(self, peer: Peer, parcel: Parcel) -> None:
        self.seen.append(parcel.message)
        peer.send(parcel.message, parcel.buffers)


class Behind:
    """An `Echo` on the loop of another thread, for callers that block."""

    def __init__(self, context: Context, *addresses: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="behind")
        self.thread.start()
        self.echo = self.run(lambda: Echo(context, self.loop))
        self.addresses = [self.run(lambda where=where: self.echo.server.bind(where)) for where in addresses]

    def run(self, function: Callable[[], Any]) -> Any:
        """Call *function* in the loop's thread."""
        async def call() -> Any:
            return function()
        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(5)

    def close(self) -> None:
        if self.thread.is_alive():
            self.run(self.echo.server.close)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()


@pytest.fixture
def behind(context: Context) -> Iterator[Callable[..., Behind]]:
    made: list[Behind] = []

    def make(*addresses: str) -> Behind:
        made.append(Behind(context, *addresses))
        return made[-1]
    yield make
    for each in made:
        each.close()


class Caller:
    """A session that keeps what arrives; driven by the running loop, or by `wait` where there is none."""

    def __init__(self, context: Context, address: str, *, loop: asyncio.AbstractEventLoop | None = None,
                 hello: str = "") -> None:
        self.got: list[Parcel] = []
        self.ends: list[str] = []
        self.session = Session(context, address, Hello(session_id(), "test", hello), on_parcel=self.got.append,
                               on_end=self.ends.append)
        if loop is not None:
            self.session.attach(loop)

    def until(self, condition: Callable[[], object], timeout: float = 5.0) -> bool:
        """Pump, as a thread that blocks, until *condition*."""
        over = time.monotonic() + timeout
        while not condition() and time.monotonic() < over:
            self.session.pump()
            if not condition() and self.session.ended is None:
                self.session.wait(0.05)
        return bool(condition())


async def until(condition: Callable[[], object], timeout: float = 5.0) -> bool:
    """Let the loop run until *condition*."""
    over = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > over:
            return bool(condition())
        await asyncio.sleep(0.001)
    return True


@pytest.fixture(name="until")
def _until() -> Any:
    return until


@pytest.fixture
def new_caller() -> type[Caller]:
    return Caller


@pytest.fixture
def new_echo() -> type[Echo]:
    return Echo
