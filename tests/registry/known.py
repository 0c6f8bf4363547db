"""What the tests of replicas announce, and what they see of it."""

from __future__ import annotations

from pyzmp.protocol.facts import Fact, NodeFact, ServiceFact
from pyzmp.protocol.graph import View
from pyzmp.registry.replica import Replica


def facts_of(replica: Replica, name: str, *services: str) -> list[Fact]:
    member = replica.member
    node = NodeFact(name, member.id, "", ("ipc:///x",), "process", member.host, member.pid, "m.Thermometer")
    return [node, *(ServiceFact(name, service, member.id) for service in services)]


def names(view: View) -> set[str]:
    return {node.name for node in view.facts.nodes()}
