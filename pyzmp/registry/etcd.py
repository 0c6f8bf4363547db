"""etcd as the registry, over the JSON gateway of its API v3, with tornado, which is imported here only.

Here are the requests and the finder.  A session is in `pyzmp.registry.etcd_link`, and what looks after the other
members in `pyzmp.registry.etcd_ring`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import secrets
import socket
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pyzmp.exceptions import MalformedMessage, RegistryUnavailable
from pyzmp.protocol import etcd, facts
from pyzmp.protocol.etcd import Json, Layout
from pyzmp.registry import reach
from pyzmp.registry.domain import Domain
from pyzmp.registry.etcd_link import EtcdLink
from pyzmp.registry.etcd_places import endpoints
from pyzmp.registry.etcd_ring import EtcdRefused, Lease, Ring
from pyzmp.transport.context import Context

try:
    from tornado.httpclient import HTTPRequest, HTTPResponse
    from tornado.iostream import IOStream
    from tornado.netutil import Resolver
    from tornado.simple_httpclient import SimpleAsyncHTTPClient
    from tornado.tcpclient import TCPClient
except ImportError as missing:
    raise RegistryUnavailable(
        "a registry at etcd:// needs tornado: pip install 'pyzmp[etcd]', or just tornado") from missing

FINDING = 6.0  # seconds in which one of the endpoints has to answer who looks for a registry
_CLOSED = 2.0  # seconds in which somebody has to listen at one of them: etcd may just be starting again
_SHARE = 0.5  # of these seconds one endpoint has at least, however many there are: it may be silent, the next not
_WAIT = 0.05  # seconds between two rounds of the endpoints
_SIZE = 1 << 40  # bytes of an answer, at most: a watch is one that never ends
_SILENT = 4, 14  # codes of an etcd that has no leader, or lost it meanwhile: another may answer
_UNKNOWN = 16  # the code of a token that is none any more
_HEADERS: Mapping[str, str] = {"Content-Type": "application/json",
                               "Grpc-Metadata-hasleader": "true"}  # no leader: no watch


class _Connections(TCPClient):
    """Knows its connections, so that all can be closed."""

    def __init__(self) -> None:
        super().__init__(resolver=_Literal())
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        stream = await super().connect(*arguments, **options)
        self.streams.add(stream)
        _skip_trailer(stream)
        return stream


def _skip_trailer(stream: IOStream) -> None:
    """Have *stream* leave out what follows the last chunk of a body.

    etcd's gateway ends a refusal with a trailer, for which tornado drops all of the answer.
    """
    read = stream.read_bytes

    async def end_of_chunk() -> bytes:
        found = await read(2)
        if found != b"\r\n":
            await stream.read_until(b"\r\n\r\n")
        return b"\r\n"

    def read_bytes(size: int, partial: bool = False) -> Awaitable[bytes]:
        return asyncio.ensure_future(end_of_chunk()) if size == 2 and not partial else read(size, partial)

    stream.read_bytes = read_bytes  # type: ignore[method-assign, assignment]


class _Literal(Resolver):
    """Asks the system for names only: an address needs no thread that waits for an answer."""

    async def resolve(self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[Any]:
        with contextlib.suppress(ValueError):
            version = ipaddress.ip_address(host).version
            return [(socket.AF_INET, (host, port)) if version == 4 else (socket.AF_INET6, (host, port, 0, 0))]
        found = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        return [(kind, place) for kind, _, _, _, place in found]


class _Silence(Exception):
    """An endpoint did not answer.  ``closed``: nobody listens there."""

    def __init__(self, text: str, *, closed: bool = False) -> None:
        super().__init__(text)
        self.closed = closed


class Gateway:
    """Requests to whichever endpoint answers.  Used on one loop."""

    def __init__(self, places: Sequence[str], user: str = "", password: str = "") -> None:
        first = os.getpid() % len(places)  # so that not all processes ask the same
        self._places = [*places[first:], *places[:first]]
        self._user, self._password, self._token = user, password, ""
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._client: SimpleAsyncHTTPClient | None = None
        self.endpoint = self._places[0]

    async def ask(self, path: str, body: Json, timeout: float) -> Json:
        """The answer to a request that does no harm when made twice.

        Raises EtcdRefused, and RegistryUnavailable where no endpoint answered in *timeout* seconds, or nobody listens
        at any for a while.
        """
        loop = asyncio.get_running_loop()
        over, silences = loop.time() + timeout, dict[str, _Silence]()
        patience, share = loop.time() + _CLOSED, max(_SHARE, timeout / len(self._places))
        while True:
            asked = self.endpoint
            try:
                return await self._post(asked, path, body, min(share, over - loop.time()))
            except _Silence as error:
                silences[asked] = error
            if self.endpoint == asked:  # else somebody who asked at the same time has turned to the next
                self.endpoint = self._places[(self._places.index(asked) + 1) % len(self._places)]
            whole = self.endpoint == self._places[0]
            closed = len(silences) == len(self._places) and all(error.closed for error in silences.values())
            if loop.time() >= over or (closed and loop.time() >= patience):
                said = ", ".join(f"{place} ({error})" for place, error in silences.items())
                raise RegistryUnavailable(f"no etcd answers at {said}")
            if whole:
                await asyncio.sleep(_WAIT)

    async def watch(self, body: Json, hear: Callable[[Json], None]) -> str:
        """Have *hear* called with each answer of a watch, on the endpoint that answered last; why it ended."""
        rest = b""

        def received(chunk: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                hear(json.loads(line))

        client, asked = self._made(), self.endpoint
        request = self._request(asked, "watch", body, request_timeout=0, streaming_callback=received)
        try:
            response = await self._fetch(client, request)
        except (OSError, _Silence) as error:
            return f"the watch at {asked} ended: {error}"
        finally:
            _close(client)
        return f"{asked} ended the watch: {response.code} {rest.decode(errors='replace')[:200]}"

    def close(self) -> None:
        """Close every connection."""
        for client in list(self._clients):
            _close(client)
        self._client = None

    def close_inherited(self) -> None:
        """In a forked child: close the descriptors that are the parent's."""
        for client in list(self._clients):
            for stream in list(client.tcp_client.streams):
                if not stream.closed():
                    os.close(stream.socket.fileno())

    def _made(self) -> SimpleAsyncHTTPClient:
        client = SimpleAsyncHTTPClient(force_instance=True, max_clients=64, max_body_size=_SIZE)
        client.tcp_client = _Connections()
        self._clients.add(client)
        return client

    async def _post(self, asked: str, path: str, body: Json, timeout: float, *, again: bool = True) -> Json:
        """The answer of the endpoint *asked*.  *again*: with a new token, where it takes ours for none."""
        if self._client is None:
            self._client = self._made()
        if self._user and not self._token and path != "auth/authenticate":
            login = {"name": self._user, "password": self._password}
            self._token = (await self._post(asked, "auth/authenticate", login, timeout))["token"]
        timeout = max(0.001, timeout)
        request = self._request(asked, path, body, connect_timeout=timeout, request_timeout=timeout)
        try:
            response = await self._fetch(self._client, request)
            answer = json.loads(response.body)
        except ConnectionRefusedError as error:
            raise _Silence("nobody listens there", closed=True) from error
        except (OSError, ValueError) as error:
            raise _Silence(str(error) or type(error).__name__, closed=isinstance(error, socket.gaierror)) from error
        if response.code == 200 and isinstance(answer, dict):
            return answer
        code, said = (answer.get("code"), str(answer.get("message"))) if isinstance(answer, dict) else (None, "")
        if code is None or code in _SILENT:
            raise _Silence(said or "it did not say what is wrong")
        if code == _UNKNOWN and self._token:
            self._token = ""
            if again:
                return await self._post(asked, path, body, timeout, again=False)
        raise EtcdRefused(f"{asked} says: {said}", int(code))

    def _request(self, asked: str, path: str, body: Json, **options: Any) -> HTTPRequest:
        headers = {**_HEADERS, **({"Authorization": self._token} if self._token else {})}
        return HTTPRequest(f"http://{asked}/v3/{path}", "POST", headers, json.dumps(body), **options)

    async def _fetch(self, client: SimpleAsyncHTTPClient, request: HTTPRequest) -> HTTPResponse:
        """As tornado; whoever stops waiting leaves it alone, as it would complain in the log."""
        fetching = asyncio.ensure_future(client.fetch(request, raise_error=False))
        fetching.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(fetching)
        except Exception as error:
            if isinstance(error, OSError):
                raise
            raise _Silence(f"{error}") from error  # an HTTPClientError: a timeout, or the end of the connection


def _close(client: SimpleAsyncHTTPClient) -> None:
    for stream in list(client.tcp_client.streams):  # type: ignore[attr-defined]
        stream.close()
    client.close()


class _Place:
    """etcd, in the epoch that it is in."""

    def __init__(self, finder: Etcd, epoch: facts.Epoch, revision: int) -> None:
        self.address = f"{finder.place}, epoch {epoch.counter} {epoch.nonce}"
        self.counter = epoch.counter
        self._finder, self._epoch, self._revision = finder, epoch, revision

    def open(self, hear: Callable[[facts.Message], None], over: Callable[[str], None]) -> EtcdLink:
        """Begin a session, in the running loop."""
        finder = self._finder
        return EtcdLink(finder.gateway, finder.layout, finder.lease, finder.ring, self._epoch, self._revision, hear,
                        over)


class Etcd:
    """The registry of *domain* in etcd, at the endpoints in ``etcd://host:port,host:port``."""

    def __init__(self, context: Context, domain: Domain, registry: str) -> None:
        self._places, user, password = endpoints(registry)
        self._domain = domain
        self.gateway = Gateway(self._places, user, password)
        self.layout = Layout(domain.name)
        self.lease = Lease(self.gateway)
        self.ring = Ring(context, domain, self.gateway, self.layout, self.interfaces)
        self.place = f"etcd at {', '.join(self._places)}"

    async def find(self, above: int, *, start: bool) -> _Place | None:
        """etcd, if it has an epoch with a counter higher than *above*, which is begun there where *start* says so.

        Raises RegistryUnavailable where no endpoint answers, or etcd refuses.
        """
        if start:
            self._domain.make()
        try:
            return await self._find(above, start=start)
        except EtcdRefused as error:
            way = "; a user is given as etcd://user:password@host:port" if error.code in {3, 7, 16} else ""
            raise RegistryUnavailable(f"etcd refuses this process: {error}{way}") from error

    def interfaces(self) -> list[str]:
        """The addresses of ours through which an etcd on another host is reached."""
        found = (reach.interfaces(f"tcp://{place}") for place in self._places)
        return next((addresses for addresses in found if addresses), [])

    def close(self) -> None:
        """End what looks after others, and every connection."""
        self.ring.close()
        self.gateway.close()

    def close_inherited(self) -> None:
        self.gateway.close_inherited()

    async def _find(self, above: int, *, start: bool) -> _Place | None:
        answer = await self.gateway.ask("kv/range", {"key": etcd.text64(self.layout.epoch)}, FINDING)
        kvs = answer.get("kvs", [])
        while True:
            header = answer["header"]
            value = etcd.from64(kvs[0].get("value", "")) if kvs else None
            found = None
            if value is not None:
                with contextlib.suppress(MalformedMessage):
                    found = etcd.read_epoch(value)
            new = etcd.next_epoch(found, header["cluster_id"], above, secrets.token_hex(6))
            if new is None and found is not None:
                return _Place(self, found, int(header["revision"]))
            if new is None or not start:
                return None
            answer = await self.gateway.ask("kv/txn", etcd.epoch_change(self.layout, value, new), FINDING)
            if answer.get("succeeded"):
                return _Place(self, new, int(answer["header"]["revision"]))
            kvs = answer["responses"][0]["response_range"].get("kvs", [])
