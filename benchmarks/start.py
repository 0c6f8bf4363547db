"""The start of nodes to their first answered call.

Processes beside bare ones of a forkserver that do nothing; threads and entities beside one blocking call of a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from harness import compare, count, world

BARE = """
import json, multiprocessing, time
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zmq", "msgspec", "asyncio"])
    def start():
        process = context.Process(target=print, args=("",), daemon=True)
        began = time.perf_counter()
        process.start()
        process.join()
        return (time.perf_counter() - began) * 1000
    print(json.dumps([start() for _ in range(%d)]))
"""

NODE = """
import json, pyzmp, time
class Echo(pyzmp.Node):
    @pyzmp.service
    def echo(self, value: int) -> int:
        return value
def start():
    node = Echo()
    began = time.perf_counter()
    node.start()
    Echo.at(node.name).echo(1)
    spent = (time.perf_counter() - began) * 1000
    node.shutdown()
    return spent
print(json.dumps([start() for _ in range(%d)]))
"""

NEAR = """
import asyncio, json, pyzmp, time
class Echo(pyzmp.Node):
    @pyzmp.service
    def echo(self, value: int) -> int:
        return value
def timed(work, *args):
    began = time.perf_counter()
    work(*args)
    return (time.perf_counter() - began) * 1000
def start(node):
    node.start()
    Echo.at(node.name).echo(1)
async def main(number, found):
    for _ in range(number):
        node = Echo(kind="entity")
        began = time.perf_counter()
        await node.astart()
        await Echo.at(node.name).echo.acall(1)
        found.append((time.perf_counter() - began) * 1000)
        await node.ashutdown()
figures = {"call": [], "thread": [], "entity": []}
with Echo("far"), Echo("near", kind="entity"):
    far = Echo.at("far").echo
    for _ in range(20):
        far(1)
    for _ in range(%d):
        figures["call"] += [timed(far, 1) for _ in range(20)]
        node = Echo(kind="thread")
        figures["thread"].append(timed(start, node))
        node.shutdown()
        asyncio.run(main(4, figures["entity"]))
print(json.dumps(figures))
"""


def said(program: str, number: int, compiled: str) -> object:
    """What *program* prints last, in a new interpreter and a new domain; what it imports is in *compiled*."""
    with world() as folder:
        path = Path(folder, "program.py")
        path.write_text(program % number)
        done = subprocess.run([sys.executable, path], check=True, capture_output=True, text=True,
                              env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled})
    return json.loads(done.stdout.splitlines()[-1])


def started(program: str, later: bool, compiled: str) -> Callable[[], float]:
    """A candidate: milliseconds of the first start of a program, or the median of its later ones."""
    def run() -> float:
        figures = said(program, count(12, least=2) if later else 1, compiled)
        assert isinstance(figures, list)
        return float(median(figures[1:] if later else figures))
    return run


def near(kind: str, latest: dict[str, list[float]], compiled: str) -> Callable[[], float]:
    """A candidate: milliseconds of a blocking call, or of a start; all three of a round are of one program."""
    def run() -> float:
        if kind not in latest:
            figures = said(NEAR, count(20, least=2), compiled)
            assert isinstance(figures, dict)
            latest.clear()
            latest.update(figures)
        return float(median(latest.pop(kind)))
    return run


def main(compiled: str) -> None:
    """Print it all."""
    for title, later in (("the first process of a program, registry included", False), ("each later process", True)):
        compare(f"{title}: start to first answer", "ms",
                {"bare forkserver process, start to end": started(BARE, later, compiled),
                 "pyzmp node": started(NODE, later, compiled)}, rounds=5, target={"pyzmp node": 3} if later else None)
    figures: dict[str, list[float]] = {}
    compare("nodes in this process: start to first answer", "ms",
            {"one blocking call of a process": near("call", figures, compiled),
             "thread": near("thread", figures, compiled), "entity": near("entity", figures, compiled)},
            rounds=5, target={"thread": 20, "entity": 5})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        main(folder)
