"""A service as its callers hold it: options, futures, and the spelling of 0.0.17.  Calls are shown with nodes."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.service import CallFuture
from pyzmp.exceptions import CallTimeout
from pyzmp.protocol.calls import Result


def decode(outcome: Any) -> Any:
    if outcome.body == b"bad":
        raise ValueError("undecodable")
    return outcome.body


def test_a_future_gives_the_decoded_result_once_it_is_there() -> None:
    future = CallFuture(decode)
    assert not future.done()
    future.settle(Result(b"good"))
    assert future.result(0) == future.result(0) == b"good"
    assert future.exception(0) is None


def test_a_future_raises_the_error_that_came() -> None:
    future = CallFuture(decode)
    future.settle(CallTimeout("late"))
    with pytest.raises(CallTimeout, match="late"):
        future.result(0)
    assert isinstance(future.exception(0), CallTimeout)


def test_a_result_that_cannot_be_decoded_is_the_futures_error() -> None:
    future = CallFuture(decode)
    future.settle(Result(b"bad"))
    with pytest.raises(ValueError, match="undecodable"):
        future.result(0)
    assert str(future.exception(0)) == "undecodable"


def test_a_cancelled_future_takes_no_outcome() -> None:
    future = CallFuture(decode)
    assert future.cancel()
    future.settle(Result(b"good"))
    with pytest.raises(CancelledError):
        future.result(0)


def test_the_options_are_kept_through_copies() -> None:
    service = pyzmp.Service("on").with_options(timeout=2).with_options(wait=True)
    again = service.with_options(timeout=3)
    assert (service._timeout, service._wait, again._timeout, again._wait) == (2.0, True, 3.0, True)


@pytest.mark.parametrize(("args", "kwargs", "shown"), [(3, None, "3"), ("ab", None, "'ab'"), (None, [1], r"\[1\]")])
def test_call_takes_a_tuple_and_a_dict(args: Any, kwargs: Any, shown: str) -> None:
    with pytest.raises(TypeError, match=rf"got {shown}; write service\({shown}\)"):
        pyzmp.Service("on").call(args, kwargs)


def test_a_call_that_waits_for_nobody_ends_as_unknown() -> None:
    pyzmp.configure(registry="memory")
    for ask in (lambda: pyzmp.Service("on").call(send_timeout=50), lambda: pyzmp.Service("on").call(node="lamp"),
                pyzmp.Service("on").with_options(wait=True, timeout=0.05)):
        with pytest.raises(pyzmp.UnknownService):
            ask()
