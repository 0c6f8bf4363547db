"""What is closed when its ``with`` is left."""

from __future__ import annotations

from typing_extensions import Self


class Closing:
    """Leaving its ``with`` closes it, and leaving its ``async with`` does so in the coroutine."""

    def close(self) -> None:
        """Close it; once is enough, twice does no harm."""

    async def aclose(self) -> None:
        """As `close`, in a coroutine."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
