"""The publishers of a subscription: found in the graph, connected, left and found again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from pyzmp import runtime
from pyzmp.channels.message import Event, Joined, Left, Refused
from pyzmp.channels.message import Gap as Missed
from pyzmp.channels.nobody import nobody
from pyzmp.channels.selection import Selection
from pyzmp.channels.terms import Terms
from pyzmp.exceptions import TopicMismatch
from pyzmp.program import name_of
from pyzmp.protocol.envelope import Code, Failure, Subscribe
from pyzmp.protocol.facts import NodeFact
from pyzmp.protocol.feed import Bounds
from pyzmp.protocol.inlet import Gap, Inlet
from pyzmp.subscribing import ACKNOWLEDGE, PAUSES, Intake, Sink, Source

ALONE = 5.0  # seconds after which it is said that no publisher was found
GONE = 64  # publishers that are gone of which it is known what was the next to come

log = logging.getLogger("pyzmp.topic")


class Sources:
    """All publishers that *selection* selects, now and later, on *loop*; what comes from them goes to *sink*.

    Belongs to the loop's thread, but for what says otherwise.  `opened` is done once all that were known at the
    beginning have confirmed or refused.
    """

    def __init__(self, here: runtime.Runtime, loop: asyncio.AbstractEventLoop, selection: Selection, terms: Terms,
                 sink: Sink) -> None:
        self.selection, self.closed = selection, False
        self.opened: Future[None] = Future()
        self._here, self._loop, self._terms, self._sink = here, loop, terms, sink
        self._bounds = Bounds.of(terms.length, terms.size)
        shape = selection.type.shape if selection.type is not None else b""
        self._subscribe = Subscribe(0, "-", "-", terms.full, terms.length, terms.size, terms.history, shape,
                                    who=terms.who or name_of(here.member))
        self._sources: dict[tuple[str, str], Source] = {}
        self._gone: dict[tuple[str, str], Source] = {}
        self._forgotten = [0, 0]  # dropped and lost, of publishers that are gone
        self._known: list[Source] | None = None  # those at the beginning, once it has begun
        self._opening = True
        self._before: dict[tuple[str, str], tuple[int, int]] | None = None  # who was known first: its incarnation
        self._first = False  # whether there was no registry when it began: who comes with the first one comes after it
        self._alone: asyncio.TimerHandle | None = None  # until it is said that nobody is there
        self._unhook: Callable[[], None] = lambda: None
        self._due = False
        self._timer: asyncio.TimerHandle | None = None

    # For any thread.

    @property
    def dropped(self) -> int:
        """How many messages full queues have dropped."""
        return self._forgotten[0] + sum(source.inlet.dropped for source in self._all())

    @property
    def lost(self) -> int:
        """How many messages were lost."""
        return self._forgotten[1] + sum(source.inlet.lost for source in self._all())

    def _all(self) -> Iterable[Source]:
        return {**self._sources.copy(), **self._gone.copy()}.values()  # one may be on its way from here to there

    @property
    def publishers(self) -> list[str]:
        """The nodes that have confirmed."""
        return list(dict.fromkeys(source.node for source in self._sources.copy().values() if source.stands))

    @property
    def loops(self) -> set[str]:
        """The loops that publishers live on, as far as they were found."""
        return {source.reach.at[0] for source in self._sources.copy().values() if source.reach.at is not None}

    def late(self) -> list[Source]:
        """Those known at the beginning that have said nothing yet."""
        return [source for source in self._known or () if not (
            source.reach.heard or (source.node, source.topic) not in self._sources)]

    def check_opened(self, timeout: float) -> None:
        """Raise TopicMismatch where all who were known at the beginning refuse; warn of those who say nothing."""
        reasons = [source.reach.refused for source in self._known or ()]
        if reasons and all(reasons):
            raise TopicMismatch("; ".join(dict.fromkeys(reasons)))
        late = self.late()
        if late:
            log.warning("subscribed to %s, and not confirmed within %g s: %s", self.selection.text, timeout,
                        ", ".join(f"{source.topic} of {source.node!r}" + ", which listens nowhere where it can be "
                                  "reached from here" * source.reach.nowhere for source in late))

    # Finding.

    def begin(self) -> None:
        """Look for publishers from now on."""
        if self.closed:
            return
        replica = self._here.replica
        self._first = replica.view.position is None and not (replica.address or replica.trouble)
        self._unhook = replica.attend(self._changed, endless=True)
        self._look()
        self._known = list(self._sources.values())
        self._settle()

    def warn(self) -> None:
        """Say so once where nobody is found in some seconds, and one was named; in the loop's thread."""
        named = self.selection.pattern.plain if self.selection.pattern is not None else bool(self.selection.node)
        if named and not (self.closed or self._sources):
            self._alone = self._loop.call_later(ALONE, self._warn)

    def _warn(self) -> None:
        if not self._here.closed:
            log.warning("a subscription%s has found no publisher in %g s: %s", self._who(), ALONE, self.nobody())

    def _no_warning(self) -> None:
        if self._alone is not None:
            self._alone.cancel()

    def nobody(self) -> str:
        """That nobody publishes it, as far as is known; empty where a publisher was found.  For any thread."""
        return "" if self._sources else nobody(self._here, self.selection)

    def told(self) -> None:
        """Whoever subscribed knows now what came of it; what is refused from now on is logged."""
        opening, self._opening = self._opening, False
        for source in self._known or ():
            if opening and source.reach.refused and not self.closed:
                self._log_refused(source)

    def _changed(self) -> None:
        """The graph is another, or pyzmp ends; in the runtime's thread."""
        if self._here.closed:
            self._sink.put(None)
        elif not self._due:
            self._due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        self._due = False
        if self.closed or self._here.closed:
            return
        chosen, view = self.selection, self._here.replica.view
        position, facts = view.position, view.facts  # in that order: these may be known by the next moment
        selected = {(fact.node, fact.topic)
                    for fact in facts.selected(name=chosen.pattern, mark=chosen.mark, node=chosen.node)}
        nodes = {place: node for place in selected if (node := facts.node(place[0])) is not None and node.addresses}
        if self._before is None and position is not None:
            first = position.epoch.counter if self._first else -1
            self._before = {place: node.incarnation for place, node in nodes.items() if node.incarnation[0] != first}
        for place, source in list(self._sources.items()):
            if place not in selected and not source.tries:
                self._drop(place)
        for place, node in nodes.items():
            self._reach(place, node)
        if self._sources:
            self._no_warning()
        self._settle()

    def _reach(self, place: tuple[str, str], node: NodeFact) -> None:
        """Have a session with a publisher, unless there is one, or it is not the time."""
        source = self._sources.get(place)
        if source is None:
            source = self._gone.pop(place, None) or Source(*place, Inlet(self._bounds), self._sink, self)
            self._sources[place] = source
        reach, at, now = source.reach, (node.loop, node.incarnation), time.monotonic()
        if source.tries:
            if reach.at is not None and reach.at[0] == node.loop:
                return
            stood = source.stands
            source.close()
            self._left(source, "it was started anew elsewhere", stood=stood)
        elif reach.at == at and (reach.refused or now < reach.due):
            return
        elif source.crowded:
            self._try_again(source)
            return
        reach.at, reach.refused = at, ""
        target = self._here.target(node)
        reach.nowhere = not target.address
        try:
            intake = Intake.of(self._here.sessions.intakes, self._here.context, self._loop, self._here.member.id)
            early = self._before is not None and self._before.get(place) != node.incarnation
            source.connect(intake, target.address, target.loop, self._subscribe, early=early)
        except Exception as error:  # the others are to be reached nevertheless
            log.debug("%s of %r cannot be reached: %s", source.topic, source.node, error)
            self._try_again(source)

    def _drop(self, place: tuple[str, str]) -> None:
        """A publisher is gone from the graph, and there is no session with it."""
        source = self._gone[place] = self._sources[place]
        del self._sources[place]
        self._log_gaps(source, source.reach.rest())
        if len(self._gone) > GONE:
            oldest = self._gone.pop(next(iter(self._gone)))
            self._forgotten = [self._forgotten[0] + oldest.inlet.dropped, self._forgotten[1] + oldest.inlet.lost]

    def _try_again(self, source: Source) -> None:
        pause = source.reach.again(time.monotonic())
        if not self.closed:
            self._loop.call_later(pause, self._look)

    def _settle(self) -> None:
        if self._known is not None and not self.opened.done() and all(
                source.reach.nowhere for source in self.late()):
            self.opened.set_result(None)

    # What becomes of them.

    def confirmed(self, source: Source) -> None:
        """A publisher has confirmed."""
        source.reach.heard, source.reach.refused = True, ""
        source.reach.pause = PAUSES[0]
        log.debug("%s of %r: subscribed", source.topic, source.node)
        self._tell(Joined(source.topic, source.node))
        self._settle()

    def refused(self, source: Source, failure: Failure) -> None:
        """A publisher has refused: for good, where the types do not fit."""
        if failure.code == Code.INVALID_CALL:
            expected = self.selection.type.text if self.selection.type is not None else "Any"
            source.reach.refused = f"{source.topic} is expected to be {expected}, and {failure.text}"
        else:
            self._try_again(source)
        if not source.reach.heard or source.reach.refused:
            self._tell(Refused(source.topic, source.node, source.reach.refused or failure.text))
        if source.reach.refused and not self._opening:
            self._log_refused(source)
        source.reach.heard = True
        self._settle()

    @staticmethod
    def _log_refused(source: Source) -> None:
        log.error("%r refuses a subscription: %s", source.node, source.reach.refused)

    def missed(self, source: Source, gap: Gap) -> None:
        """Messages of a publisher did not come."""
        self._tell(Missed(source.topic, source.node, gap.number, gap.count, gap.dropped))
        self._log_gaps(source, source.reach.gap(gap, time.monotonic()))

    def _who(self) -> str:
        return f" of {self._terms.who!r}" if self._terms.who else ""

    def _log_gaps(self, source: Source, gaps: tuple[int, int]) -> None:
        (dropped, lost), who = gaps, self._who()
        level = logging.DEBUG if self._terms.latest else logging.WARNING
        if dropped:
            log.log(level, "%s of %r: %d messages were dropped, as the queue of the subscription%s was full",
                    source.topic, source.node, dropped, who)
        if lost:
            log.log(level, "%s of %r: %d messages for the subscription%s were lost", source.topic, source.node, lost,
                    who)

    def ended(self, source: Source, reason: str, *, stood: bool, died: bool) -> None:
        """A publisher has ended, or the session with it."""
        self._left(source, reason or "it has ended", stood=stood, died=died)
        self._try_again(source)
        self._changed()  # it may be gone from the graph already

    def _left(self, source: Source, reason: str, *, stood: bool, died: bool = False) -> None:
        if stood and not self._here.closed:
            self._log_gaps(source, source.reach.rest())
            log.log(logging.WARNING if died else logging.INFO, "%s of %r: %s", source.topic, source.node, reason)
            self._tell(Left(source.topic, source.node, reason))

    def _tell(self, event: Event) -> None:
        if self._terms.events and not self.closed:
            self._sink.put(event)

    # What was taken.

    def came(self) -> None:
        """Something has come: publishers know in a moment that it was taken."""
        if self._timer is None and not self.closed:
            self._timer = self._loop.call_later(ACKNOWLEDGE, self._acknowledge_all)

    def acknowledge(self) -> None:
        """Whoever takes has taken something: tell publishers in lumps, and the rest in a moment."""
        for source in list(self._sources.values()):
            source.acknowledge()
            if source.open:
                self.came()

    def _acknowledge_all(self) -> None:
        """Tell publishers all that was taken.  Where more is to be taken, have that told too."""
        self._timer = None
        self._sink.asked = True  # first: what is taken from now on is either told or found here
        sources = list(self._sources.values())
        taken = sum([source.acknowledge(now=True) for source in sources])
        if any(source.begun or (taken and source.open) for source in sources):
            self.came()

    def wants(self) -> None:
        """Whoever takes waits, and has nothing to take."""
        for source in list(self._sources.values()):
            source.acknowledge()
            if self._sink.hungry:
                source.wants()

    def close(self) -> None:
        """Want nothing more; what was taken is told."""
        if self.closed:
            return
        self.closed = True
        self._unhook()
        if self._timer is not None:
            self._timer.cancel()
        self._no_warning()
        for source in list(self._sources.values()):
            source.close()
            self._log_gaps(source, source.reach.rest())
        if not self.opened.done():
            self.opened.set_result(None)
