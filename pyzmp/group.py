"""A set of nodes that is itself a node."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from pyzmp import runtime
from pyzmp.channels.call import running_node
from pyzmp.channels.declare import methods_of, parameters_of, timers_of
from pyzmp.exceptions import RegistryUnavailable, StartError
from pyzmp.launchers.base import Handle, NotReady, living
from pyzmp.launchers.entity import in_thread
from pyzmp.life import WITHDRAW
from pyzmp.node import AGAIN, WITHDRAWN, Node, check_nodes
from pyzmp.protocol.facts import NodeFact
from pyzmp.registry import finder
from pyzmp.together import Until, all_of, at_once, batches, in_turn, raise_of

UNDO = 5.0  # seconds in which all is ended that a start has begun which did not succeed
HOOKS = ("on_start", "on_stop", "update", "task")  # of a node, which a group does not call

log = logging.getLogger("pyzmp.node")


class Group(Node):
    """A set of nodes that is itself a node: it has a name, one start and one shutdown.

    Its name stands for any of its members: ``Class.at("group").method(…)`` and ``discover("group/method")`` call any
    of those that provide the service, and what is kept of them, as ``call = Class.at("group").method``, calls them
    in turn.  A member keeps the name that it was given; one without is called ``group/1``, ``group/2`` and so on, by
    its place.  Members are nodes of any kind, groups too; a group without a name gets a uuid.

    They start in order, each once those before it are ready; but neighbours that are processes of one class start
    together, 16 at most.  They stop in reverse order.  A member that ends by itself, or is killed, leaves the group
    to the others, and can be started again by its own `start`; the group lives until none of its members does.
    """

    kind = "group"

    def __init__(self, name: str | None, nodes: Iterable[Node]) -> None:
        super().__init__(name)
        if isinstance(nodes, Node) or not isinstance(nodes, Iterable):
            raise TypeError(f"Group() takes a list of nodes, got {nodes!r}")
        self._nodes: tuple[Node, ...] = tuple(nodes)
        check_nodes(self._nodes, "Group()")
        for node, times in Counter(self._nodes).items():
            if node._groups:
                raise ValueError(f"{node.name!r} is in the group {node._groups[0]!r} already; a node is in one at most")
            if times > 1:
                raise ValueError(f"{node.name!r} is given {times} times; a node is in a group once")
            node._refuse_alive("put it into a group before it is started")
        weakref.finalize(self, _release, self._nodes).atexit = False
        self._gather()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        hooks = [hook for hook in HOOKS if getattr(cls, hook) is not getattr(Node, hook)]
        own = [*methods_of(cls), *timers_of(cls), *parameters_of(cls), *hooks]
        if own:
            raise TypeError(f"{cls.__qualname__}.{own[0]} would be of no use: a group runs no code of its own; put it "
                            "into a member")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its members, in order."""
        return self._nodes

    def start(self, timeout: float | None = None) -> bool:
        """Start the members in order, and return True once all of them are ready.

        False once *timeout* seconds are over.  Without one, each member may take 30 s.  Where a member does not start
        StartError is raised, which names it, from the member's own error.  Whatever was begun is ended then, in
        reverse order, within some 5 s.  Raises NodeExists where the group's name is taken, and RuntimeError where a
        member runs already.  A running group is shut down and started again.
        """
        self._check()
        over = Until(timeout)
        with self._life.starting:
            if self.is_alive():
                self.shutdown()
            here, handle = runtime.current(), self._begin()
            try:
                here.run(self._claim(here, handle, over))
                for batch in self._forwards(handle):
                    self._see(batch, at_once([functools.partial(node._start_unless, handle.stopping, over.left(None))
                                              for node in batch]))
            except BaseException as error:
                self._undo(handle)
                return _late(error)
            self._follow_members(handle)
            return True

    async def astart(self, timeout: float | None = None) -> bool:
        """As `start`, in a coroutine; entities then live on the running loop."""
        self._check()
        over = Until(timeout)
        async with self._life.astarting:
            if self.is_alive():
                await self.ashutdown()
            here, handle = runtime.current(), self._begin()
            try:
                await here.arun(self._claim(here, handle, over))
                for batch in self._forwards(handle):
                    self._see(batch, await all_of(node.astart(over.left(None)) for node in batch))
            except BaseException as error:
                await asyncio.shield(asyncio.ensure_future(in_thread(self._undo, handle)))
                return _late(error)
            self._follow_members(handle)
            return True

    def shutdown(self, join: bool = True, timeout: float | None = None) -> int | None:
        """Stop the members in reverse order; then the group's name is gone too.

        Returns its exit code, None if it was never started.  *timeout* seconds are for all of them together: each has
        its share of what is left, and is terminated, then killed, where it needs longer.  A start that is under way
        ends with StartError.  With ``join=False``, and inside a member, all are asked at once and not waited for.
        Raises RuntimeError on a loop that an entity of the group shares.
        """
        handle = self._handle
        if handle is None or self._only_asks(join):
            return None if handle is None else handle.exitcode
        if self._lives_here():
            raise RuntimeError(f"entities of {self.name!r} live on the loop that runs here; write await "
                               "group.ashutdown()")
        handle.stopping.set()
        over = Until(timeout)
        for batch, share in in_turn(self._nodes[::-1], over):
            raise_of(at_once([functools.partial(node.shutdown, True, share) for node in batch]))
        handle.join(over.left(WITHDRAWN))
        return handle.exitcode

    async def ashutdown(self, join: bool = True, timeout: float | None = None) -> int | None:
        """As `shutdown`, in a coroutine."""
        handle = self._handle
        if handle is None or self._only_asks(join):
            return None if handle is None else handle.exitcode
        handle.stopping.set()
        over = Until(timeout)
        for batch, share in in_turn(self._nodes[::-1], over):
            raise_of(await all_of(node.ashutdown(True, share) for node in batch))
        await in_thread(handle.join, over.left(WITHDRAWN))
        return handle.exitcode

    def join(self, timeout: float | None = None) -> None:
        """Wait until all members have ended, at most *timeout* seconds.

        Raises RuntimeError on a loop that an entity of the group shares, which would then never end.
        """
        if self._lives_here():
            raise RuntimeError(f"entities of {self.name!r} live on the loop that runs here; write await group.ajoin()")
        if self._handle is not None:
            self._handle.join(timeout)

    async def ajoin(self) -> None:
        """Wait, in a coroutine, until all members have ended."""
        await in_thread(self.join)

    def run(self, *args: Any, **kwargs: Any) -> int | None:
        """Start the group, wait until all members have ended, and return its exit code; it takes no arguments."""
        if args or kwargs:
            raise TypeError("run() of a group takes no arguments; give them to its members")
        with self:
            self.join()
        return self.exitcode

    def terminate(self) -> None:
        """Terminate all members, in reverse order."""
        for node in reversed(self._nodes):
            node.terminate()

    def provides(self, callable: Callable[..., Any], service_name: str | None = None) -> NoReturn:
        """Not for a group: raises TypeError."""
        raise TypeError(f"the group {self.name!r} has no services of its own; offer {callable!r} at a member")

    def withholds(self, name: str | Callable[..., Any]) -> NoReturn:
        """Not for a group: raises TypeError."""
        raise TypeError(f"the group {self.name!r} has no services of its own; withhold {name!r} at a member")

    def __repr__(self) -> str:
        if "_nodes" not in self.__dict__:
            return super().__repr__()
        handle = self._handle
        state = ("not started" if handle is None else "running" if handle.is_alive() else
                 f"stopped with exit code {handle.exitcode}")
        return f"<{type(self).__name__} {self.name!r} of {len(self._nodes)} nodes {state}>"

    # What it is to its members.

    def _gather(self) -> None:
        for place, node in enumerate(self._nodes, 1):
            node._enter((self.name, *self._groups), f"{self.name}/{place}")

    def _enter(self, groups: tuple[str, ...], name: str) -> None:
        super()._enter(groups, name)
        self._gather()

    def _rename(self, name: str) -> None:
        was = self.name
        self._refuse_alive("name the group before it is started")
        try:
            super()._rename(name)
            self._gather()
        except ValueError:  # too long for a member
            super()._rename(was)
            self._gather()
            raise

    def _all(self) -> Iterator[Node]:
        """Itself, and all nodes in it, also by way of other groups."""
        yield self
        for node in self._nodes:
            yield from node._all() if isinstance(node, Group) else (node,)

    def _lives_here(self) -> bool:
        return any(node._lives_here() for node in self._nodes)

    def _refuse_alive(self, hint: str) -> None:
        super()._refuse_alive(hint)
        for node in self._nodes:
            node._refuse_alive(hint)

    # Its life.

    @property
    def _handle(self) -> _GroupHandle | None:
        handle = self._life.handle
        return handle if isinstance(handle, _GroupHandle) else None

    def _check(self) -> None:
        if "_nodes" not in self.__dict__:
            raise TypeError(f"{type(self).__name__}.__init__ did not call super().__init__(name, nodes)")
        if self.kind != "group":
            raise ValueError(f"kind of {self.name!r}: expected 'group', got {self.kind!r}, which is for its members")
        for node in self._nodes:
            node._check()
        for name, times in Counter(node.name for node in self._all()).items():
            if times > 1:
                raise ValueError(f"{name!r} is the name of {times} nodes of the group {self.name!r}")

    async def _claim(self, here: runtime.Runtime, handle: _GroupHandle, over: Until) -> None:
        """Have the name in the graph; in the runtime's thread."""
        fact = NodeFact(self.name, here.member.id, "", (), "group", here.member.host, here.member.pid,
                        type(self).__qualname__, groups=self._groups)
        try:
            await here.replica.announce([fact], min(finder.START, over.left(finder.START)))
        except Exception as error:
            handle.claimed = False  # the name is somebody else's, perhaps of this very process
            if isinstance(error, RegistryUnavailable) and over.past:
                raise NotReady(f"{self.name!r} was not ready in time") from error
            raise

    def _begin(self) -> _GroupHandle:
        """A new life, where nobody of it lives yet."""
        for node in self._nodes:
            if node.is_alive():
                raise RuntimeError(f"{node.name!r} of the group {self.name!r} runs already; shut it down before the "
                                   "group is started")
        life = self._life
        life.ready, handle = False, _GroupHandle()
        life.handle = handle
        living.add(handle)
        return handle

    def _forwards(self, handle: _GroupHandle) -> Iterator[list[Node]]:
        """The batches in the order of their start, and an empty one.  Raises StartError once it is told to stop."""
        for batch in [*batches(self._nodes), []]:
            if handle.stopping.is_set():
                raise StartError(f"{self.name!r} was told to stop before it was ready")
            handle.begun += batch
            yield batch

    def _see(self, batch: Sequence[Node], outcomes: Sequence[Any]) -> None:
        """Raise what kept a member of *batch* from starting, if something did."""
        for node, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                raise StartError(f"{node.name!r} of the group {self.name!r} did not start: {type(outcome).__name__}: "
                                 f"{outcome}") from outcome
        raise_of(outcomes)
        if False in outcomes:
            raise NotReady(f"{self.name!r} was not ready in time")

    def _follow_members(self, handle: _GroupHandle) -> None:
        self._life.ready = True
        threading.Thread(target=self._watch, args=(handle,), name=f"pyzmp-group-{self.name}", daemon=True).start()

    def _watch(self, handle: _GroupHandle) -> None:
        """Wait until no member lives; then neither does the group."""
        while any(_lives(node) for node in self._nodes):
            for node in self._nodes:
                node.join()
        handle.leave(self.name, 0 if all(node.exitcode == 0 for node in self._nodes) else 1)

    def _undo(self, handle: _GroupHandle) -> None:
        """End what a start has begun that did not succeed; not on the loop of an entity."""
        handle.stopping.set()
        over = Until(UNDO)
        for batch, share in in_turn(handle.begun[::-1], over):
            at_once([functools.partial(node._undo_start, share) for node in batch])
        handle.leave(self.name, timeout=min(WITHDRAW, over.left(WITHDRAW)))

    def _end_start(self, timeout: float | None) -> None:
        self.shutdown(timeout=timeout)

    def _hinder(self, timeout: float | None) -> None:
        handle = self._handle
        if handle is not None:
            handle.stopping.set()
            at_once([functools.partial(node._undo_start, timeout) for node in handle.begun if not node.has_started()])

    def _only_asks(self, join: bool) -> bool:
        """Ask all members to stop, where none is to be waited for; whether that is so."""
        if join and running_node.get() not in self._all():
            return False
        if self._handle is not None:
            self._handle.stopping.set()
        for node in reversed(self._nodes):
            node.shutdown(join=False)
        return True


class _GroupHandle(Handle):
    """One life of a group: from its start until none of its members lives, and its name is gone."""

    def __init__(self) -> None:
        self.ident = os.getpid()
        self.begun: list[Node] = []
        self.stopping = threading.Event()
        self.claimed = True
        self._here = runtime.current()
        self._status: int | None = None
        self._over = threading.Event()

    def leave(self, name: str, status: int = 1, timeout: float = WITHDRAW) -> None:
        """Take the group's name out of the graph; its life is over then, with this *status*."""
        withdrawn = self._here.replica.withdraw([("node", name)], timeout)
        try:
            if self.claimed:
                self._here.run(withdrawn)
            else:
                withdrawn.close()
        except Exception as error:  # no registry, or pyzmp has ended here: then views learn it from that
            withdrawn.close()
            log.warning("the group %s ends without a registry: %s", name, error)
        finally:
            self._status = status
            self._over.set()
            living.discard(self)

    def wait_ready(self, timeout: float) -> Any:
        raise NotImplementedError

    def request_stop(self) -> None:
        """Nothing: its members are asked themselves."""

    terminate = kill = request_stop

    def join(self, timeout: float | None = None) -> bool:
        return self._over.wait(timeout)

    @property
    def exitcode(self) -> int | None:
        return self._status if self._over.is_set() else None


def _late(error: BaseException) -> bool:
    """What a start that did not succeed comes to: False where only its time was over; else *error* is raised."""
    if isinstance(error, NotReady):
        return False
    raise error


def _lives(node: Node) -> bool:
    """Whether *node* lives, or is about to again: between its lives it does not."""
    with node._life.starting:
        while node._life.astarting.locked() and not node.is_alive():  # on a loop, whose lock no thread can wait for
            time.sleep(AGAIN)
        return node.is_alive()


def _release(nodes: Sequence[Node], groups: tuple[str, ...] = ()) -> None:
    """Their group is gone: they are in *groups* only."""
    for node in nodes:
        node._groups = groups
        if isinstance(node, Group):
            _release(node.nodes, (node.name, *groups))
