"""The sessions of a process: those that threads have for themselves, and those that all share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pyzmp
from pyzmp import runtime


class Lamp(pyzmp.Node):
    @pyzmp.service
    def add(self, n: int) -> int:
        return n + 1


def test_a_threads_session_ends_with_the_thread(eventually: Callable[..., None]) -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        here = runtime.current().sessions
        results: list[int] = []

        def ask() -> None:
            results.extend(Lamp.add(n) for n in range(5))
        for _ in range(3):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        assert results == [1, 2, 3, 4, 5] * 3
        eventually(lambda: not getattr(here, "own", 0))


def test_a_hundred_threads_get_their_answers() -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        barrier, results = threading.Barrier(100), []

        def ask() -> None:
            barrier.wait()
            results.append([Lamp.add(n) for n in range(3)])
        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [[1, 2, 3]] * 100


def test_a_loop_that_has_ended_takes_its_sessions_along() -> None:
    with Lamp("lamp", "tcp://127.0.0.1:*", kind="thread"):
        for _ in range(5):
            assert asyncio.run(Lamp.add.acall(1)) == 2
