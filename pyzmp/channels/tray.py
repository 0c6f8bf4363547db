"""What has come to a subscription, for another thread to take."""

from __future__ import annotations

from pyzmp.channels.arrivals import Arrivals
from pyzmp.channels.message import Event
from pyzmp.protocol.batch import Batch


class Tray:
    """What has come, for another thread to take; `pyzmp.subscribing.Sink`."""

    __slots__ = ("arrivals", "asked", "hungry")

    def __init__(self) -> None:
        self.arrivals: Arrivals[Batch | Event | None] = Arrivals()  # None wakes whoever waits: it is over
        self.hungry = self.asked = False

    def put(self, item: Batch | Event | None) -> None:
        """Put something in."""
        self.arrivals.put(item)
