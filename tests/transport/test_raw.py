"""Bare ZeroMQ, as ``pyzmp bench`` measures it, between two threads."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from pyzmp.transport import raw


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pz") as folder:  # ZeroMQ leaves its files
        yield f"ipc://{folder}/raw"


@pytest.fixture
def caller(address: str) -> Iterator[raw.Caller]:
    server = threading.Thread(target=raw.serve, args=(address,))
    server.start()
    with closing(raw.Caller(address)) as made:
        yield made
    server.join(10)
    assert not server.is_alive()


def test_it_answers(caller: raw.Caller) -> None:
    assert caller.add(2, 3) == 5


@pytest.mark.parametrize(("count", "window"), [(1, 1), (3, 10), (500, 7)])
def test_many_calls_are_under_way(caller: raw.Caller, count: int, window: int) -> None:
    assert caller.add_many(count, window) == sum(range(count)) + 2 * count


def test_it_publishes_what_is_asked_for(caller: raw.Caller) -> None:
    assert caller.take(b"data", 1000) == 1000


def test_an_answer_to_another_call_is_an_error(caller: raw.Caller) -> None:
    caller._ask(1, 2)
    with pytest.raises(ValueError, match="expected the answer to call 2, got 1"):
        caller.add(3, 4)


def test_a_server_that_is_not_there_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "WAIT", 50)
    monkeypatch.setattr(raw, "LINGER", 0)
    with closing(raw.Caller(address)) as alone, pytest.raises(TimeoutError, match="nothing came within"):
        alone.add(1, 2)
