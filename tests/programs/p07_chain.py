"""A service calls another service; what each failure looks like."""

import pyzmp


class Prices(pyzmp.Node):
    @pyzmp.service
    def price(self, item: str) -> float:
        return {"tea": 2.5}[item]


class Orders(pyzmp.Node):
    @pyzmp.service
    async def total(self, items: list[str]) -> float:  # async: others are served meanwhile
        return sum([await Prices.price.acall(i) for i in items])  # inherits what is left of the deadline

    @pyzmp.service
    def quick(self, item: str) -> float:  # sync: the node waits
        return Prices.price(item) * self.vat()  # self.vat(): a plain call, no message

    @pyzmp.service
    def vat(self) -> float:
        return 1.2


if __name__ == "__main__":
    with Prices("prices"), Orders("orders"):
        print(Orders.quick("tea"))
        try:
            print(Orders.total.with_options(timeout=2)(["tea", "gold"]))
        except KeyError as error:  # the service's own exception, its type kept
            print(error, "raised in", error.__cause__)  # from RemoteError: node, service, traceback
        except pyzmp.CallTimeout as error:  # always *this* call; a timeout inside `total` comes as RemoteError
            print("executed?", error.executed)
        except pyzmp.CallError as error:  # UnknownService, InvalidCall, Overloaded, NodeDied ...
            print(error)
