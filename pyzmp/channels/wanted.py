"""What is waited for in the graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from typing import Any, Generic, NoReturn, TypeVar

from pyzmp import runtime
from pyzmp.channels.channel import Channel, count, knowledge
from pyzmp.exceptions import DeadlockError, RegistryUnavailable
from pyzmp.protocol.outcomes import unknown

G = TypeVar("G", bound=Container[Any])


class Wanted(Generic[G]):
    """What somebody waits for: the name of a node, a service of so many *providers*, or a condition of a snapshot.

    ``here`` is the runtime whose changes may bring it.  Raises TypeError and ValueError for what cannot be waited for.
    """

    def __init__(self, what: Any, providers: int, snapshot: Callable[[runtime.Runtime], G]) -> None:
        if not isinstance(what, str) and not callable(what):
            raise TypeError(f"what to wait for: expected the name of a node, a service or a condition, got {what!r}")
        self._what, self._providers = what, count(providers, "providers")
        if self._providers > 1 and not isinstance(what, Channel):
            raise TypeError(f"providers: {providers} of what? It is for a service such as Class.method, got {what!r}")
        self._failed: LookupError | None = None
        self._snapshot, self.here = snapshot, runtime.current()
        self.graph: G | None = None

    def check_waiting(self) -> None:
        """Raise DeadlockError where it is not there, and to block holds up what may bring it."""
        if self.here.holds_up and not self.holds():
            raise DeadlockError(f"to wait here for {self._what!r} holds up the loop that runs here, with the nodes on "
                                "it; write await pyzmp.graph.await_for(…)")

    def holds(self) -> bool:
        """Whether it is there; then so is ``graph``."""
        here = self.here
        if isinstance(self._what, Channel):
            found = len(self._what.seen(here)) >= self._providers
        else:
            found = not isinstance(self._what, str) or here.replica.view.facts.node(self._what) is not None
        if not found:  # known without a snapshot
            return False
        graph = self._snapshot(here)
        if isinstance(self._what, str):
            found = self._what in graph
        elif not isinstance(self._what, Channel):
            found = self._condition(graph)
        if found:
            self.graph = graph
        return found

    def _condition(self, graph: G) -> bool:
        try:
            said = self._what(graph)
        except LookupError as error:  # such as that of a node which is not there yet
            self._failed = error
            return False
        self._failed = None
        if inspect.isawaitable(said):
            if inspect.iscoroutine(said):
                said.close()
            raise TypeError(f"what to wait for: {self._what!r} is async; a condition is a plain function of a graph")
        return bool(said)

    def missing(self, timeout: float) -> NoReturn:
        here = self.here
        if here.closed:
            raise RegistryUnavailable(f"pyzmp has ended in this process while it waited for {self._what!r}")
        names = [node.name for node in here.replica.view.facts.nodes()]
        where = f"in domain {here.settings.domain!r} after {timeout:g} s {knowledge(here)}"
        if isinstance(self._what, str):
            raise TimeoutError(unknown(self._what, names, where).replace("nobody provides", "there is no node", 1))
        if isinstance(self._what, Channel):
            found = len(self._what.seen(here))
            raise TimeoutError(f"{found} of the {self._providers} providers that were asked for provide "
                               f"{self._what.name!r} {where}")
        why = "" if self._failed is None else f": {self._failed}"
        raise TimeoutError(f"what was waited for, {self._what!r}, does not hold {where}{why}") from self._failed
