"""Addresses: where a listener can be reached, as text such as ``tcp://127.0.0.1:4242``.

A TCP listener that speaks CURVE has its public key behind that, ``tcp://192.0.2.1:4242#KEY``: whoever
knows where it is knows whom to expect there.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from pyzmp.exceptions import AddressInUse, InvalidAddress

SCHEMES = ("memory", "inproc", "ipc", "tcp")
PATH = 107  # bytes of a Unix socket's path, at most, on Linux
KEY = 40  # characters of a key, which is Z85 text (ZeroMQ's RFC 32)
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


class Address(msgspec.Struct, frozen=True):
    """A parsed address: its scheme, what follows, and the public key of its listener where it speaks CURVE."""

    scheme: str
    rest: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.endpoint}#{self.key}" if self.key else self.endpoint

    @property
    def endpoint(self) -> str:
        """The address as ZeroMQ knows it, without a key."""
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
    separator = key = ""
    if scheme == "tcp":
        rest, separator, key = rest.partition("#")
        _check_port(text, rest)
    if scheme == "ipc":
        _check_path(text, rest)
    if not rest.isprintable():
        raise InvalidAddress(f"{text!r} is no address: it holds a character that cannot be printed")
    if separator and not _is_key(key):
        raise InvalidAddress(f"{text!r} is no address: behind the # stands no public key of {KEY} characters")
    return Address(scheme, rest, key)


def check_bind(text: str, *, insecure: bool = False, secure: bool = False,
               key: Callable[[], str] = lambda: "") -> Address:
    """The address that *text* spells, where a listener may stand, with its public key where it is to speak CURVE.

    That is TCP beyond loopback unless *insecure*, and any TCP if *secure*.  *key* is asked then for the
    public key of this process.  Raises InvalidAddress where that is none, as anybody could connect, and for
    an address with a key of somebody else's.
    """
    address = parse(text)
    if address.scheme != "tcp" or not (secure or address.key or not (address.loopback or insecure)):
        return address
    own = key()
    if not own and address.key:
        raise InvalidAddress(f"{text}: refused, because this process has no keys")
    if not own:
        raise InvalidAddress(
            f"{text}: refused, because anybody who reaches this port could call every service; bind to 127.0.0.1, "
            "or say insecure=True where the network itself keeps others out")
    if address.key not in ("", own):
        raise InvalidAddress(f"{text}: the key of this process, which listens there, is another: {own}")
    return replace(address, key=own)


def check_key(text: object, *, secret: bool = False) -> str:
    """*text*, if it can be a key; raises ValueError, which says why not, and does not show what is *secret*."""
    if isinstance(text, str) and _is_key(text):
        return text
    shown = "what came is not" if secret else f"{text!r} is not"
    raise ValueError(f"a {'secret' if secret else 'public'} key is Z85 text of {KEY} characters; {shown}")


def _is_key(text: str) -> bool:
    digits = [_Z85.find(character) for character in text]
    if len(text) != KEY or min(digits) < 0:
        return False
    groups = (digits[start:start + 5] for start in range(0, KEY, 5))
    return all(sum(digit * 85 ** (4 - place) for place, digit in enumerate(group)) < 1 << 32 for group in groups)


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


def check_free(address: Address) -> None:
    """Raise AddressInUse unless nothing is at the path, or a socket of ours that nobody listens to any more.

    ZeroMQ itself removes whatever is there, be it a file or the socket of a living node.
    """
    try:
        found = os.lstat(address.rest)
    except FileNotFoundError:
        return
    except OSError as error:
        raise AddressInUse(error.errno, f"{address} cannot be bound: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
        raise AddressInUse(errno.EEXIST, f"{address} cannot be bound: what is there is not a socket of this user")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a stopped listener whose queue is full would hold us up
        try:
            probe.connect(address.rest)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise AddressInUse(error.errno, f"{address} cannot be bound: {error.strerror}") from error
    raise AddressInUse(errno.EADDRINUSE, f"{address} cannot be bound: somebody listens there")
