"""How a node runs one call: inline, as a task of its loop, or in a worker thread."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any

from pyzmp.channels.call import Call, serving
from pyzmp.exceptions import Cancelled, CannotTravel, InvalidCall, MalformedMessage
from pyzmp.guest import Guest, Provided, Workers
from pyzmp.pending import Incoming, Outgoing, Pending, arguments, taken
from pyzmp.protocol import codec
from pyzmp.protocol.envelope import Code, End, Failure, Flag, Reply
from pyzmp.protocol.facts import Trait

log = logging.getLogger("pyzmp.node")


class Serving:
    """One call that a node runs, on *loop*.  *ended* is called there once it has its answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, guest: Guest, pending: Pending,
                 ended: Callable[[Serving], object], call: Call | None = None, context: Context | None = None) -> None:
        request = pending.request
        self.guest, self.pending = guest, pending
        self._loop, self._ended = loop, ended
        self.provided: Provided = guest.services[request.service]
        self._call = call or Call(guest.name, request.service, pending.peer.hello.caller, pending.deadline,
                                  request.chain)
        self._context = context or guest.context.copy()
        self._outgoing: Outgoing | None = None
        self._incoming: Incoming | None = None
        self._task: asyncio.Task[Any] | None = None
        self._unwanted = self._call.given_up  # by its caller

    def begin(self) -> bool:
        """Begin the call, or answer that its arguments do not fit; whether it takes its first step later, as a task."""
        pending, provided = self.pending, self.provided
        try:
            args, kwargs = provided.signature.bind(provided.name, *self._arguments())
        except (InvalidCall, MalformedMessage) as error:
            self._over()
            pending.refuse(Code.INVALID_CALL, str(error), argument=getattr(error, "argument", None))
            return False
        pending.begun = True
        if self._incoming is not None or provided.traits & Trait.STREAM:
            self._streams()
        pending.heed(self._given_up)
        if provided.worker:
            self._work(args, kwargs)
            return False
        self._call.look = pending.peer.look
        try:
            value = self._context.run(self._inline, provided.function, args, kwargs)
        except BaseException as error:
            self.failed(error)
            pass_on(error)
            return False
        return self.came(value)

    def came(self, value: Any) -> bool:
        """The service has given *value*, in this turn of the loop; whether it goes on."""
        if self._outgoing is not None:
            self._go_on(self._stream(value, self._outgoing))
        elif inspect.iscoroutine(value):
            self._go_on(value)
        else:
            self._returned(value)
        return self._task is not None

    def _inline(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        serving.set(self._call)
        self._call.begins()
        return function(*args, **kwargs)

    # What it gets.

    def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        request, provided = self.pending.request, self.provided
        args, kwargs = arguments(request, self.pending.buffers)
        if (request.flags & Flag.STREAM != 0) is not (provided.traits & Trait.STREAM != 0):
            is_one = bool(provided.traits & Trait.STREAM)
            raise InvalidCall(f"{provided.name}() of {self.guest.name!r} is {'' if is_one else 'not '}a stream; "
                              f"{'iterate over it' if is_one else 'it has one result'}")
        if request.flags & Flag.UPSTREAM:
            at = provided.signature.stream_at(args, kwargs)
            if at is None or self.pending.one_way:
                raise InvalidCall(f"{provided.name}() takes no stream, and got one")
            self._incoming = Incoming(self.pending, provided)
            if isinstance(at, str):
                kwargs[at] = self._incoming
            else:
                args[at] = self._incoming
        return args, kwargs

    def _streams(self) -> None:
        """Prepare for what the caller says of the streams of this call."""
        if self.provided.traits & Trait.STREAM:
            self._outgoing = Outgoing(self.pending, self.provided, self._call)
        self.pending.callee.listen(self.pending.request.call,
                                   lambda parcel: taken(parcel, self._outgoing, self._incoming))

    def abandon(self) -> None:
        """Answer that the service goes on although its node has ended."""
        self._died("went on without it")

    # How it runs.

    def _given_up(self) -> None:
        self._unwanted = True
        self.cancel()

    def cancel(self) -> None:
        """Tell the service that nobody waits any more."""
        self._call.cancel()
        if self._incoming is not None:
            self._incoming.given_up()
        if self._outgoing is not None:
            self._outgoing.wake()
        if self._task is not None:
            self._task.cancel()

    def _go_on(self, service: Coroutine[Any, Any, Any]) -> None:
        """Answer an async *service* once its task has ended."""
        if not self._unwanted:
            self.pending.heed(self._given_up)
        task = self._task = self._context.run(self._loop.create_task, self._outcome(service))
        self.guest.begin(self)

        def ended(_: object) -> None:
            self.guest.ended(self)
            self._task = None  # an error's frames hold this, and with it whatever the service held
            service.close()  # where it was cancelled before its first step
            value, error = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
            self._settle(value, error)
            pass_on(error)
        task.add_done_callback(ended)

    async def _outcome(self, service: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
        """What a service came to, as a value: its own SystemExit would end the loop."""
        self._call.begins()
        try:
            return await service, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return None, error

    def _work(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Run a service in a thread of the node's, and answer from the loop."""
        guest = self.guest
        if guest.workers is None:
            guest.workers = Workers(guest.name)
        guest.begin(self)
        guest.working += 1
        if self._outgoing is not None:
            self._outgoing.opened()

        def ended(late: bool, value: Any, error: BaseException | None) -> None:
            guest.working -= 1
            guest.ended(self)
            if late:
                self._late()
            else:
                self._settle(value, error)

        def run() -> None:
            value, error = None, None
            late = guest.gone or self._call.given_up or not self._call.remaining
            try:
                value = None if late else self._context.run(self._in_thread, args, kwargs)
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(ended, late, value, error)
            except RuntimeError:
                log.warning("%s() of %s ended after its node had stopped", self.provided.name, guest.name)
        try:
            guest.workers.submit(run)
        except RuntimeError:  # the system gives no thread
            guest.working -= 1
            guest.ended(self)
            raise

    def _in_thread(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        value = self._inline(self.provided.function, args, kwargs)
        if self._outgoing is None:
            return value
        try:
            for item in self._iterable(value):
                self._outgoing.put_from_thread(item)
        finally:
            if hasattr(value, "close"):
                value.close()
        return None

    async def _stream(self, value: Any, outgoing: Outgoing) -> None:
        """Send what an async or a plain generator gives; each step of a plain one runs alone."""
        outgoing.opened()
        if inspect.iscoroutine(value):
            value = await value
        try:
            if hasattr(value, "__aiter__"):
                async for item in value:
                    await outgoing.put(item)
            else:
                for item in self._iterable(value):
                    await outgoing.put(item)
                    await asyncio.sleep(0)
        finally:
            if hasattr(value, "aclose"):
                await value.aclose()
            elif hasattr(value, "close"):
                value.close()

    def _iterable(self, value: Any) -> Any:
        if not hasattr(value, "__iter__"):
            raise TypeError(f"{self.provided.name}() promises a stream and gave {type(value).__name__}")
        return value

    # How it ends.

    def _over(self) -> None:
        self._call.ends()
        self._ended(self)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        """The service returned *value*, unless it raised *error*."""
        if error is None:
            self._returned(value)
        else:
            self.failed(error)

    def _returned(self, value: Any) -> None:
        """The service returned; what it may not return, or what cannot travel, is its error."""
        self._call.ends()
        try:
            self._answer(value)
        finally:
            self._ended(self)  # behind it: the answer is on its way meanwhile

    def _answer(self, value: Any) -> None:
        name, call = self.provided.name, self.pending.request.call
        if self._outgoing is not None:
            self.pending.answer(End(call))
            return
        try:
            self.provided.signature.check_result(name, value)
            body, buffers = codec.encode(value, f"the result of {name}()")
        except (CannotTravel, TypeError, ValueError) as error:
            self.pending.raised(error)
        else:
            self.pending.answer(Reply(call, body, len(buffers)), buffers)

    def failed(self, error: BaseException) -> None:
        """The service raised; where that was because its caller had given it up, that is what is said."""
        self._over()
        if self._unwanted and isinstance(error, (asyncio.CancelledError, GeneratorExit, Cancelled)):
            self.pending.answer(Failure(self.pending.request.call, Code.CANCELLED, f"{self.provided.name}() of "
                                        f"{self.guest.name!r} was stopped, as its caller wished", True))
            return
        if self.guest.gone and isinstance(error, (asyncio.CancelledError, GeneratorExit, Cancelled)):
            self._died("was stopped with it")
            return
        self.pending.raised(error if not isinstance(error, asyncio.CancelledError) else
                            asyncio.CancelledError("cancelled in the node"))

    def _died(self, how: str) -> None:
        """The node has ended before the service had."""
        self.pending.answer(Failure(self.pending.request.call, Code.DIED, f"{self.guest.name!r} has ended, and "
                                    f"{self.provided.name}() {how}", True))

    def _late(self) -> None:
        """It was not begun in time."""
        self._over()
        self.pending.begun = False
        code, why = ((Code.CANCELLED, "it was given up") if self._unwanted else
                     (Code.REFUSED, "the end of the node") if self.guest.gone else (Code.EXPIRED, "its deadline"))
        self.pending.refuse(code, f"{self.provided.name}() of {self.guest.name!r} was not begun: its turn came after "
                            f"{why}")


def pass_on(error: BaseException | None) -> None:
    """Raise a Ctrl-C of the user's, whom the loop of the main thread belongs to."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
