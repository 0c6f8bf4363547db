from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry.etcd import Gateway
from pyzmp.registry.etcd_ring import EtcdRefused
from tests.registry.etcd_server import Server, free_ports
from tests.registry.etcd_world import SOON, sees, world
from tests.registry.known import facts_of


def test_the_next_endpoint_is_asked_where_one_is_dead(server: Server) -> None:
    async def run() -> None:
        dead = f"127.0.0.1:{free_ports(1)[0]}"
        async with world(dead, server.place) as here:
            for number, registry in enumerate((f"etcd://{dead},{server.place}", f"etcd://{server.place},{dead}")):
                one = here.replica(registry)  # which of them is asked first is left to chance
                await one.announce(facts_of(one, f"n{number}"))
            await sees(one, "n0", "n1")

    asyncio.run(run())


def test_an_endpoint_that_is_silent_leaves_time_for_the_next(server: Server) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as stopped:  # the system takes connections, and nobody answers
            silent = f"127.0.0.1:{stopped.getsockname()[1]}"
            gateway = Gateway([*(f"127.0.0.{number}:1" for number in range(2, 50)), silent, server.place])
            gateway.endpoint = silent
            await gateway.ask("kv/range", {"key": "eA=="}, SOON)
            assert gateway.endpoint == server.place
            gateway.close()

    asyncio.run(run())


def test_those_who_ask_at_once_turn_to_the_next_endpoint_together(server: Server) -> None:
    asked = []

    async def run() -> None:
        both = asyncio.Event()

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readline())
            if len(asked) == 2:
                both.set()
            await both.wait()
            writer.close()

        listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        failing = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        gateway = Gateway([failing, server.place])
        gateway.endpoint = failing
        await asyncio.gather(*(gateway.ask("kv/range", {"key": "eA=="}, SOON) for _ in range(2)))
        gateway.close()
        listener.close()

    asyncio.run(run())
    assert len(asked) == 2


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


def test_a_token_that_is_refused_again_when_new_is_an_answer() -> None:
    paths = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            paths.append(head.split()[1].decode())
            length = 0
            while (line := await reader.readline()).strip():
                length = int(line.split()[1]) if line.lower().startswith(b"content-length") else length
            await reader.readexactly(length)
            answer = {"token": "t"} if paths[-1].endswith("authenticate") else {"code": 16, "message": "no token"}
            body = json.dumps(answer).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) if "token" in answer else
                         b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
        writer.close()

    async def run() -> None:
        listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
        gateway = Gateway([f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"], "me", "secret")
        with pytest.raises(EtcdRefused, match="no token"):
            await gateway.ask("kv/range", {}, SOON)
        gateway.close()
        listener.close()

    asyncio.run(run())
    assert paths == ["/v3/auth/authenticate", "/v3/kv/range"] * 2


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
    assert "pip install 'pyzmp[etcd]'" in result.out, result


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
