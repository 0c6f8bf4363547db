"""Which addresses reach whom: those of this host only, and those of its interfaces, which others reach too."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterable, Sequence

from pyzmp.exceptions import InvalidAddress
from pyzmp.protocol.facts import Member
from pyzmp.registry.domain import Domain, Lock
from pyzmp.transport.address import Address, parse

_SIOCGIFADDR = 0x8915  # Linux: the address of an interface
_INTERFACE = re.compile(r"[A-Za-z0-9_.:%-]+")
_NAME = 15  # bytes of the name of an interface, at most
_ANY_PORT = 9  # nothing is sent there


def check_interface(text: object) -> None:
    """Raise ValueError or TypeError unless *text* can name interfaces, by names or addresses with commas between."""
    if not isinstance(text, str):
        raise TypeError(f"interface: expected a name or an address, got {text!r}")
    if text and not all(_INTERFACE.fullmatch(part) for part in text.split(",")):
        raise ValueError("interface: expected the name or the address of an interface, or several with commas "
                         f"between, got {text!r}")


def same_host(one: Member, other: Member) -> bool:
    """Whether both processes run where the same sockets and process numbers are."""
    return one.host == other.host and one.started.rpartition(":")[0] == other.started.rpartition(":")[0]


def host_of(address: Address) -> str:
    """The host in a TCP address, without the brackets of IPv6."""
    return address.rest.rpartition(":")[0].strip("[]")


def at(host: str, port: str | int, key: str = "") -> str:
    """The TCP address of *port* of *host*."""
    return str(Address("tcp", f"{f'[{host}]' if ':' in host else host}:{port}", key))


def travels(text: str) -> bool:
    """Whether who listens at *text* can be reached from other hosts; what is no address cannot."""
    with contextlib.suppress(InvalidAddress):
        address = parse(text)
        return address.scheme == "tcp" and not address.loopback
    return False


def source(host: str) -> str:
    """The address of this host from which what it sends to *host* goes; raises OSError where there is no way."""
    family, _, _, _, place = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def interfaces(registry: str) -> list[str]:
    """The interface that the registry at the address *registry* is reached through, unless that is loopback.

    Where that names its host this may take as long as names take to be looked up.
    """
    with contextlib.suppress(OSError, UnicodeError):
        found = source(host_of(parse(registry)))
        return [] if ipaddress.ip_address(found.partition("%")[0]).is_loopback else [found]
    return []


def is_number(host: str) -> bool:
    """Whether *host* is an address and no name, which would have to be looked up."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def own() -> list[str]:
    """The addresses of this host's interfaces but for loopback's, one of IPv4 for each that has any."""
    found = [_address_of(name) for _, name in socket.if_nameindex()]
    return [address for address in found if address and not ipaddress.ip_address(address).is_loopback]


def resolved(interface: str) -> str:
    """The address of the *interface* of that name or address; raises InvalidAddress where there is none."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(interface))
    address = _address_of(interface)
    if not address:
        known = ", ".join(name for _, name in socket.if_nameindex())
        raise InvalidAddress(f"there is no interface {interface!r} with an address here; those that are: {known}")
    return address


def _address_of(name: str) -> str:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:_NAME]))
        return socket.inet_ntoa(answer[20:24])
    return ""


def spread(bound: str, hosts: Sequence[str]) -> list[str]:
    """Where a listener at the address *bound* is: at each of *hosts* where that stands for every interface."""
    address = parse(bound)
    if address.scheme != "tcp" or not _is_any(host_of(address)) or not hosts:
        return [bound]
    return [at(host, address.rest.rpartition(":")[2], address.key) for host in hosts]


def nearest(addresses: Sequence[str]) -> str | None:
    """Of TCP *addresses* of one listener the one on a network of this host's, as far as routes tell."""
    return max(addresses, key=_nearness) if len(addresses) > 1 else next(iter(addresses), None)


def _nearness(text: str) -> int:
    """How many bits the address has in common with ours on the way there; -1 where there is no way."""
    host = host_of(parse(text))
    try:
        theirs = ipaddress.ip_address(host)  # first: names are not looked up here
        ours = ipaddress.ip_address(source(host))
    except (OSError, ValueError):
        return -1
    return ours.max_prefixlen - (int(ours) ^ int(theirs)).bit_length()


def _is_any(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return host == "*"


def note(lock: Lock, hosts: Iterable[str]) -> None:
    """Write into a registry's *lock* file that it serves several hosts, and its own addresses among them."""
    os.pwrite(lock.descriptor, " ".join(["hosts", *hosts]).encode(), 0)


def resign(lock: Lock) -> None:
    """Take back what `note` wrote: it was told to end, and this host may have a registry of its own again."""
    os.ftruncate(lock.descriptor, 0)


def stands(domain: Domain) -> bool:
    """Whether the last registry on this host served several, and was not told to end: only its operator starts one."""
    return any(noted(domain, counter) is not None for counter in domain.counters()[:1])


def noted(domain: Domain, counter: int) -> list[str] | None:
    """What `note` has written for the registry *counter*; None where that serves one host only."""
    with contextlib.suppress(OSError), open(domain.lock(counter), encoding="ascii") as file:
        words = file.read(4096).split()
        return words[1:] if words[:1] == ["hosts"] else None
    return None


def missing(interfaces: Iterable[str], addresses: Iterable[str]) -> list[str]:
    """Those of *interfaces* where none of *addresses* listens yet."""
    at = {host_of(parse(address)) for address in addresses if address.startswith("tcp:")}
    return [interface for interface in interfaces if interface not in at]
