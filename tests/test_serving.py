"""How a node runs a call: what the behaviour of nodes does not show."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import pyzmp
from pyzmp import guest, runtime
from tests.campaigns.history import SCALE

held: list[weakref.ref[Any]] = []
gate = threading.Event()


class Thing:
    """What a service holds while it runs."""


class Server(pyzmp.Node):
    kind = "entity"

    def on_start(self) -> None:
        self.begun: list[str] = []

    @pyzmp.service
    async def waits(self) -> None:
        thing = Thing()
        held.append(weakref.ref(thing))
        await asyncio.sleep(60)

    @pyzmp.service
    async def fails(self) -> None:
        thing = Thing()
        held.append(weakref.ref(thing))
        await asyncio.sleep(0)
        raise ValueError(thing)

    @pyzmp.service(worker=True)
    def blocks(self, name: str) -> str:
        self.begun.append(name)
        gate.wait(5)
        return name

    @pyzmp.service
    async def exits(self) -> None:
        raise SystemExit(3)

    @pyzmp.service
    def exits_inline(self) -> None:
        raise SystemExit(3)

    @pyzmp.service(worker=True)
    def exits_in_a_thread(self) -> None:
        raise SystemExit(3)

    @pyzmp.service
    async def noted(self, name: str) -> None:
        self.begun.append(name)

    @pyzmp.service
    async def said(self) -> list[str]:
        return self.begun


@pytest.fixture(autouse=True)
def server() -> Iterator[Server]:
    pyzmp.configure(registry="memory")
    gate.clear()
    held.clear()
    with Server("server") as node:
        yield node
        gate.set()


def test_nothing_of_a_service_that_was_cancelled_or_failed_is_held(eventually: Any) -> None:
    gc.disable()
    try:
        for how in ("cancelled", "late", "failed"):
            future = (Server.waits.with_options(timeout=0.1) if how == "late" else
                      Server.waits if how == "cancelled" else Server.fails).submit()
            eventually(lambda: held)
            if how == "cancelled":
                future.cancel()
            else:
                assert future.exception(5) is not None
            eventually(lambda: held[0]() is None)
            held.clear()
    finally:
        gc.enable()


@pytest.mark.parametrize("service", ["exits", "exits_inline", "exits_in_a_thread"])
def test_an_exit_of_a_service_ends_no_node(service: str) -> None:
    with pytest.raises(pyzmp.RemoteError, match="SystemExit"):
        getattr(Server, service)()
    assert Server.said() == []


def test_what_waits_for_a_worker_begins_once_and_not_when_it_is_cancelled(eventually: Any,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "WORKERS", 2)
    monkeypatch.setattr("pyzmp.host.WORKERS", 2)
    calls = [Server.blocks.submit(str(number)) for number in range(6)]
    eventually(lambda: sorted(Server.said()) == ["0", "1"])
    assert sorted(Server.said()) == ["0", "1"]
    calls[2].cancel()
    eventually(lambda: calls[2].executed is False)  # type: ignore[attr-defined]
    gate.set()
    assert [calls[number].result(5) for number in (0, 1, 3, 4, 5)] == ["0", "1", "3", "4", "5"]
    assert sorted(Server.said()) == ["0", "1", "3", "4", "5"]  # two threads take them in turn, and no turn is promised


def test_a_deadline_that_comes_before_its_worker_has_a_turn_means_that_it_did_not_run(
        eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyzmp.host.WORKERS", 1)
    first = Server.blocks.submit("first")
    eventually(lambda: Server.said() == ["first"])
    late = Server.blocks.with_options(timeout=0.1).submit("late")
    assert isinstance(late.exception(5), pyzmp.CallTimeout)
    gate.set()
    assert first.result(5) == "first"
    assert Server.blocks("last") == "last"
    assert Server.said() == ["first", "last"]


def test_an_ended_call_leaves_nothing_behind_at_its_node(eventually: Any) -> None:
    (host,) = runtime.current().hosts.values()
    for call in (Server.said, Server.noted.submit("a").result, lambda: Server.noted.post("b")):
        call()
    with pytest.raises(pyzmp.CallTimeout):
        Server.waits.with_options(timeout=0.05)()
    future = Server.waits.submit()
    future.cancel()

    def empty() -> bool:
        callees = [peer.state for peer in host.server.peers]
        tables = [table for callee in callees for table in (callee.open, callee.running, callee.lasting,
                                                            callee._streams, callee._credit)]
        return not any(tables) and not host.guests["server"].running and host._waiting.occupied("server") == (0, 0)
    eventually(empty)
    assert len(host._waiting) == 0


def test_a_worker_that_ends_after_its_node_is_logged(server: Server, caplog: pytest.LogCaptureFixture,
                                                    monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    monkeypatch.setattr("pyzmp.life.DRAIN", 1.05)
    monkeypatch.setattr("pyzmp.host.CANCEL", 0.05)
    call = Server.blocks.submit("slow")
    eventually(lambda: Server.said() == ["slow"])
    began = time.monotonic()
    server.shutdown()
    assert time.monotonic() - began < 2 * SCALE
    error = call.exception(5)
    assert isinstance(error, (pyzmp.NodeDied, pyzmp.RemoteError))
    assert error.executed is True
    gate.set()
    caplog.clear()


class Streams(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    async def rushes(self) -> AsyncIterator[int]:
        for self.number in range(1_000_000):
            yield self.number

    @pyzmp.service
    async def clings(self) -> AsyncIterator[int]:
        held.append(weakref.ref(Thing()))
        while True:
            try:
                yield 1
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                held.append(weakref.ref(Thing()))

    @pyzmp.service
    def come_to(self) -> int:
        return self.number


def test_a_stream_that_never_waits_leaves_the_loop_to_others() -> None:
    with Streams("streams"):
        items = Streams.rushes.with_options(window=1_000_000)()
        assert next(items) == 0
        assert Streams.come_to() < 500_000
        items.close()


def test_a_generator_that_takes_no_notice_of_being_cancelled_is_closed_at_its_next_item(eventually: Any) -> None:
    with Streams("streams"):
        host = next(iter(runtime.current().hosts.values()))
        items = Streams.clings.with_options(window=1)()
        assert next(items) == 1
        items.close()
        eventually(lambda: not host.guests["streams"].running)


def test_a_ctrl_c_in_a_service_of_the_main_threads_loop_comes_out_of_it() -> None:
    class Interrupted(pyzmp.Node):
        kind = "entity"

        @pyzmp.service
        async def interrupted(self) -> None:
            await asyncio.sleep(0)
            raise KeyboardInterrupt

    node, loop = Interrupted("interrupted"), asyncio.new_event_loop()
    try:
        loop.run_until_complete(node.astart())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(Interrupted.interrupted.acall())
        loop.run_until_complete(node.ashutdown())
    finally:
        loop.close()


def test_a_call_for_which_there_is_no_thread_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")
    host = next(iter(runtime.current().hosts.values()))
    with monkeypatch.context() as patch:
        patch.setattr(guest.threading.Thread, "start", start)
        error = Server.blocks.submit("thread").exception(5)
    assert "can't start new thread" in str(error)
    assert (host.guests["server"].working, host._waiting.occupied("server")) == (0, (0, 0))
    gate.set()
    assert Server.blocks("again") == "again"
