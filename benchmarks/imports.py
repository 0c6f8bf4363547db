"""``import pyzmp``, and a program that defines a node, beside importing zmq, msgspec and asyncio."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from harness import compare, world

LIMIT = "import zmq, msgspec, asyncio"
DEFINED = """
import pyzmp
class Echo(pyzmp.Node):
    @pyzmp.service
    def echo(self, value: int) -> int:
        return value
"""
CALLED = f"""{DEFINED}
pyzmp.configure(registry="memory")
with Echo("echo", kind="entity"):
    Echo.echo(1)
"""


def running(program: str, folder: str) -> Callable[[], float]:
    """A candidate: milliseconds of an interpreter that runs *program*, whose imports are compiled, as after a setup."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}

    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, stdout=subprocess.DEVNULL)
        return (time.perf_counter() - began) * 1000
    return run


if __name__ == "__main__":
    with world() as folder:
        programs = {"import zmq, msgspec, asyncio": LIMIT, "import pyzmp": "import pyzmp", "both": f"{LIMIT}, pyzmp",
                    "pyzmp, and a node defined": DEFINED, "pyzmp, and a call answered": CALLED,
                    "pyzmp --version": "from pyzmp.cli import main; main(['--version'], standalone_mode=False)"}
        compare("a new interpreter", "ms", {name: running(program, folder) for name, program in programs.items()},
                rounds=21, target={"import pyzmp": 1.2, "pyzmp, and a node defined": 1.2})
