"""How the parameter of another node is set, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyzmp import runtime
from pyzmp.channels.channel import knowledge
from pyzmp.channels.service import Service
from pyzmp.exceptions import Refused, UnknownService
from pyzmp.protocol import outcomes
from pyzmp.protocol.facts import ParameterFact
from pyzmp.protocol.index import GROUP, Facts
from pyzmp.sessions import Target


def unknown(node: str, name: str, facts: Facts) -> UnknownService:
    """The error that there is no such parameter, with what there is instead."""
    here, names = runtime.current(), [known.name for known in facts.nodes()]
    found = facts.node(node)
    if found is not None and found.kind == GROUP:
        members = [member.name for member in facts.members(node) if facts.parameter(member.name, name) is not None]
        text = f"{node!r} is a group, which has no parameters of its own; " + (
            f"ask a member, such as {min(members)!r}" if members else f"none of its members has {name!r} either")
    elif found is None:
        where = f"in domain {here.settings.domain!r} {knowledge(here)}"
        text = outcomes.unknown(node, names, where).replace("nobody provides", "there is no node", 1)
    else:
        others = [fact.name for fact in facts.parts(node) if isinstance(fact, ParameterFact)]
        text = outcomes.unknown(name, others, f"in node {node!r}")
        text = text.replace("nobody provides", "there is no parameter", 1)
    return UnknownService(text, service=name, node=node)


class Setting(Service[..., Any]):
    """The service by which a node is asked to set a parameter; the graph has the parameter instead of it."""

    def _among(self, here: runtime.Runtime, facts: Facts) -> Sequence[Target]:
        name = self.name.partition("/")[0]
        node, fact = facts.node(self.node or ""), facts.parameter(self.node or "", name)
        if fact is not None and not fact.settable:
            raise Refused(f"{name} of {self.node!r} is not settable: its class declares it with settable=False, and "
                          "only the node itself sets it", service=f"{name}.set", node=self.node)
        return [] if node is None or fact is None else [here.target(node)]

    def unknown(self) -> UnknownService:
        return unknown(self.node or "", self.name.partition("/")[0], runtime.current().replica.view.facts)
