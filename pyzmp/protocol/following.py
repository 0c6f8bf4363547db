"""What a follower decides: what to tell a registry that it has found, what to believe, and when to go elsewhere.

Pure: driven by messages and by the time.
"""

from __future__ import annotations

from collections.abc import Callable

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.protocol.facts import Beat, Commit, Member, NodeFact, Snapshot
from pyzmp.protocol.graph import Outcome, View

PATIENCE = 4  # beats after which a question for what is missing is asked again
REFUSALS = "refused", "the registry sent this peer away"  # how the reasons begin that go on being so
ESTRANGED = 10  # beats of an earlier epoch after which there is none later: more than the lease


class Following:
    """How the *view* of process *own* is kept, and the registries that it follows, one session after the other.

    *say* sends on the session there is; *introduce* has the announcer tell a registry all that this process
    owns.  ``takes_part``: this process is a member, and may have a registry started.  Registries up to the
    counter ``above`` are not followed any more.
    """

    def __init__(self, view: View, own: str, say: Callable[[facts.Message], None], introduce: Callable[[], None],
                 domain: str = "") -> None:
        self.view = view
        self.takes_part = False
        self.above = 0
        self.greeted = False
        self._refusals: dict[str, str] = {}  # of the registry at each address, the last time
        self._own, self._domain = own, domain
        self._say, self._introduce = say, introduce
        self._asked = 0  # beats since the question for what is missing; 0 when nothing is
        self._strange = 0  # beats of an earlier epoch

    def open(self) -> None:
        """A session begins."""
        self.greeted, self._asked, self._strange = False, 0, 0

    def take_part(self) -> None:
        """Be a member from now on."""
        self.takes_part = True
        if self.greeted:
            self._introduce()

    def hear(self, beat: Beat, now: float) -> bool | str:
        """Take a beat: whether the view is complete, or why the session has to end.

        Raises RegistryUnavailable where the registry is not of this domain.
        """
        if beat.domain and self._domain and beat.domain != self._domain:
            raise RegistryUnavailable(f"the registry is of the domain {beat.domain!r}, and this process of "
                                      f"{self._domain!r}")
        outcome = self.view.hear(beat, now)
        if outcome is Outcome.FOREIGN:
            return self._estranged(beat)
        if not self.greeted:
            self._greet(beat)
        elif outcome is Outcome.GAP:
            if self._asked % PATIENCE == 0:
                self._say(facts.Follow(self.view.position))
            self._asked += 1
        else:
            self._asked = 0
            self._refusals.clear()
            return True
        return False

    def learn(self, news: Snapshot | Commit, now: float) -> bool:
        """Take a piece of the history; whether the view has changed."""
        if not self.greeted:  # of a registry that has not yet heard what is known here
            return False
        before = self.view.position
        outcome = self.view.load(news, now) if isinstance(news, Snapshot) else self.view.apply(news, now)
        if outcome is Outcome.GAP and self._asked == 0:
            self._asked = 1
            self._say(facts.Follow(before))
        return self.view.position != before

    def silent(self) -> None:
        """The registry has said nothing for too long: it takes a later one."""
        if self.greeted and self.takes_part and self.view.position is not None:
            self.above = max(self.above, self.view.position.epoch.counter)

    def failed(self, address: str, reason: str) -> bool:
        """Note why a session ended; whether the registry at *address* refuses again, and so will go on doing it."""
        before = self._refusals.pop(address, None)
        if reason.startswith(REFUSALS):
            self._refusals[address] = reason
        return self._refusals.get(address, "") == before

    def _estranged(self, beat: Beat) -> bool | str:
        """The registry's epoch is not after the one that was followed.

        One that was superseded goes by itself.  Else the counters began anew, as when the directory is lost.
        A member takes one above what is known, so that no view goes back.  An observer can only wait; when no
        later one comes in the time that a living member would need, nobody is left of those that are known here.
        """
        self._strange += 1
        mine = self.view.position
        if self._strange == 1:
            self._say(facts.Follow(mine))  # so that it knows: where it is the only one there can be, it begins above
        if self.takes_part and mine is not None:
            self.above = max(self.above, mine.epoch.counter)
            return f"the registry's epoch {beat.position.epoch} is not after {mine.epoch}, which was followed"
        if self._strange >= ESTRANGED:
            self.view.forget()
            self._greet(beat)
        return False

    def _greet(self, beat: Beat) -> None:
        """The first words of a session: who this is and all that it owns, and what is known of others."""
        self.greeted = True
        mine = self.view.position
        if self.takes_part:
            self._introduce()
        if mine is not None and mine.epoch != beat.position.epoch:
            others = (fact for fact in self.view.facts.all()
                      if isinstance(fact, Member | NodeFact) and fact.owner != self._own)
            for part in facts.pieces(others):
                if part:
                    self._say(facts.Hold(part, self._domain))
        self._asked = 1
        self._say(facts.Follow(mine))
