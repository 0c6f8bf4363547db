"""The futures of calls."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from pyzmp.exceptions import CallError, Cancelled, DeadlockError, RemoteError
from pyzmp.protocol.outcomes import Event, Outcome, Result

T = TypeVar("T")

log = logging.getLogger("pyzmp.call")


class CallFuture(Future[T]):
    """The future of a call: its result is decoded by whoever asks for it.

    *waits_for_us* tells whether the outcome needs the very loop that runs in the thread that asks.
    It is in *pending* until its outcome has come.
    """

    def __init__(self, finish: Callable[[Outcome], Any], waits_for_us: Callable[[], bool] = lambda: False,
                 pending: set[Future[Any]] | None = None) -> None:
        super().__init__()
        self._finish_call = finish
        self._waits_for_us = waits_for_us
        self._pending: set[Future[Any]] = set() if pending is None else pending
        self._pending.add(self)
        self.once = threading.RLock()  # held while it ends
        self.give_up: Callable[[], object] = lambda: None  # tells the node
        self._gave_up = False
        self._report: Outcome | None = None

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
        with self.once:
            before = self.cancelled()
            cancelled = super().cancel()
            if cancelled and not before:
                self.set_running_or_notify_cancel()  # tells those who wait for one of several futures
        if cancelled and not before:
            self._pending.discard(self)
            self._gave_up = True
            self.give_up()
        return cancelled

    def gives_up(self, give_up: Callable[[], object]) -> None:
        """Have `cancel` tell the node by *give_up*, which is called now where that has been."""
        self.give_up = give_up
        if self._gave_up:  # not `cancelled`, which takes a lock: who interrupts this may wait for our runtime's thread
            give_up()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """As `concurrent.futures.Future.add_done_callback`; an exit is logged as errors are, but in the main thread."""
        super().add_done_callback(functools.partial(_told, fn))

    def settle(self, outcome: Event) -> None:
        """Take the outcome, after `cancel` as a report only; called once, by the thread that it came to."""
        self._pending.discard(self)
        assert isinstance(outcome, (Result, Exception))
        with self.once:
            self._report = outcome
            if self.done():
                return
            self.set_running_or_notify_cancel()
        if isinstance(outcome, Result):
            self.set_result(cast("T", outcome))  # decoded by `result`
        else:
            self.set_exception(outcome)

    def fail(self, error: BaseException) -> None:
        """End with an error of the caller's own, such as one of a stream that he sends."""
        self._pending.discard(self)
        with self.once:
            if not self.done():
                self.set_running_or_notify_cancel()
                self.set_exception(error)

    def result(self, timeout: float | None = None) -> T:
        """As `concurrent.futures.Future.result`."""
        self._check_waiting(timeout)
        value: Any = super().result(timeout)
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
