"""Services as their callers hold them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from typing_extensions import Self, deprecated

from pyzmp.channels.calling import Calling, crossed
from pyzmp.channels.channel import Channel, Declared
from pyzmp.channels.future import CallFuture
from pyzmp.channels.stream import Mapped, Stream
from pyzmp.channels.streaming import StreamService
from pyzmp.channels.upload import afeed, feed
from pyzmp.exceptions import CallTimeout, NodeDied
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.envelope import Flag
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.outcomes import Ask, Event, Outcome, Result
from pyzmp.sessions import ENDED, Target

__all__ = ["Declared", "Service", "by_name", "discover_by_name"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

HOUR = 3600.0  # what pyzmp 0.0.17's timeouts of None and -1 mean here


class Service(Channel[P, R_co]):
    """A service, for its callers: every live provider of it, or that of one node.

    A lazy value without sockets: it can be kept, sent to other processes, and used by any thread.
    Calls go to the live providers in turn.  A call ends with its result or with an error of
    `pyzmp.exceptions`, at the latest when its timeout (5 s by default) is over; a call that is made
    inside a service ends with the call that it serves.  Errors that the service raised keep their type
    where the caller has it.  A call that certainly did not run is made again at another provider, and
    that of an idempotent service also where it may have run, see `with_options`.
    """

    # Calling.

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the service and block until it has answered.

        Raises DeadlockError at once where the answer would have to come from a loop that is held up
        until this call has ended.
        """
        calling = Calling(self, args, kwargs)
        while True:
            targets = self.looked(calling.left)
            if self._declaration is None and targets and targets[0].traits & Trait.STREAM:
                return StreamService.of(self)(*args, **kwargs)  # type: ignore[return-value]
            target, ask = calling.attempt(targets, blocking=True)
            outcome = self._asked(calling, target, ask)
            if not isinstance(outcome, Exception):
                return calling.finished(outcome)  # type: ignore[no-any-return]
            pause = calling.again(outcome)
            if pause is None:
                return calling.finished(outcome)  # type: ignore[no-any-return]
            time.sleep(pause)

    @staticmethod
    def _asked(calling: Calling, target: Target, ask: Ask) -> Outcome:
        """The outcome of one attempt, for a thread that blocks."""
        here = calling.here
        if calling.source is not None:
            return feed(calling, target, ask)
        if not ask.chain or ask.chain[-1].loop != here.lane():
            return here.sessions.ask(target, ask)
        host = here.hosts[asyncio.get_running_loop()]
        with host.held_up(target.loop):
            outcome = here.sessions.ask(target, ask)
            other = host.crossing() if isinstance(outcome, CallTimeout) else None
        return crossed(outcome, other) if other is not None and isinstance(outcome, CallTimeout) else outcome

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> CallFuture[R_co]:
        """Begin a call; its future.

        Arguments that do not fit, and a service that nobody provides, raise here.  Callbacks of the
        future run in a thread of pyzmp's and must not block.  To wait for it on the loop that is to
        answer raises DeadlockError.
        """
        calling = Calling(self, args, kwargs)
        return _Submitted(calling, *calling.attempt(self.looked(calling.left), blocking=False)).future

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the service and await the answer."""
        calling = Calling(self, args, kwargs)
        while True:
            target, ask = calling.attempt(await self.alooked(calling.left), blocking=False)
            if calling.source is not None:
                outcome = await afeed(calling, target, ask)
            else:
                outcome = await calling.here.sessions.acall(target, ask)
            if not isinstance(outcome, Exception):
                return calling.finished(outcome)  # type: ignore[no-any-return]
            pause = calling.again(outcome)
            if pause is None:
                return calling.finished(outcome)  # type: ignore[no-any-return]
            await asyncio.sleep(pause)

    def post(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call the service and forget about it: there is no reply, and this does not wait for it to leave.

        Raises what is known at once, as `submit`, and Overloaded where too many such calls are under
        way.  A call that is lost later, and one that fails at its node, is logged there with the logger
        ``pyzmp.call`` or ``pyzmp.node``.  It is not begun once its timeout is over.
        """
        calling = Calling(self, args, kwargs, Flag.ONE_WAY)
        calling.here.sessions.post(*calling.attempt(self.looked(calling.left), blocking=False))

    def map(self, *iterables: Iterable[Any]) -> Stream[R_co]:
        """Call the service once for each set of arguments; the results, in order, for ``for`` or ``async for``.

        Arguments are taken as by the built-in `map`, some ahead of the results: the more results were
        taken, the more calls are under way at once, over all providers.  Each has its own deadline,
        from when it is begun, and waits for room at its provider within it.
        """
        if not iterables:
            raise TypeError(f"map() of {self.name}() takes one iterable for each argument, got none")
        return Mapped(self._mapped, self._amapped, iter(zip(*iterables, strict=False)))

    def _mapped(self, *args: Any) -> Future[Any]:
        """As `submit`, but that it waits for room."""
        calling = Calling(self, args, {}, waits=True)
        return _Submitted(calling, *calling.attempt(self.looked(calling.left), blocking=False)).future

    async def _amapped(self, *args: Any) -> Future[Any]:
        """As `_mapped`, without blocking while it waits for a provider."""
        calling = Calling(self, args, {}, waits=True)
        return _Submitted(calling, *calling.attempt(await self.alooked(calling.left), blocking=False)).future

    def with_options(self, *, timeout: float | None = None, attempts: int | None = None,
                     wait: bool | None = None) -> Self:
        """The same service with other options for its calls.

        *timeout* is how long a call may take, in seconds, with everything that follows.  *attempts* is
        how often it may be made at most.  Without it a call that did not run is made again at other
        providers, at once, 3 times in all; that of an idempotent service also where it may have run,
        and at the same provider after a pause.  With it any call that did not run is tried again, so
        often and with pauses of 50 ms to 1 s; 1 is never again.  With *wait*, a call waits for a
        provider where there is none, and for room where a node or the way to it is full.
        """
        return self._with(timeout=timeout, attempts=attempts, wait=wait)

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

    @staticmethod
    def discover(name: str, timeout: float | None = None, minimum_providers: int = 1) -> Service[..., Any] | None:
        """As `pyzmp.discover` with a name."""
        return discover_by_name(name, timeout, minimum_providers)


class _Submitted:
    """A call that was begun by `Service.submit`, through its attempts.  Goes on in the runtime's thread."""

    def __init__(self, calling: Calling, target: Target, ask: Ask) -> None:
        self._calling = calling
        here = calling.here
        self.future: CallFuture[Any] = CallFuture(calling.finished, lambda: here.runs(target.loop),
                                                  here.sessions.futures)
        if calling.source is None:
            self._begin(target, ask)
        else:
            threading.Thread(target=self._feed, args=(target, ask), name="pyzmp-upload", daemon=True).start()

    def _begin(self, target: Target, ask: Ask) -> None:
        sessions = self._calling.here.sessions
        begun = sessions.submit(target, ask, self._done)
        self.future.gives_up(lambda: sessions.give_up(begun))

    def _feed(self, target: Target, ask: Ask) -> None:
        try:
            outcome = feed(self._calling, target, ask, self.future)
        except BaseException as error:
            self.future.fail(error)
        else:
            self.future.settle(outcome)

    def _done(self, outcome: Event) -> None:
        assert isinstance(outcome, (Result, Exception))
        if isinstance(outcome, Exception) and not self.future.cancelled():
            pause = self._calling.again(outcome)
            if pause is not None:
                before = outcome
                self._calling.here.sessions.later(pause, lambda: self._again(before), self._ended)
                return
            outcome = self._calling.concluded(outcome)
        self.future.settle(outcome)

    def _again(self, before: Exception) -> None:
        """Make the next attempt, unless the caller has cancelled meanwhile."""
        if self.future.cancelled():
            self.future.settle(self._calling.concluded(before))
            return
        try:
            self._begin(*self._calling.attempt(self._calling.channel.seen(), blocking=False))
        except Exception as error:  # nobody provides it any more
            self.future.settle(error)

    def _ended(self) -> None:
        """There is no next attempt, because the runtime ends."""
        name = self._calling.channel.name
        self.future.settle(self._calling.concluded(NodeDied(f"{ENDED} before {name}() was called again", service=name,
                                                            executed=False)))


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


def _milliseconds(timeout: float | None) -> float:
    return HOUR if timeout is None or timeout == -1 else seconds(timeout / 1000)
