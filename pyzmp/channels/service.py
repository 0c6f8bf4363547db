"""Services as their callers hold them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec
from typing_extensions import Self, deprecated

from pyzmp import runtime
from pyzmp.channels.call import serving
from pyzmp.channels.future import CallFuture
from pyzmp.channels.stream import Mapped, Stream
from pyzmp.exceptions import CallTimeout, CannotTravel, DeadlockError, MalformedMessage, RemoteError, UnknownService
from pyzmp.protocol import codec
from pyzmp.protocol.calls import Ask, Outcome, Result, unknown
from pyzmp.protocol.deadline import Deadline, seconds
from pyzmp.protocol.facts import Member, Provider
from pyzmp.protocol.graph import Facts
from pyzmp.protocol.schema import Signature
from pyzmp.sessions import Target

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

# What the graph said last, who of that fits, and the member that looked.
_Known = tuple[tuple[Provider, ...] | None, Sequence[Target], Member | None]
_NOTHING: _Known = None, (), None

HOUR = 3600.0  # what pyzmp 0.0.17's timeouts of None and -1 mean here


class Declared(msgspec.Struct, frozen=True):
    """What a caller knows of a service from the class that declares it."""

    cls: str  # the qualified name of that class
    signature: Signature
    timeout: float | None = None

    @property
    def mark(self) -> str:
        """What providers announce for each class that declares the service, to be told from others of the same name."""
        return f"{self.cls}:{self.signature.fingerprint}"


class Service(Generic[P, R_co]):
    """A service, for its callers: every live provider of it, or that of one node.

    A lazy value without sockets: it can be kept, sent to other processes, and used by any thread.
    Calls go to the live providers in turn.  A call ends with its result or with an error of
    `pyzmp.exceptions`, at the latest when its timeout (5 s by default) is over; a call that is made
    inside a service ends with the call that it serves.  Errors that the service raised keep their type
    where the caller has it.
    """

    def __init__(self, name: str, *, node: str | None = None, declared: Callable[[], Declared] | None = None) -> None:
        self._name = name
        self.node = node
        self._declaration = declared
        self._timeout: float | None = None
        self._wait = False
        self._known: _Known = _NOTHING  # replaced as a whole, so that threads never see half of it
        self._turn = int.from_bytes(os.urandom(2), "big")  # so that callers do not all begin with the same

    @property
    def name(self) -> str:
        """The name that callers find it by; assigning another makes this another service, as in pyzmp 0.0.17."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name, self._known = name, _NOTHING

    # Calling.

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the service and block until it has answered.

        Raises DeadlockError at once where the answer would have to come from the loop that blocks.
        """
        limit, began = self._limit(), time.monotonic()
        here = runtime.current()
        target = self._next(self._looked(limit), here)
        ask = self._ask(target, args, kwargs, limit, began)
        return self._finish(here.sessions.ask(target, ask))  # type: ignore[no-any-return]

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R_co]:
        """Begin a call; its future.

        Arguments that do not fit, and a service that nobody provides, raise here.  Callbacks of the
        future run in a thread of pyzmp's and must not block.  To wait for it on the loop that is to
        answer raises DeadlockError.
        """
        limit, began = self._limit(), time.monotonic()
        return self._submitted(self._looked(limit), args, kwargs, limit, began)

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the service and await the answer."""
        limit, began = self._limit(), time.monotonic()
        target = self._next(await self._alooked(limit))
        ask = self._ask(target, args, kwargs, limit, began)
        return self._finish(await runtime.current().sessions.acall(target, ask))  # type: ignore[no-any-return]

    def map(self, *iterables: Iterable[Any]) -> Stream[R_co]:
        """Call the service once for each set of arguments; the results, in order, for ``for`` or ``async for``.

        Arguments are taken as by the built-in `map`, some ahead of the results: the more results were
        taken, the more calls are under way at once, over all providers.  Each has its own deadline,
        from when it is sent.
        """
        return Mapped(self.submit, self._asubmit, iter(zip(*iterables, strict=False)))

    def with_options(self, *, timeout: float | None = None, wait: bool | None = None) -> Self:
        """The same service with other options for its calls.

        *timeout* is how long a call may take, in seconds.  With *wait*, a call waits for a provider
        where there is none, within its timeout.
        """
        other = self.copy()
        if timeout is not None:
            other._timeout = seconds(timeout)
        if wait is not None:
            other._wait = wait
        return other

    @deprecated("pyzmp 0.0.17's spelling: write service(...)", category=None)
    def call(self, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None, node: str | None = None,
             send_timeout: float | None = 1000, recv_timeout: float | None = 5000, zmq_ctx: Any = None) -> Any:
        """Call the service as pyzmp 0.0.17 did: *args* a tuple, *kwargs* a dict, the timeouts in milliseconds.

        *recv_timeout* is the whole call's; *send_timeout* is how long it may wait for a provider, None
        or -1 an hour for either.  *node* is the provider to ask.  *zmq_ctx* is not needed any more.
        """
        _check_old_form(args, kwargs)
        other = self.copy(node=node if node is not None else self.node)
        other._timeout = _milliseconds(recv_timeout)
        if not other.found() and node is None:
            other.discovered(min(_milliseconds(send_timeout), other._timeout))
        return other(*(args or ()), **(kwargs or {}))

    # Who provides it.

    @property
    def providers(self) -> list[tuple[str, str]]:
        """The live providers, as (name of the node, its address)."""
        return [(target.node, target.shown) for target in self.found()]

    @staticmethod
    def discover(name: str, timeout: float | None = None, minimum_providers: int = 1) -> Service[..., Any] | None:
        """As `pyzmp.discover` with a name."""
        return discover_by_name(name, timeout, minimum_providers)

    def found(self) -> Sequence[Target]:
        """The live providers as this process knows them, without waiting but for its very first look."""
        here = runtime.current()
        return self._among(here, here.facts())

    def seen(self) -> Sequence[Target]:
        """As `found`, without any look."""
        here = runtime.current()
        return self._among(here, here.replica.view.facts)

    def _among(self, here: runtime.Runtime, facts: Facts) -> Sequence[Target]:
        providers = facts.providers(self.name) if self.node is None else facts.provider(self.node, self.name)
        known = self._known
        # Of another runtime, such as a forked child's parent's, the targets may be out of reach.
        if known[2] is not here.member or (known[0] is not providers and known[0] != providers):
            fitting = [here.target(node) for node, fact in providers if self._fits(fact.classes)]
            known = self._known = providers, fitting, here.member
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
        others = facts.providers(self.name)
        where = f"in domain {here.settings.domain!r} ({len(facts.nodes())} nodes known)"
        if self.node is not None and facts.node(self.node) is None:
            names = [node.name for node in facts.nodes()]
            text = unknown(self.node, names, where).replace("nobody provides", "there is no node", 1)
        elif self.node is not None and not any(node.name == self.node for node, _ in others):
            text = unknown(self.name, [fact.name for fact in facts.services_of(self.node)], f"in node {self.node!r}")
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
        return f"<Service {self.name}{shown}{': ' if nodes else ''}{', '.join(sorted(nodes))}>"

    # How.

    def _looked(self, limit: float) -> Sequence[Target]:
        """The providers; waited for, at most *limit* seconds, where that is wanted."""
        if not self._wait:
            return self.found()
        self.discovered(limit)
        return self.seen()

    async def _alooked(self, limit: float) -> Sequence[Target]:
        """As `_looked`, in a coroutine."""
        await (self.adiscovered(limit) if self._wait else runtime.current().alook())
        return self.seen()

    def _next(self, targets: Sequence[Target], blocked: runtime.Runtime | None = None) -> Target:
        """Whose turn it is; for a thread of the runtime *blocked* that will block, of those that can answer then."""
        if not targets:
            raise self.unknown()
        self._turn = turn = self._turn + 1
        target = targets[turn % len(targets)]
        if blocked is None or not blocked.runs(target.loop):
            return target
        others = [other for other in targets if not blocked.runs(other.loop)]
        if not others:
            raise DeadlockError(f"a blocking call of {self.name}() of {target.node!r} on the very loop that serves it "
                                f"would never end; write await ….acall(…)", service=self.name, node=target.node)
        return others[turn % len(others)]

    def _ask(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], limit: float, began: float) -> Ask:
        """What *target* is asked, checked as far as the caller can; to end *limit* seconds after the call *began*."""
        if self._declaration is not None:
            self._declaration().signature.check(self.name, args, kwargs)
        try:
            body, buffers = codec.encode([list(args), kwargs], "arguments")
        except CannotTravel as error:
            raise _named(error, self.name) from error
        return Ask(target.node, self.name, body, buffers, Deadline.after(limit, began), limit, target.incarnation)

    def _submitted(self, targets: Sequence[Target], args: tuple[Any, ...], kwargs: dict[str, Any], limit: float,
                   began: float) -> CallFuture:
        target, here = self._next(targets), runtime.current()
        ask = self._ask(target, args, kwargs, limit, began)
        future = CallFuture(self._finish, lambda: here.runs(target.loop), here.sessions.futures)
        begun = here.sessions.submit(target, ask, future.settle)
        future.give_up = lambda: here.sessions.give_up(begun)
        return future

    async def _asubmit(self, *args: Any) -> Future[Any]:
        """As `submit`, without blocking while it waits for a provider."""
        limit, began = self._limit(), time.monotonic()
        return self._submitted(await self._alooked(limit), args, {}, limit, began)

    def _limit(self) -> float:
        """How long a call may take: its timeout, or what is left of the call that is being served here.

        Raises CallTimeout where that is nothing.
        """
        timeout = self._timeout
        if timeout is None and self._declaration is not None:
            timeout = self._declaration().timeout
        if timeout is None:
            timeout = runtime.current().settings.timeout
        outer = serving.get()
        if outer is None or outer.over:
            return timeout
        left = outer.remaining
        if not left:
            raise CallTimeout(f"{self.name}() was not called: nobody waits any more for {outer.service}() of "
                              f"{outer.node!r}, which calls it", service=self.name, node=self.node, executed=False)
        return min(timeout, left)

    def _finish(self, outcome: Outcome) -> Any:
        """The result, or its error raised, in the caller's own thread."""
        if not isinstance(outcome, Result):
            raise outcome
        try:
            value = codec.decode(outcome.body, outcome.buffers)
            if self._declaration is not None:
                value = self._declaration().signature.convert_result(self.name, value)
            return value
        except MalformedMessage as error:
            raise RemoteError("MalformedMessage", f"the result of {self.name}() is not what it promises: {error}",
                              service=self.name) from error

    def _fits(self, marks: tuple[str, ...]) -> bool:
        return self._declaration is None or self._declaration().mark in marks

    def _enough(self, count: int) -> Callable[[], bool]:
        return lambda: len(self.seen()) >= count

    def copy(self, **changes: Any) -> Self:
        """The same service as a value of its own, for another *node* if that is given."""
        other = type(self)(self.name, node=changes.get("node", self.node), declared=self._declaration)
        other._timeout, other._wait = self._timeout, self._wait
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": _NOTHING}


def discover_by_name(name: str, timeout: float | None = None, minimum_providers: int = 1) -> Service[..., Any] | None:
    """The service *name*, or ``node/name``: waits until so many provide it; None where nobody does."""
    found = by_name(name)
    return found if found.discovered(timeout, minimum_providers) or found.seen() else None


def by_name(name: Any) -> Service[..., Any]:
    """The service that *name* means: of every provider, or ``node/name`` for that of one node."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"discover() takes a service such as Class.method, or the name of one, got {name!r}")
    node, _, attribute = name.rpartition("/")
    return Service(attribute, node=node or None)


def _check_old_form(args: object, kwargs: object) -> None:
    """Raise TypeError where the arguments of 0.0.17's ``Service.call`` are those of the service itself."""
    for given, expected in ((args, (tuple, list)), (kwargs, dict)):
        if given is not None and not isinstance(given, expected):
            raise TypeError(f"Service.call() takes a tuple of arguments and a dict of keywords, got {given!r}; "
                            f"write service({given!r}), or service.call(({given!r},))")


def _named(error: CannotTravel, service: str) -> CannotTravel:
    """The error about an argument, in the words of whoever gave it: ``arguments[0][1]`` is the second one."""
    found = re.fullmatch(r"arguments\[(0|1)\]\[(.*?)\](.*)", error.path, re.DOTALL)
    if found is None:
        return error
    name = found[2] if found[1] == "1" else f"{int(found[2]) + 1}"
    return CannotTravel(error.type_name, f"{service}(): argument {name}{found[3]}", error.reason)


def _milliseconds(timeout: float | None) -> float:
    return HOUR if timeout is None or timeout == -1 else seconds(timeout / 1000)


