"""From topics to services, and from services to topics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pyzmp.channels.declare import every, service
from pyzmp.channels.discovery import adiscover
from pyzmp.channels.service import Service
from pyzmp.exceptions import UnknownService
from pyzmp.flow.failing import own_part
from pyzmp.flow.naming import shown
from pyzmp.flow.stages import Step, awaited, value_of
from pyzmp.flow.steps import Paced

FIND = 5.0  # seconds that a ghost waits for the first provider of a service that it knows by name

log = logging.getLogger("pyzmp.flow")


class Shadow(Step):
    """A topic as a service: ``Shadow.at("node").latest()`` gives the latest value, and so does one called *service*.

    Before the first one a call waits, as long as its timeout lets it; what publishers keep is taken for it.  What
    comes is passed on.
    """

    history = 1

    def __init__(self, service: str | None = None, name: str | None = None, **options: Any) -> None:
        self._about = "" if service is None else repr(service)
        super().__init__(name, **options)
        if service is not None:
            self.provides(self._latest, service)

    def on_start(self) -> None:
        self._came = asyncio.Event()
        super().on_start()

    async def take(self, value: Any) -> None:
        self._value = value = value_of(value)
        self._came.set()
        await self.send(value)

    @service(name="flow.latest", idempotent=True)
    async def latest(self) -> Any:
        """The latest value."""
        return await self._latest()

    async def _latest(self) -> Any:
        await self._came.wait()
        return self._value


class Ghost(Paced):
    """A service as a topic: every *period* seconds, a parameter, calls *asked* and publishes what it says.

    That is a service such as ``Class.method``, the name of one, or any function without arguments, plain or async.
    A call that fails is logged and counted, and the next one made in its time.
    """

    def __init__(self, asked: Service[[], Any] | Callable[[], Any] | str, period: float = 1.0, name: str | None = None,
                 **options: Any) -> None:
        if not isinstance(asked, (Service, str)) and not callable(asked):
            raise TypeError(f"Ghost() takes a service, the name of one, or a function, got {asked!r}")
        self.asked, self._about = asked, shown(asked)
        super().__init__(period, name, **options)

    def on_start(self) -> None:
        self._counts = {"asked": 0, "failed": 0}
        super().on_start()

    @every(Paced.period)
    async def ask(self) -> None:
        """Ask once, and publish the answer."""
        self._counts["asked"] += 1
        try:
            await self.send(await self._answer())
        except Exception as error:
            self._counts["failed"] += 1
            log.exception("%s of %r has no answer to publish; it goes on", self.what, self.name,
                          exc_info=own_part(error))

    async def _answer(self) -> Any:
        asked: Any = self.asked
        if isinstance(asked, str):
            asked = await adiscover(asked, FIND)
            if asked is None:
                raise UnknownService(f"nobody provides {self.asked!r}", service=str(self.asked))
        return await (asked.acall() if isinstance(asked, Service) else awaited(asked()))

    @service(name="flow.counts")
    def counts(self) -> dict[str, int]:
        """How often it has asked, and how often that failed."""
        return self._counts
