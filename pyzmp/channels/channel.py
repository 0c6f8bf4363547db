"""What all services are for their callers: who provides them, and how calls of them are chosen and bounded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec
from msgspec.structs import replace
from typing_extensions import Self

from pyzmp import runtime
from pyzmp.channels.call import serving
from pyzmp.exceptions import CallTimeout, RegistryUnavailable, UnknownService
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.facts import Member, Provider, Trait
from pyzmp.protocol.index import GROUP, Facts
from pyzmp.protocol.outcomes import unknown
from pyzmp.protocol.retry import Policy
from pyzmp.protocol.rows import Plain
from pyzmp.protocol.schema import Signature
from pyzmp.sessions import Target

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

# What the graph said last, who of that fits, the member that looked, and the version of the facts that it looked at.
_Known = tuple[tuple[Provider, ...] | None, Sequence[Target], Member | None, object]
_NOTHING: _Known = None, (), None, None


class Declared(msgspec.Struct, frozen=True):
    """What a caller knows of a service from the class that declares it."""

    cls: str  # the qualified name of that class
    signature: Signature
    timeout: float | None = None
    traits: int = 0  # bits of `Trait`

    @property
    def mark(self) -> str:
        """What providers announce for each class that declares the service, to be told from others of the same name."""
        return f"{self.cls}:{self.signature.fingerprint}"


class Channel(Generic[P, R_co]):
    """A service, for its callers: every live provider of it, or that of one node.

    A lazy value without sockets: it can be kept, sent to other processes, and used by any thread.
    """

    def __init__(self, name: str, *, node: str | None = None, declared: Callable[[], Declared] | None = None) -> None:
        self._name, self._node = name, node
        self._declaration = declared
        self._timeout: float | None = None
        self._attempts: int | None = None
        self._wait = False
        self._plain: Plain | None = None
        self._known: _Known = _NOTHING  # replaced as a whole, so that threads never see half of it
        self._turn = int.from_bytes(os.urandom(2), "big")  # so that callers do not all begin with the same

    @property
    def name(self) -> str:
        """The name that callers find it by; assigning another makes this another service, as in pyzmp 0.0.17."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name, self._known = name, _NOTHING

    @property
    def node(self) -> str | None:
        """The name of the one node, or group, whose service it is; None for every provider's."""
        return self._node

    @node.setter
    def node(self, node: str | None) -> None:
        self._node, self._known = node, _NOTHING

    # Who provides it.

    @property
    def providers(self) -> list[tuple[str, str]]:
        """The live providers, as (name of the node, its address)."""
        return [(target.node, target.shown) for target in self.found()]

    def found(self) -> Sequence[Target]:
        """The live providers as this process knows them, without waiting but for its very first look."""
        here = runtime.current()
        facts, known = here.facts(), self._known
        return known[1] if known[3] is facts.version else self._among(here, facts)

    def seen(self, here: runtime.Runtime | None = None) -> Sequence[Target]:
        """As `found`, without any look; *here* is the runtime of this process."""
        here = here or runtime.current()
        return self._among(here, here.replica.view.facts)

    def _among(self, here: runtime.Runtime, facts: Facts) -> Sequence[Target]:
        known, version = self._known, facts.version  # before the look: what changes meanwhile is looked at again
        providers = facts.providers(self._name) if self.node is None else facts.provider(self.node, self._name)
        # Of another runtime, such as a forked child's parent's, the targets may be out of reach.
        if known[2] is not here.member or (known[0] is not providers and known[0] != providers):
            fitting = [replace(here.target(node), traits=fact.traits)
                       for node, fact in providers if self._fits(fact.classes)]
            known = providers, fitting, here.member, version
        self._known = *known[:3], version
        return known[1]

    def discovered(self, timeout: float | None, minimum_providers: int = 1) -> bool:
        """Wait until so many provide it, at most *timeout* seconds; whether they do.  Look once for None or 0."""
        enough, limit = self._enough(minimum_providers), seconds(timeout) if timeout else None
        if limit is None:
            runtime.current().facts()
        return enough() or (limit is not None and runtime.current().wait_until(enough, limit))

    async def adiscovered(self, timeout: float | None, minimum_providers: int = 1) -> bool:
        """As `discovered`, in a coroutine."""
        enough, limit = self._enough(minimum_providers), seconds(timeout) if timeout else None
        if limit is None:
            await runtime.current().alook()
        return enough() or (limit is not None and await runtime.current().await_until(enough, limit))

    def unknown(self) -> UnknownService:
        """The error that nobody provides this service, with what is known instead."""
        here = runtime.current()
        facts = here.replica.view.facts
        node = None if self.node is None else facts.node(self.node)
        others = facts.providers(self.name) if self.node is None else facts.provider(self.node, self.name)
        where = f"in domain {here.settings.domain!r} {knowledge(here)}"
        if self.node is not None and node is None:
            names = [node.name for node in facts.nodes()]
            text = unknown(self.node, names, where).replace("nobody provides", "there is no node", 1)
        elif node is not None and not others:
            within = facts.members(node.name) if node.kind == GROUP else [node]
            known = [fact.name for each in within for fact in facts.services_of(each.name)]
            number = f" ({len(within)} node{'s' * (len(within) != 1)} known)"
            whole = f"group {node.name!r}{number}" if node.kind == GROUP else f"node {node.name!r}"
            text = unknown(self.name, known, f"in {whole}")
        elif others:
            signatures = ", ".join(sorted({f"{fact.name}{fact.text} of {node.cls}" for node, fact in others}))
            mine = f" of {self._declaration().cls}" if self._declaration is not None else ""
            text = f"nobody provides {self.name!r}{mine} {where}; of the same name there is {signatures}"
        else:
            text = unknown(self.name, list(facts.services()), where)
        return UnknownService(text, service=self.name, node=self.node)

    def __repr__(self) -> str:
        shown = self._declaration().signature.text if self._declaration is not None else "(...)"
        nodes = {self.node} if self.node else set()
        if runtime.in_use():
            nodes |= {target.node for target in self.seen()}
        return f"<{type(self).__name__} {self.name}{shown}{': ' if nodes else ''}{', '.join(sorted(nodes))}>"

    # How.

    @property
    def signature(self) -> Signature | None:
        """What it takes and gives, where the caller knows it."""
        return None if self._declaration is None else self._declaration().signature

    @property
    def plain(self) -> Plain:
        """What of its arguments and results is seen at a glance."""
        if self._plain is None:
            signature = self.signature
            self._plain = Plain(None, frozenset()) if signature is None else Plain(signature.rows, signature.gives)
        return self._plain

    def policy(self, target: Target, *, waits: bool) -> Policy:
        """How often a call may be tried, which *waits* for room or not; *target* is a provider."""
        traits = target.traits if self._declaration is None else self._declaration().traits
        return Policy(self._attempts, bool(traits & Trait.IDEMPOTENT), bool(traits & Trait.DEDUPLICATE), waits)

    @property
    def waits(self) -> bool:
        """Whether its calls wait for a provider, and for room at it."""
        return self._wait

    def looked(self, limit: float) -> Sequence[Target]:
        """The providers; waited for, at most *limit* seconds, where that is wanted, as `waits` tells."""
        if not self._wait:
            return self.found()
        if limit:
            self.discovered(limit)
        return self.seen()

    async def alooked(self, limit: float) -> Sequence[Target]:
        """As `looked`, in a coroutine."""
        if not self._wait:
            await runtime.current().alook()
        elif limit:
            await self.adiscovered(limit)
        return self.seen()

    def turn(self, targets: Sequence[Target], *, again: bool = False) -> Target:
        """Whose turn it is among *targets*.  Raises UnknownService where there are none.

        Choosing *again* for one call is no turn: else the next call would begin where this one could not stay.
        """
        if not targets:
            raise self.unknown()
        self._turn = turn = self._turn + (not again)
        return targets[turn % len(targets)]

    def turns(self, calls: int) -> None:
        """Note that so many calls have had their turn without `turn`."""
        self._turn += calls

    def limit(self, here: runtime.Runtime | None = None) -> float:
        """How long a call may take: its timeout, or what is left of the call that is being served here.

        Raises CallTimeout where that is nothing.
        """
        timeout = self._timeout
        if timeout is None and self._declaration is not None:
            timeout = self._declaration().timeout
        if timeout is None:
            timeout = (here or runtime.current()).settings.timeout
        outer = serving.get()
        if outer is None or outer.over:
            return timeout
        left = outer.remaining
        if not left:
            raise CallTimeout(f"{self.name}() was not called: nobody waits any more for {outer.service}() of "
                              f"{outer.node!r}, which calls it", service=self.name, node=self.node, executed=False)
        return min(timeout, left)

    def _fits(self, marks: tuple[str, ...]) -> bool:
        return self._declaration is None or self._declaration().mark in marks

    def _enough(self, minimum: int) -> Callable[[], bool]:
        needed = count(minimum, "minimum_providers")

        def enough() -> bool:
            here = runtime.current()
            found = len(self.seen(here))
            if not found and here.replica.refusal:  # it would be waited for in vain
                raise RegistryUnavailable(here.replica.refusal)
            return found >= needed

        return enough

    def _with(self, *, timeout: float | None = None, attempts: int | None = None, wait: bool | None = None) -> Self:
        """The same service with other options for its calls."""
        other = self.copy()
        if timeout is not None:
            other._timeout = seconds(timeout)
        if attempts is not None:
            other._attempts = count(attempts, "attempts")
        if wait is not None:
            if not isinstance(wait, bool):
                raise TypeError(f"wait: expected True or False, got {wait!r}")
            other._wait = wait
        return other

    def copy(self, **changes: Any) -> Self:
        """The same service as a value of its own, for another *node* if that is given."""
        return type(self)(self.name, node=changes.get("node", self.node), declared=self._declaration)._like(self)

    def _like(self, other: Channel[Any, Any]) -> Self:
        """Take over what is set of *other*, and learn anew what is there."""
        fresh = ("_node", "_known", "_turn")
        vars(self).update({name: value for name, value in vars(other).items() if name not in fresh})
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": _NOTHING, "_plain": None}


def knowledge(here: runtime.Runtime) -> str:
    """How much this process knows, for errors: ``(3 nodes known)``, and why that is not kept up to date."""
    number, replica = len(here.replica.view.facts.nodes()), here.replica
    why = "" if replica.following else "; no registry is followed" + f": {replica.trouble}" * bool(replica.trouble)
    return f"({number} node{'s' * (number != 1)} known{why})"


def count(value: Any, what: str) -> int:
    """*value* as a number of things, 1 at least; raises TypeError and ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what}: expected a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{what}: expected 1 or more, got {value}")
    return value
