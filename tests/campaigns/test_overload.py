"""A node that is offered ten times what it can do."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from typing import Any

import pytest

import pyzmp
from tests.campaigns.history import SCALE, judge, share

TIMES = 10
PROGRAMS = 3
TIMEOUT = 1.0  # of each call
SLACK = 0.1  # seconds after its deadline in which a call has its outcome

# Offers calls at a rate, whatever becomes of them; prints [begun, ended, kind, retry_after] of each.
OFFER = """
import json, sys, threading, time
import pyzmp

rate, begin, seconds, timeout = map(float, sys.argv[1:])
work = pyzmp.discover("work", timeout=10).with_options(timeout=timeout)
made, room = [], threading.Semaphore(0)

def offer(number):
    began = time.monotonic()

    def ended(future):
        error = future.exception(0)
        made.append((began, time.monotonic(), type(error).__name__ if error else "result",
                     getattr(error, "retry_after", None), getattr(error, "executed", True)))
        room.release()
    try:
        work.submit().add_done_callback(ended)
    except pyzmp.CallError as error:
        made.append((began, time.monotonic(), type(error).__name__, getattr(error, "retry_after", None),
                     error.executed))
        room.release()

count = int(rate * seconds)
for number in range(count):
    time.sleep(max(0.0, begin + number / rate - time.monotonic()))
    offer(number)
for _ in range(count):
    assert room.acquire(timeout=timeout + 20), f"a call has no outcome: {len(made)} of {count} have one"
json.dump(made, sys.stdout)
"""


class Mill(pyzmp.Node):
    """Takes 3 ms for each call, and does nothing else meanwhile."""

    def on_start(self) -> None:
        self.done = 0

    @pyzmp.service
    def work(self) -> None:
        time.sleep(0.003)
        self.done += 1

    @pyzmp.service
    def worked(self) -> int:
        return self.done


def capacity(seconds: float) -> float:
    """Calls a second that the node answers to a few callers which wait for each answer."""
    over = time.monotonic() + seconds
    counts = []

    def ask() -> None:
        count = 0
        while time.monotonic() < over:
            Mill.work()
            count += 1
        counts.append(count)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seconds", [1.2, pytest.param(10.0, marks=pytest.mark.slow)])
def test_ten_times_the_load_leaves_most_of_the_capacity_and_nothing_behind(seconds: float, script: Any) -> None:
    (script.folder / "offer.py").write_text(OFFER)
    with Mill("mill"):
        able = capacity(max(0.5, seconds / 5))
        before = Mill.worked()
        begin = time.monotonic() + 0.8  # when all programs have found the node
        programs = [script.start("offer.py", str(TIMES * able / PROGRAMS), str(begin), str(seconds), str(TIMEOUT),
                                 stdout=subprocess.PIPE) for _ in range(PROGRAMS)]
        time.sleep(max(0.0, begin + seconds - time.monotonic()))  # until the end of the load
        Mill.work()
        answered = time.monotonic()
        worked = Mill.worked() - before - 1
        calls = [call for program in programs for call in json.loads(program.communicate()[0])]
        assert not any(program.wait() for program in programs)
    kinds = Counter(kind for _, _, kind, _, _ in calls)
    last = max(began for began, *_ in calls)
    offered = len(calls) / (last - begin)
    in_time = sum(kind == "result" and ended - began <= TIMEOUT for began, ended, kind, *_ in calls)
    served = in_time / (last - begin)
    refused = [ended - began for began, ended, kind, *_ in calls if kind == "Overloaded"]
    print(f"\ncapacity {able:.0f} calls/s; offered {offered:.0f} for {last - begin:.1f} s: {dict(kinds)}; served in "
          f"time {served:.0f} calls/s ({served / able:.0%}); Overloaded after "
          + (f"{share(refused, .5) * 1e3:.1f} ms (median), {share(refused, .99) * 1e3:.1f} ms (99th percentile)"
             if refused else "nothing") + f"; a call after the load was answered "
          f"{answered - last:.3f} s behind its last one")
    judge([f"a call of {began - begin:.3f} s ended with {kind} (executed {executed}, retry after {again}) in "
           f"{ended - began:.3f} s" for began, ended, kind, again, executed in calls
           if kind not in ("result", "Overloaded", "CallTimeout") or ended - began > TIMEOUT + SLACK * SCALE
           or (kind == "Overloaded" and not (executed is False and again and again > 0))])
    assert offered > 0.7 * TIMES * able, "too little was offered: invalid"
    assert in_time > 0.8 * worked, f"the node worked for {worked} calls"
    if seconds >= 10:  # what it can do changes too much from one second to the next beside other tests
        assert served > 0.8 * able
    assert answered - last < 1.0 * SCALE
