"""Hello, service: p02_client asks from another interpreter."""

import pyzmp


class Greeter(pyzmp.Node):
    @pyzmp.service
    def hello(self, who: str = "world") -> str:
        return f"hello, {who}"


if __name__ == "__main__":  # only because p02_client imports this file
    pyzmp.run(Greeter("greeter"))  # until Ctrl-C or SIGTERM
