"""What a type checker refuses: the lines with a comment, for the reason that it names, and no others."""

import asyncio

from p01_hello import Greeter
from p07_chain import Orders, Prices

import pyzmp


class Cup(pyzmp.Node):
    @pyzmp.service
    def start(self) -> str:  # override
        return "a service must not hide what a node has"


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


async def awaited() -> None:
    name: str = await Prices.price.acall("tea")  # assignment
    total: str = await Orders.total.acall(["tea"])  # assignment
    found: int = await pyzmp.adiscover(Orders.total)  # assignment
    await Orders.total(["tea"])  # misc
    async for price in Prices.price.map(["tea"]):
        name = price  # assignment
    print(name, total, found)


asyncio.run(awaited())
