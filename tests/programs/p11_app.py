"""A whole application in one file."""

from p01_hello import Greeter
from p07_chain import Orders, Prices

import pyzmp


class Motor(pyzmp.Node):
    turns = 0

    @pyzmp.every(0.01)
    def turn(self) -> None:
        self.turns += 1

    @pyzmp.service
    def turned(self) -> int:
        return self.turns


class Worker(pyzmp.Node):
    @pyzmp.service(idempotent=True)  # may be asked again of another worker when one dies
    def factor(self, n: int) -> list[int]:
        return [d for d in range(1, n + 1) if n % d == 0]


def application() -> pyzmp.Group:
    return pyzmp.Group("robot", [
        Greeter("front"), Greeter("rear"), Prices("prices", kind="entity"), Orders("orders"),
        Motor("motor", kind="thread"),
        pyzmp.Group("workers", [Worker() for _ in range(4)]),
    ])


if __name__ == "__main__":
    pyzmp.configure(domain="robot-7", timeout=2.0)  # once, before first use; PYZMP_* are the defaults
    pyzmp.run(application())
