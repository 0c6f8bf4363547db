"""What a process has one of: its settings, and the runtime that is made when it is first needed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import here, runtime
from pyzmp.exceptions import InvalidAddress, NodeDied
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.facts import NodeFact
from pyzmp.protocol.outcomes import Ask
from pyzmp.registry import keys


class Lamp(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def on(self) -> int:
        return os.getpid()

    @pyzmp.service
    def patience(self) -> float:
        return pyzmp.current_call().remaining


def test_configure_comes_once_before_the_first_use() -> None:
    pyzmp.configure(registry="memory", timeout=0.5)
    pyzmp.configure(timeout=2)
    assert not runtime.in_use()
    with Lamp("lamp"):
        assert 1 < Lamp.patience() <= 2
        with pytest.raises(RuntimeError, match=r"configure\(\) comes before the first use of pyzmp; .*timeout=2.0"):
            pyzmp.configure(timeout=3)
    assert runtime.settings().registry == "memory"


@pytest.mark.parametrize(("options", "text"), [
    ({"registry": "paper"}, "registry: 'paper' names none: expected nothing.* or memory, tcp"),
    ({"timeout": 0}, "timeout"),
    ({"registry": "tcp://10.0.0.1"}, "expected tcp://host:port"), ({"registry": "tcp://*:4242"}, "have to be said"),
    ({"registry": "tcp://10.0.0.1:4242#short"}, "no public key of 40"), ({"registry": "etcd://"}, "expected nothing"),
    ({"registry": "beacon://kitchen"}, "'kitchen' is no place for beacons"),
    ({"interface": "a b"}, "interface: expected the name or the address of an interface"),
    ({"timeout": float("nan")}, "timeout"), ({"domain": "a/b"}, "'a/b' is no name for a domain"),
    ({"domain": ""}, "no name for a domain")])
def test_settings_that_cannot_be_are_refused(options: Any, text: str) -> None:
    before = runtime.settings()
    with pytest.raises(ValueError, match=text):
        pyzmp.configure(**options)
    assert runtime.settings() == before


def test_the_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYZMP_REGISTRY", "memory")
    monkeypatch.setenv("PYZMP_TIMEOUT", "0.25")
    monkeypatch.setenv("PYZMP_DOMAIN", "here")
    assert runtime.settings() == runtime.Settings("here", "memory", 0.25)
    runtime.reset()
    monkeypatch.setenv("PYZMP_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="PYZMP_TIMEOUT: expected a positive number of seconds, got 'soon'"):
        runtime.settings()


def test_children_inherit_the_settings() -> None:
    pyzmp.configure(domain="inherited", timeout=1.5)
    with Lamp("lamp", kind="process"):
        asker = pyzmp.Node("asker")
        asker.provides(runtime.settings, "settings")
        asker.provides(lambda: Lamp.patience(), "ask")  # noqa: PLW0108  a Service has no signature of its own
        with asker:
            assert 0.5 < pyzmp.discover("ask")() <= 1.5  # type: ignore[misc]


def test_in_memory_nothing_is_made_on_the_host(domain: Any) -> None:
    pyzmp.configure(registry="memory")
    with Lamp("lamp"), Lamp("other", kind="thread"):
        assert Lamp.on() == os.getpid()
        assert [address.partition(":")[0] for _, address in Lamp.on.providers] == ["memory"] * 2
        assert list(domain.iterdir()) == []


def test_after_a_reset_the_process_is_as_new() -> None:
    pyzmp.configure(registry="memory")
    threads = threading.active_count()
    with Lamp("lamp"):
        pass
    assert runtime.in_use()
    runtime.reset()
    assert not runtime.in_use()
    assert threading.active_count() == threads
    assert runtime.settings().registry == ""


def test_a_forked_child_makes_its_own() -> None:
    with Lamp("lamp"):
        assert Lamp.on() == os.getpid()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                made = runtime.in_use()
                answer = pyzmp.discover(Lamp.on, timeout=5)()
                os.write(write, f"{made} {answer}".encode())
                runtime.reset()
            finally:
                os._exit(0)
        os.close(write)
        with open(read) as said:
            assert said.read() == f"False {os.getpid()}"
        os.waitpid(child, 0)
        assert Lamp.on() == os.getpid()


def test_waiting_for_the_graph_ends_when_it_is_so_or_the_time_is_over(eventually: Callable[..., None]) -> None:
    pyzmp.configure(registry="memory")
    here = runtime.current()
    assert not here.wait_until(lambda: False, 0.05)
    assert not asyncio.run(here.await_until(lambda: False, 0.05))
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(here.wait_until(lambda: bool(here.facts().nodes()), 5)))
    thread.start()
    with Lamp("lamp"):
        thread.join()
    assert seen == [True]


BUSY = """
import os, time, pyzmp
class Busy(pyzmp.Node):
    @pyzmp.service
    def block(self, begun: str) -> None:
        open(begun, "w").close()
        time.sleep(60)
Busy("busy", kind="entity").start()
Busy.block.submit("begun")
while not os.path.exists("begun"):
    time.sleep(0.01)
"""


def test_an_entity_that_blocks_its_loop_does_not_hold_up_the_exit(script: Any) -> None:
    result = script(BUSY)
    assert result.code == 0, result.err
    assert result.seconds < 10


def test_a_loop_that_was_closed_under_its_nodes_is_forgotten() -> None:
    pyzmp.configure(registry="memory")
    here = runtime.current()
    loop = asyncio.new_event_loop()
    lamp = Lamp("left")
    loop.run_until_complete(lamp.astart())
    assert loop in here.hosts
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    with Lamp("another"):
        assert loop not in here.hosts


def test_a_node_is_reached_where_it_can_be() -> None:
    here = runtime.current()
    addresses = ("memory://loop", "ipc:///tmp/node", "tcp://127.0.0.1:1", "tcp://192.0.2.1:2")
    lamp = NodeFact("lamp", "somebody", "loop", addresses, "thread", here.member.host, 1, "Lamp")
    reached = {host: here.target(NodeFact("lamp", owner, "loop", addresses, "thread", host, 1, "Lamp")).address
               for owner, host in [("somebody", here.member.host), ("somebody", "elsewhere"), (here.member.id, "mine")]}
    assert reached == {here.member.host: "ipc:///tmp/node", "elsewhere": "tcp://192.0.2.1:2", "mine": "memory://loop"}
    assert here.target(lamp).shown == "tcp://192.0.2.1:2"


def test_a_node_that_other_hosts_cannot_reach_is_told_to_be_so_at_each_call() -> None:
    here = runtime.current()
    lamp = NodeFact("lamp", "somebody", "loop", ("ipc:///tmp/node", "nonsense"), "thread", "elsewhere", 1, "Lamp")
    target = here.target(lamp)
    assert (target.address, target.shown) == ("", "nonsense")
    for _ in range(3):
        outcome = here.sessions.ask(target, Ask("lamp", "on", b"", (), Deadline.after(9, time.monotonic()), 9))
        assert isinstance(outcome, NodeDied)
        assert "it listens nowhere where it can be reached from other hosts" in str(outcome)


def test_a_runtime_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise ValueError("no such registry")

    monkeypatch.setattr(here, "finder_for", fails)
    before = set(threading.enumerate()), len(os.listdir("/dev/fd"))
    with pytest.raises(ValueError, match="no such registry"):
        runtime.current()
    assert (set(threading.enumerate()), len(os.listdir("/dev/fd"))) == before


def test_a_loop_that_cannot_listen_at_one_interface_more_knows_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        here = runtime.current()
        lamp = Lamp("lamp")
        await lamp.astart()
        monkeypatch.setattr(here, "interfaces", lambda: ["127.0.0.1", "192.0.2.99"])  # which no host has
        host = here.hosts[asyncio.get_running_loop()]
        for _ in range(2):
            host.widen()
            await host._widening
            assert [address.partition(":")[0] for address in host._shared] == ["memory", "ipc", "tcp"]
            node = here.facts().node("lamp")
            assert node is not None
            assert node.addresses == tuple(host._shared)
        await lamp.ashutdown()

    asyncio.run(run())


@pytest.fixture
def serving(script: Any) -> Any:
    """Starts a registry for several hosts, at loopback; returns once it serves."""
    made: list[subprocess.Popen[str]] = []

    def start() -> None:
        made.append(script.start("-m", "pyzmp", "registry", "--bind", "tcp://127.0.0.1:*", stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL))
        assert made[-1].stdout.readline().startswith("registry ")  # type: ignore[union-attr]
    yield start
    for process in made:
        process.terminate()
        process.communicate(timeout=20)


def addresses() -> list[str]:
    return [address.partition("://")[0] for node in runtime.current().facts().nodes() for address in node.addresses]


def test_a_loop_listens_for_other_hosts_as_soon_as_the_registry_serves_them(serving: Any, eventually: Any) -> None:
    pyzmp.configure(interface="lo")
    here = runtime.current()
    with Lamp("lamp"):
        assert here.interfaces() == ()
        assert addresses() == ["memory", "ipc"]
        serving()
        eventually(lambda: addresses() == ["memory", "ipc", "tcp"], 20)
        node = here.facts().node("lamp")
        assert node is not None
        assert here.domain is not None
        assert node.addresses[-1].startswith("tcp://127.0.0.1:")
        assert node.addresses[-1].endswith(f"#{keys.export(here.domain)}")
        with Lamp("other"), Lamp("own", "tcp://0.0.0.0:*"):
            assert Lamp.at("other").on() == Lamp.at("own").on() == os.getpid()
            assert dict(Lamp.on.providers)["own"].startswith("tcp://127.0.0.1:")
            assert dict(Lamp.on.providers)["other"] == node.addresses[-1]


def test_an_interface_that_is_not_there_is_named_at_the_start(serving: Any) -> None:
    pyzmp.configure(interface="eth77")
    serving()
    with pytest.raises(InvalidAddress, match="there is no interface 'eth77'"):
        Lamp("lamp").start()
