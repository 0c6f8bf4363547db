"""Bodies in threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyzmp.exceptions import StartError
from pyzmp.launchers.base import Control, Handle, NotReady
from pyzmp.launchers.thread import ThreadLauncher


def launch(body: Callable[[Control], Any]) -> Handle:
    return ThreadLauncher().launch(body, name="n")


def ready_until_stopped(control: Control) -> int:
    control.ready("value")
    control.wait_stop()
    return 4


def test_the_value_of_readiness_arrives_and_a_stop_ends_the_body() -> None:
    handle = launch(ready_until_stopped)
    assert handle.wait_ready(5) == "value"
    assert handle.is_alive()
    assert handle.exitcode is None
    assert handle.ident in {thread.ident for thread in threading.enumerate()}
    assert not handle.join(0.01)
    handle.request_stop()
    assert handle.join(5)
    assert handle.exitcode == 4


@pytest.mark.parametrize("ask", [Handle.terminate, Handle.kill])
def test_a_thread_can_only_be_asked(ask: Callable[[Handle], None]) -> None:
    handle = launch(ready_until_stopped)
    getattr(handle, ask.__name__)()
    assert handle.join(5)
    assert handle.exitcode == 4


def test_an_error_before_readiness_is_the_starters() -> None:
    def body(control: Control) -> None:
        raise KeyError("gone")

    handle = launch(body)
    with pytest.raises(KeyError, match="gone"):
        handle.wait_ready(5)
    assert handle.join(5)
    assert handle.exitcode == 1


def test_an_error_after_readiness_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def body(control: Control) -> None:
        control.ready()
        raise KeyError("later")

    handle = launch(body)
    assert handle.wait_ready(5) is True
    assert handle.join(5)
    assert handle.exitcode == 1
    assert [(record.name, record.levelno) for record in caplog.records] == [("pyzmp.launchers", logging.ERROR)]
    assert "later" in caplog.text


def test_a_body_that_ends_without_being_ready_is_a_start_error() -> None:
    with pytest.raises(StartError, match="'n' ended with exit code 7 before it was ready"):
        launch(lambda control: 7).wait_ready(5)


def test_a_body_that_is_slow_is_not_ready() -> None:
    handle = launch(lambda control: control.wait_stop() and None)
    with pytest.raises(NotReady):
        handle.wait_ready(0.01)
    handle.request_stop()
    assert handle.join(5)
    assert handle.exitcode == 0


def test_a_thread_that_joins_itself_does_not_wait() -> None:
    found: list[bool] = []

    def body(control: Control) -> None:
        found.append(handle.join(5)) if control.wait_stop(5) else None

    handle = launch(body)
    handle.request_stop()
    assert handle.join(5)
    assert found == [False]


def test_running_threads_do_not_hold_up_the_interpreter(script: Any) -> None:
    result = script("""
import time
from pyzmp.launchers.thread import ThreadLauncher

def good(control):
    control.ready()
    control.wait_stop()
    print("stopped")

def deaf(control):
    control.ready()
    time.sleep(100)

for body in good, deaf:
    ThreadLauncher().launch(body, name="n").wait_ready(5)
""", strict=True)
    assert (result.code, result.out, result.err) == (0, "stopped\n", "")
    assert result.seconds < 3


def test_nobody_waits_for_the_start_of_a_thread_that_was_killed() -> None:
    gate = threading.Event()
    handle = launch(lambda control: gate.wait() and None)
    handle.kill()
    with pytest.raises(StartError, match="'n' was told to stop before it was ready"):
        handle.wait_ready(60)
    gate.set()
    assert handle.join(5)
