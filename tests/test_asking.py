"""Which calls leave together, and what each of them gets."""

from __future__ import annotations

from collections import deque
from typing import Any

from pyzmp.asking import TOGETHER, Asked, Begun, each, joining
from pyzmp.exceptions import NodeDied
from pyzmp.protocol import codec, runs
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Lane
from pyzmp.protocol.outcomes import Ask, Part, Result, Value

NODE = object()


def asked(node: object = NODE, at: float = 5.0, **other: Any) -> Asked:
    facts = {"service": "service", "body": codec.encode([[1], {}])[0], "bare": True, **other}
    return node, Ask(node="node", buffers=(), deadline=Deadline(at), timeout=5.0, **facts), lambda event: None, Begun()


def test_only_calls_that_are_alike_leave_together() -> None:
    given_up = asked()
    given_up[3].cancel()
    for other in (asked(object()), asked(at=5.0 + 2 * TOGETHER), asked(at=5.0 - 2 * TOGETHER), asked(service="other"),
                  asked(bare=False), asked(wait=True), asked(chain=(Lane("loop", "what"),)), given_up,
                  asked(body=b"x" * (2 << 20)), asked(count=2)):
        first, second, last = asked(), asked(at=5.0 + TOGETHER / 2), asked()
        others = deque([second, other, last])
        assert joining(first, others) == [first, second]
        assert list(others) == [other, last]


def test_each_gets_its_own_result_or_an_error_of_its_own() -> None:
    values = [1, "two", None]
    assert each(Part(0, 3, Result(runs.pack_all(values).joined))) == [Value(b"", (), value) for value in values]
    odd = each(Part(0, 2, Result(b"\x92" + codec.encode((1, 2))[0] + codec.encode({3})[0])))
    assert [codec.decode(outcome.body) for outcome in odd if isinstance(outcome, Result)] == [(1, 2), {3}]
    errors = each(Part(0, 2, NodeDied("gone", executed=None)))
    assert [str(error) for error in errors] == ["gone", "gone"]
    assert errors[0] is not errors[1]


def test_bytes_that_are_no_results_are_so_for_each() -> None:
    for body in (b"", b"\x01", b"\x93\x01\x02", b"\x91\x01"):
        outcomes = each(Part(0, 2, Result(body)))
        assert len(outcomes) == 2
        assert all(type(outcome) is Result and outcome.body == b"\xc1" for outcome in outcomes)
