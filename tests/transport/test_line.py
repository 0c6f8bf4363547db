"""Calls over a session: one outcome each, in the hands of a thread and of a loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from msgspec.structs import replace

from pyzmp.exceptions import CallTimeout, Cancelled, InvalidCall, NodeDied, Overloaded, Refused
from pyzmp.protocol.deadline import Deadline
from pyzmp.protocol.envelope import Cancel, Code, Credit, Flag, Parcel, Reply, Request
from pyzmp.protocol.outcomes import Ask, Outcome, Result, refuse
from pyzmp.transport import link
from pyzmp.transport.context import Context
from pyzmp.transport.line import Line
from pyzmp.transport.server import Peer
from tests.campaigns.history import SCALE


def ask(timeout: float = 5.0, body: bytes = b"body", buffers: Any = ()) -> Ask:
    return Ask("node", "service", body, buffers, Deadline.after(timeout, time.monotonic()), timeout)


def body(outcome: Outcome) -> bytes:
    assert isinstance(outcome, Result), outcome
    return outcome.body


class Node:
    """Answers requests: after a body that says how."""

    def __init__(self, server: Any) -> None:
        self.started: list[int] = []
        self.heard: list[Any] = []
        self.server = server.echo.server
        self.server._on_parcel = self.arrived

    def arrived(self, peer: Peer, parcel: Parcel) -> None:
        request = parcel.message
        self.heard.append(request)
        if not isinstance(request, Request):
            return
        self.started.append(request.call)
        if request.body == b"silent":
            return
        if request.body == b"refuse":
            peer.send(refuse(request.call, Code.REFUSED, "not now"))
        elif request.body == b"leave":
            peer.send(Reply(request.call, b"last"))
            self.server.loop.call_soon(self.server.close)
        elif request.body == b"die":
            self.server.close()
        else:
            peer.send(Reply(request.call, request.body, len(parcel.buffers)), parcel.buffers)
            peer.send(Reply(request.call, b"again"))


@pytest.fixture
def node(behind: Any, address: str) -> Node:
    server = behind(address)
    made = Node(server)
    made.address = server.addresses[0]  # type: ignore[attr-defined]
    return made


@pytest.fixture
def line(context: Context, node: Any) -> Iterator[Line]:
    made = Line(context, node.address, "loop", "test")
    yield made
    made.close()


def test_a_thread_that_blocks_gets_its_results_in_order(line: Line) -> None:
    for number in range(200):
        assert body(line.ask(ask(body=b"%d" % number))) == b"%d" % number
    assert line.usable()
    assert len(line._calls) == 0


def test_a_call_that_is_refused_did_not_run(line: Line) -> None:
    outcome = line.ask(ask(body=b"refuse"))
    assert isinstance(outcome, Refused)
    assert outcome.executed is False
    assert isinstance(line.ask(ask()), Result)


def test_a_silent_node_means_a_timeout_at_the_deadline(line: Line) -> None:
    line.ask(ask())
    began = time.monotonic()
    outcome = line.ask(ask(0.1, b"silent"))
    assert 0.09 < time.monotonic() - began < 0.2 * SCALE
    assert isinstance(outcome, CallTimeout)
    assert outcome.executed is None
    assert len(line._calls) == 0
    assert isinstance(line.ask(ask()), Result)


def test_a_late_answer_is_nobodys(line: Line, node: Any) -> None:
    line.ask(ask(0.05, b"silent"))
    call = node.started[-1]
    node.server.loop.call_soon_threadsafe(lambda: node.server.peers[0].send(Reply(call, b"late")))
    assert body(line.ask(ask(body=b"next"))) == b"next"


def test_a_call_that_came_past_its_deadline_still_has_an_outcome(line: Line) -> None:
    late = Ask("node", "service", b"", (), Deadline(time.monotonic() - 1), 0.1)
    assert isinstance(line.ask(late), (CallTimeout, Result))
    assert isinstance(line.ask(ask()), Result)


def test_the_end_of_the_node_ends_the_call(line: Line) -> None:
    line.ask(ask())
    outcome = line.ask(ask(body=b"die"))
    assert isinstance(outcome, NodeDied)
    assert outcome.executed is None
    assert line.ended
    assert not line.usable()
    after = line.ask(ask())
    assert isinstance(after, NodeDied)
    assert after.executed is False


def test_an_answer_given_before_leaving_arrives(line: Line) -> None:
    assert body(line.ask(ask(body=b"leave"))) == b"last"


def test_where_nobody_listens_the_call_did_not_run(context: Context, kind: str, place: Any) -> None:
    line = Line(context, "tcp://127.0.0.1:9" if kind == "tcp" else place(kind), "", "test")
    began = time.monotonic()
    outcome = line.ask(ask())
    assert isinstance(outcome, NodeDied)
    assert outcome.executed is False
    assert time.monotonic() - began < 0.5 * SCALE


def test_what_is_too_large_is_refused_before_it_leaves(line: Line) -> None:
    outcome = line.ask(ask(buffers=[b"x"] * 1024))
    assert isinstance(outcome, InvalidCall)
    assert outcome.executed is False
    assert "1024 large buffers" in str(outcome)
    assert isinstance(line.ask(ask()), Result)
    assert len(line._calls) == 0


def test_a_deadline_far_away_is_no_error(line: Line) -> None:
    assert isinstance(line.ask(ask(1e12)), Result)


def test_an_interrupted_call_leaves_a_line_that_is_over(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.ask(ask())

    def interrupted(timeout: float) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(line._session, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        line.ask(ask(body=b"silent"))
    assert line.ended
    assert len(line._calls) == 0


def half_read(monitor: Any, whole: Callable[[Any], Any] = link._event_of) -> Any:
    """What happened to a connection, where a Ctrl-C comes between its two frames."""
    if threading.current_thread() is not threading.main_thread():
        return whole(monitor)
    monitor.recv()
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_an_interrupt_between_two_frames_comes_out_as_itself(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(link, "_event_of", half_read)
        with pytest.raises(KeyboardInterrupt):
            line.ask(ask())
    assert line.ended
    assert line._session._link._socket.closed  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_a_look_that_is_interrupted_between_two_frames_ends_the_line(line: Line, node: Any,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    line._session.wait(5)  # until the connection is open, which its monitor tells
    monkeypatch.setattr(link, "_event_of", half_read)
    with pytest.raises(KeyboardInterrupt):
        line.usable()
    assert not line.usable()
    assert not line.busy


def test_a_line_is_busy_as_long_as_a_thread_waits_on_it(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, wait = [], line._session.wait

    def noted(timeout: float) -> None:
        seen.append(line.busy)
        wait(timeout)
    monkeypatch.setattr(line._session, "wait", noted)
    line.ask(ask())
    assert seen
    assert all(seen)
    assert not line.busy
    monkeypatch.setattr(line._session, "catch_up", lambda: seen.append(line.busy))
    assert line.usable()
    assert seen[-1] is True
    assert not line.busy


def test_without_room_for_a_socket_the_call_did_not_run(node: Any, context: Context, kind: str) -> None:
    if kind == "memory":
        pytest.skip("needs no sockets")
    context._zmq.set(zmq.MAX_SOCKETS, 1) if context._zmq else None
    taken = []
    with contextlib.suppress(zmq.ZMQError):
        while True:
            taken.append(context.socket(zmq.PAIR))
    try:
        outcome = Line(context, node.address, "", "test").ask(ask())
        assert isinstance(outcome, NodeDied)
        assert outcome.executed is False
        assert "no more sockets" in str(outcome)
        taken.pop().close(0)  # room for one, and a session needs two
        assert isinstance(Line(context, node.address, "", "test").ask(ask()), NodeDied)
    finally:
        for end in taken:
            end.close(0)


# -- on a loop -----------------------------------------------------------------------------------------------------


def on_loop(context: Context, node: Any, test: Callable[[Line], Any]) -> None:
    async def run() -> None:
        line = Line(context, node.address, "loop", "test")
        line.attach(asyncio.get_running_loop())
        await asyncio.wait_for(test(line), 20)
        line.close()
        assert len(line._calls) == 0
    asyncio.run(run())


def test_a_loop_gets_every_outcome_once(context: Context, node: Any, until: Any) -> None:
    async def test(line: Line) -> None:
        outcomes: list[Outcome] = []
        for number in range(3000):
            line.start(ask(body=b"%d" % number), outcomes.append)
        assert await until(lambda: len(outcomes) >= 3000)
        assert [body(outcome) for outcome in outcomes] == [b"%d" % number for number in range(3000)]
        assert len(line._calls) == 0
        assert line._calls.stray > 0
    on_loop(context, node, test)


def test_a_loop_keeps_deadlines(context: Context, node: Any, until: Any) -> None:
    async def test(line: Line) -> None:
        outcomes: list[Any] = []
        line.start(ask(5.0), outcomes.append)
        assert await until(lambda: outcomes)
        for timeout in (0.15, 0.05, 0.1):  # the timer is set earlier for the second
            line.start(ask(timeout, b"silent"), lambda outcome, timeout=timeout: outcomes.append((timeout, outcome)))
        began = time.monotonic()
        assert await until(lambda: len(outcomes) == 4)
        assert time.monotonic() - began < 0.3 * SCALE
        assert [timeout for timeout, _ in outcomes[1:]] == [0.05, 0.1, 0.15]
        assert all(isinstance(outcome, CallTimeout) for _, outcome in outcomes[1:])
    on_loop(context, node, test)


def test_a_call_that_is_cancelled_ends_as_its_node_says(context: Context, node: Any, until: Any) -> None:
    async def test(line: Line) -> None:
        outcomes: list[Any] = []
        line.start(ask(), outcomes.append)
        assert await until(lambda: outcomes)
        call = line.start(ask(body=b"silent"), outcomes.append)
        line.cancel(call)
        assert await until(lambda: Cancel(call) in node.heard)
        assert len(outcomes) == 1  # it may still be answered
        node.server.peers[0].send(refuse(call, Code.CANCELLED, "stopped"))
        assert await until(lambda: len(outcomes) == 2)
        assert isinstance(outcomes[1], Cancelled)
        assert outcomes[1].executed is False
        line.cancel(call)  # which is over
        late = line.start(ask(body=b"silent"), outcomes.append)
        line.cancel(late)
        node.server.peers[0].send(Reply(late, b"done all the same"))
        assert await until(lambda: len(outcomes) == 3)
        assert body(outcomes[2]) == b"done all the same"
        quick = line.start(ask(0.1, b"silent"), outcomes.append)
        line.cancel(quick)
        assert await until(lambda: len(outcomes) == 4)  # at its deadline, where the node says nothing
        assert isinstance(outcomes[3], CallTimeout)
    on_loop(context, node, test)


def test_what_finds_no_place_waits_or_is_refused(context: Context, node: Any, until: Any) -> None:
    async def test(line: Line) -> None:
        outcomes: list[Any] = []
        line._calls.window(2, 1000)
        assert line.fits(2, 1000)
        assert not line.fits(3, 0)
        assert not line.fits(2, 1001)
        assert line.fits(1, 5000)  # alone
        calls = [line.start(ask(body=b"silent"), outcomes.append) for _ in range(2)]
        assert line.start(ask(), outcomes.append) == 0
        assert isinstance(outcomes[0], Overloaded)
        waiting = line.start(replace(ask(body=b"next"), wait=True), outcomes.append)
        unwanted = line.start(replace(ask(body=b"unwanted"), wait=True), outcomes.append)
        line.cancel(unwanted)
        assert isinstance(outcomes[1], Cancelled)
        assert outcomes[1].executed is False
        assert await until(lambda: len(node.started) == 2)
        node.server.peers[0].send(Reply(calls[0], b""))
        assert await until(lambda: len(outcomes) == 4)
        assert body(outcomes[3]) == b"next"
        assert node.started == [*calls, waiting]
    on_loop(context, node, test)


def test_a_one_way_call_has_a_place_until_the_node_gives_it_back(context: Context, node: Any, until: Any) -> None:
    async def test(line: Line) -> None:
        outcomes: list[Any] = []
        line._calls.window(1, 1000)
        line.start(replace(ask(body=b"silent"), flags=Flag.ONE_WAY), outcomes.append)
        assert line.holds or line._session.sent
        assert await until(lambda: node.started)
        assert not line.fits(1, 0)
        assert len(line._calls) == 0
        node.server.peers[0].send(Credit(0, 1, 6))
        assert await until(lambda: line.fits(1, 0))
        assert outcomes == []
    on_loop(context, node, test)


def test_closing_ends_what_is_open(context: Context, node: Any, until: Any) -> None:
    async def test(line: Line) -> None:
        outcomes: list[Any] = []
        line.start(ask(), outcomes.append)
        assert await until(lambda: outcomes)
        line.start(ask(body=b"silent"), outcomes.append)
        line.close()
        assert isinstance(outcomes[1], NodeDied)
        assert outcomes[1].executed is None
        line.start(ask(), outcomes.append)
        assert outcomes[2].executed is False
        assert line._timer is None
    on_loop(context, node, test)


def test_one_waiter_that_raises_does_not_hold_up_the_others(context: Context, node: Any, until: Any) -> None:
    async def test(line: Line) -> None:
        outcomes: list[Any] = []

        def fails(outcome: Outcome) -> None:
            raise ValueError("the waiter's own")
        for _ in range(50):
            line.start(ask(), fails)
            line.start(ask(), outcomes.append)
        assert await until(lambda: len(outcomes) == 50)
        for _ in range(5):
            line.start(ask(0.05, b"silent"), fails)
            line.start(ask(0.05, b"silent"), outcomes.append)
        assert await until(lambda: len(outcomes) == 55)
        for _ in range(5):
            line.start(ask(body=b"silent"), fails)
            line.start(ask(body=b"silent"), outcomes.append)
        line.close()
        assert len(outcomes) == 60
    on_loop(context, node, test)
