"""Parameters and the graph: whoever is interested reads, sets and follows them from anywhere."""

import asyncio

import pyzmp


class Oven(pyzmp.Node):
    heat = pyzmp.Parameter(180.0)
    limit: pyzmp.Parameter[float | None] = pyzmp.Parameter(None)
    baked = pyzmp.Parameter(0, settable=False)
    period = pyzmp.Parameter(60.0)

    @pyzmp.every(period)
    def bake(self) -> None:
        if self.limit is None or self.heat < self.limit:
            self.baked += 1

    @pyzmp.service
    def loaves(self) -> int:
        return self.baked


def main() -> None:
    oven = Oven.at("oven")
    with Oven("oven"):
        graph = pyzmp.graph.wait_for(Oven.loaves, timeout=5)
        print(graph.node("oven").cls, [parameter.value for parameter in graph.parameters])
        oven.limit.set(200.0)
        oven.heat.set(oven.heat.get() + 10)
        oven.period.set(0.01, timeout=2)
        with oven.baked.watch(timeout=20) as loaves:
            print(next(number for number in loaves if number > 2) > 2)
        asyncio.run(listen())


async def listen() -> None:
    oven = Oven.at("oven")
    await oven.heat.aset(210.0)
    async for degrees in oven.heat.watch():
        print(degrees, await oven.limit.aget())
        break
    async for graph in pyzmp.graph.watch(timeout=5):
        print([node.name for node in graph.nodes], graph.stale_since)
        break


if __name__ == "__main__":
    main()
