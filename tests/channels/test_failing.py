"""Errors of functions that are called with what comes."""

from __future__ import annotations

import pytest

from pyzmp.channels import failing
from pyzmp.channels.failing import Failing
from pyzmp.channels.message import Joined


def origin(node: str) -> Joined:
    return Joined(f"{node}/light", node)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_first_of_each_publisher_is_logged_at_once_and_the_rest_at_the_end(
        caplog: pytest.LogCaptureFixture) -> None:
    errors = Failing()
    for number in range(5):
        for node in ("lamp", "bulb"):
            errors.raised(origin(node), "it", ValueError(number))
    assert (errors.count, messages(caplog)) == (10, [f"{node}/light of '{node}': it raised; it goes on"
                                                     for node in ("lamp", "bulb")])
    errors.tell_rest()
    errors.tell_rest()
    assert messages(caplog)[2:] == [f"{node}/light of '{node}': it raised 4 more times, at last ValueError: 4"
                                    for node in ("lamp", "bulb")]


def test_what_goes_on_is_logged_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = Failing()
    for number in range(3):
        errors.raised(origin("lamp"), "it", ValueError(number))
    monkeypatch.setattr(failing, "QUIET", 0.0)
    errors.raised(origin("lamp"), "it", KeyError(3))
    assert messages(caplog)[1:] == ["lamp/light of 'lamp': it raised 3 more times, at last KeyError: 3"]


def test_what_is_known_of_publishers_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    errors = Failing()
    for number in range(failing.PUBLISHERS + 1):
        for _ in range(2):
            errors.raised(origin(f"lamp{number}"), "it", ValueError())
    assert messages(caplog)[-2:] == ["lamp0/light of 'lamp0': it raised 1 more times, at last ValueError",
                                     f"lamp{number}/light of 'lamp{number}': it raised; it goes on"]
