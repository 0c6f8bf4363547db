"""The accounts of a topic, as they travel."""

from __future__ import annotations

import pytest

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.accounts import SubscriberAccount, accounts


def test_they_arrive_as_they_were_sent() -> None:
    sent = [SubscriberAccount("kitchen", "a/b", "a", 10, 5, 2, 3, 0, False)]
    assert accounts(codec.decode(*codec.encode(sent))) == sent


@pytest.mark.parametrize("value", [None, [1], [{}], [{"subscriber": 1}], {"a": 1}])
def test_anything_else_is_malformed(value: object) -> None:
    with pytest.raises(MalformedMessage):
        accounts(value)
