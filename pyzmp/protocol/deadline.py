"""One value made from a timeout, and passed on."""

from __future__ import annotations

import math

import msgspec


def seconds(timeout: object, what: str = "timeout") -> float:
    """Return *timeout* as a positive, finite number of seconds.

    Raises TypeError for what is no number and ValueError for zero, a negative number, NaN or infinity.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{what}: expected a number of seconds, got {timeout!r}")
    try:
        number = float(timeout)
    except OverflowError:  # an integer beyond any float
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{what}: expected a positive, finite number of seconds, got {timeout!r}")
    return number


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """A moment of the monotonic clock, in seconds, at which waiting ends."""

    at: float

    @classmethod
    def after(cls, timeout: float, now: float) -> Deadline:
        """The moment *timeout* seconds after *now*; raises as `seconds` does."""
        return cls(now + seconds(timeout))

    def remaining(self, now: float) -> float:
        """Seconds left at *now*; zero once it is over, never negative."""
        return max(0.0, self.at - now)

    def expired(self, now: float) -> bool:
        """Whether the moment has come at *now*."""
        return now >= self.at
