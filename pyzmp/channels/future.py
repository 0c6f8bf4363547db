"""The futures of calls."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from types import MappingProxyType
from typing import Any, TypeVar

from pyzmp.exceptions import CallError, Cancelled, DeadlockError, RemoteError
from pyzmp.protocol.outcomes import Event, Outcome, Result

T = TypeVar("T")

_MADE_LATER: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {"_condition": threading.Condition, "_waiters": list, "_done_callbacks": list})
log = logging.getLogger("pyzmp.call")


class _GivenUp:
    """That a future was cancelled is how it ends."""


class CallFuture(Future[T]):
    """The future of a call: its result is decoded by whoever asks for it.

    *waits_for_us* tells whether the outcome needs the very loop that runs in the thread that asks.
    It is in *pending* until its outcome has come.

    What its base class makes for each, to wait and to call back, is made for who waits or wants to be called back only:
    nobody does where the outcome is there before it is asked for, which is half of what such a call costs.
    """

    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _gave_up = False
    _report: Outcome | None = None
    _ended: object  # how, once that is decided

    def __init__(self, finish: Callable[[Outcome], Any], waits_for_us: Callable[[], bool] = lambda: False,
                 pending: set[Future[Any]] | None = None) -> None:
        self._finish_call = finish  # type: ignore[assignment]
        self._waits_for_us = waits_for_us  # type: ignore[method-assign]
        self._pending: set[Future[Any]] = set() if pending is None else pending
        self._pending.add(self)

    def __getattr__(self, name: str) -> Any:
        make = _MADE_LATER.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return vars(self).setdefault(name, make())  # at one stroke: all threads see the same

    def _finish_call(self, outcome: Outcome) -> Any:
        """The result that is there, decoded."""

    def _waits_for_us(self) -> bool:
        """Somebody is going to block: whether the outcome needs his own loop."""
        raise NotImplementedError

    def _ends(self, how: object) -> bool:
        """Whether this is how it ends: the first one to say so decides, whatever the threads."""
        return vars(self).setdefault("_ended", how) is how

    @property
    def executed(self) -> bool | None:
        """Whether the service ran; None while that is not known, also where it never will be.

        After `cancel` it becomes known once the node has said what became of the call.
        """
        report = self._report
        if isinstance(report, CallError) and not isinstance(report, RemoteError):
            return report.executed
        return None if report is None else True

    @property
    def stopped(self) -> bool | None:
        """After `cancel`: True where that kept the service from beginning, or ended it; False where it went on.

        None where the node has not said so, and where the call was not cancelled.
        """
        if not self.cancelled() or self._report is None:
            return None
        return True if isinstance(self._report, Cancelled) else None if self.executed is None else not self.executed

    def cancel(self) -> bool:
        """As `concurrent.futures.Future.cancel`, at any time before the outcome is there; the node is told.

        A call that waits for its turn there is not begun; an async service gets CancelledError, any
        other one can ask ``current_call().cancelled``.
        """
        if self._ends(_GivenUp()):
            self._end(CANCELLED_AND_NOTIFIED)
            self._pending.discard(self)
            self._gave_up = True
            self.give_up()
        return isinstance(self._ended, _GivenUp)

    def _end(self, state: str) -> None:
        """Tell whoever waits, and whoever wanted to be told.  He looks at the state after he has said so."""
        self._state = state
        if "_condition" in vars(self):
            with self._condition:
                tell = ("add_cancelled" if state != FINISHED else "add_result" if self._exception is None else
                        "add_exception")
                for waiter in self._waiters:
                    getattr(waiter, tell)(self)
                self._condition.notify_all()
            self._invoke_callbacks()

    def give_up(self) -> object:
        """Tell the node that the call was cancelled."""

    def gives_up(self, give_up: Callable[[], object]) -> None:
        """Have `cancel` tell the node by *give_up*, which is called now where that has been."""
        self.give_up = give_up  # type: ignore[method-assign]
        if self._gave_up:  # not `cancelled`, which takes a lock: who interrupts this may wait for our runtime's thread
            give_up()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """As `concurrent.futures.Future.add_done_callback`; an exit is logged as errors are, but in the main thread."""
        super().add_done_callback(functools.partial(_told, fn))

    def settle(self, outcome: Event) -> None:
        """Take the outcome, after `cancel` as a report only; called once, by the thread that it came to."""
        self._pending.discard(self)
        self._report = outcome  # type: ignore[assignment]
        if self._ends(outcome):
            if isinstance(outcome, Result):
                self._result = outcome  # decoded by `result`
            else:
                self._exception = outcome  # type: ignore[assignment]
            self._end(FINISHED)

    def fail(self, error: BaseException) -> None:
        """End with an error of the caller's own, such as one of a stream that he sends."""
        self._pending.discard(self)
        if self._ends(error):
            self._exception = error
            self._end(FINISHED)

    def result(self, timeout: float | None = None) -> T:
        """As `concurrent.futures.Future.result`."""
        if self._state == FINISHED and self._exception is None:
            value: Any = self._result
        else:
            self._check_waiting(timeout)
            value = super().result(timeout)
        if isinstance(value, Result):
            value = self._result = self._finish_call(value)
        return value  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `concurrent.futures.Future.exception`; a result that cannot be decoded is an error here too."""
        self._check_waiting(timeout)
        error = super().exception(timeout)
        if error is None:
            try:
                self.result(0)
            except Exception as undecodable:
                return undecodable
        return error

    def _check_waiting(self, timeout: float | None) -> None:
        if self in self._pending and timeout != 0 and not self.done() and self._waits_for_us():
            raise DeadlockError("to wait here for the result of a call blocks the very loop that is to answer it; "
                                "write await ….acall(…), or await asyncio.wrap_future(…)", executed=None)


def _told(fn: Callable[[Future[Any]], object], future: Future[Any]) -> None:
    """Call back.  An exit would end the thread that tells everybody, which is none of the user's."""
    try:
        fn(future)
    except BaseException as error:
        if isinstance(error, Exception) or threading.current_thread() is threading.main_thread():
            raise
        log.exception("the callback %r of a call's future raised", fn)
