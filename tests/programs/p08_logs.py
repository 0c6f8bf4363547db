"""Streaming logs: a service that is a generator is a stream; a topic of a module needs no node."""

import asyncio
import time
from collections.abc import Iterator

import pyzmp

alerts = pyzmp.Topic(str, "ops/alerts")  # a full name: usable anywhere


class Tail(pyzmp.Node):
    @pyzmp.service(worker=True)  # may block: runs in a worker thread of the node
    def follow(self, path: str) -> Iterator[str]:
        with open(path) as file:  # left when the caller stops early
            while True:
                if line := file.readline():
                    yield line
                else:
                    time.sleep(0.1)
                    pyzmp.current_call().check()  # raises where the caller is gone


def first_errors(path: str, count: int) -> list[str]:
    with Tail.follow(path) as lines:  # closing a stream ends its generator
        found = (line for line in lines if "ERROR" in line)
        return [next(found) for _ in range(count)]


async def relay(path: str) -> None:
    async for line in Tail.follow(path):  # the same call; for or async for decides
        if "ERROR" in line:
            alerts.publish(line)


if __name__ == "__main__":
    with Tail("tail"):
        asyncio.run(relay("service.log"))
