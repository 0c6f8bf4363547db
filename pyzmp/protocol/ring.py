"""Who looks after whom, among members that have no registry's process to do it, and when one counts as gone."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

NEAR = 2  # members of its own host that each looks after


def watched(me: str, hosts: Mapping[str, str]) -> set[str]:
    """Whom the member *me* looks after; *hosts* says where each member is, this one too.

    All are in a ring, by their names.  Each is looked after by those before it: the nearest two on its own host, who
    see that a process is gone, and the nearest one on another, who sees that a host is.
    """
    order = sorted(hosts)
    if me not in hosts:
        return set()
    at = order.index(me)
    behind = order[at + 1:] + order[:at]
    near = [member for member in behind if hosts[member] == hosts[me]]
    return {*near[:NEAR], *_far(behind, hosts, hosts[me])}


def _far(behind: list[str], hosts: Mapping[str, str], mine: str) -> Iterator[str]:
    """Those right behind that are all on one other host: nobody between is on a third, or on this one."""
    for member in behind:
        if hosts[member] == mine or hosts[member] != hosts[behind[0]]:
            return
        yield member


class Verdict(enum.Enum):
    """What is to be done about a member."""

    NOTHING = "nothing"
    DOUBT = "doubt"  # say in the graph that it may be gone; it will contradict if it is not
    END = "end"  # it is gone, and all it owns


class Evidence:
    """What is known of one member: for how long its connection has been gone, by one's own count of time.

    Who was stopped itself has not counted, and does not blame the others.  A member that was never *met*, as there is
    no way to it from here, is none of this one's business, however long it does not answer; its lease decides.
    """

    def __init__(self, lease: float, *, met: bool = False) -> None:
        self._lease = lease
        self.met = met  # whether it has been connected since it was last heard of otherwise
        self._cut = 0.0
        self._patience = lease / 4  # who has only just come is not doubted at once
        self._doubted = False

    def look(self, *, connected: bool, gone: bool, passed: float) -> Verdict:
        """The verdict after another look, *passed* seconds after the one before; *gone*: its process has ended."""
        if gone:
            return Verdict.END
        if connected:
            self._cut, self._patience, self._doubted, self.met = 0.0, self._lease / 4, False, True
        if connected or not self.met:
            return Verdict.NOTHING
        self._cut += passed
        if self._cut >= self._lease:
            return Verdict.END
        if self._doubted or self._cut < self._patience:
            return Verdict.NOTHING
        self._doubted = True
        return Verdict.DOUBT

    def contradicted(self) -> None:
        """It lives: it has said so, though not to us.  Its time begins again once it is connected."""
        self._cut, self._doubted, self.met = 0.0, False, self.met and not self._cut
