"""What is made of messages that have come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyzmp.channels.message import Message
from pyzmp.channels.opening import Opening, Raw
from pyzmp.protocol import codec
from pyzmp.protocol.batch import Batch
from pyzmp.protocol.envelope import Published
from pyzmp.protocol.schema import Type


class Lamp:
    node, topic, shape = "lamp", "lamp/light", b"it"


def batch(*values: Any, number: int = 7) -> Batch:
    bodies, buffers = [], []
    for value in values:
        body, large = codec.encode(value)
        bodies.append(body)
        buffers.extend(large)
    source: Any = Lamp()
    times = [100.0 + place for place in range(len(bodies))]
    return Batch(source, Published(1, number, times, bodies, len(buffers)), buffers)


@pytest.mark.parametrize(("type", "values"), [
    (None, ["a", 1, None]), (Type.of(Any), [1, "b"]), (Type.of(int), [1, 2, 3]), (Type.of(float), [1.5, 2]),
    (Type.of(tuple[int, str]), [(1, "a"), (2, "b")]), (Type.of(dict[str, float]), [{"a": 1.0}, {}]),
])
def test_values_arrive_as_they_were_published(type: Type | None, values: list[Any]) -> None:
    opening = Opening(type)
    found, numbers, times = opening.values(batch(*values))
    assert (found, list(numbers), list(times)) == (values, list(range(7, 7 + len(values))),
                                                   [100.0 + place for place in range(len(values))])
    assert opening.unreadable == 0


def test_messages_say_whose_they_are() -> None:
    assert Opening(None).messages(batch("a", "b")) == [
        Message("a", "lamp/light", "lamp", 7, 100.0), Message("b", "lamp/light", "lamp", 8, 101.0)]


def test_what_is_no_value_of_the_type_is_left_out_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    opening = Opening(Type.of(int))
    found, numbers, times = opening.values(batch(1, "two", 3))
    assert (found, list(numbers), list(times)) == ([1, 3], [7, 9], [100.0, 102.0])
    assert opening.unreadable == 1
    assert "message 8 of lamp/light of 'lamp' cannot be read, and is lost: value: expected int, got str" in caplog.text
    broken = batch(1, 2)
    broken.bodies[0] = b"\xc1"
    assert opening.values(broken)[0] == [2]
    assert opening.unreadable == 2
    assert opening.messages(broken) == [Message(2, "lamp/light", "lamp", 8, 101.0)]


def test_an_array_is_a_read_only_view_over_what_was_received() -> None:
    picture: Any = np.arange(100_000, dtype=np.uint8)
    some = batch(picture)
    some.buffers = [memoryview(bytes(some.buffers[0]))]
    found = Opening(None).values(some)[0][0]
    assert np.array_equal(found, picture)
    assert np.shares_memory(found, np.frombuffer(some.buffers[0], np.uint8))
    assert not found.flags.writeable


def test_raw_values_are_not_looked_at() -> None:
    some = batch("a", "b")
    assert Opening(None, raw=True).values(some)[0] == [Raw(body, some.buffers, b"it") for body in some.bodies]
