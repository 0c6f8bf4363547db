"""Tests of a user's own project."""

from typing import Literal

import pytest
from p07_chain import Orders, Prices

import pyzmp
from pyzmp.testing import Faults, Start


def test_price_is_a_plain_method() -> None:
    assert Prices("p").price("tea") == 2.5  # not started: no message, no process


@pytest.mark.parametrize("kind", ["entity", "thread", "process"])
# In a domain of its own; what it leaves running fails the test.
def test_total(pyzmp_start: Start, kind: Literal["entity", "thread", "process"]) -> None:
    pyzmp_start(Prices("prices"), Orders("orders"), kind=kind)
    assert Orders.total(["tea", "tea"]) == 5.0


def test_a_killed_provider_is_reported(pyzmp_start: Start, pyzmp_faults: Faults) -> None:
    pyzmp_start(Prices("prices"))
    pyzmp_faults.stop("prices")  # so that it cannot answer before it is killed
    future = Prices.price.submit("tea")
    pyzmp_faults.kill("prices")
    with pytest.raises(pyzmp.NodeDied):
        future.result(timeout=1)
