"""What code knows of the call that it serves.  What it is inside of nodes is shown by the behaviour of nodes."""

from __future__ import annotations

import contextvars
import time

import pytest

from pyzmp.channels.call import Call, current_call, serving
from pyzmp.exceptions import Cancelled
from pyzmp.protocol.deadline import Deadline


def test_what_is_left_of_a_call_is_never_negative() -> None:
    now = time.monotonic()
    assert 0.9 < Call("node", "service", "caller", Deadline(now + 1)).remaining <= 1
    assert Call("node", "service", "caller", Deadline(now - 1)).remaining == 0


def test_check_raises_once_the_caller_waits_no_more() -> None:
    now = time.monotonic()
    Call("kitchen", "cook", "caller", Deadline(now + 1)).check()
    with pytest.raises(Cancelled, match=r"cook\(\) of 'kitchen' ran beyond its caller's deadline") as caught:
        Call("kitchen", "cook", "caller", Deadline(now - 1)).check()
    assert (caught.value.node, caught.value.service, caught.value.executed) == ("kitchen", "cook", True)


def test_the_current_call_belongs_to_the_code_that_serves_it() -> None:
    call = Call("node", "service", "caller", Deadline(time.monotonic() + 1))
    context = contextvars.copy_context()
    context.run(serving.set, call)
    assert context.run(current_call) is call
    with pytest.raises(RuntimeError, match="nothing is being served here"):
        current_call()
