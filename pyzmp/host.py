"""One loop's listeners, and the nodes that live on it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from pyzmp.channels.call import Call, serving
from pyzmp.exceptions import CannotTravel, InvalidCall, MalformedMessage
from pyzmp.guest import Guest, Provided, Workers, either
from pyzmp.protocol import codec, failure
from pyzmp.protocol.admission import Admission
from pyzmp.protocol.calls import Callee, refuse, unknown
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Cancel, Code, Failure, Parcel, Reply, Request
from pyzmp.runtime import Runtime
from pyzmp.transport.server import Peer, Server

TURN = 0.001  # seconds after which a loop looks again at what has come, before it begins more calls
CANCEL = 0.5  # seconds that a cancelled call may take to end

log = logging.getLogger("pyzmp.node")


class Host:
    """What one asyncio loop shares among the nodes that live on it.  Used in the loop's own thread.

    All of them are reached through one server, but those that have an address of their own.
    """

    def __init__(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        self.runtime = runtime
        self.loop = loop
        self.name = runtime.register(loop)
        self.server = self._serve()
        self.guests: dict[str, Guest] = {}
        self.own: dict[str, Server] = {}
        self._waiting: Admission[Peer, tuple[Request, Parcel]] = Admission()
        self.users = 0
        self._shared: list[str] = []

    @classmethod
    def of(cls, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> Host:
        """The host of *loop*, which is the running one; made now where it has none.  Each use ends with `release`."""
        host: Host | None = runtime.hosts.get(loop)
        if host is None:
            host = runtime.hosts[loop] = cls(runtime, loop)
        host.users += 1
        return host

    def release(self) -> None:
        """End one use; with the last one the loop listens no more."""
        self.users -= 1
        if not self.users:
            self.close()

    def _serve(self) -> Server:
        return Server(self.runtime.context, self.loop, self.name, on_parcel=self._arrived, on_open=self._greeted,
                      on_end=self._parted, on_read=self._begin_calls)

    def add(self, guest: Guest) -> None:
        """Let a node live here; it serves from now on."""
        self.guests[guest.name] = guest

    def bind(self, guest: Guest, address: str | None, *, shared: bool, insecure: bool) -> list[str]:
        """Make *guest* reachable: at *address*, or where all are; the addresses in full.

        A node that has the loop for itself gives the loop its address.
        """
        if address is not None:
            server = self.own[guest.name] = self._serve()
            return [server.bind(address, insecure=insecure)]
        if not self._shared:
            places = self.runtime.places(self.name, "" if shared else guest.name)
            self._shared = [self.server.bind(place) for place in places]
        return self._shared

    async def remove(self, guest: Guest, drain: float) -> None:
        """Take a node away: new calls are refused, those that run may end within *drain* seconds or until its hurry."""
        guest.leaving = True
        for peer, (request, _) in self._waiting.withdraw(lambda item: item[0].node == guest.name):
            peer.send(refuse(request.call, Code.REFUSED, f"{guest.name!r} is shutting down"))
        try:
            if guest.running:
                await either(guest.idle.wait(), guest.hurry.wait(), timeout=drain)
        finally:
            guest.gone = True
            await self._cancel(guest)
            self._drop(guest)

    @staticmethod
    async def _cancel(guest: Guest) -> None:
        """Cancel the calls that still run, so that they are answered before the node is gone."""
        if guest.running:
            log.warning("%s: %d calls were still running when it stopped", guest.name, len(guest.running))
        for work in guest.running:
            if isinstance(work, Call):
                work.cancel()
        tasks = [work for work in guest.running if isinstance(work, asyncio.Task)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL)
            await asyncio.sleep(0)  # for their answers

    def _drop(self, guest: Guest) -> None:
        if guest.workers is not None:
            guest.workers.close()
        if self.guests.get(guest.name) is guest:
            del self.guests[guest.name]
        if guest.name in self.own:
            self.own.pop(guest.name).close()

    def close(self) -> None:
        """Stop listening, and leave the loop."""
        self.server.close()
        self.runtime.unregister(self.name)
        if self.runtime.hosts.get(self.loop) is self:
            del self.runtime.hosts[self.loop]

    # Calls.

    def _greeted(self, peer: Peer) -> None:
        peer.state = Callee()

    def _arrived(self, peer: Peer, parcel: Parcel) -> None:
        message, callee = parcel.message, peer.state
        if isinstance(message, Request) and isinstance(callee, Callee):
            if callee.fresh(message):
                self._admit(peer, message, parcel)
        elif isinstance(message, Cancel) and isinstance(callee, Callee):
            self._cancel_call(peer, callee, message.call)
        else:
            place = str(peer.listener.address), peer.key
            self.server.blame(place, f"a {type(message).__name__}, which is not for a node")

    def _admit(self, peer: Peer, request: Request, parcel: Parcel) -> None:
        """Let a call wait for its turn, which comes once all that has arrived is read."""
        refusal = self._refusal(request, self.guests.get(request.node))
        if refusal is None:
            deadline = Deadline.after(request.remaining, time.monotonic())
            if self._waiting.admit(peer, request.call, deadline, (request, parcel)):
                return
            refusal = refuse(request.call, Code.OVERLOADED, f"{request.node!r} has {len(self._waiting)} calls waiting "
                             f"and takes no more; {request.service}() did not run")
        peer.send(refusal)

    def _cancel_call(self, peer: Peer, callee: Callee, call: int) -> None:
        """The caller does not want a call any more: it is not begun, or told to stop."""
        waiting = self._waiting.cancel(peer, call)
        if waiting is not None:
            peer.send(refuse(call, Code.CANCELLED, f"{waiting[0].service}() was cancelled before its turn"))
        elif call in callee.running:
            callee.running.pop(call)()  # once: a service that is cancelled may need time to clean up

    def _parted(self, peer: Peer) -> None:
        """A caller is gone, and with it the wish for what it asked."""
        self._waiting.leave(peer)
        if isinstance(peer.state, Callee):
            running, peer.state.running = peer.state.running, {}
            for cancel in running.values():
                cancel()

    def _begin_calls(self) -> bool:
        """Begin the calls that wait, for a millisecond at most; whether there were any."""
        over, begun = time.monotonic() + TURN, False
        while (found := self._waiting.next()) is not None:
            peer, deadline, (request, parcel) = found
            begun = True
            if not deadline.remaining(time.monotonic()):
                peer.send(refuse(request.call, Code.REFUSED, f"{request.service}() of {request.node!r} waited for its "
                                 "turn until its deadline, and was not begun"))
            else:
                self._begin(peer, request, parcel, deadline)
            if time.monotonic() > over:
                break
        return begun

    def _begin(self, peer: Peer, request: Request, parcel: Parcel, deadline: Deadline) -> None:
        """Begin a call.  An error of ours is its answer, and the calls behind it go on."""
        try:
            self._serve_call(peer, request, parcel, deadline)
        except Exception as error:
            log.exception("%s() of %s could not be served", request.service, request.node)
            body = failure.describe(error, node=request.node, service=request.service)
            peer.send(Failure(request.call, Code.RAISED, body=body))

    def _serve_call(self, peer: Peer, request: Request, parcel: Parcel, deadline: Deadline) -> None:
        guest = self.guests.get(request.node)
        refusal = self._refusal(request, guest)
        if refusal is not None or guest is None:
            peer.send(refusal or Failure(request.call, Code.REFUSED))
            return
        if guest.turned is not None:
            guest.turned()
        provided = guest.services[request.service]
        try:
            args, kwargs = provided.signature.bind(provided.name, *_arguments(parcel))
        except (InvalidCall, MalformedMessage) as error:
            peer.send(refuse(request.call, Code.INVALID_CALL, str(error), argument=getattr(error, "argument", None)))
            return
        call = Call(guest.name, provided.name, peer.hello.caller, deadline)
        context = guest.context.copy()
        context.run(serving.set, call)
        answer = _Answer(peer, request, provided, call)
        if provided.worker:
            answer.running(call.cancel)
            self._work(guest, answer, lambda: context.run(provided.function, *args, **kwargs))
            return
        call.look = peer.look
        answer.running(call.cancel)
        try:
            value = context.run(provided.function, *args, **kwargs)
        except BaseException as error:
            answer.failed(error)
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # a Ctrl-C of the user's, whom the loop belongs to
        else:
            if inspect.iscoroutine(value):
                self._go_on(guest, answer, value, context.run(self.loop.create_task, _outcome(value)))
            else:
                answer.returned(value)

    def _refusal(self, request: Request, guest: Guest | None) -> Failure | None:
        """Why a call is not begun, or None."""
        if guest is None:
            return refuse(request.call, Code.REFUSED, f"there is no node {request.node!r} here any more")
        if request.incarnation not in ((0, 0), guest.incarnation):
            return refuse(request.call, Code.REFUSED, f"{guest.name!r} was started again since; ask it anew")
        if guest.leaving:
            return refuse(request.call, Code.REFUSED, f"{guest.name!r} is shutting down")
        if request.service not in guest.services:
            return refuse(request.call, Code.UNKNOWN_SERVICE,
                          unknown(request.service, guest.services, f"in node {guest.name!r}"))
        if not 0 < request.remaining < math.inf:
            return refuse(request.call, Code.REFUSED, f"{request.service}() of {guest.name!r} came with "
                          f"{request.remaining} s left, so it was not begun")
        return None

    def _go_on(self, guest: Guest, answer: _Answer, service: Coroutine[Any, Any, Any],
               task: asyncio.Task[_Ended]) -> None:
        """Answer an async *service* once its *task* has ended."""
        guest.begin(task)

        def cancel() -> None:
            answer.call.cancel()  # for what the service has begun in threads
            task.cancel()
        answer.running(cancel)

        def ended(_: object) -> None:
            guest.ended(task)
            service.close()  # where it was cancelled before its first step
            cancelled = None, asyncio.CancelledError("cancelled in the node")
            answer.settle(*(cancelled if task.cancelled() else task.result()))
        task.add_done_callback(ended)

    def _work(self, guest: Guest, answer: _Answer, work: Callable[[], Any]) -> None:
        """Run a service in a thread of the node's, and answer from the loop."""
        if guest.workers is None:
            guest.workers = Workers(guest.name)
        guest.begin(answer.call)

        def ended(done: Callable[[], None]) -> None:
            guest.ended(answer.call)
            done()

        def run() -> None:
            value, error = None, None
            late = guest.gone or answer.call.given_up or not answer.call.remaining
            try:
                value = None if late else work()
            except BaseException as raised:
                error = raised
            done = answer.late if late else functools.partial(answer.settle, value, error)
            try:
                self.loop.call_soon_threadsafe(ended, done)
            except RuntimeError:
                log.warning("%s() of %s ended after its node had stopped", answer.call.service, guest.name)
        guest.workers.submit(run)


_Ended = tuple[Any, "BaseException | None"]


async def _outcome(service: Coroutine[Any, Any, Any]) -> _Ended:
    """What a service came to, as a value: its own SystemExit would end the loop."""
    try:
        return await service, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


class _Answer:
    """The one answer to a call that has begun."""

    __slots__ = ("_callee", "_peer", "_provided", "_request", "call")

    def __init__(self, peer: Peer, request: Request, provided: Provided, call: Call) -> None:
        self._peer, self._request, self._provided, self.call = peer, request, provided, call
        self._callee = peer.state if isinstance(peer.state, Callee) else Callee()

    def running(self, cancel: Callable[[], object]) -> None:
        """Have *cancel* called when the caller gives the call up."""
        self._callee.running[self._request.call] = cancel

    def _over(self) -> None:
        self.call.over = True
        self._callee.running.pop(self._request.call, None)

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The service returned *value*, unless it raised *error*."""
        if error is None:
            self.returned(value)
        else:
            self.failed(error)

    def returned(self, value: Any) -> None:
        """The service returned; what it may not return, or what cannot travel, is its error."""
        name = self._provided.name
        self._over()
        try:
            self._provided.signature.check_result(name, value)
            body, buffers = codec.encode(value, f"the result of {name}()")
            self._peer.send(Reply(self._request.call, body, len(buffers)), buffers)
        except (CannotTravel, TypeError, ValueError) as error:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """The service raised."""
        self._over()
        body = failure.describe(error, node=self._request.node, service=self._request.service)
        self._peer.send(Failure(self._request.call, Code.RAISED, executed=True, body=body))

    def late(self) -> None:
        """It was not begun in time."""
        self._over()
        self._peer.send(refuse(self._request.call, Code.REFUSED, f"{self.call.service}() of {self.call.node!r} was not "
                               "begun: its turn came after its deadline, or after the end of the node"))


def _arguments(parcel: Parcel) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a request.  Raises MalformedMessage."""
    value = codec.decode(getattr(parcel.message, "body", b""), parcel.buffers)
    if (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and isinstance(value[1], dict)
            and all(isinstance(name, str) for name in value[1])):
        return value[0], value[1]
    raise MalformedMessage("the arguments of a call are a list and a map of names")
