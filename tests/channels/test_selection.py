"""Which publishers a subscription is for."""

from __future__ import annotations

from pyzmp.channels.selection import Selection
from pyzmp.protocol.topics import Pattern


def test_a_selection_is_a_value() -> None:
    one = Selection("house/*", Pattern("house/*"))
    assert one == Selection("house/*", Pattern("house/*"))
    assert (one.mark, one.node, one.type) == ("", "", None)
