"""Whether sockets of ZeroMQ's have something, found out cheaply, and threads that wait until they have.

A socket's descriptor tells of what comes after ZeroMQ was asked last for its events, or had nothing to receive.
To ask the system about a descriptor takes a quarter of the time that asking ZeroMQ about its socket takes.
"""

from __future__ import annotations

import functools
import os
import select
import time
from typing import cast

import zmq

LOOKING = 1.5e-4  # seconds for which a thread looks before it sleeps, at most
REST = 1024  # waits that go by without looking where that came to nothing again and again, at most

FEW = 2  # threads of a process that wait at once, one of which may look, at most
# Cores that this process may use: on one alone, looking would only hold up who is to answer.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def descriptor(end: zmq.Socket[bytes]) -> int:
    """The number of the descriptor that tells of *end*."""
    return cast(int, end.get(zmq.FD))


def readable(end: zmq.Socket[bytes]) -> bool:
    """Whether *end* has something to receive; if not, its descriptor tells of what comes."""
    return bool(zmq.zmq_poll([(end, 1)], 0))  # three quarters of the time that getting the option takes


class Doorbell:
    """Whether *end*, which seldom has something, has something to receive."""

    __slots__ = ("_end", "_poll", "rung")

    def __init__(self, end: zmq.Socket[bytes]) -> None:
        self._end = end
        self._poll = select.poll()
        self._poll.register(descriptor(end), select.POLLIN)
        self.rung = True  # there may be what its descriptor does not tell, such as what came before this

    def rings(self, milliseconds: int = 0) -> bool:
        """Whether there is something now, or within so many *milliseconds*."""
        if self.rung or self._poll.poll(milliseconds):
            self.rung = readable(self._end)
        return self.rung


class Readiness:
    """Waits for the descriptors of some sockets: looks for some microseconds where that has paid, then sleeps.

    Most of a short call is waking sleepers: a thread that looks for its answer need not be woken, nor its core.
    *waiting* has an entry for each thread of the process that waits: where there are more than `FEW`, they have
    better use for the core, and for the interpreter's lock.
    """

    __slots__ = ("_left", "_poll", "_rest", "_waiting")
    _give_way = staticmethod(getattr(os, "sched_yield", functools.partial(time.sleep, 0)))

    def __init__(self, waiting: list[None]) -> None:
        self._poll = select.poll()
        self._waiting = waiting
        self._rest = 0  # waits that go by until it looks again, the next time that looking comes to nothing
        self._left = 0  # and now

    def watch(self, end: zmq.Socket[bytes]) -> None:
        """Tell of *end* too."""
        self._poll.register(descriptor(end), select.POLLIN)

    def wait(self, milliseconds: int) -> None:
        """Block until one of them is readable, or so many *milliseconds* are over."""
        self._waiting.append(None)
        try:
            if self._left:
                self._left -= 1
            elif CORES > 1 and self._looks():
                return
            self._poll.poll(milliseconds)
        finally:
            self._waiting.pop()

    def _looks(self) -> bool:
        """Look; whether it came.  The more often it does not, the longer nobody looks."""
        over = time.monotonic() + LOOKING
        while not self._poll.poll(0):
            if time.monotonic() > over:
                self._left = self._rest = min(2 * self._rest + 1, REST)
                return False
            if len(self._waiting) > FEW:
                return False
            self._give_way()  # to ZeroMQ's own threads, which bring the answer
        self._rest >>= 1
        return True
