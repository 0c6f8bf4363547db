"""A long computation in a worker thread streams its progress; a caller who has seen enough leaves, and it ends."""
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pyzmp


@dataclass
class Step:
    terms: int
    pi: float


class Series(pyzmp.Node):
    ended_after = 0

    @pyzmp.service(worker=True)  # computes for long, beside the other services of the node
    def leibniz(self) -> Iterator[Step]:
        total, terms = 0.0, 0
        try:
            for terms in itertools.count(1):
                total += (-1) ** (terms - 1) * 4 / (2 * terms - 1)
                if terms % 10_000 == 0:
                    yield Step(terms, total)
        finally:  # also where the caller has left
            self.ended_after = terms

    @pyzmp.service
    def ended(self) -> int:
        return self.ended_after


if __name__ == "__main__":
    with Series("series"):
        before = 0.0
        with Series.leibniz.with_options(window=2)() as steps:  # it may be 2 steps ahead
            for step in steps:
                print(f"{step.terms} terms: {step.pi:.7f}")
                if abs(step.pi - before) < 1e-6:
                    break
                before = step.pi
        while not (terms := Series.ended()):  # leaving the with has told it to end, which it does at its next yield
            pass
        print(f"ended after {terms} terms")
