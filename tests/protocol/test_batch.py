"""What is taken of messages that have come together."""

from __future__ import annotations

from pyzmp.protocol.batch import Batch
from pyzmp.protocol.envelope import Published


class Lamp:
    node, topic, shape = "lamp", "lamp/light", b""


def batch(*bodies: bytes) -> Batch:
    return Batch(Lamp(), Published(1, 0, [0.0] * len(bodies), list(bodies)), ())


def test_a_batch_counts_what_is_taken_of_it_and_its_bytes() -> None:
    some = batch(b"abc", b"", b"def")
    assert (some.count(), some.taken, some.over) == ((0, 0), 0, False)
    values = some.begin([1, 2, 3])
    assert (some.count(), some.taken) == ((0, 0), 0)
    assert (next(values), some.taken, some.place, some.count()) == (1, 1, 0, (1, 2))
    assert list(values) == [2, 3]
    assert (some.count(), some.count(), some.taken, some.over) == ((2, 4), (0, 0), 3, True)


def test_a_batch_that_is_held_counts_the_last_one_when_it_ends() -> None:
    some = batch(b"abc", b"def")
    values = some.begin([1, 2], held=True)
    assert (next(values), some.taken, some.place, some.count()) == (1, 0, 0, (0, 0))
    assert (next(values), some.taken, some.place, some.count()) == (2, 1, 1, (1, 3))
    some.end()
    assert (some.taken, some.count(), some.over) == (2, (1, 3), True)


def test_what_cannot_be_read_of_a_batch_is_taken_with_the_rest() -> None:
    some = batch(b"abc", b"def")
    assert list(some.begin([], held=True)) == []
    some.end()
    assert (some.taken, some.count(), some.over) == (0, (2, 6), True)
