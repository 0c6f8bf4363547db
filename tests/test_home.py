"""What a publisher calls back."""

from __future__ import annotations

import contextvars
import logging

import pytest

from pyzmp.home import in_context


def test_a_callback_has_the_context_of_whoever_asked_for_it_and_its_errors_are_logged(
        caplog: pytest.LogCaptureFixture) -> None:
    who = contextvars.ContextVar("who", default="nobody")
    seen: list[object] = []

    def tell(wanted: bool) -> None:
        seen.append((who.get(), wanted))
        raise SystemExit
    token = who.set("me")
    called = in_context(tell)
    who.reset(token)
    with caplog.at_level(logging.ERROR):
        called(True)
    assert seen == [("me", True)]
    assert "which waits for subscribers, failed" in caplog.text
