"""Finding services: by the class that declares them, or by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from pyzmp import runtime
from pyzmp.channels.channel import Channel
from pyzmp.channels.service import Service, by_name
from pyzmp.channels.streaming import StreamService
from pyzmp.exceptions import UnknownService

P = ParamSpec("P")
R = TypeVar("R")


@overload
def discover(channel: Service[P, R], /, timeout: float | None = ..., minimum_providers: int = ...) -> Service[P, R]: ...
@overload
def discover(channel: StreamService[P, R], /, timeout: float | None = ...,
             minimum_providers: int = ...) -> StreamService[P, R]: ...
@overload
def discover(channel: str, timeout: float | None = ..., minimum_providers: int = ...) -> Service[..., Any] | None: ...
def discover(channel: Any, timeout: float | None = None, minimum_providers: int = 1) -> Any:
    """Find a service that at least *minimum_providers* nodes provide.

    *channel* is a service, such as ``Class.method`` or ``Class.at("node").method``: a copy comes
    back, or UnknownService is raised.  Or it is a name, or ``node/name``: a `Service` without types
    comes back where there is any provider at last, or None.  With a *timeout*, in seconds, both wait
    for the providers; without one, or with 0, they look once.
    """
    service = _service(channel)
    return _checked(channel, service, service.discovered(timeout, minimum_providers), minimum_providers)


@overload
async def adiscover(channel: Service[P, R], /, timeout: float | None = ...,
                    minimum_providers: int = ...) -> Service[P, R]: ...
@overload
async def adiscover(channel: StreamService[P, R], /, timeout: float | None = ...,
                    minimum_providers: int = ...) -> StreamService[P, R]: ...
@overload
async def adiscover(channel: str, timeout: float | None = ...,
                    minimum_providers: int = ...) -> Service[..., Any] | None: ...
async def adiscover(channel: Any, timeout: float | None = None, minimum_providers: int = 1) -> Any:
    """As `discover`, for coroutines."""
    service = _service(channel)
    return _checked(channel, service, await service.adiscovered(timeout, minimum_providers), minimum_providers)


def _service(channel: Any) -> Channel[..., Any]:
    return channel.copy() if isinstance(channel, Channel) else by_name(channel)


def _checked(channel: Any, service: Channel[..., Any], enough: bool, minimum: int) -> Channel[..., Any] | None:
    if enough:
        return service
    if isinstance(channel, Channel):
        found = len(service.seen())
        raise service.unknown() if not found else UnknownService(
            f"{found} of the {minimum} providers that were asked for provide {service.name!r}", service=service.name)
    return service if service.seen() else None


class Services(Mapping[str, list[tuple[str, str]]]):
    """Every service that is provided now: its name, and its providers as (name of the node, address)."""

    def __getitem__(self, name: str) -> list[tuple[str, str]]:
        providers = by_name(name).providers
        if not providers:
            raise KeyError(name)
        return providers

    def __iter__(self) -> Iterator[str]:
        return iter(list(runtime.current().facts().services()))

    def __len__(self) -> int:
        return len(runtime.current().facts().services())

    def __call__(self, *_: object) -> None:
        raise TypeError("pyzmp.services is the mapping of services; did you mean @pyzmp.service?")

    def __repr__(self) -> str:
        return "<pyzmp.services>"


services = Services()
