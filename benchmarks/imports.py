"""``import pyzmp`` beside importing zmq, msgspec and asyncio, each in a new interpreter."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from harness import compare


def importing(modules: str) -> Callable[[], float]:
    """A candidate: milliseconds of an interpreter that imports *modules*."""
    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
        return (time.perf_counter() - began) * 1000
    return run


if __name__ == "__main__":
    compare("an interpreter that imports", "ms",
            {"zmq, msgspec, asyncio": importing("zmq, msgspec, asyncio"), "pyzmp": importing("pyzmp")}, rounds=21)
