"""A node as its host knows it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

import pytest

import pyzmp
from pyzmp.exceptions import NodeExists
from pyzmp.guest import WORKERS, Guest, Workers, why_not
from pyzmp.life import offer
from pyzmp.protocol.envelope import Code, Request


class Lamp(pyzmp.Node):
    kind = "entity"

    @pyzmp.service(worker=True)
    def held(self) -> None:
        gate.wait(10)

    @pyzmp.service
    def on(self) -> bool:
        return True


gate = threading.Event()


def workers_of_lamp() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lamp-worker")]


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def test_workers_are_made_as_they_are_needed_and_used_again(eventually: Callable[..., None]) -> None:
    workers, done = Workers("lamp"), threading.Semaphore(0)
    names: set[str] = set()

    def work() -> None:
        names.add(threading.current_thread().name)
        done.release()
    workers.submit(work)
    assert done.acquire(timeout=5)
    eventually(lambda: workers._idle == 1)
    workers.submit(work)
    assert done.acquire(timeout=5)
    assert names == {"lamp-worker-1"}
    workers.close()


def test_so_many_calls_of_worker_services_run_at_once_and_the_others_wait(eventually: Callable[..., None]) -> None:
    gate.clear()
    with Lamp("lamp"):
        calls = [Lamp.held.submit() for _ in range(WORKERS + 5)]
        eventually(lambda: len(workers_of_lamp()) == WORKERS)
        assert Lamp.on()
        assert len(workers_of_lamp()) == WORKERS
        gate.set()
        assert [call.result(5) for call in calls] == [None] * len(calls)


def test_the_calls_that_wait_for_a_node_are_left_alone_where_another_of_its_name_is_refused(
        eventually: Callable[..., None]) -> None:
    gate.clear()
    with Lamp("lamp"):
        calls = [Lamp.held.submit() for _ in range(WORKERS + 5)]
        eventually(lambda: len(workers_of_lamp()) == WORKERS)
        with pytest.raises(NodeExists):
            Lamp("lamp").start()
        gate.set()
        assert [call.result(5) for call in calls] == [None] * len(calls)


def test_a_guest_is_idle_while_nothing_of_it_runs() -> None:
    guest = Guest("lamp", contextvars.copy_context())
    assert guest.idle.is_set()
    for work in ("a", "b"):
        guest.begin(work)
    guest.ended("a")
    assert not guest.idle.is_set()
    guest.ended("b")
    assert guest.idle.is_set()


def test_a_caller_may_know_a_node_before_that_knows_its_incarnation() -> None:
    guest = Guest("lamp", contextvars.copy_context(), {"on": offer("on", lambda: True)})

    def refused(incarnation: tuple[int, int]) -> bool:
        refusal = why_not(Request(1, "lamp", "on", 1.0, b"", incarnation=incarnation), guest)
        assert refusal is None or refusal.code == Code.REFUSED
        return refusal is not None
    guest.since = (2, 7)  # it was announced after that
    assert [refused(known) for known in ((0, 0), (1, 9), (2, 7), (2, 8), (2, 9), (3, 1))] == [
        False, True, True, False, False, False]
    guest.incarnation, guest.since = (2, 9), None
    assert [refused(known) for known in ((0, 0), (1, 9), (2, 7), (2, 8), (2, 9), (3, 1))] == [
        False, True, True, True, False, True]
