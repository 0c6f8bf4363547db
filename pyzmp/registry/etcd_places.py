"""Where etcd is, as an address of a registry says it."""

from __future__ import annotations

from urllib.parse import unquote

PORT = 2379


def endpoints(registry: str) -> tuple[list[str], str, str]:
    """The ``host:port`` of each endpoint in ``etcd://[user:password@]host[:port],…``, the user and the password.

    Raises ValueError, which says what is wrong.
    """
    login, at, places = registry.removeprefix("etcd://").rpartition("@")
    user, colon, password = login.partition(":")
    if at and not (user and colon):
        raise ValueError("what stands before the @ is no user:password")
    return [_endpoint(place) for place in places.split(",")], unquote(user), unquote(password)


def _endpoint(place: str) -> str:
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host, port = place, str(PORT)
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{place!r} is no host:port of an etcd")
    return f"{host}:{port}"
