"""A service takes a stream of any length and answers a digest of it."""
import hashlib
from collections.abc import Iterable, Iterator

import pyzmp


class Store(pyzmp.Node):
    @pyzmp.service(worker=True, timeout=60)  # the whole upload takes at most so long
    def digest(self, pieces: Iterable[bytes], algorithm: str = "sha256") -> str:
        total = hashlib.new(algorithm)
        for piece in pieces:  # the caller sends no faster than they are taken
            total.update(piece)
        return total.hexdigest()


def pieces(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield number.to_bytes(4, "big") * 16_384


with Store("store"):
    answer = Store.digest(pieces(300), algorithm="sha1")  # 19 MB, never all of them in memory at once
    print("sent", answer)

    here = hashlib.sha1()
    for piece in pieces(300):
        here.update(piece)
    print("here", here.hexdigest())
    print("the same" if answer == here.hexdigest() else "different")
