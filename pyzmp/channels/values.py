"""The parameters of a node where it lives, and how the graph hears of them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pyzmp import runtime
from pyzmp.channels.parameter import Parameter
from pyzmp.exceptions import AnnouncementRefused, PyzmpError
from pyzmp.loopthread import Mark
from pyzmp.protocol.facts import LONG, Fact, ParameterFact, Position

AGAIN = 1.0  # seconds until a value is announced again that no registry took

log = logging.getLogger("pyzmp.node")


class Values:
    """The parameters of one node while it lives, on *loop*.  Any thread of its process may get and set them.

    The graph hears of them from `publish`: always the latest, and no value after one that was set later.
    """

    def __init__(self, node: str, loop: asyncio.AbstractEventLoop, parameters: Mapping[str, Parameter[Any]],
                 given: Mapping[str, Any]) -> None:
        self.parameters = parameters
        self._node, self._loop = node, loop
        self._now = {name: parameter.checked(copy.deepcopy(given[name])) for name, parameter in parameters.items()}
        self._unheard: dict[str, None] = {}
        self._waiting: list[asyncio.Future[Position]] = []
        self._publishing: asyncio.Task[None] | None = None
        self._left = False
        self._outcome: Position | Exception | None = None  # for those who wait when the node leaves
        self._set = Mark()
        self._timers: list[asyncio.Event] = []

    def get(self, name: str) -> Any:
        return self._now[name][0]

    def set(self, name: str, value: Any) -> None:
        """Take another value; raises as `Parameter.checked` does, and nothing is changed then."""
        self._now[name] = self.parameters[name].checked(value)
        if not self._left:  # the name may be another node's by now
            self._unheard[name] = None
        if asyncio._get_running_loop() is self._loop:
            self._wake()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the node with it
                self._loop.call_soon_threadsafe(self._wake)

    async def aset(self, name: str, value: Any) -> Position:
        """As `set`, on the node's loop; where in the graph it is, or one that was set later."""
        self.set(name, value)
        heard: asyncio.Future[Position] = self._loop.create_future()
        self._waiting.append(heard)
        if self._outcome is not None:
            self._settle(self._waiting, self._outcome)
        return await heard

    def tells(self, timer: asyncio.Event) -> None:
        """Set *timer* whenever a value is set."""
        self._timers.append(timer)

    def _wake(self) -> None:
        for event in (self._set, *self._timers):
            event.set()

    def facts(self, owner: str) -> list[Fact]:
        """All of them as the graph is to have them, which it has not heard of."""
        self._unheard.clear()
        return self._facts(owner, self.parameters)

    def _facts(self, owner: str, names: Iterable[str]) -> list[Fact]:
        return [ParameterFact(self._node, name, owner, self._now[name][1],
                              self.parameters[name].typed().text[:LONG], self.parameters[name].settable)
                for name in names]

    def begin(self, here: runtime.Runtime) -> None:
        """Have the graph, which has `facts`, hear of what is set from now on."""
        if self.parameters:
            self._publishing = self._loop.create_task(self.publish(here))

    def leave(self) -> None:
        """Have the graph hear of nothing any more, before the node is withdrawn."""
        self._left = True
        if self._publishing is not None:
            self._publishing.cancel()

    def over(self, outcome: Position | Exception) -> None:
        """What becomes of those who still wait, now that the node has left: where in the graph that is, or an error."""
        if self._outcome is None:
            self._outcome = outcome
            self._settle(self._waiting, outcome)

    async def publish(self, here: runtime.Runtime) -> None:
        """Have the graph hear of what is set, until this is cancelled."""
        while True:
            await self._set.wait()
            self._set.clear()
            names, waiting = [], self._waiting.copy()
            while self._unheard:  # at one stroke each: other threads add to it
                names.append(self._unheard.popitem()[0])
            try:
                position = await here.announce(self._facts(here.member.id, names))
            except AnnouncementRefused as error:  # the node was lost
                self._settle(waiting, error)
            except PyzmpError as error:
                log.warning("%s could not tell its parameters: %s", self._node, error)
                self._settle(waiting, error)
                self._unheard.update(dict.fromkeys(names))
                self._loop.call_later(AGAIN, self._set.set)
            else:
                self._settle(waiting, position)

    def _settle(self, waiting: Iterable[asyncio.Future[Position]], outcome: Position | Exception) -> None:
        for heard in waiting:
            if heard.done():
                continue
            if isinstance(outcome, Exception):
                heard.set_exception(outcome)
            else:
                heard.set_result(outcome)
        self._waiting = [heard for heard in self._waiting if not heard.done()]
