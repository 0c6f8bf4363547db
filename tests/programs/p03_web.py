"""An asyncio web application that embeds nodes, by any ASGI framework's lifespan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pyzmp


class Visits(pyzmp.Node):
    kind = "entity"  # a default; Visits("x", kind="process") overrides it

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(name, **options)  # hand **options on, or kind= is lost
        self.count = 0

    @pyzmp.service
    async def visit(self) -> int:
        self.count += 1
        return self.count


class Resizer(pyzmp.Node):
    @pyzmp.service(idempotent=True)
    def thumbnail(self, image: bytes, width: int) -> bytes:
        return image[:width]


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    # async with: entities run on this very loop, processes start without blocking it
    async with Visits("visits"), pyzmp.Group("resizers", [Resizer() for _ in range(4)]):
        yield


async def upload(body: bytes) -> dict[str, Any]:
    n = await Visits.visit.acall()
    small = await Resizer.thumbnail.with_options(timeout=2, wait=True).acall(body, width=64)
    return {"visitor": n, "bytes": len(small)}


async def serve() -> None:
    async with lifespan(None):
        for answer in await asyncio.gather(*(upload(bytes(1000)) for _ in range(3))):
            print(answer)


asyncio.run(serve())
