"""The control that a body gets, and how handles are ended together."""

from __future__ import annotations

import threading
import time
from typing import Any

from pyzmp.launchers.base import Control, Handle, Living, end
from tests.campaigns.history import SCALE


class Fake(Handle):
    ends_silently = True

    """Ends when it is asked in the way that it listens to."""

    def __init__(self, listens_to: str) -> None:
        self.listens_to, self.asked = listens_to, [""]
        self.ended = threading.Event()
        self.ident, self.disowned = None, False

    def _ask(self, how: str) -> None:
        self.asked.append(how)
        if how == self.listens_to:
            self.ended.set()

    def wait_ready(self, timeout: float) -> Any:
        return True

    def request_stop(self) -> None:
        self._ask("stop")

    def terminate(self) -> None:
        self._ask("terminate")

    def kill(self) -> None:
        self._ask("kill")

    def join(self, timeout: float | None = None) -> bool:
        return self.ended.wait(timeout)

    def disown(self) -> None:
        self.disowned = True

    @property
    def exitcode(self) -> int | None:
        return 0 if self.ended.is_set() else None


def test_a_callback_runs_once_when_a_stop_is_asked_for() -> None:
    control, calls = Control("n"), []
    control.on_stop(lambda: calls.append(control.stop_requested))
    assert not control.stop_requested
    assert not control.wait_stop(0)
    control.request_stop()
    control.request_stop()
    assert calls == [True]
    assert control.wait_stop(0)


def test_a_callback_that_comes_late_runs_at_once() -> None:
    control, calls = Control("n"), []
    control.request_stop()
    control.on_stop(lambda: calls.append(1))
    assert calls == [1]


def test_handles_are_ended_by_the_mildest_way_that_works() -> None:
    handles = [Fake("stop"), Fake("terminate"), Fake("kill")]
    end(handles, 0.05, 0.05, 0.05)
    assert [handle.asked[1:] for handle in handles] == [["stop"], ["stop", "terminate"], ["stop", "terminate", "kill"]]


def test_handles_that_never_end_are_waited_for_together_and_not_one_by_one() -> None:
    began = time.monotonic()
    end([Fake("never") for _ in range(20)], 0.05, 0.05, 0.05)
    assert time.monotonic() - began < 0.5 * SCALE


def test_what_lives_is_let_go_of_in_a_forked_child() -> None:
    living, handle = Living(), Fake("stop")
    living.add(handle)
    living.after_fork()
    living.end()
    assert handle.disowned
    assert handle.asked == [""]


def test_what_ended_unobserved_is_asked_when_the_next_one_comes() -> None:
    living, looked = Living(), []

    class Ended(Fake):
        @property
        def exitcode(self) -> int | None:
            looked.append(self)
            living.discard(self)
            return 0

    living.add(ended := Ended("stop"))
    living.add(Fake("stop"))
    assert looked == [ended]
