"""A group of workers under one name: calls go to them in turn, and round one that dies."""
from __future__ import annotations

import os

import pyzmp


class Worker(pyzmp.Node):
    @pyzmp.service(idempotent=True)  # may be asked again of another worker when one dies
    def squares(self, start: int, stop: int) -> int:
        if self.name == "workers/1" and start >= 3000:
            os._exit(1)  # as if it had been killed
        return sum(n * n for n in range(start, stop))


if __name__ == "__main__":
    with pyzmp.Group("workers", [Worker() for _ in range(3)]) as workers:
        parts = range(0, 10_000, 1000)
        total = sum(Worker.at("workers").squares.map(parts, (start + 1000 for start in parts)))
        print("sum of squares:", total, "which is" if total == sum(n * n for n in range(10_000)) else "not", "right")
        print("asked by place:", Worker.at("workers/2").squares(0, 4))
        workers.nodes[0].join(5)
        print("lost on the way:", [node.name for node in workers.nodes if not node.is_alive()])
    print("exit code:", workers.exitcode)
