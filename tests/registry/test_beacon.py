"""Beacons: what they say, who hears them, and what is not believed."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.exceptions import MalformedMessage, RegistryUnavailable
from pyzmp.registry import beacon
from pyzmp.registry.beacon import Ear, Sender
from pyzmp.transport.security import Keys

KEY = Keys.make().public
LOCAL = "127.255.255.255"  # everybody on loopback's own network


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def shout(port: int, data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.sendto(data, (LOCAL, port))


def test_what_was_encoded_is_decoded() -> None:
    domain, address = beacon.decode(beacon.encode("home", f"tcp://10.0.0.1:4242#{KEY}"))
    assert (domain, str(address)) == ("home", f"tcp://10.0.0.1:4242#{KEY}")


@given(st.binary(max_size=200))
def test_whatever_comes_only_one_error_is_raised(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        beacon.decode(data)


@pytest.mark.parametrize("said", [
    ["pyzmp-beacon-2", "home", f"tcp://10.0.0.1:1#{KEY}"], ["pyzmp-beacon-1", "home", "tcp://10.0.0.1:1"],
    ["pyzmp-beacon-1", "home", "ipc:///tmp/x"], ["pyzmp-beacon-1", "home", "nonsense"], ["pyzmp-beacon-1", "home"],
    ["pyzmp-beacon-1", "h" * 201, f"tcp://10.0.0.1:1#{KEY}"], {"pyzmp": 1}])
def test_what_is_no_beacon_is_refused(said: Any) -> None:
    with pytest.raises(MalformedMessage, match="no beacon"):
        beacon.decode(msgspec.msgpack.encode(said))


def test_a_beacon_holds_no_more_than_its_limit() -> None:
    with pytest.raises(MalformedMessage, match="the limit is 1024"):
        beacon.decode(bytes(1025))


@pytest.mark.parametrize(("text", "place"), [
    ("", ("", 4243)), (":5000", ("", 5000)), ("10.0.0.255", ("10.0.0.255", 4243)), ("10.0.0.255:5", ("10.0.0.255", 5))])
def test_a_place_has_an_address_and_a_port_or_what_is_usual(text: str, place: tuple[str, int]) -> None:
    assert beacon.place(text, "") == place


@pytest.mark.parametrize("text", ["kitchen", "10.0.0.255:port", "10.0.0.255:99999", "10.0.0.999:1"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no place for beacons; expected the broadcast address"):
        beacon.place(text, "")


def test_several_listeners_hear_one_sender(port: int) -> None:
    async def run() -> list[str | None]:
        ears = [Ear("home", lambda key: key == KEY) for _ in range(3)]
        for ear in ears:
            await ear.open((LOCAL, port))
            await ear.open((LOCAL, port))  # once is enough
        sender = Sender(asyncio.get_running_loop(), "home", [f"tcp://127.0.0.1:4242#{KEY}"], (LOCAL, port))
        heard = await asyncio.gather(*(ear.hear(10) for ear in ears))
        sender.close()
        for ear in ears:
            ear.close()
        return heard

    assert asyncio.run(run()) == [f"tcp://127.0.0.1:4242#{KEY}"] * 3


def test_what_is_foreign_or_malformed_is_dropped_and_counted(
        port: int, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> None:
        ear = Ear("home", lambda key: key == KEY)
        await ear.open((LOCAL, port))
        shout(port, b"nonsense")
        shout(port, beacon.encode("other", f"tcp://127.0.0.1:1#{KEY}"))
        shout(port, beacon.encode("home", f"tcp://127.0.0.1:1#{Keys.make().public}"))
        shout(port, bytes(5000))
        while ear.dropped < 4:
            assert await ear.hear(0.01) is None
        shout(port, beacon.encode("home", f"tcp://127.0.0.1:2#{KEY}"))
        assert await ear.hear(10) == f"tcp://127.0.0.1:2#{KEY}"
        ear.close()

    asyncio.run(run())
    assert sum("a beacon from 127.0.0.1 was dropped" in line for line in caplog.messages) == 1


def told(host: str) -> tuple[str, bytes]:
    return f"tcp://{host}:1#{KEY}", beacon.encode("home", f"tcp://{host}:1#{KEY}")


def test_each_registry_that_was_heard_of_is_tried_some_time() -> None:
    async def run() -> None:
        ear = Ear("home", lambda key: True)
        for number in range(1, 4):
            ear.datagram_received(told(f"10.0.0.{number}")[1], (f"10.0.0.{number}", 1))
        ear.datagram_received(told("attic")[1], ("10.0.0.4", 1))  # by a name, which it may have
        expected = {told(host)[0] for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "attic")}
        tried: set[str | None] = set()
        while tried != expected:
            tried.add(await ear.hear(1))

    asyncio.run(run())


def test_who_tells_of_many_places_does_not_hide_the_others() -> None:
    real, beacons = told("10.0.0.1")

    async def run() -> None:
        ear = Ear("home", lambda key: True)
        found = 0
        for look in range(100):
            ear.datagram_received(beacons, ("10.0.0.1", 1))
            for number in range(40):
                ear.datagram_received(told(f"10.1.{look}.{number}")[1], ("10.0.0.66", 1))
            ear.datagram_received(beacons, ("10.0.0.66", 1))
            assert len(ear._heard) <= 1 + beacon.FEW
            found += await ear.hear(0) == real
        assert found >= 75

    asyncio.run(run())


def test_no_more_than_a_number_of_places_is_kept_in_mind() -> None:
    async def run() -> None:
        ear = Ear("home", lambda key: True)
        for number in range(3 * beacon.MOST):
            ear.datagram_received(told(f"10.0.{number}.1")[1], (f"10.0.{number}.1", 1))
        assert len(ear._heard) == beacon.MOST

    asyncio.run(run())


def test_one_that_fell_silent_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beacon, "FRESH", 0.0)

    async def run() -> None:
        ear = Ear("home", lambda key: True)
        ear.datagram_received(beacon.encode("home", f"tcp://10.0.0.1:1#{KEY}"), ("10.0.0.1", 1))
        assert await ear.hear(0.05) is None

    asyncio.run(run())


def test_where_nobody_can_listen_is_told() -> None:
    async def run() -> None:
        ear = Ear("home", lambda key: True)
        with pytest.raises(RegistryUnavailable, match=r"cannot be listened for at UDP 192\.0\.2\.1:4243"):
            await ear.open(("192.0.2.1", 4243))
        ear.close()
        ear.close_inherited()

    asyncio.run(run())


def test_an_interface_that_is_gone_is_told_once(caplog: pytest.LogCaptureFixture, port: int) -> None:
    async def run() -> None:
        sender = Sender(asyncio.get_running_loop(), "home", [f"tcp://192.0.2.1:1#{KEY}"], (LOCAL, port))
        sender.close()
        sender._send()
        sender.close()

    asyncio.run(run())
    assert len([line for line in caplog.messages if "no beacon can be sent from 192.0.2.1" in line]) == 1


def in_a_forked_child(body: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(body())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def closes(ear: Ear) -> int:
    """0 where the socket of the parent is closed afterwards."""
    ear.close_inherited()
    return 0 if ear._socket is not None and ear._socket.fileno() == -1 else 1


def test_a_forked_child_closes_its_copy(port: int) -> None:
    async def run() -> None:
        ear = Ear("home", lambda key: True)
        await ear.open((LOCAL, port))
        assert ear._socket is not None
        assert in_a_forked_child(lambda: closes(ear)) == 0
        shout(port, beacon.encode("home", f"tcp://127.0.0.1:1#{KEY}"))
        assert await ear.hear(10) is not None
        ear.close()

    asyncio.run(run())
