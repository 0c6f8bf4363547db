"""A node with one service, and a call."""
import pyzmp


class Greeter(pyzmp.Node):
    @pyzmp.service
    def hello(self, who: str = "world") -> str:
        return f"hello, {who}"


with Greeter("greeter"):
    print(Greeter.hello("you"))
