"""What a type checker refuses: the lines with a comment, for the reason that it names, and no others."""

import asyncio
from collections.abc import Iterator

from p01_hello import Greeter
from p04_oven import Oven
from p07_chain import Orders, Prices
from p08_logs import Tail

import pyzmp


class Cup(pyzmp.Node):
    @pyzmp.service
    def start(self) -> str:  # override
        return "a service must not hide what a node has"


class Meter(pyzmp.Node):
    level = pyzmp.Topic(int)

    @pyzmp.subscribe(level)  # arg-type
    def see(self, value: str) -> None:
        self.level.publish("high")  # arg-type

    @pyzmp.subscribe(level)
    def hear(self, message: pyzmp.Message[int]) -> None:
        self.level.publish(message.value)

    @pyzmp.service(worker=True)
    def total(self, items: Iterator[int]) -> int:
        return sum(items)


def calls() -> None:
    Prices.price(3)  # arg-type
    Prices.price()  # call-arg
    Prices.price("tea", "milk")  # call-arg
    Prices.price(thing="tea")  # call-arg
    Prices.price.submit(3)  # arg-type
    Prices.at("prices").price(3)  # arg-type
    Prices.price.with_options(timeout=1)(3)  # arg-type
    Prices.price.with_options(attempt=1)  # call-arg
    pyzmp.discover(Greeter.hello)(3)  # arg-type
    Greeter("greeter").hello(3)  # arg-type
    Greeter("greeter", kind="fiber")  # arg-type
    Orders.nothing()  # attr-defined


def results() -> None:
    name: str = Prices.price("tea")  # assignment
    total: str = Orders.total(["tea"])  # assignment
    waiting: int = Prices.price.submit("tea").result()  # assignment
    pyzmp.discover("price")("tea")  # misc
    print(name, total, waiting)


def streams(names: list[str]) -> None:
    for line in Tail.follow(3):  # arg-type
        number: int = line  # assignment
        print(number)
    with Tail.at("tail").follow("service.log") as lines:
        number = next(lines)  # assignment
    Tail.follow.submit("service.log")  # attr-defined
    Tail.follow.with_options(attempt=2)  # call-arg
    for line in pyzmp.discover(Tail.follow).with_options(timeout=1)(path=b"log"):  # arg-type
        print(line)
    for line in Tail("tail").follow(3):  # arg-type
        print(line)
    Meter.total(iter(names))  # arg-type
    Meter.total([1, 2])  # arg-type
    Meter.total(n for n in range(3))


def parameters() -> None:
    oven = Oven.at("oven")
    heat: str = oven.heat.get()  # assignment
    oven.heat.set("hot")  # arg-type
    oven.heat.set(1.0, 2.0)  # call-arg
    oven.limit.set("none")  # arg-type
    oven.limit.set(None)
    oven.warmth.get()  # attr-defined
    oven.heat.watch(len)  # arg-type
    for degrees in oven.heat.watch():
        heat = degrees  # assignment
    Oven("oven").heat = "hot"  # assignment
    heat = Oven("oven").heat  # assignment
    pyzmp.graph.wait_for("oven")  # call-arg
    pyzmp.graph.wait_for(3, timeout=1)  # arg-type
    for graph in pyzmp.graph.watch():
        graph.version = 3  # misc
        graph.services["heat"]  # call-overload
    print(heat)


def topics() -> None:
    levels = pyzmp.Topic(int, "house/level")
    levels.subscribe(seen)  # arg-type
    levels.subscribe(seen_in)  # arg-type
    levels.subscribe(lambda value: print(value + 1))
    levels.subscribe(print)
    Meter.level.subscribe(Meter("meter").hear)
    for level in levels.subscribe():
        name: str = level  # assignment
        print(name)


def seen(value: str) -> None:
    print(value)


def seen_in(message: pyzmp.Message[str]) -> None:
    print(message)


def groups() -> None:
    group = pyzmp.Group("greeters", [Greeter(), Meter("meter"), pyzmp.Group(None, (Orders() for _ in range(2)))])
    pyzmp.run(group, Greeter("greeter"), timeout=3)
    pyzmp.Group("greeters")  # call-arg
    pyzmp.Group("greeters", Greeter())  # arg-type
    pyzmp.Group("greeters", [Greeter])  # list-item
    pyzmp.Group("greeters", ["greeter"])  # list-item
    pyzmp.Group("greeters", [Greeter()], kind="thread")  # call-arg
    with group as same:
        code: str = same.shutdown(timeout=2)  # assignment
    print(code, group.kind == "group", [node.name for node in group.nodes])
    Greeter("greeter", kind="group")  # arg-type


async def awaited() -> None:
    heat: str = await Oven.at("oven").heat.aget()  # assignment
    async for graph in pyzmp.graph.watch():
        heat = graph.nodes  # assignment
    print(heat)
    name: str = await Prices.price.acall("tea")  # assignment
    total: str = await Orders.total.acall(["tea"])  # assignment
    found: int = await pyzmp.adiscover(Orders.total)  # assignment
    await Orders.total(["tea"])  # misc
    async for price in Prices.price.map(["tea"]):
        name = price  # assignment
    async for line in Tail.follow("service.log"):
        found = line  # assignment
    await Tail.follow("service.log")  # misc
    print(name, total, found)


asyncio.run(awaited())
