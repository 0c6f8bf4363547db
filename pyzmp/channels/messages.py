"""The messages of a subscription, for those who ask for more than their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pyzmp.channels.message import Message
from pyzmp.channels.stream import Stream

if TYPE_CHECKING:
    from pyzmp.channels.subscription import Subscription

T = TypeVar("T")


class Messages(Stream[Message[T]]):
    """The messages of a subscription."""

    def __init__(self, subscription: Subscription[T]) -> None:
        self._subscription = subscription

    def __next__(self) -> Message[T]:
        return self._subscription.message(next(self._subscription))

    async def __anext__(self) -> Message[T]:
        return self._subscription.message(await self._subscription.__anext__())

    def close(self) -> None:
        """Close the subscription."""
        self._subscription.close()

    async def aclose(self) -> None:
        """As `close`, in a coroutine."""
        await self._subscription.aclose()
