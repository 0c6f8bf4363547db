"""A long CPU-bound job with progress and cancel."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyzmp


@dataclass
class Step:
    done: float
    best: int


class Search(pyzmp.Node):
    @pyzmp.service(worker=True, timeout=3600)  # the default for its callers; with_options overrides
    def best(self, upto: int) -> int:
        call, best = pyzmp.current_call(), 0
        for n in range(upto):
            if n % 1000 == 0:
                call.check()  # raises Cancelled once cancelled or out of time
            best = max(best, n * 7919 % 104729)
        return best

    @pyzmp.service(worker=True)
    def search(self, upto: int) -> Iterator[Step]:  # progress is a stream whose last item is the result
        best = 0
        for n in range(upto):
            best = max(best, n * 7919 % 104729)
            if n % 10_000 == 0:
                yield Step(n / upto, best)
        yield Step(1.0, best)


with Search("search"):
    future = Search.best.submit(10**9)
    future.cancel()  # travels to the worker thread
    step = Step(0, 0)
    for step in Search.search(10**6):
        print(f"{step.done:.0%}")
    print(step.best)
