"""What frames cost: the memory that Python allocates for them, how far the process grew, and where they lie."""
from __future__ import annotations

import resource
import time
import tracemalloc
from typing import Any

import numpy as np

SHAPE = 1080, 1920, 3
SIZE = 1080 * 1920 * 3  # bytes


class Meter:
    """Counts frames, and the most that was allocated between two looks, in frames: a copy would be seen as 1.0."""

    def __init__(self) -> None:
        tracemalloc.start()  # sees what Python and numpy allocate, but not what libzmq does: that is in `grown`
        self.frames, self.began, self.last, self.copies, self.level = 0, 0.0, 0.0, 0.0, 0
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def look(self) -> None:
        """See what was allocated since `mark`, at the most at one time; with the first frame modules are imported."""
        if self.frames > 1:
            self.copies = max(self.copies, (tracemalloc.get_traced_memory()[1] - self.level) / SIZE)

    def mark(self) -> None:
        """Count one more frame; what is allocated from now on is too much."""
        if not self.frames:
            self.began = time.monotonic()
        self.frames, self.last = self.frames + 1, time.monotonic()
        tracemalloc.reset_peak()
        self.level = tracemalloc.get_traced_memory()[0]

    def result(self) -> dict[str, Any]:
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before)
        return {"frames": self.frames, "rate": (self.frames - 1) / max(self.last - self.began, 1e-9),
                "copies": self.copies, "grown": grown / SIZE}


def owner_of(array: Any) -> str:
    """What owns the memory that an array shows: the last one in the chain of views."""
    while getattr(array, "base", None) is not None:
        array = array.base
    owner = array.obj if isinstance(array, memoryview) else array
    return f"{type(owner).__module__}.{type(owner).__qualname__}"


def mapping_of(array: Any) -> str:
    """The part of the process's memory that the first element of an array lies in, as Linux calls it."""
    address = array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else 0
    with open("/proc/self/maps") as file:
        for line in file:
            start, end = (int(each, 16) for each in line.split()[0].split("-"))
            if start <= address < end:
                return (line.split(maxsplit=5)[5:] or ["anonymous"])[0].strip()
    return "nowhere"
