"""A typed client in an unrelated interpreter."""

from p01_hello import Greeter

import pyzmp

hello = pyzmp.discover(Greeter.hello, timeout=5)  # waits; UnknownService if nobody comes. Never None
print(hello("client"))  # mypy: (who: str = ...) -> str
print(hello.with_options(timeout=0.5)("again"))  # options never share a place with arguments
print(Greeter.at("greeter").hello())  # this one node

untyped = pyzmp.discover("hello")  # by name, as in 0.0.17: None where nobody provides it
if untyped is not None:
    print(untyped(who="there"), untyped.providers)
