"""Nodes that talk over typed channels, on ZeroMQ."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyzmp.channels.call import current_call
from pyzmp.channels.declare import every, service
from pyzmp.channels.parameter import Parameter
from pyzmp.channels.topic import Topic
from pyzmp.coprocess import CoProcess
from pyzmp.exceptions import (
    CallError,
    CallTimeout,
    InvalidCall,
    NodeDied,
    PyzmpError,
    RemoteError,
    ServiceCallTimeout,
    UnknownRequestTypeException,
    UnknownResponseTypeException,
    UnknownService,
    UnknownServiceException,
)
from pyzmp.node import Node, current_node
from pyzmp.runtime import configure
from pyzmp.version import __version__ as __version__

if TYPE_CHECKING:
    from pyzmp.application import run
    from pyzmp.channels.discovery import adiscover, discover, services
    from pyzmp.channels.graph import graph
    from pyzmp.channels.message import Message
    from pyzmp.channels.service import Service
    from pyzmp.channels.stream import Stream
    from pyzmp.channels.subscribe import subscribe
    from pyzmp.group import Group

__all__ = [
    "CallError", "CallTimeout", "CoProcess", "Group", "InvalidCall", "Message", "Node", "NodeDied", "Parameter",
    "PyzmpError", "RemoteError", "Service", "ServiceCallTimeout", "Stream", "Topic", "UnknownRequestTypeException",
    "UnknownResponseTypeException", "UnknownService", "UnknownServiceException", "adiscover", "configure",
    "current_call", "current_node", "discover", "every", "graph", "run", "service", "services", "subscribe",
]

if not TYPE_CHECKING:
    def __getattr__(name: str) -> Any:
        """What defining a node and calling it does not need is imported when it is first asked for."""
        place = {"run": "application", "adiscover": "channels.discovery", "discover": "channels.discovery",
                 "services": "channels.discovery", "graph": "channels.graph", "Message": "channels.message",
                 "Service": "channels.service", "Stream": "channels.stream", "subscribe": "channels.subscribe",
                 "Group": "group"}.get(name)
        if place is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{place}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
