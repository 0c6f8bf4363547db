"""What waits for another thread."""

from __future__ import annotations

from pyzmp.channels.message import Joined
from pyzmp.channels.tray import Tray


def test_what_was_put_in_is_taken_in_order() -> None:
    tray = Tray()
    events = [Joined("lamp/light", name) for name in "ab"]
    for event in (*events, None):
        tray.put(event)
    assert [tray.arrivals.take(1) for _ in range(3)] == [*events, None]
    assert not tray.hungry
    assert not tray.asked
