"""What became of the messages that a publisher offered to its subscribers, as it tells whoever asks."""

from __future__ import annotations

from typing import Any

import msgspec

from pyzmp.exceptions import MalformedMessage


class SubscriberAccount(msgspec.Struct, frozen=True):
    """What became of the messages that one publisher offered to one subscription, as the publisher knows it.

    ``received + dropped + waiting + lost == offered``.  ``subscriber`` names the node, or else the process.
    ``lost`` is what a subscription that has ended had not acknowledged, ``waiting`` what one that lives has not yet.
    """

    subscriber: str
    topic: str
    node: str  # that publishes
    offered: int
    received: int
    dropped: int
    waiting: int
    lost: int
    ended: bool


def accounts(value: Any) -> list[SubscriberAccount]:
    """The accounts that a publisher has answered with.  Raises MalformedMessage."""
    try:
        return msgspec.convert(value, list[SubscriberAccount], strict=True)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"no accounts of a topic: {error}") from error
