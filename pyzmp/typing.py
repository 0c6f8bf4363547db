"""Classes that nobody makes by hand, for annotations."""

from pyzmp.channels.call import Call
from pyzmp.channels.future import CallFuture
from pyzmp.channels.graph import Edge, Graph, GraphNode, GraphParameter, GraphService, GraphTopic
from pyzmp.channels.message import Event, Gap, Joined, Left, Refused
from pyzmp.channels.streaming import StreamService
from pyzmp.channels.subscription import FullQueue, Subscription
from pyzmp.channels.watch import Watch
from pyzmp.protocol.accounts import SubscriberAccount

__all__ = [
    "Call", "CallFuture", "Edge", "Event", "FullQueue", "Gap", "Graph", "GraphNode", "GraphParameter", "GraphService",
    "GraphTopic", "Joined", "Left", "Refused", "StreamService", "SubscriberAccount", "Subscription", "Watch",
]
