"""In an interpreter of its own: asks the nodes of the other one, by name, and prints a table."""
import sys
import time
from typing import Any

import pyzmp

NAMES = "cpu", "memory", "disk"


def print_table(services: dict[str, Any], summary: dict[str, Any]) -> None:
    print(f"{'':8} {'now':>7} {'lowest':>7} {'mean':>7} {'highest':>7}  detail")
    for name in NAMES:
        now, lately = services[name](), summary.get(name)
        columns = [f"{lately[key]:6.1f}%" if lately else f"{'-':>7}" for key in ("lowest", "mean", "highest")]
        print(f"{name:8} {now['used']:6.1f}% {' '.join(columns)}  {now['detail']}")


def main(rounds: int) -> None:
    services: dict[str, Any] = {name: pyzmp.discover(name, timeout=5) for name in (*NAMES, "summary")}
    missing = [name for name, service in services.items() if service is None]
    if missing:
        sys.exit(f"nobody provides {', '.join(missing)}; start main.py first")
    for _ in range(rounds):
        time.sleep(0.5)
        print_table(services, services["summary"]())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
