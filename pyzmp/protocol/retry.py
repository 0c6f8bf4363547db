"""Whether a call is tried again, when, and what its caller is told in the end.

Tried again is what did not run, and what may run twice: at another provider first and at once, then
after pauses.  A budget that calls share keeps retries from making an overload worse.
"""

from __future__ import annotations

import math

import msgspec

from pyzmp.exceptions import CallError, NodeDied, Overloaded, Refused, RemoteError, UnknownService

ATTEMPTS = 3  # of one call, unless its caller says otherwise
SHORTEST, LONGEST = 0.05, 1.0  # seconds of a pause, before jitter
JITTER = 0.2

# By exact type: what a service raised may be a subclass of ours, and says nothing about this call.
_FLEETING = frozenset({NodeDied, Refused, Overloaded, UnknownService})


class Budget:
    """Tokens for retries: 10 at first and at most; a retry takes one, a call that ended with a result gives 0.1.

    As in gRPC's retry throttling (gRFC A6, "Throttling Retry Attempts and Hedged RPCs"), nothing is
    retried while half of the tokens or fewer are left.  There each failure takes a token; here each retry.
    Any thread may use it; an update that is lost between two makes it less exact, and does no other harm.
    """

    __slots__ = ("_tenths",)

    CAPACITY = 100  # tenths of a token, which add up exactly

    def __init__(self) -> None:
        self._tenths = self.CAPACITY

    def spend(self) -> bool:
        """Take a token for a retry; False where there must be none."""
        if 2 * self._tenths <= self.CAPACITY:
            return False
        self._tenths -= 10
        return True

    def earn(self) -> None:
        """Note that a call ended with a result."""
        self._tenths = min(self.CAPACITY, self._tenths + 1)


class Policy(msgspec.Struct, frozen=True):
    """What the caller (*attempts*, *wait*) and the service (*idempotent*, *deduplicates*) say about trying again.

    Raises ValueError where *attempts* is neither None nor a whole number from 1.
    """

    attempts: int | None = None
    idempotent: bool = False
    deduplicates: bool = False
    wait: bool = False

    def __post_init__(self) -> None:
        if self.attempts is not None and not (type(self.attempts) is int and self.attempts > 0):
            raise ValueError(f"attempts: expected a whole number from 1, got {self.attempts!r}")


class Attempts:
    """The attempts of one call.  ``tried`` are the nodes of them.

    ``same`` says after `after` that the next attempt must go to the same life of the same node as the
    last one: only there is it known whether the call ran already.
    """

    __slots__ = ("_before", "_budget", "_made", "_maybe", "_pauses", "_policy", "same", "tried")

    def __init__(self, policy: Policy, budget: Budget) -> None:
        self._policy, self._budget = policy, budget
        self._made = 1  # counting the one that is made now
        self._pauses = 0
        self._maybe = False  # whether an earlier attempt may have run
        self._before: Exception | None = None
        self.tried: set[str] = set()
        self.same = False

    def begin(self, node: str) -> None:
        """Note that an attempt is made at *node*."""
        self.tried.add(node)

    def after(self, error: Exception, others: bool, left: float, chance: float) -> float | None:
        """The seconds to wait before the next attempt, 0 for none; or None where there is none, and `final` is next.

        *others* says whether a provider was not tried yet, *left* are the seconds to the deadline, and
        *chance* is a random number in [0, 1), for jitter.
        """
        if not isinstance(error, CallError) or not self._again(error):
            return None
        if self._policy.wait and type(error) is Overloaded:
            return self._for_a_place(error, others and not self.same, left, chance)
        policy, ran = self._policy, self._maybe or error.executed is not False
        same = ran and not policy.idempotent
        elsewhere = others and not same
        if self._made >= (policy.attempts or ATTEMPTS):
            return None
        if not elsewhere and policy.attempts is None and not policy.idempotent and not policy.deduplicates:
            return None
        pause = 0.0 if elsewhere else self._pause(error, chance)
        if pause >= left or not self._budget.spend():
            return None
        self._made += 1
        self._pauses += not elsewhere
        self._maybe, self.same = ran, same
        self._follow(error)
        self._before = error
        return pause

    def final(self, error: Exception) -> Exception:
        """The error to raise, *error* itself: the last one, which tells of the attempts before where there were any.

        Its ``executed`` is None where it says False and an earlier attempt may have run.
        """
        if self._before is None or not isinstance(error, CallError) or isinstance(error, RemoteError):
            self._follow(error)
            return error
        told = str(error)
        if error is not self._before:  # else there was nobody to try again at
            self._follow(error)
            before = f"attempt {self._made - 1} ended with {type(self._before).__name__}: {self._before}"
            told += f" (this was attempt {self._made}; {before})"
        if self._maybe and error.executed is False:
            error.executed = None
            told += "; an earlier attempt may have run"
        error.args = (told, *error.args[1:])
        return error

    def _again(self, error: CallError) -> bool:
        """Whether the call may be made again at all."""
        if error.executed is not False:
            return (type(error) is NodeDied
                    and (self._policy.idempotent or self._policy.deduplicates))
        if self.same:  # a node that does not take the call will not do so later
            return type(error) in {NodeDied, Overloaded}
        return type(error) in _FLEETING

    def _for_a_place(self, error: Overloaded, elsewhere: bool, left: float, chance: float) -> float | None:
        """As `after`, for a caller who waits for a place until the deadline: neither an attempt nor a retry."""
        if elsewhere and self._policy.attempts != 1:
            return 0.0 if left > 0 else None
        pause = max(SHORTEST, self._pause(error, chance, left / 2))
        self._pauses += 1
        return pause if pause < left else None

    def _pause(self, error: CallError, chance: float, most: float = math.inf) -> float:
        """Twice the pause before, with jitter and at most *most*, or what a full node asks for if that is longer."""
        doubled = SHORTEST * (1 << min(self._pauses, 10))  # far beyond the longest, and far from overflow
        asked = error.retry_after if isinstance(error, Overloaded) else None
        return max(min(min(LONGEST, doubled) * (1 - JITTER + 2 * JITTER * chance), most), asked or 0.0)

    def _follow(self, error: Exception) -> None:
        """Make the error of the attempt before the cause of *error*, where that has none."""
        if self._before is not None and error.__cause__ is None and error is not self._before:
            error.__cause__ = self._before
