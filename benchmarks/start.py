"""The start of nodes as processes, beside bare processes of a forkserver, each in a new interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from harness import compare

BARE = """
import multiprocessing, time
def nothing(): pass
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zmq", "msgspec", "asyncio"])
    def start():
        process = context.Process(target=print, args=("",), daemon=True)
        began = time.perf_counter()
        process.start()
        process.join()
        return time.perf_counter() - began
    print(start(), sorted(start() for _ in range(9))[4])
"""

NODE = """
import pyzmp, time
class Echo(pyzmp.Node):
    @pyzmp.service
    def echo(self, value: int) -> int:
        return value
def start():
    node = Echo()
    began = time.perf_counter()
    node.start()
    assert Echo.at(node.name).echo(1) == 1
    spent = time.perf_counter() - began
    node.shutdown()
    return spent
print(start(), sorted(start() for _ in range(9))[4])
"""


def figures(program: str) -> tuple[float, float]:
    """Milliseconds of the first start in a new interpreter and a new domain, and the median of later ones."""
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        path = os.path.join(folder, "program.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(program)
        done = subprocess.run([sys.executable, path], check=True, capture_output=True, text=True,
                              env={**os.environ, "PYZMP_DIR": folder})
    first, later = done.stdout.split()[-2:]
    return float(first) * 1000, float(later) * 1000


if __name__ == "__main__":
    for title, index in (("the first process of a script: start to first answer, registry included", 0),
                         ("each later one", 1)):
        compare(title, "ms", {"bare forkserver process, start to end": lambda i=index: figures(BARE)[i],  # type: ignore[misc]
                              "pyzmp node, start to first answer": lambda i=index: figures(NODE)[i]},  # type: ignore[misc]
                rounds=7)
