"""What is said where nobody publishes what a subscription is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyzmp.channels.channel import knowledge
from pyzmp.protocol.facts import PublisherFact
from pyzmp.protocol.outcomes import unknown

if TYPE_CHECKING:
    from pyzmp import runtime
    from pyzmp.channels.selection import Selection


def nobody(here: runtime.Runtime, selection: Selection) -> str:
    """That nobody publishes it, as far as this process knows, with what is known instead.  For any thread."""
    facts, where = here.replica.view.facts, f"in domain {here.settings.domain!r} {knowledge(here)}"
    if selection.node and facts.node(selection.node) is None:
        names = [node.name for node in facts.nodes()]
        return unknown(selection.node, names, where).replace("nobody provides", "there is no node", 1)
    topics = {fact.topic for fact in facts.all() if isinstance(fact, PublisherFact)}
    if selection.text in topics:
        return f"what publishes {selection.text!r} {where} is not {selection.mark or 'that'}"
    return unknown(selection.text, topics, where).replace("provides", "publishes", 1)
