"""Both ends of one stream: what may be sent, and what has come.

Credit is counted in items and in bytes.  The sender may send while it has some of both, so the bytes
may go below zero by one item: an item larger than the window travels alone.
"""

from __future__ import annotations

from pyzmp.exceptions import MalformedMessage

WINDOW_ITEMS = 256
WINDOW_SIZE = 1 << 20
MAX_CREDIT = 1 << 32  # items or bytes that one grant may give


class Outflow:
    """The sending end.  It has no room until the receiver has granted some."""

    __slots__ = ("_items", "_next", "_size")

    def __init__(self) -> None:
        self._next = self._items = self._size = 0

    @property
    def room(self) -> bool:
        """Whether an item may be sent now."""
        return self._items > 0 and self._size > 0

    @property
    def left(self) -> tuple[int, int]:
        """The items and bytes that are granted and not used."""
        return self._items, self._size

    def grant(self, items: int, size: int) -> None:
        """Add what the receiver says that it has room for; raises MalformedMessage where that cannot be."""
        if not (0 <= items <= MAX_CREDIT and 0 <= size <= MAX_CREDIT):
            raise MalformedMessage(f"a credit of {items} items and {size} bytes; each must be from 0 to {MAX_CREDIT}")
        self._items = min(self._items + items, MAX_CREDIT)
        self._size = min(self._size + size, MAX_CREDIT)

    def take(self, size: int) -> int:
        """The number of the next item, which has *size* bytes and takes its credit; ValueError without `room`."""
        if not self.room:
            raise ValueError(f"no room for item {self._next}: {self._items} items and {self._size} bytes are left")
        number = self._next
        self._next += 1
        self._items -= 1
        self._size -= size
        return number


class Inflow:
    """The receiving end, with room for so many *items* and bytes that came and were not consumed yet.

    ``window`` is what to grant first.  Raises ValueError where it is not from 1 to `MAX_CREDIT`.
    One thread may call `arrived` and another `consumed`: each writes totals of its own, which the other
    one reads at most, and what is left of the credit is their difference.
    """

    # Written by `arrived`: _next and _size.  Written by `consumed`: _granted_… and _used_….
    __slots__ = ("_granted_items", "_granted_size", "_next", "_size", "_used_items", "_used_size", "window")

    def __init__(self, items: int = WINDOW_ITEMS, size: int = WINDOW_SIZE) -> None:
        if not (1 <= items <= MAX_CREDIT and 1 <= size <= MAX_CREDIT):
            raise ValueError(f"a window of {items} items and {size} bytes; each must be from 1 to {MAX_CREDIT}")
        self.window = self._granted_items, self._granted_size = items, size
        self._next = self._size = 0  # items and bytes that have come
        self._used_items = self._used_size = 0  # consumed, and not granted again yet

    def arrived(self, number: int, size: int) -> bool:
        """Whether the item is the next one; False for one that came already, which is dropped.

        Raises MalformedMessage where items are missing before it, or where it was not granted.
        """
        if 0 <= number < self._next:
            return False
        if number != self._next:
            raise MalformedMessage(f"item {number} of a stream, where item {self._next} is the next")
        items, room = self._granted_items - self._next, self._granted_size - self._size
        if items <= 0 or room <= 0:
            raise MalformedMessage(f"item {number} of a stream goes beyond what was granted: "
                                   f"{items} items and {room} bytes were left")
        self._next += 1
        self._size += size
        return True

    def consumed(self, size: int) -> tuple[int, int] | None:
        """Note that the user took one item, of *size* bytes; the items and bytes to grant now, or None.

        They are granted in lumps of half a window, so that what a sender sees stays far from zero.
        """
        self._used_items += 1
        self._used_size += size
        items, room = self.window
        if 2 * self._used_items < items and 2 * self._used_size < room:
            return None
        lump = self._used_items, self._used_size
        self._used_items = self._used_size = 0
        self._granted_items += lump[0]
        self._granted_size += lump[1]
        return lump
