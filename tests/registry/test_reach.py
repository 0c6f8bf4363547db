"""Which addresses reach whom."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from pyzmp.exceptions import InvalidAddress
from pyzmp.registry import reach
from pyzmp.registry.domain import Domain, this_process
from pyzmp.transport.security import Keys


def test_a_host_is_the_same_by_its_name_and_the_space_of_its_processes() -> None:
    one, other = this_process(), this_process()
    assert reach.same_host(one, other)
    assert not reach.same_host(one, replace(other, host="elsewhere"))
    assert not reach.same_host(one, replace(other, started="another-boot/1:17"))


@pytest.mark.parametrize(("address", "others"), [
    ("ipc:///tmp/node", False), ("memory://loop", False), ("inproc://loop", False), ("tcp://127.0.0.1:1", False),
    ("tcp://localhost:1", False), ("tcp://[::1]:1", False), ("tcp://10.0.0.1:1", True), ("tcp://house:1", True),
    ("tcp://[fd00::1]:1", True), ("nonsense", False), ("tcp://10.0.0.1", False)])
def test_only_tcp_beyond_loopback_reaches_other_hosts(address: str, others: bool) -> None:
    assert reach.travels(address) is others


def test_the_way_to_loopback_is_no_interface_for_others() -> None:
    assert reach.source("127.0.0.1") == "127.0.0.1"
    assert reach.interfaces("tcp://127.0.0.1:4242") == []


def test_where_there_is_no_way_there_is_no_interface() -> None:
    assert reach.interfaces("tcp://no.such.host.invalid:4242") == []
    assert reach.interfaces(f"tcp://{'h' * 70}:4242") == []


def test_loopback_is_not_among_the_interfaces_of_the_host() -> None:
    assert all(not address.startswith("127.") for address in reach.own())


def test_an_interface_has_a_name_or_an_address() -> None:
    assert reach.resolved("lo") == "127.0.0.1"
    assert reach.resolved("10.1.2.3") == "10.1.2.3"
    with pytest.raises(InvalidAddress, match=r"there is no interface 'eth77' with an address here; those .*\blo\b"):
        reach.resolved("eth77")


@pytest.mark.parametrize("text", ["", "eth0", "10.0.0.1", "eth0,10.0.0.1", "enp3s0.100", "fe80::1%eth0"])
def test_what_can_name_interfaces_is_taken(text: str) -> None:
    reach.check_interface(text)


@pytest.mark.parametrize("text", ["a b", ",", "eth0,", "tcp://x", "a/b"])
def test_what_cannot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="interface: expected"):
        reach.check_interface(text)


def test_an_interface_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="interface: expected a name or an address, got 3"):
        reach.check_interface(3)


def test_a_listener_at_every_interface_is_announced_at_each() -> None:
    key = Keys.make().public
    hosts = ["10.0.0.1", "fd00::1"]
    assert reach.spread(f"tcp://0.0.0.0:5#{key}", hosts) == [f"tcp://10.0.0.1:5#{key}", f"tcp://[fd00::1]:5#{key}"]
    assert reach.spread("tcp://0.0.0.0:5", []) == ["tcp://0.0.0.0:5"]
    assert reach.spread("tcp://10.0.0.9:5", hosts) == ["tcp://10.0.0.9:5"]
    assert reach.spread("ipc:///tmp/x", hosts) == ["ipc:///tmp/x"]


def test_names_are_not_looked_up_to_tell_what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **more: pytest.fail("looked up"))
    assert reach.nearest(["tcp://attic:1", "tcp://cellar:1"]) == "tcp://attic:1"


def test_the_nearest_of_several_addresses_is_on_our_network() -> None:
    assert reach.nearest([]) is None
    assert reach.nearest(["tcp://192.0.2.1:1"]) == "tcp://192.0.2.1:1"
    assert reach.nearest(["tcp://no.such.host.invalid:1", "tcp://127.0.0.1:1"]) == "tcp://127.0.0.1:1"


def test_what_a_registry_notes_is_read_from_its_lock_file(domain: Path) -> None:
    home = Domain.named("home")
    home.make()
    counter, lock = home.claim(0)
    assert reach.noted(home, counter) is None
    reach.note(lock, ["10.0.0.1", "10.1.0.1"])
    assert reach.noted(home, counter) == ["10.0.0.1", "10.1.0.1"]
    assert reach.noted(home, counter + 1) is None
    lock.release()


def test_interfaces_where_nobody_listens_yet_are_missing() -> None:
    addresses = ["memory://a", "ipc:///tmp/10.1.0.1", "tcp://10.0.0.1:4242"]
    assert reach.missing(["10.0.0.1", "10.1.0.1", "10.2.0.1"], addresses) == ["10.1.0.1", "10.2.0.1"]
    assert reach.missing([], addresses) == reach.missing(["10.0.0.1"], addresses) == []
