"""Addresses: where a listener can be reached, as text such as ``tcp://127.0.0.1:4242``."""

from __future__ import annotations

import msgspec

from pyzmp.exceptions import InvalidAddress

SCHEMES = ("memory", "inproc", "ipc", "tcp")
PATH = 107  # bytes of a Unix socket's path, at most, on Linux


class Address(msgspec.Struct, frozen=True):
    """A parsed address: its scheme and what follows."""

    scheme: str
    rest: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.rest}"

    @property
    def loopback(self) -> bool:
        """Whether a listener here is out of reach of other hosts."""
        return self.scheme != "tcp" or _is_loopback(self.rest.rpartition(":")[0])


def parse(text: str) -> Address:
    """The address that *text* spells; raises InvalidAddress, which says what is wrong with it."""
    scheme, separator, rest = str(text).partition("://")
    if not separator or scheme not in SCHEMES or not rest:
        raise InvalidAddress(f"{text!r} is no address; expected {', '.join(f'{known}://…' for known in SCHEMES)}")
    if scheme == "tcp":
        _check_port(text, rest)
    if scheme == "ipc":
        _check_path(text, rest)
    if not rest.isprintable():
        raise InvalidAddress(f"{text!r} is no address: it holds a character that cannot be printed")
    return Address(scheme, rest)


def check_bind(text: str, *, insecure: bool = False) -> Address:
    """The address that *text* spells, where a listener may stand.

    Raises InvalidAddress for TCP beyond loopback, where anybody could connect, unless *insecure*.
    """
    address = parse(text)
    if not address.loopback and not insecure:
        raise InvalidAddress(
            f"{text}: refused, because anybody who reaches this port could call every service; bind to 127.0.0.1, "
            "or say insecure=True where the network itself keeps others out")
    return address


def _check_port(text: str, rest: str) -> None:
    host, separator, port = rest.rpartition(":")
    if not separator or not host or not (port == "*" or (port.isascii() and port.isdigit() and int(port) < 65536)):
        raise InvalidAddress(f"{text!r} is no TCP address; expected tcp://host:port, with a port up to 65535 or *")


def _check_path(text: str, rest: str) -> None:
    size = len(rest.encode(errors="replace"))
    if rest.startswith("@"):
        raise InvalidAddress(f"{text!r}: an abstract socket has no owner and no permissions; use a path")
    if not rest.startswith("/"):
        raise InvalidAddress(f"{text!r}: the path of an ipc address must be absolute")
    if size > PATH:
        raise InvalidAddress(f"{text!r}: a path of {size} bytes, and a Unix socket's holds {PATH}; use a shorter "
                             "directory (PYZMP_DIR)")


def _is_loopback(host: str) -> bool:
    import ipaddress  # seldom needed, and costs to import

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"  # any other name, an interface's or *, may be reached from outside
