"""Asking publishers for their accounts, from wherever one is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import pyzmp


class Laser(pyzmp.Node):
    scan = pyzmp.Topic(int)

    @pyzmp.service
    def measure(self, count: int) -> None:
        for number in range(count):
            self.scan.publish(number)


def test_every_publisher_is_asked_and_what_it_says_adds_up(eventually: Callable[..., None]) -> None:
    with Laser("front"), Laser("rear", kind="thread") as rear:
        with Laser.scan.subscribe(timeout=15) as scans:
            for node in ("front", "rear"):
                Laser.at(node).measure(5)
            assert sorted(next(scans) for _ in range(10)) == sorted([*range(5)] * 2)
            eventually(lambda: [each.received for each in Laser.scan.accounts()] == [5, 5])
            assert {each.node for each in Laser.scan.accounts()} == {"front", "rear"}
            assert Laser.at("front").scan.accounts(timeout=15)[0].topic == "front/scan"
            assert asyncio.run(Laser.at("front").scan.aaccounts())[0].offered == 5
            assert rear.scan.accounts()[0].node == "rear"
        eventually(lambda: all(each.ended for each in Laser.scan.accounts()))
        assert {each.lost for each in Laser.scan.accounts()} == {0}


def test_where_nobody_publishes_nobody_can_be_asked() -> None:
    with pytest.raises(pyzmp.UnknownService, match=r"nobody publishes Laser\.scan"):
        Laser.scan.accounts()
