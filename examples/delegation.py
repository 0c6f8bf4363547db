"""A class that holds a node instead of being one: it chooses what others may call."""
from __future__ import annotations

from typing_extensions import Self

import pyzmp


class Account:
    """A plain class with a life of its own; two of its methods are services of the node that it holds."""

    def __init__(self, owner: str) -> None:
        self.balance = 0
        self.node = pyzmp.Node(f"account-{owner}", kind="thread")
        self.node.provides(self.deposit)
        self.node.provides(self.statement, "show")

    def deposit(self, amount: int) -> int:
        if amount <= 0:
            raise ValueError(f"a deposit is positive, got {amount}")
        self.balance += amount
        return self.balance

    def statement(self) -> str:
        return f"{self.node.name}: {self.balance}"

    def __enter__(self) -> Self:
        self.node.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.node.shutdown()


if __name__ == "__main__":
    with Account("ada") as account:
        deposit = pyzmp.discover("account-ada/deposit")
        show = pyzmp.discover("show")
        assert deposit is not None and show is not None
        deposit(30)
        deposit(12)
        try:
            deposit(-1)
        except ValueError as error:
            print("refused:", error)
        print(show())
        print("and the object itself holds", account.balance)
