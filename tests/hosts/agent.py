"""What runs on each host: it evaluates the lines of its input, and answers each with a line."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from msgspec.structs import replace

import pyzmp
from pyzmp import runtime
from pyzmp.exceptions import CallError, PyzmpError


class Lamp(pyzmp.Node):
    """The node that the hosts call."""

    kind = "thread"
    light = pyzmp.Topic(int, keep=5)

    @pyzmp.service
    def shine(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.light.publish(number)

    @pyzmp.service
    def where(self) -> str:
        return socket.gethostname()

    @pyzmp.service(worker=True)
    def hold(self, seconds: float) -> None:
        time.sleep(seconds)


nodes: dict[str, Lamp] = {}
alerts = pyzmp.Topic(str, "house/alerts")
heard: dict[str, Any] = {}  # subscriptions
events: list[str] = []


def start(name: str, address: str | None = None, **options: object) -> bool:
    nodes[name] = Lamp(name, address, **options)  # type: ignore[arg-type]
    return nodes[name].start(timeout=20)


def refused(name: str) -> str:
    """What a start raises once the registry has taken note of a revoked key, for which it has a second."""
    over = time.monotonic() + 20
    while time.monotonic() < over:
        try:
            with Lamp(name):
                time.sleep(0.05)
        except PyzmpError as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


def find(name: str, timeout: float = 20) -> list[tuple[str, str]]:
    return pyzmp.discover(Lamp.at(name).where, timeout=timeout).providers


def call(name: str) -> str:
    return Lamp.at(name).where()


def hold(name: str, seconds: float) -> object:
    """How a call that takes long ends, and after how long."""
    began = time.monotonic()
    try:
        Lamp.at(name).hold.with_options(timeout=seconds + 5)(seconds)
    except CallError as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return "result", "", time.monotonic() - began


def listen(name: str) -> list[str]:
    """Subscribe to a lamp, or to the alerts; who has confirmed."""
    topic: pyzmp.Topic[Any] = Lamp.at(name).light if name else alerts
    heard[name] = topic.subscribe(timeout=20, on_event=lambda event: events.append(type(event).__name__))
    publishers: list[str] = heard[name].publishers
    return publishers


def take(name: str, count: int) -> list[Any]:
    return [next(heard[name]) for _ in range(count)]


def counts(name: str) -> list[int]:
    return [heard[name].received, heard[name].dropped, heard[name].lost]


def settled(name: str, received: int) -> bool:
    """Whether all that a lamp has published is accounted for, and so much of it was received."""
    accounts = Lamp.at(name).light.accounts()
    return not any(each.waiting for each in accounts) and sum(each.received for each in accounts) == received


def alert(text: str) -> None:
    alerts.wait_for_subscribers(1, timeout=20)
    alerts.publish(text)


def known() -> list[str]:
    return sorted(node.name for node in runtime.current().facts().nodes())


def until(condition: str, timeout: float = 30) -> float:
    """Wait until the expression *condition* is true; how long that took."""
    began = time.monotonic()
    while not eval(condition):
        if time.monotonic() > began + timeout:
            raise TimeoutError(f"{condition}: not after {timeout} s; known: {known()}")
        time.sleep(0.02)
    return time.monotonic() - began


def changed(name: str, **changes: object) -> object:
    """The fact of a node, changed."""
    return replace(runtime.current().replica.view.facts.node(name), **changes)


def stale() -> bool:
    return not runtime.current().replica.following


def epoch() -> int:
    position = runtime.current().replica.view.position
    return position.epoch.counter if position is not None else 0


def main() -> None:
    for line in sys.stdin:
        try:
            answer: object = {"value": eval(line)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    for node in nodes.values():
        node.shutdown()
    runtime.reset()
    os._exit(0)  # however the other threads are doing


if __name__ == "__main__":
    main()
