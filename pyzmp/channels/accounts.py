"""Asking the publishers of a topic what became of what they have published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyzmp import runtime
from pyzmp.channels.selection import Selection
from pyzmp.channels.service import Service
from pyzmp.exceptions import UnknownService
from pyzmp.protocol.accounts import SubscriberAccount, accounts
from pyzmp.protocol.index import Facts
from pyzmp.publisher import Publisher
from pyzmp.publishing import ACCOUNTS
from pyzmp.sessions import Target


class Asking:
    """A question to all publishers that a *selection* selects.  Of *mine* the graph may not have heard yet."""

    def __init__(self, selection: Selection, timeout: float | None, mine: Publisher | None) -> None:
        self._selection, self._timeout, self._mine = selection, timeout, mine

    def all(self) -> list[SubscriberAccount]:
        """What they say.  Raises UnknownService where there are none, and what calls raise."""
        runtime.current().facts()
        futures = [asked.submit() for asked in self._services()]
        return [account for future in futures for account in accounts(future.result())]

    async def aall(self) -> list[SubscriberAccount]:
        """As `all`, in a coroutine."""
        await runtime.current().alook()
        found: list[SubscriberAccount] = []
        for asked in self._services():
            found += accounts(await asked.acall())
        return found

    def _services(self) -> list[Service[..., Any]]:
        said = self._selection
        facts = runtime.current().replica.view.facts.selected(name=said.pattern, mark=said.mark, node=said.node)
        if not facts and (self._mine is None or self._mine.over):
            raise UnknownService(f"nobody publishes {said.text}", service=said.text, node=said.node or None)
        services = [_OfPublisher(f"{fact.topic}{ACCOUNTS}", node=fact.node) for fact in facts]
        return [each if self._timeout is None else each.with_options(timeout=self._timeout) for each in services]


class _OfPublisher(Service[..., Any]):
    """The service by which one publisher is asked; the graph has the publisher instead of it."""

    def _among(self, here: runtime.Runtime, facts: Facts) -> Sequence[Target]:
        node = facts.node(self.node or "")
        return [] if node is None else [here.target(node)]
