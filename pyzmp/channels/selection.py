"""Which publishers a subscription is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pyzmp.protocol.schema import Type

if TYPE_CHECKING:
    from pyzmp.protocol.topics import Pattern


class Selection(msgspec.Struct, frozen=True):
    """The publishers that a topic stands for: those that fit all that is said here.

    ``text`` is what users see.  ``pattern`` is for full names of topics, ``mark`` what publishers of a class's topic
    announce, and ``node`` one node, or a group for any of its members.  ``type`` is what the subscriber expects,
    None for anything.
    """

    text: str
    pattern: Pattern | None = None
    mark: str = ""
    node: str = ""
    type: Type | None = None
