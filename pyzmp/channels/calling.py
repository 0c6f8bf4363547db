"""One call at its caller: whom it goes to, what it says, and whether it is tried again."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyzmp import runtime
from pyzmp.channels.call import running_node, serving
from pyzmp.exceptions import (
    CallError,
    CallTimeout,
    CannotTravel,
    DeadlockError,
    InvalidCall,
    MalformedMessage,
    RemoteError,
)
from pyzmp.protocol import codec
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import LANES, Flag, Lane
from pyzmp.protocol.facts import Trait
from pyzmp.protocol.outcomes import Ask, Outcome, Result, Value, closes
from pyzmp.protocol.retry import Attempts
from pyzmp.protocol.streams import Inflow
from pyzmp.sessions import Target

if TYPE_CHECKING:
    from pyzmp.channels.channel import Channel


_ODD = Trait.STREAM | Trait.DEDUPLICATE


class Calling:
    """One call of *channel*, through all of its attempts.  It begins now; raises CallTimeout as `Channel.limit` does.

    *window* is the number of items of a stream that may be under way; with *waits* it waits for room where there
    is none, as with the channel's own option.
    """

    __slots__ = ("_args", "_attempts", "_bare", "_began", "_body",
                 "_buffers", "_failed", "_flags", "_key", "_kwargs", "_last",
                 "_limit", "_waits", "_window", "channel", "here", "incoming", "source")

    def __init__(self, channel: Channel[Any, Any], args: Sequence[Any], kwargs: dict[str, Any], flags: int = 0,
                 window: int = 0, *, waits: bool = False) -> None:
        self.channel, self.here = channel, runtime.current()
        self._limit, self._began = channel.limit(self.here), time.monotonic()
        self._args, self._kwargs, self._flags, self._window = args, kwargs, flags, window
        self._attempts: Attempts | None = None
        self._last: Target | None = None
        self._body: bytes | None = None
        self._buffers: Sequence[Any] = ()
        self._key = b""
        self._bare = False  # whether it says nothing but positional arguments
        self._failed: Exception | None = None  # the attempt before
        self._waits = waits or channel.waits
        self.source: Any = None  # what the service takes as a stream
        self.incoming: Inflow | None = None  # of the latest attempt

    def another(self, args: Sequence[Any], target: Target) -> Calling:
        """The call with other arguments that was made together with this one, and first at *target*."""
        other = Calling(self.channel, args, {}, waits=self._waits)
        other._limit, other._began, other._last = self._limit, self._began, target
        return other

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        left = self._began + self._limit - time.monotonic()
        return left if left > 0 else 0.0

    def looked(self) -> Sequence[Target]:
        """The providers, waited for where that is wanted."""
        return self.channel.looked(self.left) if self.channel.waits else self.channel.found()

    @property
    def near(self) -> bool:
        """Whether `looked` does not block."""
        return not self.channel.waits and self.here.replica.view.position is not None

    async def alooked(self) -> Sequence[Target]:
        """As `looked`, without blocking while it waits."""
        return await self.channel.alooked(self.left)

    def attempt(self, targets: Sequence[Target], *, blocking: bool) -> tuple[Target, Ask]:
        """Whom to ask now, and what, checked as far as the caller can.

        Raises UnknownService, InvalidCall, CannotTravel, and DeadlockError where no provider could answer.
        """
        chain: tuple[Lane, ...] = ()
        if self._attempts is None and serving.get() is None and not (blocking and asyncio._get_running_loop()):
            target = self.channel.turn(targets)  # nothing is held up, as with most calls
        else:
            target, chain = self._chosen(targets, blocking)
        if self._body is None:
            self._say(target)
        self._last = target
        if self._flags & Flag.STREAM:
            self.incoming = Inflow(*((self._window,) if self._window else ()))
            chain = ()  # who will wait for items is not known
        return target, Ask(target.node, self.channel.name, self._body or b"", self._buffers,
                           Deadline(self._began + self._limit), self._limit, target.incarnation, self._flags, chain,
                           self._key, self._waits, self.incoming, 1, self._bare)

    def again(self, error: Exception) -> float | None:
        """The seconds to wait before the next attempt; None where *error* is the outcome, and `finished` raises it."""
        if self._last is None or self.source is not None:
            return None
        if self._attempts is None:
            policy = self.channel.policy(self._last, waits=self._waits)
            self._attempts = Attempts(policy, self.here.budget(self.channel.name))
            self._attempts.begin(self._last.node)
        targets = self.channel.seen()
        if not targets and not self.channel.waits:
            return None
        self._failed = error
        others = any(target.node not in self._attempts.tried for target in targets)
        return self._attempts.after(error, others, self.left, random.random())

    def finished(self, outcome: Outcome) -> Any:
        """The result, or its error raised, in the caller's own thread."""
        if not isinstance(outcome, Result):
            raise self.concluded(outcome)
        if self.here.budgets:
            self.here.budget(self.channel.name).earn()
        if type(outcome) is not Value:
            return self.value(outcome.body, outcome.buffers)
        value = outcome.value
        return value if type(value) in self.channel.plain.gives else self.promised(value)

    def concluded(self, error: Exception) -> Exception:
        """The error of the last attempt, as the call's: it tells of those before."""
        return error if self._attempts is None else self._attempts.final(error)

    def value(self, body: bytes, buffers: Sequence[Any]) -> Any:
        """What a node sent, as the service promises it."""
        try:
            return self.promised(codec.decode(body, buffers))
        except MalformedMessage as error:
            raise self._malformed(error) from error

    def promised(self, value: Any) -> Any:
        """What a node sent, decoded, as the service promises it."""
        if type(value) in self.channel.plain.gives:
            return value
        signature = self.channel.signature
        try:
            return value if signature is None else signature.convert_result(self.channel.name, value)
        except MalformedMessage as error:
            raise self._malformed(error) from error

    def _malformed(self, error: MalformedMessage) -> RemoteError:
        name = self.channel.name
        return RemoteError("MalformedMessage", f"the result of {name}() is not what it promises: {error}", service=name)

    # Whom.

    def _chain(self, blocking: bool) -> tuple[Lane, ...]:
        """The loops that are held up until this call has ended."""
        outer = serving.get()
        chain = outer.waiting if outer is not None else ()
        lane = self.here.lane() if blocking else ""
        if not lane:
            return chain
        node = running_node.get()
        what = (f"{outer.service}() of {outer.node!r}" if outer is not None and not outer.over else
                f"node {node.name!r}" if node is not None else "code on a loop with nodes")
        return (*chain, Lane(lane, what))[-LANES:]

    def _chosen(self, targets: Sequence[Target], blocking: bool) -> tuple[Target, tuple[Lane, ...]]:
        """Whom to ask, and the loops that are held up until that has answered."""
        chain = self._chain(blocking)
        try:
            target = self._free(targets, chain, blocking)
        except CallError:
            if self._failed is None:
                raise
            raise self.concluded(self._failed) from None
        if self._attempts is not None:
            self._attempts.begin(target.node)
        return target, chain

    def _free(self, targets: Sequence[Target], chain: tuple[Lane, ...], blocking: bool) -> Target:
        if self._attempts is not None:
            targets = self._untried(targets, self._attempts)
        target = self.channel.turn(targets, again=self._attempts is not None)
        if not chain and not (blocking and self.here.in_own_thread):
            return target
        others = [other for other in targets if not self._stuck(other, chain, blocking)]
        if others:
            return self.channel.turn(others, again=True)
        raise self._deadlock(target, closes(chain, target.loop))

    def _untried(self, targets: Sequence[Target], attempts: Attempts) -> Sequence[Target]:
        if attempts.same and self._last is not None:
            return [target for target in targets if target.node == self._last.node
                    and target.incarnation == self._last.incarnation]
        return [target for target in targets if target.node not in attempts.tried] or targets

    def _stuck(self, target: Target, chain: tuple[Lane, ...], blocking: bool) -> bool:
        return bool(closes(chain, target.loop)) or (blocking and self.here.in_own_thread)

    def _deadlock(self, target: Target, circle: Sequence[Lane]) -> DeadlockError:
        name = f"{self.channel.name}() of {target.node!r}"
        if circle and not self.here.runs(target.loop):
            waits = ", which waits for ".join(lane.what for lane in circle)
            text = (f"a call of {name} would close a circle: {waits}, which would wait for {name} on the loop that "
                    f"{circle[0].what} holds up; make that async, or worker=True")
        else:
            text = (f"a blocking call of {name} on the very loop that serves it would never end; "
                    "write await ….acall(…)" if circle else
                    f"a blocking call of {name} from a callback in pyzmp's own thread, which must not block, would "
                    "never end; make it elsewhere")
        error = DeadlockError(text, service=self.channel.name, node=target.node)
        error.circle = tuple(lane.what for lane in circle)
        return error

    # What.

    def _say(self, target: Target) -> None:
        """Encode the arguments, checked as far as the caller can."""
        if not (self._kwargs or self._flags or target.traits & _ODD):
            self._body = self.channel.plain.body(self._args)
            if self._body is not None:
                self._bare = True
                return
        name, signature = self.channel.name, self.channel.signature
        if (target.traits & Trait.STREAM != 0) is not (self._flags & Flag.STREAM != 0):
            streams = bool(target.traits & Trait.STREAM)
            how = (f"{name}() is a stream: iterate over it, in for or in async for" if streams else
                   f"{name}() is no stream, but has one result")
            raise InvalidCall(how, service=name, node=target.node)
        args, kwargs = list(self._args), self._kwargs
        if signature is not None:
            signature.check(name, args, kwargs)
        if signature is None or signature.takes is not None:
            at = _stream_among(args, kwargs) if signature is None else signature.stream_at(args, kwargs)
            if at is not None:
                if self._flags & Flag.ONE_WAY:
                    raise InvalidCall(f"{name}() takes a stream, which a one-way call cannot send; give it a list, or "
                                      "use submit", service=name, node=target.node)
                given: Any = kwargs if isinstance(at, str) else args
                self.source, given[at] = given[at], None
                self._flags |= Flag.UPSTREAM
        try:
            self._body, self._buffers = codec.encode([args, kwargs], "arguments")
        except CannotTravel as error:
            raise _named(error, name) from error
        if target.traits & Trait.DEDUPLICATE:
            self._key = os.urandom(16)
        self._bare = not (self._key or kwargs or self._buffers or self._flags)


def _stream_among(args: list[Any], kwargs: dict[str, Any]) -> int | str | None:
    """Which argument is a stream, as far as can be told without a signature: an iterator."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return next((at for at, value in given
                 if hasattr(type(value), "__next__") or hasattr(type(value), "__anext__")), None)


def _named(error: CannotTravel, service: str) -> CannotTravel:
    """The error about an argument, in the words of whoever gave it: ``arguments[0][1]`` is the second one."""
    found = re.fullmatch(r"arguments\[(0|1)\]\[(.*?)\](.*)", error.path, re.DOTALL)
    if found is None:
        return error
    name = found[2] if found[1] == "1" else f"{int(found[2]) + 1}"
    return CannotTravel(error.type_name, f"{service}(): argument {name}{found[3]}", error.reason)


def crossed(error: CallTimeout, other: str) -> CallTimeout:
    """*error*, where the other side was waiting for this one: *other* says for what."""
    return CallTimeout(f"{error}; {error.node!r} was itself waiting for {other}, so neither could answer",
                       service=error.service, node=error.node, executed=error.executed)
