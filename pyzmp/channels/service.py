"""Services as their callers hold them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures._base import PENDING
from typing import Any, ParamSpec, TypeVar

from typing_extensions import Self, deprecated

from pyzmp.channels.calling import Calling, crossed
from pyzmp.channels.channel import Channel, Declared
from pyzmp.channels.future import CallFuture
from pyzmp.channels.stream import Mapped, Stream
from pyzmp.channels.streaming import StreamService
from pyzmp.channels.together import Many, begin
from pyzmp.channels.upload import afeed, feed
from pyzmp.exceptions import CallTimeout, NodeDied
from pyzmp.protocol.arrays import is_numpy
from pyzmp.protocol.deadline import seconds
from pyzmp.protocol.envelope import Flag
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.outcomes import Ask, Event, Outcome
from pyzmp.sessions import ENDED, Begun, Target

__all__ = ["Declared", "Service", "by_name", "discover_by_name"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

HOUR = 3600.0  # what pyzmp 0.0.17's timeouts of None and -1 mean here
_STILL = frozenset({list, tuple, range, set, frozenset, dict, str, bytes})  # to iterate them changes nothing in them


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
            targets = calling.looked()
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
        calling = _Submitted(self, args, kwargs)
        return calling.begin(calling.looked())

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the service and await the answer."""
        calling = Calling(self, args, kwargs)
        while True:
            target, ask = calling.attempt(calling.looked() if calling.near else await calling.alooked(), blocking=False)
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
        calling.here.sessions.post(*calling.attempt(calling.looked(), blocking=False))

    def map(self, *iterables: Iterable[Any]) -> Stream[R_co]:
        """Call the service once for each set of arguments; the results, in order, for ``for`` or ``async for``.

        Arguments are taken as by the built-in `map`, some ahead of the results: the more results were
        taken, the more calls are under way at once, over all providers.  Each has its own deadline,
        from when it is begun, and waits for room at its provider within it.
        """
        if not iterables:
            raise TypeError(f"map() of {self.name}() takes one iterable for each argument, got none")
        still = all(type(each) in _STILL or is_numpy(type(each)) for each in iterables)
        return Mapped(self._mapped, self._amapped, iter(zip(*iterables, strict=False)), self._together, self._atogether,
                      still=still)

    def _mapped(self, *args: Any) -> Future[Any]:
        """As `submit`, but that it waits for room."""
        calling = _Submitted(self, args, {}, waits=True)
        return calling.begin(calling.looked())

    async def _amapped(self, *args: Any) -> Future[Any]:
        """As `_mapped`, without blocking while it waits for a provider."""
        calling = _Submitted(self, args, {}, waits=True)
        return calling.begin(await calling.alooked())

    def _together(self, arguments: Sequence[Sequence[Any]]) -> Many | None:
        """Make a call for each of the *arguments*; None where they are to be made one by one."""
        first = Calling(self, arguments[0], {}, waits=True)
        return begin(self, arguments, first, first.looked(), _Submitted.after)

    async def _atogether(self, arguments: Sequence[Sequence[Any]]) -> Many | None:
        """As `_together`, without blocking while it waits for a provider."""
        first = Calling(self, arguments[0], {}, waits=True)
        return begin(self, arguments, first, await first.alooked(), _Submitted.after)

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


class _Submitted(CallFuture[Any], Calling):
    """A call that was begun by `Service.submit`, through its attempts, and its future.

    It goes on in the runtime's thread.

    One object, which nothing holds in a circle: what is made for each of many calls costs more than what they do.
    """

    __slots__ = ("_begun", "_pending", "_report", "_result", "_state")

    def __init__(self, channel: Service[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *,
                 waits: bool = False) -> None:
        Calling.__init__(self, channel, args, kwargs, waits=waits)
        self._under_way()

    def _under_way(self) -> None:
        self._pending, self._state = self.here.sessions.futures, PENDING
        self._begun: Begun | None = None
        self._report = None

    def begin(self, targets: Sequence[Target]) -> Self:
        """Make the first attempt; raises as `attempt` does."""
        target, ask = self.attempt(targets, blocking=False)
        self._pending.add(self)
        if self.source is None:
            self._begin(target, ask)
        else:
            threading.Thread(target=self._feed, args=(target, ask), name="pyzmp-upload", daemon=True).start()
        return self

    @classmethod
    def after(cls, calling: Calling, error: Exception) -> Future[Any]:
        """The future of a call whose first attempt has ended with *error*."""
        self = cls.__new__(cls)
        for name in Calling.__slots__:
            setattr(self, name, getattr(calling, name))
        self._under_way()
        self._pending.add(self)
        self._done(error)
        return self

    _finish_call = Calling.finished

    def _waits_for_us(self) -> bool:
        return self._last is not None and self.here.runs(self._last.loop)

    def give_up(self) -> None:
        if self._begun is not None:
            self.here.sessions.give_up(self._begun)

    def _begin(self, target: Target, ask: Ask) -> None:
        self._begun = self.here.sessions.submit(target, ask, self._done)
        if self._gave_up:
            self.give_up()

    def _feed(self, target: Target, ask: Ask) -> None:
        try:
            outcome = feed(self, target, ask, self)
        except BaseException as error:
            self.fail(error)
        else:
            self.settle(outcome)

    def _done(self, outcome: Event) -> None:
        if isinstance(outcome, Exception) and not self.cancelled():
            pause = self.again(outcome)
            if pause is not None:
                before = outcome
                self.here.sessions.later(pause, lambda: self._again(before), self._never)
                return
            outcome = self.concluded(outcome)
        self.settle(outcome)

    def _again(self, before: Exception) -> None:
        """Make the next attempt, unless the caller has cancelled meanwhile."""
        if self.cancelled():
            self.settle(self.concluded(before))
            return
        try:
            self._begin(*self.attempt(self.channel.seen(), blocking=False))
        except Exception as error:  # nobody provides it any more
            self.settle(error)

    def _never(self) -> None:
        """There is no next attempt, because the runtime ends."""
        name = self.channel.name
        self.settle(self.concluded(NodeDied(f"{ENDED} before {name}() was called again", service=name,
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
