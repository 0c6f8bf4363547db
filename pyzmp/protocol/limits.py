"""What a value may claim, looked at before memory is taken for it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import msgspec
from msgpack import Unpacker
from msgpack.exceptions import StackError

from pyzmp.exceptions import MalformedMessage

MAX_DEPTH = 64
"""How deep containers may stand in each other; a tuple or set counts like a list."""

_ONE = b"\x91"      # the header of an array of one item
# What heads no container, and no extension type, in which containers may be.
_LEAVES = bytes(byte for byte in range(256) if not (
    0x80 <= byte <= 0x9f or 0xc7 <= byte <= 0xc9 or 0xd4 <= byte <= 0xd8 or 0xdc <= byte <= 0xdf))
_skip = msgspec.msgpack.Decoder(msgspec.Raw).decode


def _skips(data: bytes) -> bool:
    """Walk over one value without making anything: not deeper than ``msgpack`` goes, and all of its bytes."""
    skipper = Unpacker(max_buffer_size=len(data) + 1, read_size=1)
    skipper.feed(data)
    try:
        skipper.skip()
    except StackError:
        return False
    if skipper.tell() != len(data):
        raise MalformedMessage("bytes are left over behind the value")
    return True


# The C walk has a fixed depth (512); what we wrap around a value is what we take away from it.
_NESTING = bisect_left(range(1 << 16), True, key=lambda depth: not _skips(_ONE * depth + b"\xc0")) - 1


def within(body: bytes, depth: int) -> bool:
    """Whether containers stand at most ``depth`` deep; raises where counts claim more than the bytes hold.

    Inside extension types it does not look.  The ``msgpack`` decoder allocates what an array claims, at
    each level anew, so nothing above a few bytes is decoded before this.  With few headers there can be no
    depth, and msgspec walks four times as fast; with many it might overflow the stack, and msgpack cannot.
    """
    if len(body) <= depth:
        return True
    if len(body.translate(None, _LEAVES)) <= depth:
        _skip(body)
        return True
    return _skips(_ONE * (_NESTING - depth) + body)


def is_one(body: bytes) -> bool:
    """Whether *body* is one value, so that others may travel beside it."""
    try:
        return within(body, MAX_DEPTH) and _skip(body) is not None
    except (MalformedMessage, msgspec.MsgspecError, ValueError):
        return False


# Total depth is exact but slow to know; it cannot be beyond the limit while no body is deeper than a
# quarter of it and no extension type stands in more than two others.
SHALLOW = MAX_DEPTH // 4
FEW = 3
_CONTAINERS = frozenset({list, dict, tuple, set, frozenset})


def too_deep(value: Any) -> bool:
    """Whether containers stand deeper in each other than the limit."""
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(MAX_DEPTH):
        level = [item for container in level for item in _items(container) if type(item) in _CONTAINERS]
    return bool(level)


def _items(container: Any) -> Iterable[Any]:
    return (*container, *container.values()) if type(container) is dict else container
