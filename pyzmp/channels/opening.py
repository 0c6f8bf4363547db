"""What subscribers make of the messages that have come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import msgspec

from pyzmp.channels.message import Message
from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.batch import Batch
from pyzmp.protocol.envelope import Buffer
from pyzmp.protocol.runs import decode_all
from pyzmp.protocol.schema import Type

log = logging.getLogger("pyzmp.topic")


class Raw(msgspec.Struct, frozen=True):
    """A value as it travels, for those who pass it on as it is; ``shape`` is the type that its publisher has told."""

    body: bytes
    buffers: Sequence[Buffer] = ()
    shape: bytes = b""


class Opening:
    """Makes values of the expected *type*, where there is one, of what has come; or `Raw` ones.

    What cannot be one is logged, counted in ``unreadable``, and left out.
    """

    def __init__(self, type: Type | None, *, raw: bool = False) -> None:
        self.unreadable = 0
        self._convert: Callable[[Any], Any] | None = None if type is None or type.text == "Any" else type.convert
        self._exact = type.exact if type is not None and self._convert is not None else None
        self._raw = raw
        self._whole = True  # whether to try what came together as a whole

    def values(self, batch: Batch) -> tuple[list[Any], Sequence[int], Sequence[float]]:
        """The values, with their numbers and times."""
        bodies, number = batch.bodies, batch.number
        numbers = range(number, number + len(bodies))
        if not self._raw and self._whole and not batch.buffers and len(bodies) > 1:
            values = decode_all(bodies, self._exact)
            if values is not None:
                return values, numbers, batch.times
            self._whole = False  # values of a topic are mostly alike
        try:
            if self._raw:
                return [Raw(body, batch.buffers, batch.shape) for body in bodies], numbers, batch.times
            return self._one_by_one(batch, numbers)
        except MalformedMessage as error:
            self.unreadable += len(bodies)
            log.warning("%d messages from %d on of %s of %r cannot be read, and are lost: %s", len(bodies), number,
                        batch.source.topic, batch.source.node, error)
            return [], (), ()

    def _one_by_one(self, batch: Batch, numbers: Sequence[int]) -> tuple[list[Any], Sequence[int], Sequence[float]]:
        convert, buffers, source = self._convert, batch.buffers, batch.source
        values: list[Any] = []
        kept: list[int] = []
        for place, body in enumerate(list(batch.bodies)):
            try:
                value = codec.decode(body, buffers)
                values.append(value if convert is None else convert(value))
                kept.append(place)
            except (MalformedMessage, TypeError) as error:
                self.unreadable += 1
                log.warning("message %d of %s of %r cannot be read, and is lost: %s", numbers[place], source.topic,
                          source.node, error)
        if len(kept) == len(numbers):
            return values, numbers, batch.times
        return values, [numbers[place] for place in kept], [batch.times[place] for place in kept]

    def messages(self, batch: Batch) -> list[Any]:
        """The values as messages."""
        values, numbers, times = self.values(batch)
        return list(map(Message, values, repeat(batch.source.topic), repeat(batch.source.node), numbers, times))
