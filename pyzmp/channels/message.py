"""What subscribers get: messages, and what else happens to a subscription."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Message(msgspec.Struct, Generic[T], frozen=True):
    """A message of a topic, for those who ask for more than its value.

    ``topic`` is the full name and ``node`` the node, or the program, that published it; ``number`` counts the messages
    of that topic there from 0, and ``time`` is when it was published, in seconds since 1970 by the clock there.
    """

    value: T
    topic: str
    node: str
    number: int
    time: float


class Gap(msgspec.Struct, frozen=True):
    """Messages that a subscription did not get: ``count`` of them from ``number`` on.

    ``dropped`` where its full queue has dropped them, else they are lost.
    """

    topic: str
    node: str
    number: int
    count: int
    dropped: bool


class Joined(msgspec.Struct, frozen=True):
    """A publisher has confirmed the subscription: what it publishes from now on is received, or reported."""

    topic: str
    node: str


class Left(msgspec.Struct, frozen=True):
    """A publisher that had confirmed the subscription is gone, or cannot be reached now; ``reason`` says why."""

    topic: str
    node: str
    reason: str


class Refused(msgspec.Struct, frozen=True):
    """A publisher has refused the subscription; ``reason`` says why."""

    topic: str
    node: str
    reason: str


Event = Gap | Joined | Left | Refused
