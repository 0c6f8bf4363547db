from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry.etcd import endpoints
from tests.registry.etcd_server import Server, free_ports
from tests.registry.etcd_world import facts_of, sees, world


def test_the_next_endpoint_is_asked_where_one_is_dead(server: Server) -> None:
    async def run() -> None:
        dead = f"127.0.0.1:{free_ports(1)[0]}"
        async with world(dead, server.place) as here:
            for number, registry in enumerate((f"etcd://{dead},{server.place}", f"etcd://{server.place},{dead}")):
                one = here.replica(registry)  # which of them is asked first is left to chance
                await one.announce(facts_of(one, f"n{number}"))
            await sees(one, "n0", "n1")

    asyncio.run(run())


def test_endpoints_where_nobody_listens_are_named() -> None:
    async def run() -> None:
        places = [f"127.0.0.1:{port}" for port in free_ports(2)]
        async with world(*places) as here:
            one = here.replica()
            with pytest.raises(RegistryUnavailable) as caught:
                await one.announce(facts_of(one, "kitchen"))
            assert all(place in str(caught.value) for place in places)

    asyncio.run(run())


def test_users_and_passwords_are_asked_for(own: Server) -> None:
    own.post("auth/user/add", {"name": "root", "password": "secret"})
    own.post("auth/role/add", {"name": "root"})
    own.post("auth/user/grant", {"user": "root", "role": "root"})
    own.post("auth/enable", {})

    async def run() -> None:
        async with world(own.place) as here:
            nobody, wrong = here.replica(), here.replica(f"etcd://root:wrong@{own.place}")
            with pytest.raises(RegistryUnavailable, match="etcd://user:password@host:port"):
                await nobody.announce(facts_of(nobody, "kitchen"))
            with pytest.raises(RegistryUnavailable, match="authentication failed"):
                await wrong.announce(facts_of(wrong, "kitchen"))
            root = here.replica(f"etcd://root:secret@{own.place}")
            await root.announce(facts_of(root, "kitchen"))
            await sees(root, "kitchen")

    asyncio.run(run())


@pytest.mark.parametrize(("registry", "expected"), [
    ("etcd://a", ["a:2379"]),
    ("etcd://a:1,b.c:22,10.0.0.1", ["a:1", "b.c:22", "10.0.0.1:2379"]),
    ("etcd://[::1]:5,[fe80::1]", ["[::1]:5", "[fe80::1]:2379"]),
])
def test_endpoints_are_hosts_with_ports(registry: str, expected: list[str]) -> None:
    assert endpoints(registry) == (expected, "", "")


def test_a_user_may_have_any_signs() -> None:
    assert endpoints("etcd://me:a%40b:c@h:1") == (["h:1"], "me", "a@b:c")


@pytest.mark.parametrize("registry", ["etcd://", "etcd://a:b", "etcd://a:0", "etcd://a:70000", "etcd://a,,b",
                                      "etcd://a/b", "etcd://me@a"])
def test_what_is_no_endpoint_is_refused(registry: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        endpoints(registry)


def test_without_tornado_the_way_to_it_is_said(script: Callable[..., Any]) -> None:
    result = script("""
        import sys
        import pyzmp
        assert not [name for name in sys.modules if name.startswith("tornado")]
        sys.modules["tornado"] = None
        pyzmp.configure(registry="etcd://127.0.0.1:1")
        try:
            pyzmp.Node("kitchen", kind="thread").start()
        except ConnectionError as error:
            print(error)
    """.replace("\n        ", "\n"))
    assert "pip install pyzmp[etcd]" in result.out, result


APPLICATION = """
import os, sys
import pyzmp

class Thermometer(pyzmp.Node):
    @pyzmp.service
    def measure(self, offset: float) -> float:
        return 20.0 + offset

    @pyzmp.service(name="pid")
    def pid(self) -> int:
        return os.getpid()

class Kitchen(pyzmp.Node):
    @pyzmp.service
    def warm(self) -> float:
        return pyzmp.discover("measure", timeout=20)(1.5)

class Clock(pyzmp.Node):
    @pyzmp.service
    async def tick(self) -> str:
        return "tock"

if __name__ == "__main__":
    assert not [name for name in sys.modules if name.startswith("tornado")]
    pyzmp.configure(registry=sys.argv[1])
    nodes = [Thermometer("thermometer", kind="process"), Kitchen("kitchen", kind="thread"),
             Clock("clock", kind="entity")]
    for node in nodes:
        node.start()
    assert pyzmp.discover("pid", timeout=20)() != os.getpid()
    print(pyzmp.discover("warm", timeout=20)(), pyzmp.discover("tick", timeout=20)(), sorted(pyzmp.services))
    try:
        Clock("thermometer", kind="entity").start()
    except pyzmp.PyzmpError as error:
        print(type(error).__name__)
    for node in nodes:
        node.shutdown()
    print(sorted(pyzmp.services))
"""


def test_nodes_of_every_kind_find_and_call_each_other(server: Server, script: Callable[..., Any]) -> None:
    result = script(APPLICATION, f"etcd://{server.place}", timeout=50)
    assert result.out.splitlines() == ["21.5 tock ['measure', 'pid', 'tick', 'warm']", "NodeExists", "[]"], result
    assert (result.code, result.err) == (0, "")


FORKING = """
import os, sys
import pyzmp

class Clock(pyzmp.Node):
    @pyzmp.service
    def tick(self) -> str:
        return "tock"

def connections():
    port = f":{int(sys.argv[1].rpartition(':')[2]):04X}"
    known = {line.split()[9] for line in open("/proc/net/tcp").readlines()[1:] if line.split()[2].endswith(port)}
    return len({f"socket:[{inode}]" for inode in known} & {os.readlink(f"/proc/self/fd/{number}")
               for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")})

if __name__ == "__main__":
    pyzmp.configure(registry=sys.argv[1])
    with Clock("thread", kind="thread"):
        child = os.fork()
        if not child:
            print("child", connections(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", connections() > 0)
        with Clock("process", kind="process", start_method="fork"):
            print(Clock.at("process").tick())
"""


def test_a_forked_child_has_none_of_the_connections(server: Server, script: Callable[..., Any]) -> None:
    result = script(FORKING, f"etcd://{server.place}", timeout=50)
    assert result.out.splitlines() == ["child 0", "parent True", "tock"], result
    assert result.code == 0
