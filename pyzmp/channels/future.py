"""The futures of calls."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pyzmp.exceptions import DeadlockError
from pyzmp.protocol.calls import Outcome, Result

log = logging.getLogger("pyzmp.call")


class CallFuture(Future[Any]):
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
            self.give_up()
        return cancelled

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """As `concurrent.futures.Future.add_done_callback`; an exit is logged as errors are, but in the main thread."""
        super().add_done_callback(functools.partial(_told, fn))

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome, unless the caller has cancelled; called once, by the thread that it came to."""
        self._pending.discard(self)
        with self.once:
            if self.cancelled():
                return
            self.set_running_or_notify_cancel()
        if isinstance(outcome, Result):
            self.set_result(outcome)
        else:
            self.set_exception(outcome)

    def result(self, timeout: float | None = None) -> Any:
        """As `concurrent.futures.Future.result`."""
        self._check_waiting(timeout)
        value = super().result(timeout)
        if isinstance(value, Result):
            value = self._result = self._finish_call(value)
        return value

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
