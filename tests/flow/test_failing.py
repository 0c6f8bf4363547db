"""What is told of a function that fails."""

from __future__ import annotations

import traceback

from pyzmp.flow.failing import own_part
from pyzmp.protocol import codec


def raised(error: Exception) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(own_part(error).__traceback__)]


def inner() -> None:
    codec.encode(object())


def test_of_a_traceback_the_users_part_is_kept() -> None:
    try:
        inner()
    except Exception as error:
        assert traceback.extract_tb(error.__traceback__)[-1].name != "inner"
        assert raised(error) == ["test_of_a_traceback_the_users_part_is_kept", "inner"]


def test_what_is_all_ours_has_none() -> None:
    try:
        codec.encode(object())
    except Exception as error:
        error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)
        assert raised(error) == []
