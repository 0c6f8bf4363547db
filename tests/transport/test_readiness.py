from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from pyzmp.transport import readiness
from pyzmp.transport.context import Context
from pyzmp.transport.readiness import FEW, REST, Doorbell, Readiness, readable

Pair = tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of one connection."""
    context = Context()
    ends = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ends[0].bind("inproc://readiness")
    ends[1].connect("inproc://readiness")
    yield ends
    for end in ends:
        end.close(0)
    context.close()


@pytest.fixture
def ready(pair: Pair) -> Readiness:
    """What waits for the second end, where there are cores to look with."""
    made = Readiness([])
    made.watch(pair[1])
    assert not readable(pair[1])
    return made


def test_a_doorbell_rings_for_each_message_and_no_longer(pair: Pair) -> None:
    pair[0].send(b"before")
    bell = Doorbell(pair[1])
    for message in (b"behind it", b"and more"):
        assert bell.rings()
        pair[1].recv()
        assert not bell.rings()
        pair[0].send(message)
    assert bell.rings(5000)


def test_a_doorbell_is_heard_that_rang_where_nobody_received(pair: Pair) -> None:
    bell = Doorbell(pair[1])
    assert not bell.rings()
    for message in (b"one", b"two"):
        pair[0].send(message)
    assert bell.rings()
    pair[1].recv()
    assert bell.rings()


def test_waiting_ends_with_its_time(ready: Readiness) -> None:
    began = time.monotonic()
    ready.wait(20)
    assert time.monotonic() - began >= 0.02


def test_waiting_ends_with_a_message_asleep_and_awake(
        ready: Readiness, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for looking in (0.0, 60.0):
        monkeypatch.setattr(readiness, "CORES", 2)
        monkeypatch.setattr(readiness, "LOOKING", looking)
        sender = threading.Timer(0.01, pair[0].send, [b"message"])
        sender.start()
        ready.wait(30000)
        sender.join()
        assert pair[1].recv(zmq.NOBLOCK) == b"message"
        assert not readable(pair[1])


def test_nobody_looks_for_long_where_that_comes_to_nothing(ready: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[None]()

    def counted(self: Readiness, really: Callable[[Readiness], bool] = Readiness._looks) -> bool:
        looks.append(None)
        return really(self)
    monkeypatch.setattr(readiness, "CORES", 2)
    monkeypatch.setattr(readiness, "LOOKING", 1e-5)
    monkeypatch.setattr(Readiness, "_looks", counted)
    for waits, most in ((REST, 11), (4 * REST, 5)):
        looks.clear()
        for _ in range(waits):
            ready.wait(0)
        assert 1 <= len(looks) <= most


def test_where_looking_pays_again_it_is_done_again(
        ready: Readiness, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "CORES", 2)
    for _ in range(REST):
        ready.wait(0)
    pair[0].send(b"message")  # there already, as an answer that comes at once
    for _ in range(2 * REST):
        ready.wait(0)
    assert (ready._rest, ready._left) == (0, 0)


def test_with_one_core_and_with_many_who_wait_nobody_looks(
        pair: Pair, ready: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "LOOKING", 60.0)
    monkeypatch.setattr(readiness, "CORES", 1)
    ready.wait(1)
    monkeypatch.setattr(readiness, "CORES", 2)
    crowd = Readiness([None] * FEW)
    crowd.watch(pair[1])
    crowd.wait(1)


def test_who_is_interrupted_waits_no_more(ready: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt
    monkeypatch.setattr(readiness, "CORES", 2)
    monkeypatch.setattr(time, "monotonic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ready.wait(1)
    assert ready._waiting == []
