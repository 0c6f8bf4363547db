"""The contract of calls: both ends together, with a network, a clock and nodes that do what they like.

`Contract` is a state machine over the real cores: `Caller`, `Attempts` and `Inflow` at callers, `Callee`,
`Admission`, `Kept` and `Outflow` at nodes.  What lies between them and the sockets is mirrored here, as
small as it can be: `Wire` mirrors `pyzmp.transport.line.Line`, `Call` mirrors `pyzmp.channels.calling.Calling`
with the future of a submitted call, `Pending` mirrors `pyzmp.pending.Pending`, and `Node` mirrors
`pyzmp.host.Host` with one node on it.

What holds, and under which faults:

* Whatever happens: a call has one outcome, and not after its deadline; an attempt starts once at most; what may
  not run twice does not; what is said not to have run never does, and what is said to have run did; nothing starts
  after its deadline, or in another life of its node than was asked; nobody goes beyond a window or a limit.  A
  request that is lost, or overtaken by a later one, ends as CallTimeout with ``executed`` None.
* A session that loses or reorders messages, which real ones never do, may keep places of its window for calls that
  are never answered, until it ends; streams may stall until then, end with an error, or miss their last items.
* Credit that comes twice lets more be sent than the receiver granted, and he refuses what is too much.  Any other
  message may come twice, and does no harm.
* At rest, which is after all deadlines and with nothing under way, a session that kept its messages is empty at
  both ends, and so is any other once it has ended.  So are the tables of the nodes.
* A one-way call has no outcome but for one that was certainly not sent.  A process that was killed gets none.

`FAULTS` are 13 mistakes that the cores could have; the machine finds each of them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from pyzmp.exceptions import CallError, Cancelled, Overloaded
from pyzmp.protocol import admission, calls, failure
from pyzmp.protocol.admission import Admission, Limits
from pyzmp.protocol.calls import Callee, Caller
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Cancel, Code, Credit, End, Failure, Flag, Item, Opened, Parcel, Reply, Request
from pyzmp.protocol.kept import Kept, Standing
from pyzmp.protocol.outcomes import Ask, Result, died, refuse
from pyzmp.protocol.retry import Attempts, Budget, Policy
from pyzmp.protocol.streams import Inflow, Outflow

WINDOW_CALLS, WINDOW_SIZE = 3, 40
LIMITS = Limits(calls=4, size=80)
LONG = 2  # calls that wait for a node, from which on it matters how long they will
FLAGS = {"once": 0, "idempotent": 0, "deduplicated": 0, "post": Flag.ONE_WAY, "stream": Flag.STREAM}
RAISED = failure.describe(ValueError("no"), node="a", service="once")
PICK = st.integers(0, 11)


class Target(NamedTuple):
    """A node as a process knows it."""

    node: str
    incarnation: tuple[int, int]
    loop: int


class Call:
    """One call, through all of its attempts."""

    def __init__(self, world: Contract, process: Process, kind: str, size: int, timeout: float, policy: Policy) -> None:
        self.world, self.process, self.kind, self.size, self.timeout = world, process, kind, size, timeout
        self.number, self.policy = len(world.calls), policy
        self.deadline = Deadline.after(timeout, world.now)
        self.attempts: Attempts | None = None
        self.tries: list[Try] = []
        self.key = b"%d" % process.keys if kind == "deduplicated" else b""  # each process counts its own
        self.starts: list[int] = []
        self.cancelled = self.killed = False
        self.outcome: Any = None
        process.keys += 1

    def attempt(self) -> bool:
        """As `Calling.attempt`; False where there is nobody to ask."""
        targets = list(self.process.view.values())
        if self.attempts is not None:
            if self.attempts.same:
                targets = [target for target in targets if target == self.tries[-1].target]
            else:
                targets = [target for target in targets if target.node not in self.attempts.tried] or targets
        if not targets:
            return False
        target = targets[self.world.turn % len(targets)]
        self.world.turn += 1
        if self.attempts is not None:
            self.attempts.begin(target.node)
        Try(self, target).begin()
        return True

    def done(self, outcome: Any) -> None:
        """As `_Submitted._done` and `Calling.again`."""
        assert self.outcome is None, "an outcome after the outcome"
        if self.killed:
            return
        if isinstance(outcome, Exception):
            if not self.cancelled and self.kind != "post":
                if self.attempts is None:
                    self.attempts = Attempts(self.policy, self.process.budget)
                    self.attempts.begin(self.tries[-1].target.node)
                others = any(node not in self.attempts.tried for node in self.process.view)
                left = self.deadline.remaining(self.world.now)
                pause = self.attempts.after(outcome, others, left, 0.5)
                if pause is not None:
                    heapq.heappush(self.world.later, (self.world.now + pause, self.number))
                    self.tries[-1].before = outcome
                    return
            outcome = outcome if self.attempts is None else self.attempts.final(outcome)
        self.finished(outcome)

    def again(self) -> None:
        """As `_Submitted._again`."""
        before, self.tries[-1].before = self.tries[-1].before, None
        if before is not None and not self.killed and not self.attempt():
            assert self.attempts is not None
            self.finished(self.attempts.final(before))

    def finished(self, outcome: Any) -> None:
        assert self.outcome is None
        self.outcome = outcome
        if isinstance(outcome, Result):
            assert self.starts, "a result of nothing"
            assert self.kind == "stream" or int(outcome.body) in self.starts, "the result of another call"
        elif not isinstance(outcome, CallError) or outcome.executed is True:
            assert self.starts, "an error of nothing, or one that says that it ran"
        elif outcome.executed is False:
            assert not self.starts, "said not to have run, and did"

    def give_up(self) -> None:
        """As `CallFuture.cancel`; what the node says of it afterwards counts as the outcome here."""
        self.cancelled = True
        last = self.tries[-1]
        if last.before is not None:  # in a pause: no attempt follows, and nobody says what became of the last one
            last.before = None
            self.finished(Cancelled("given up in a pause", executed=None))
        else:
            last.wire.cancel(last.call)


class Try:
    """One attempt of a call, and who hears of it."""

    def __init__(self, call: Call, target: Target) -> None:
        self.of, self.target = call, target
        call.tries.append(self)
        body = b"%d.%d:" % (call.number, len(call.tries))
        flags = FLAGS[call.kind]
        self.incoming = Inflow(2, 20) if flags & Flag.STREAM else None
        self.ask = Ask(target.node, call.kind, body.ljust(call.size), (), call.deadline, call.timeout,
                       target.incarnation, flags, (), call.key, call.policy.wait, self.incoming)
        self.wire = call.process.wire(target)
        self.call = 0
        self.ended = self.opened = self.started = False
        self.items = self.given = 0  # that came, and that the service gave
        self.before: Exception | None = None  # its outcome, where the next attempt is still to come

    def begin(self) -> None:
        self.wire.start(self.ask, self)

    def done(self, event: Any) -> None:
        assert not self.ended, "an attempt that has ended hears of itself"
        if not isinstance(event, Parcel):
            self.ended = True
            if isinstance(event, Result) and self.incoming is not None and self.wire.faultless:
                assert self.items == self.given, "a stream without hole"
            self.of.done(event)
            return
        self.opened = True
        if isinstance(event.message, Item):
            assert event.message.number == self.items
            assert self.incoming is not None
            self.items += 1
            credit = self.incoming.consumed(len(event.message.body))
            if credit is not None:
                self.wire.send(Credit(self.call, *credit))


class Wire:
    """A session, with the ends of both sides and what is under way between them."""

    def __init__(self, world: Contract, process: Process, target: Target) -> None:
        self.world, self.process, self.loop = world, process, target.loop
        self.node = next(node for node in world.nodes if node.name == target.node)
        self.core: Caller[Try] = Caller(WINDOW_CALLS, WINDOW_SIZE)
        self.callee = Callee()
        self.held: list[Any] = []
        self.up: list[Any] = []
        self.down: list[Any] = []
        self.open = self.broken = False
        self.ended = self.parted = False  # what the caller knows, and what the node knows
        self.faultless = self.credited = True

    # The caller's end, as `Line`.

    def start(self, ask: Ask, done: Try) -> None:
        if self.ended:
            done.done(died(ask, "it ended", executed=False))
            return
        try:
            request = self.core.open(ask, done, self.world.now)
        except Overloaded as error:
            done.done(error)
            return
        done.call = self.core.last
        if request is not None:
            self.leave(request, ask)

    def leave(self, request: Request, ask: Ask) -> None:
        self.send(request)
        if ask.incoming is not None:
            self.send(Credit(request.call, *ask.incoming.window))

    def send(self, message: Any) -> None:
        if not self.ended and not self.broken:
            (self.up if self.open else self.held).append(message)

    def connect(self) -> None:
        if self.ended or self.open or self.broken:
            return
        self.open = True
        self.up, self.held = self.held, []
        if self.loop != self.node.loop:
            self.parted = True
            self.break_up()
            self.over()

    def came(self, message: Any) -> None:
        if self.ended:
            return
        found = self.core.receive(Parcel(message))
        if found is not None:
            if isinstance(found[1], Exception) and isinstance(message, Item):
                self.send(Cancel(message.call))
            found[0].done(found[1])
        self.send_waiting()

    def send_waiting(self) -> None:
        while self.core.waiting and (ready := self.core.ready(self.world.now)):
            for request, ask, _ in ready:
                self.leave(request, ask)

    def cancel(self, call: int) -> None:
        ended = self.core.cancel(call)
        if ended is True:
            self.send(Cancel(call))
        elif ended:
            self.tell([ended])

    def expire(self) -> None:
        if not self.ended:
            self.tell(self.core.expire(self.world.now, sent=self.open))
            self.send_waiting()

    def over(self) -> None:
        if not self.ended:
            self.ended = True
            self.tell(self.core.end("it ended", sent=self.open))

    def tell(self, ended: list[calls.Ended[Try]]) -> None:
        for call, done, outcome, tell in ended:
            if tell and self.open:
                self.send(Cancel(call))
            elif tell:  # what has not left is taken back
                self.held = [message for message in self.held if getattr(message, "call", 0) != call]
            done.done(outcome)

    # Between them.

    def break_up(self) -> None:
        """From now on nothing leaves; each end hears of it some time."""
        if not self.broken:
            self.broken = True
            self.world.broken.append(self)

    def notice(self, caller: bool) -> None:
        if caller:
            self.down.clear()
            self.over()
        elif not self.parted:
            self.up.clear()
            self.node.parted(self)

    def deliver(self, upwards: bool, index: int = 0) -> None:
        message = (self.up if upwards else self.down).pop(index)
        if not upwards:
            self.came(message)
        elif not self.parted:
            self.node.arrived(self, message)

    def reply(self, message: Any) -> None:
        if not self.parted and not self.broken:
            self.down.append(message)


class Process:
    """A process that calls: its sessions, and what it knows of the nodes."""

    def __init__(self, world: Contract, name: str) -> None:
        self.world, self.name = world, name
        self.wires: dict[tuple[str, int], Wire] = {}
        self.view = {node.name: node.target for node in world.nodes}
        self.budget = Budget()
        self.keys = 0

    def wire(self, target: Target) -> Wire:
        place = target.node, target.loop
        found = self.wires.get(place)
        if found is None or found.ended:
            found = self.wires[place] = Wire(self.world, self, target)
            self.world.wires.append(found)
        return found


class Pending:
    """A call that has come to a node, as `pyzmp.pending.Pending`, and the service that runs it."""

    def __init__(self, wire: Wire, request: Request) -> None:
        self.wire, self.callee, self.request = wire, wire.callee, request
        self.size = len(request.body)
        self.arrived = wire.world.now
        self.deadline = Deadline(0.0)
        self.begun = self.unwanted = False
        self.start = 0
        self.kept: Kept[Pending, Any] | None = None
        self.outflow = Outflow()
        numbers = request.body.split(b":")[0].split(b".")
        self.of = wire.world.calls[int(numbers[0])]
        self.attempt = self.of.tries[int(numbers[1]) - 1]

    @property
    def key(self) -> tuple[str, bytes]:
        return self.wire.process.name, self.request.key

    def answer(self, message: Any) -> None:
        if self.kept is None:
            self.reply(message)
            return
        if self.begun and not (type(message) is Failure and message.code == Code.CANCELLED):
            size = len(getattr(message, "body", b""))
            waiting = self.kept.end(self.key, message, size, self.wire.world.now)
        else:
            waiting = self.kept.drop(self.key)
        for each in waiting:
            each.reply(message)
        self.callee.answer(self.request.call)

    def reply(self, message: Any) -> None:
        call = self.request.call
        if not self.callee.answer(call):
            return
        if self.request.flags & Flag.ONE_WAY:
            self.wire.reply(Credit(0, 1, self.size))
        else:
            self.wire.reply(message if message.call == call else replace(message, call=call))

    def refuse(self, code: int, *, retry_after: float | None = None) -> None:
        self.answer(refuse(self.request.call, code, "no", retry_after=retry_after))

    def give_up(self) -> None:
        self.unwanted = True


class Node:
    """A node and the loop it lives on, as `pyzmp.host.Host`."""

    def __init__(self, world: Contract, name: str) -> None:
        self.world, self.name, self.loop, self.incarnation = world, name, 0, (1, 0)
        self.renew()

    @property
    def target(self) -> Target:
        return Target(self.name, self.incarnation, self.loop)

    def renew(self) -> None:
        """The process of the node begins anew."""
        self.loop += 1
        self.admission: Admission[Wire, Pending] = Admission()
        self.running: list[Pending] = []
        self.succeed()

    def succeed(self) -> None:
        """The node begins anew, on the same loop."""
        self.incarnation = 1, self.incarnation[1] + 1
        self.kept: Kept[Pending, Any] = Kept()

    def remove(self) -> None:
        for _, pending in self.admission.withdraw(lambda pending: True):
            pending.refuse(Code.REFUSED)
        for pending in list(self.running):
            self.end(pending, 1)
        self.admission.forget(self.name)

    def arrived(self, wire: Wire, message: Any) -> None:
        if isinstance(message, Request):
            if wire.callee.fresh(message):
                self.admit(Pending(wire, message))
        elif isinstance(message, Cancel):
            waiting = self.admission.cancel(wire, message.call)
            if waiting is not None:
                waiting.refuse(Code.CANCELLED)
            elif message.call in wire.callee.running:
                wire.callee.running.pop(message.call)()
        else:
            wire.callee.hand(message.call, Parcel(message))

    def admit(self, pending: Pending) -> None:
        request, now = pending.request, self.world.now
        if not pending.callee.take(request.call, pending.size):
            assert not pending.wire.credited, "more calls than the window has places for"
            pending.refuse(Code.OVERLOADED)
            return
        refusal = self.refusal(request)
        if refusal is not None:
            pending.reply(refusal)
            return
        pending.deadline = Deadline.after(request.remaining, now)
        if request.key and not self.first(pending):
            return
        refused = self.admission.admit(pending.wire, request.call, pending, node=self.name, size=pending.size,
                                       deadline=pending.deadline, now=now, limits=LIMITS)
        for each in refused:
            each.item.refuse(Code.OVERLOADED, retry_after=each.retry_after)

    def first(self, pending: Pending) -> bool:
        pending.kept = self.kept
        known = self.kept.begin(pending.key, pending, self.world.now)
        if isinstance(known, Standing):
            return known is Standing.FRESH
        pending.reply(known)
        return False

    def refusal(self, request: Request) -> Failure | None:
        if request.incarnation not in ((0, 0), self.incarnation) or not request.remaining:
            return refuse(request.call, Code.REFUSED, "stale, or late")
        return None

    def begin(self) -> bool:
        found = self.admission.next()
        if found is None:
            return False
        pending = found.item
        refusal = self.refusal(pending.request)
        if refusal is None and not pending.deadline.remaining(self.world.now):
            refusal = refuse(pending.request.call, Code.REFUSED, "late")
        if refusal is not None:
            self.admission.end(self.name, pending.size, self.world.now, ran=False)
            pending.answer(refusal)
            return True
        pending.begun = True
        self.world.started(self, pending)
        self.running.append(pending)
        call, callee = pending.request.call, pending.callee
        if pending.request.flags & Flag.STREAM:
            callee.listen(call, lambda parcel: pending.outflow.grant(parcel.message.items, parcel.message.size))
        callee.running[call] = pending.give_up
        if pending.request.flags & Flag.ONE_WAY or pending.kept is not None:
            callee.lasting.add(call)
        if pending.request.flags & Flag.STREAM:
            pending.wire.reply(Opened(call))
        return True

    def end(self, pending: Pending, how: int) -> None:
        """The service returns, raises, or gives another item."""
        call, streams = pending.request.call, pending.request.flags & Flag.STREAM
        if how == 2 and streams and pending.outflow.room and not pending.unwanted:
            body = b"i" * (pending.attempt.given % 3 * 9)
            pending.attempt.given += 1
            pending.wire.reply(Item(call, pending.outflow.take(len(body)), body))
            return
        self.running.remove(pending)
        self.admission.end(self.name, pending.size, self.world.now, ran=pending.begun)
        if how == 1:
            pending.answer(Failure(call, Code.CANCELLED, "stopped", True) if pending.unwanted else
                           Failure(call, Code.RAISED, executed=True, body=RAISED))
        else:
            pending.answer(End(call) if streams else Reply(call, b"%d" % pending.start))

    def parted(self, wire: Wire) -> None:
        wire.parted = True
        self.admission.leave(wire, keep=lambda pending: bool(pending.request.flags & Flag.ONE_WAY)
                             or pending.kept is not None)
        for stop in wire.callee.leave():
            stop()


class Contract(RuleBasedStateMachine):
    """Two nodes, two processes, and what may happen to them."""

    traffic: Counter[str]  # over all runs: one that hardly did anything shows nothing

    def __init__(self) -> None:
        super().__init__()
        self.now, self.turn, self.starts = 0.0, 0, 0
        self.wires: list[Wire] = []
        self.broken: list[Wire] = []
        self.calls: list[Call] = []
        self.unended: list[Call] = []
        self.later: list[tuple[float, int]] = []
        self.nodes = [Node(self, "a"), Node(self, "b")]
        self.processes = [Process(self, "p"), Process(self, "q")]

    def started(self, node: Node, pending: Pending) -> None:
        """A service begins: what may never be wrong about that."""
        call, request = pending.of, pending.request
        assert not pending.attempt.started, "an attempt starts twice"
        assert not call.starts or call.kind == "idempotent", "a call starts twice that may not"
        assert node.incarnation == request.incarnation, "a successor starts what its predecessor was asked"
        assert self.now < pending.arrived + request.remaining, "a call starts after its deadline"
        assert not (isinstance(call.outcome, CallError) and call.outcome.executed is False), "it was said not to run"
        pending.attempt.started = True
        self.starts += 1
        pending.start = self.starts
        call.starts.append(self.starts)

    # What callers do.

    @rule(who=PICK, kind=st.sampled_from([*FLAGS, "once", "deduplicated"]), size=st.sampled_from([8, 8, 25, 50]),
          timeout=st.sampled_from([2.0, 10.0, 0.5]), wait=st.booleans(),
          attempts=st.sampled_from([None, 4, None, 4, 1]), count=st.integers(1, 3))
    def call(self, who: int, kind: str, size: int, timeout: float, wait: bool, attempts: int | None,
             count: int) -> None:
        process = self.processes[who % 2]
        policy = Policy(attempts, kind == "idempotent", kind == "deduplicated", wait)
        for _ in range(count):
            call = Call(self, process, kind, size, timeout, policy)
            self.calls.append(call)
            if kind != "post":
                self.unended.append(call)
            call.attempt()

    @precondition(lambda self: self.unended)
    @rule(which=PICK)
    def cancel(self, which: int) -> None:
        self.unended[-1 - which % len(self.unended)].give_up()

    @rule(which=PICK)
    def kill(self, which: int) -> None:
        if which > 2:  # not so often
            return
        old = self.processes[which % 2]
        self.processes[which % 2] = Process(self, old.name + "'")
        for call in self.calls:
            call.killed |= call.process is old
        for wire in self.wires:
            if wire.process is old and not wire.ended:
                wire.break_up()
                wire.notice(True)

    @rule()
    def learn(self) -> None:
        for process in self.processes:
            process.view = {node.name: node.target for node in self.nodes}

    # What the network does.

    @precondition(lambda self: self.wires)
    @rule(which=PICK, upwards=st.booleans(), count=st.integers(1, 4))
    def deliver(self, which: int, upwards: bool, count: int) -> None:
        wire = self.wires[-1 - which % len(self.wires)]
        wire.connect()
        for _ in range(min(count, len(wire.up if upwards else wire.down))):
            wire.deliver(upwards)

    @rule(begin=st.booleans())
    def deliver_all(self, begin: bool) -> None:
        """All requests come, perhaps all calls that have come begin, and what is answered arrives."""
        for wire in list(self.wires):
            wire.connect()
            while wire.up:
                wire.deliver(True)
        for node in self.nodes:
            while begin and node.begin():
                pass
        for wire in list(self.wires):
            while wire.down:
                wire.deliver(False)

    @precondition(lambda self: any(wire.up or wire.down for wire in self.wires))
    @rule(which=PICK, index=PICK, what=st.sampled_from(["lose", "repeat", "repeat", "overtake"]))
    def disturb(self, which: int, index: int, what: str) -> None:
        lines = [(wire, line) for wire in self.wires for line in (wire.up, wire.down) if line]
        wire, line = lines[which % len(lines)]
        message = line[index % len(line)]
        if what == "repeat":
            line.insert((index + which) % len(line) + 1, message)
        else:
            del line[index % len(line)]
            if what == "overtake":
                line.insert(0, message)
        wire.faultless &= what == "repeat" and not isinstance(message, Credit)
        wire.credited &= what != "repeat" or not isinstance(message, Credit)

    @precondition(lambda self: self.wires)
    @rule(which=PICK, notice=st.booleans())
    def cut(self, which: int, notice: bool) -> None:
        wire = self.wires[-1 - which % len(self.wires)]
        wire.break_up()
        if notice:
            wire.notice(True)

    @precondition(lambda self: self.broken)
    @rule(which=PICK, caller=st.booleans())
    def notice(self, which: int, caller: bool) -> None:
        self.broken[-1 - which % len(self.broken)].notice(caller)

    # What nodes do.

    @rule(which=PICK, count=st.integers(1, 4))
    def begin(self, which: int, count: int) -> None:
        for _ in range(count):
            self.nodes[which % 2].begin()

    @precondition(lambda self: any(node.running for node in self.nodes))
    @rule(which=PICK, how=st.sampled_from([0, 0, 1, 2, 2]))
    def end(self, which: int, how: int) -> None:
        running = [(node, pending) for node in self.nodes for pending in node.running]
        node, pending = running[which % len(running)]
        node.end(pending, how)

    @rule(which=PICK)
    def restart(self, which: int) -> None:
        node = self.nodes[which % 2]
        if which < 3:
            node.remove()
            node.succeed()
        elif which < 5:
            for wire in self.wires:
                if wire.node is node and wire.loop == node.loop:
                    wire.up.clear()
                    wire.parted = True
                    wire.break_up()
            node.renew()

    # What time does.

    @rule(passed=st.sampled_from([0.05, 0.3, 1.0, 5.0]))
    def tick(self, passed: float) -> None:
        self.now += passed
        for wire in list(self.wires):
            wire.expire()

    @invariant()
    def what_is_due_is_made_again(self) -> None:
        while self.later and self.later[0][0] <= self.now:
            self.calls[heapq.heappop(self.later)[1]].again()
            for wire in self.wires:  # a pause may be longer than the clock's step
                wire.expire()

        self.nothing_ends_late()

    def nothing_ends_late(self) -> None:
        self.unended = [call for call in self.unended if call.outcome is None and not call.killed]
        for call in self.unended:
            last = call.tries[-1]
            assert not call.deadline.expired(self.now) or last.opened, "open after its deadline"

    @invariant()
    def windows_and_limits_hold(self) -> None:
        for wire in self.wires:
            for used, size in ((wire.core.used, wire.core._used),
                               (len(wire.callee.open), sum(wire.callee.open.values()))):
                assert used <= WINDOW_CALLS
                assert size <= WINDOW_SIZE or used == 1
        for node in self.nodes:
            count, size = node.admission.occupied(node.name)
            assert count <= LIMITS.calls
            assert size <= LIMITS.size or count == 1

    # And at last it comes to rest.

    def teardown(self) -> None:
        for wire in self.wires:
            if wire.broken:
                wire.notice(True)
                wire.notice(False)
        for _ in range(6):
            self.work()
            self.tick(3.0)
            self.what_is_due_is_made_again()
        self.work()
        for wire in self.wires:
            if wire.faultless and not wire.ended:
                self.is_empty(wire)
                assert not wire.callee.open
                assert not [*wire.callee._credit, *wire.callee._streams, *wire.callee.running, *wire.callee.lasting]
            wire.notice(False)
            wire.over()
            self.is_empty(wire)
        self.work()
        for node in self.nodes:
            assert len(node.admission) == 0
            assert node.admission.occupied(node.name) == (0, 0)
            assert node.kept.running == 0
        for call in self.calls:
            assert call.outcome is not None or call.killed or call.kind == "post", "no outcome"
            self.traffic.update([type(call.outcome).__name__, *["start"] * len(call.starts),
                                 *["retry"] * (len(call.tries) - 1)])

    def work(self) -> None:
        """Let everything go on that can, without faults."""
        busy = True
        while busy:
            self.deliver_all(begin=True)
            for node in self.nodes:
                while node.running:
                    node.end(node.running[0], 0)
            busy = any(wire.up or wire.down for wire in self.wires)

    @staticmethod
    def is_empty(wire: Wire) -> None:
        core = wire.core
        assert (len(core), core.used, core._used, core.posted, core.waiting) == (0, 0, 0, 0, 0)
        assert core.next_deadline() is None


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that a few calls fill."""
    monkeypatch.setattr(calls, "CALLS", WINDOW_CALLS)
    monkeypatch.setattr(calls, "SIZE", WINDOW_SIZE)
    monkeypatch.setattr(admission, "LONG", LONG)


@pytest.mark.parametrize("examples", [500, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_every_call_ends_well(examples: int) -> None:
    traffic = Counter[str]()

    def rarest() -> int:  # of 20 at least; some runs have few of one kind, and more are made then
        return min(traffic[kind] for kind in ("CallTimeout", "NodeDied", "Overloaded", "Refused", "Cancelled"))
    for _ in range(4):
        if rarest() <= 20:
            run_state_machine_as_test(type("Counted", (Contract,), {"traffic": traffic}), settings=settings(
                max_examples=examples, stateful_step_count=50, deadline=None,
                phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]))  # to explain it takes too long
    assert min(traffic[kind] for kind in ("start", "retry", "Result")) > examples // 2
    assert rarest() > 20


# -- mistakes that the cores could have ----------------------------------------------------------------------------

def answered_calls_stay_open(patch: pytest.MonkeyPatch) -> None:
    """A call stays in the table when its answer has come, and so has a second outcome."""
    ends = Caller._ends

    def mistaken(self: Caller[Any], message: Any, parcel: Parcel, entry: Any) -> Any:
        found = ends(self, message, parcel, entry)
        self._open[message.call] = entry
        return found
    patch.setattr(Caller, "_ends", mistaken)


def only_the_first_deadline_is_looked_at(patch: pytest.MonkeyPatch) -> None:
    """Of the calls whose deadlines have come, only the one with the earliest ends."""
    expire = Caller.expire

    def mistaken(self: Caller[Any], now: float, *, sent: bool = True) -> Any:
        at = self.next_deadline()
        return expire(self, now if at is None else min(now, at), sent=sent)
    patch.setattr(Caller, "expire", mistaken)


def late_calls_are_begun(patch: pytest.MonkeyPatch) -> None:
    """A deadline that has come still leaves a little time, so that the node begins the call."""
    remaining = Deadline.remaining
    patch.setattr(Deadline, "remaining", lambda self, now: max(0.001, remaining(self, now)))


def repeated_requests_are_fresh(patch: pytest.MonkeyPatch) -> None:
    """A node takes a request that comes twice for two."""
    patch.setattr(Callee, "fresh", lambda self, request: True)


def requests_are_for_any_life(patch: pytest.MonkeyPatch) -> None:
    """A request does not say which incarnation of the node it is for."""
    send = Caller._send
    patch.setattr(Caller, "_send", lambda self, *args: replace(send(self, *args), incarnation=(0, 0)))


def late_calls_leave_their_place(patch: pytest.MonkeyPatch) -> None:
    """A call that its caller gave up at its deadline leaves the window before the node has answered it."""
    expire = Caller.expire

    def mistaken(self: Caller[Any], now: float, *, sent: bool = True) -> Any:
        ended = expire(self, now, sent=sent)
        for size in self._late.values():
            self._release(size)
        self._late.clear()
        return ended
    patch.setattr(Caller, "expire", mistaken)


def sent_calls_of_a_dead_session_did_not_run(patch: pytest.MonkeyPatch) -> None:
    """A call that was sent and had no answer when its session ended is said not to have run."""
    patch.setattr(calls, "_executed", lambda entry, sent: entry.opened)


def cancelled_calls_are_begun(patch: pytest.MonkeyPatch) -> None:
    """A call that is cancelled before its turn is answered, and keeps its turn."""
    def mistaken(self: Admission[Any, Any], caller: Any, call: int) -> Any:
        return next((callers[caller][call].item for callers in self._lanes.values()
                     if call in callers.get(caller, ())), None)
    patch.setattr(Admission, "cancel", mistaken)


def calls_that_may_have_run_are_repeated(patch: pytest.MonkeyPatch) -> None:
    """A call whose node died is made again, whatever its service says."""
    init = Attempts.__init__
    patch.setattr(Attempts, "__init__",
                  lambda self, policy, budget: init(self, replace(policy, idempotent=True), budget))


def a_repeat_may_go_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """A call that may have run, and is answered once by its node, is repeated at another one."""
    after = Attempts.after

    def mistaken(self: Attempts, *args: Any) -> Any:
        pause = after(self, *args)
        self.same = False
        return pause
    patch.setattr(Attempts, "after", mistaken)


def answers_are_kept_for_everybody(patch: pytest.MonkeyPatch) -> None:
    """The key of a kept answer is the call's alone, without its caller's name."""
    begin, end, drop = Kept.begin, Kept.end, Kept.drop
    patch.setattr(Kept, "begin", lambda self, key, *args: begin(self, ("", key[1]), *args))
    patch.setattr(Kept, "end", lambda self, key, *args: end(self, ("", key[1]), *args))
    patch.setattr(Kept, "drop", lambda self, key: drop(self, ("", key[1])))


def posts_keep_their_places(patch: pytest.MonkeyPatch) -> None:
    """What a node says of the end of one-way calls is not counted."""
    patch.setattr(Caller, "_credit", lambda self, items, size: None)


def who_leaves_keeps_his_room(patch: pytest.MonkeyPatch) -> None:
    """The waiting calls of a caller that is gone are not begun, and occupy their node for ever."""
    leave = Admission.leave

    def mistaken(self: Admission[Any, Any], *args: Any, **options: Any) -> Any:
        found = leave(self, *args, **options)
        for pending in found:
            self._places[pending.request.node].calls += 1
        return found
    patch.setattr(Admission, "leave", mistaken)


FAULTS = [
    answered_calls_stay_open, only_the_first_deadline_is_looked_at, late_calls_are_begun, repeated_requests_are_fresh,
    requests_are_for_any_life, late_calls_leave_their_place, sent_calls_of_a_dead_session_did_not_run,
    cancelled_calls_are_begun, calls_that_may_have_run_are_repeated, a_repeat_may_go_elsewhere,
    answers_are_kept_for_everybody, posts_keep_their_places, who_leaves_keeps_his_room,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_is_found(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(seed(1)(type("Faulty", (Contract,), {"traffic": Counter()})), settings=settings(
            max_examples=3000, stateful_step_count=50, deadline=None, database=None, phases=[Phase.generate],
            report_multiple_bugs=False, verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck)))
