"""Nodes that talk over typed channels, on ZeroMQ."""

from pyzmp.application import run
from pyzmp.channels.call import current_call
from pyzmp.channels.declare import every, service
from pyzmp.channels.discovery import adiscover, discover, services
from pyzmp.channels.graph import graph
from pyzmp.channels.message import Message
from pyzmp.channels.parameter import Parameter
from pyzmp.channels.service import Service
from pyzmp.channels.stream import Stream
from pyzmp.channels.subscribe import subscribe
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
from pyzmp.group import Group
from pyzmp.node import Node, current_node
from pyzmp.runtime import configure
from pyzmp.version import __version__ as __version__

__all__ = [
    "CallError", "CallTimeout", "CoProcess", "Group", "InvalidCall", "Message", "Node", "NodeDied", "Parameter",
    "PyzmpError", "RemoteError", "Service", "ServiceCallTimeout", "Stream", "Topic", "UnknownRequestTypeException",
    "UnknownResponseTypeException", "UnknownService", "UnknownServiceException", "adiscover", "configure",
    "current_call", "current_node", "discover", "every", "graph", "run", "service", "services", "subscribe",
]
