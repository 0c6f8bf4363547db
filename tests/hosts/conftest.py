"""Hosts for tests: network namespaces on one switch, each with a name and a directory of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyzmp.registry import keys
from pyzmp.registry.domain import Domain

AGENT = Path(__file__).with_name("agent.py")
ROOT = Path(__file__).parents[2]
PORT = 4242
PATIENCE = 50.0  # seconds that an answer may take before the test fails


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Agent:
    """A process on a host that evaluates expressions."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, expression: str) -> Any:
        """The value of *expression* there; raises RuntimeError with what it raised."""
        self.begin(expression)
        return self.answer()

    def begin(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{expression}\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line or '{"error": "the agent has ended"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def fails(self, expression: str) -> str:
        """What *expression* raised there."""
        with pytest.raises(RuntimeError) as raised:
            self(expression)
        return str(raised.value)


class Host:
    """A network namespace with one interface, eth0, a host name, and a directory for pyzmp."""

    def __init__(self, switch: Switch, name: str, number: int, folder: Path) -> None:
        self.name, self.address = name, f"10.77.0.{number}"
        self.space, self.folder = f"{switch.prefix}{name}", folder
        self.domain = Domain("house", f"{folder}/house")
        self.port = f"p{number}"  # of the switch
        self.switch = switch
        self.processes: list[subprocess.Popen[str]] = []
        ip("netns", "add", self.space)
        ip("link", "add", "eth0", "netns", self.space, "type", "veth", "peer", "name", self.port, "netns", switch.space)
        ip("-n", switch.space, "link", "set", self.port, "master", "br0", "up")
        ip("-n", self.space, "addr", "add", f"{self.address}/24", "brd", "+", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", self.space, "link", "set", link, "up")

    @property
    def key(self) -> str:
        """Its public key."""
        return keys.export(self.domain)

    @property
    def where(self) -> str:
        """The registry on this host, for others."""
        return f"tcp://{self.address}:{PORT}#{self.key}"

    def authorise(self, *others: Host) -> None:
        for other in others:
            keys.authorise(self.domain, other.name, other.key)

    def start(self, *command: str, registry: str = "", **more: str) -> subprocess.Popen[str]:
        """Run *command* here."""
        environment = {**os.environ, "PYZMP_DIR": str(self.folder), "PYZMP_DOMAIN": "house", "PYZMP_REGISTRY": registry,
                       "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "unshare", "-u", "sh", "-c", 'hostname "$0" && exec "$@"', self.name,
             *command], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True)
        self.processes.append(process)
        return process

    def agent(self, registry: str = "", **more: str) -> Agent:
        return Agent(self.start(sys.executable, str(AGENT), registry=registry, **more))

    def serve(self, *options: str) -> subprocess.Popen[str]:
        """Run the registry for all hosts here; it serves when this returns."""
        where = f"tcp://{self.address}:{PORT}"
        process = self.start(sys.executable, "-m", "pyzmp", "registry", "--bind", where, *options)
        assert process.stdout is not None
        said = [process.stdout.readline(), process.stdout.readline()]
        assert said[1] == f"  PYZMP_REGISTRY='{self.where}'\n", said
        return process

    def listeners(self) -> list[str]:
        """What `ss -ltn` shows here."""
        done = subprocess.run(["ip", "netns", "exec", self.space, "ss", "-Hltn"], check=True, capture_output=True,
                              text=True)
        return sorted(line.split()[3] for line in done.stdout.splitlines())

    def cut(self) -> None:
        """Pull its cable at the switch, which it does not notice itself."""
        ip("-n", self.switch.space, "link", "set", self.port, "down")

    def heal(self) -> None:
        ip("-n", self.switch.space, "link", "set", self.port, "up")

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                assert process.stdin is not None
                process.stdin.close()
                if "agent" not in str(process.args):
                    process.terminate()
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for end in (process.stdin, process.stdout):
                if end is not None:
                    with contextlib.suppress(BrokenPipeError):
                        end.close()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.space)


class Switch:
    """What joins the hosts: a bridge in a namespace of its own."""

    _numbers = itertools.count()

    def __init__(self, folder: Path) -> None:
        self.prefix = f"pz{os.getpid()}-{next(self._numbers)}-"
        self.space, self.folder = f"{self.prefix}switch", folder
        self.hosts: list[Host] = []
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "add", "br0", "type", "bridge")
        ip("-n", self.space, "link", "set", "br0", "up")

    def __call__(self, *names: str) -> list[Host]:
        """Hosts of these names, each of which lets the others in."""
        for name in names:
            folder = self.folder / name
            folder.mkdir(mode=0o700)
            self.hosts.append(Host(self, name, len(self.hosts) + 1, folder))
        for host in self.hosts:
            host.authorise(*(other for other in self.hosts if other is not host))
        return self.hosts

    def end(self) -> None:
        for host in reversed(self.hosts):
            host.end()
            shutil.rmtree(host.folder, ignore_errors=True)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.space)


def lacking() -> str:
    """Why there can be no hosts here, or nothing."""
    missing = [tool for tool in ("ip", "unshare", "ss", "hostname") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        return f"network namespaces need {' and '.join(missing) or 'to be root'}"
    name = f"pz{os.getpid()}-probe"
    tried = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if tried.returncode == 0:
        tried = subprocess.run(["ip", "-n", name, "link", "add", "br0", "type", "bridge"], check=False,
                               capture_output=True, text=True)
        subprocess.run(["ip", "netns", "del", name], check=False)
    return "" if tried.returncode == 0 else f"there are no network namespaces with bridges here: {tried.stderr.strip()}"


@pytest.fixture(scope="session")
def _possible() -> str:
    return lacking()


@pytest.fixture
def hosts(_possible: str, domain: Path) -> Iterator[Callable[..., list[Host]]]:
    """``hosts("a", "b")`` are hosts of these names, on one network, that let each other in."""
    if _possible:
        pytest.skip(_possible)
    _remove_orphans()
    switch = Switch(domain)
    try:
        yield switch
    finally:
        switch.end()


def _remove_orphans() -> None:
    """Remove what a test run that was killed has left."""
    for space in Path("/run/netns").glob("pz*-*"):
        pid = space.name[2:].partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", space.name], check=False, capture_output=True)
