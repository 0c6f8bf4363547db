"""The listening end: whatever comes, it goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from pyzmp.exceptions import AddressInUse, InvalidAddress
from pyzmp.protocol import envelope
from pyzmp.protocol.envelope import Cancel, End, Goodbye, Hello, Note, Parcel, Request, Welcome
from pyzmp.transport import link, loop
from pyzmp.transport.address import parse
from pyzmp.transport.context import Context
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.memory import MemoryConnection
from pyzmp.transport.outbox import GATHER
from pyzmp.transport.server import Peer, Server


def notes(count: int) -> list[Note]:
    return [Note(b"%d" % number) for number in range(count)]


def messages(caller: Any) -> list[Any]:
    return [parcel.message for parcel in caller.got]


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


class Raw:
    """Sends any frames at all."""

    def __init__(self, context: Context, address: str) -> None:
        where = parse(address)
        self.dealer: zmq.Socket[bytes] | None = None
        if where.scheme == "memory":
            self.link = MemoryConnection(context, where)
        else:
            self.dealer = context.socket(zmq.DEALER)
            self.dealer.connect(address)

    def send(self, *frames: bytes) -> None:
        if self.dealer is not None:
            self.dealer.send_multipart(frames)
        else:
            self.link.send(frames)

    def receive(self) -> Any:
        if self.dealer is not None:
            return self.dealer.recv_multipart(zmq.NOBLOCK) if self.dealer.poll(0) else None
        return self.link.receive()

    def close(self) -> None:
        self.dealer.close(0) if self.dealer is not None else self.link.close()


def packed(*batch: Any) -> bytes:
    return envelope.pack([envelope.encode(message) for message in batch])


def test_malformed_messages_are_counted_logged_once_per_peer_and_dropped(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any,
        caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        bound = echo.server.bind(address)
        raws = [Raw(context, bound) for _ in range(3)]
        for raw in raws:
            for _ in range(5):
                raw.send(b"\x01junk")
            raw.send(b"")
            raw.send(packed(Note(b"")), b"a frame too many")
            raw.send(*[b"\x01\x90"] + [b""] * envelope.FRAMES)
        assert await until(lambda: echo.server.malformed == 24)
        assert len(caplog.records) == 3
        raws[0].send(packed(Hello(b"", "raw"), Note(b"good")))
        assert await until(lambda: echo.seen == [Note(b"good")])
        raws[0].send(packed(Hello(b"", "raw")))
        assert await until(lambda: echo.server.malformed == 25)
        assert len(caplog.records) == 3
        for raw in raws:
            raw.close()
        if parse(bound).scheme != "inproc":
            assert await until(lambda: not echo.server._blamed and not echo.server.peers)
        echo.server.close()
        assert not echo.server._blamed
    with caplog.at_level(logging.WARNING, "pyzmp.transport"):
        run(test)


def test_messages_before_the_greeting_are_dropped(context: Context, address: str, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        echo = new_echo(context, asyncio.get_running_loop())
        raw = Raw(context, echo.server.bind(address))
        raw.send(packed(Request(1, "n", "s", 1.0, b""), Hello(b"", "raw"), Note(b"dropped with the batch")))
        raw.send(packed(Goodbye("never mind")))
        raw.send(packed(Hello(b"", "raw"), Note(b"good")))
        assert await until(lambda: echo.seen)
        assert echo.seen == [Note(b"good")]
        assert echo.server.malformed == 1
        raw.close()
        echo.server.close()
    run(test)


def test_the_greeting_of_a_session_that_another_connection_has_is_refused(
        context: Context, address: str, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        echo = new_echo(context, asyncio.get_running_loop())
        bound = echo.server.bind(address)
        first, second = Raw(context, bound), Raw(context, bound)
        first.send(packed(Hello(b"the same", "raw")))
        assert await until(lambda: echo.opened)
        second.send(packed(Hello(b"the same", "raw"), Note(b"of a thief")))
        got: list[Any] = []

        def answered(raw: Raw) -> bool:
            frames = raw.receive()
            got.extend(envelope.unpack(frames) if frames else [])
            return bool(got)
        assert await until(lambda: answered(second))
        assert got == [Parcel(Goodbye("this session belongs to another connection"))]
        assert echo.server.malformed == 1
        first.send(packed(Note(b"of its owner")))
        assert await until(lambda: echo.seen)
        assert echo.seen == [Note(b"of its owner")]
        second.send(packed(Hello(b"another", "raw"), Note(b"as somebody else")))
        assert await until(lambda: len(echo.seen) == 2)
        first.send(packed(Goodbye("")))
        assert await until(lambda: echo.gone)
        second.send(packed(Goodbye("")))
        assert await until(lambda: len(echo.gone) == 2)
        second.send(packed(Hello(b"the same", "raw"), Note(b"its owner has left")))
        assert await until(lambda: len(echo.seen) == 3)
        for raw in (first, second):
            raw.close()
        echo.server.close()
        assert not echo.server._sessions
    run(test)


def test_the_welcome_tells_of_the_window(context: Context, address: str, new_caller: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        server = Server(context, running, "loop", on_parcel=lambda peer, parcel: None, window=(7, 1000))
        caller = new_caller(context, server.bind(address), loop=running)
        assert await until(lambda: caller.session.welcome)
        assert caller.session.welcome == Welcome("loop", 7, 1000)
        caller.session.close()
        server.close()
    run(test)


def test_a_foreign_version_is_answered_once(context: Context, address: str, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        echo = new_echo(context, asyncio.get_running_loop())
        raw = Raw(context, echo.server.bind(address))
        got: list[Any] = []

        def answered() -> bool:
            frames = raw.receive()
            got.extend([frames] if frames else [])
            return bool(got)
        for _ in range(3):
            raw.send(b"\x07\x91\x92\x0b\xc4\x00")
        assert await until(answered)
        assert envelope.unpack(got[0]) == [
            Parcel(Goodbye("a message of version 7 of the wire format; this is version 1"))]
        assert await until(lambda: echo.server.malformed == 3)
        raw.send(packed(Hello(b"", "raw")))
        assert await until(lambda: echo.server.peers)
        got.clear()
        assert await until(answered)
        assert envelope.unpack(got[0]) == [Parcel(Welcome("loop"))]
        raw.close()
        echo.server.close()
    run(test)


def test_a_listener_that_sends_nonsense_does_not_end_the_session(context: Context, address: str, new_caller: Any,
    new_echo: Any, until: Any,
                                                                 caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        caller = new_caller(context, echo.server.bind(address), loop=running)
        assert await until(lambda: caller.session.welcome)
        for _ in range(5):
            echo.server.transmit(echo.opened[0], [b"\x01junk"])
        caller.session.send(Note(b"good"))
        assert await until(lambda: caller.got)
        assert caller.session.malformed == 5
        assert len(caplog.records) == 1
        caller.session.close()
        echo.server.close()
    with caplog.at_level(logging.WARNING, "pyzmp.transport"):
        run(test)


# -- errors in what is called back ---------------------------------------------------------------------------------


def test_an_error_in_a_handler_is_logged_and_the_rest_goes_on(context: Context, address: str, new_caller: Any,
    until: Any,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        seen: list[Any] = []

        def fails(*values: Any) -> None:
            seen.append(values[-1])
            raise ValueError("the handler's own")
        server = Server(context, running, "loop", on_parcel=fails, on_open=fails, on_end=fails)
        bound = server.bind(address)
        ends: list[str] = []

        def over(reason: str) -> None:
            ends.append(reason)
            raise ValueError
        got: list[Any] = []

        def arrived(parcel: Parcel) -> None:
            got.append(parcel.message)
            raise ValueError
        session = Session(context, bound, Hello(session_id(), "t"), on_parcel=arrived, on_end=over)
        session.attach(running)
        for note in notes(500):
            session.send(note)
        assert await until(lambda: len(seen) == 501)
        for note in notes(100):
            server.peers[0].send(note)
        assert await until(lambda: got == notes(100))
        other = new_caller(context, bound, loop=running)
        assert await until(lambda: other.session.welcome)
        session.close()
        assert await until(lambda: len(server.peers) == 1)
        server.close()
        assert await until(lambda: other.ends)
        assert len(seen) == 504
        assert len(ends) == 1
    with caplog.at_level(logging.CRITICAL, "pyzmp.transport"):
        run(test)


def test_an_interruption_loses_no_messages(context: Context, address: str, new_caller: Any, until: Any) -> None:
    """A Ctrl-C ends the loop's run in the middle of a batch; run again, the loop goes on with the next message."""
    running = asyncio.new_event_loop()
    seen: list[Any] = []

    def interrupted(_: Peer, parcel: Parcel) -> None:
        seen.append(parcel.message)
        if len(seen) == 3:
            raise KeyboardInterrupt

    async def begin() -> tuple[Server, Any]:
        server = Server(context, running, "loop", on_parcel=interrupted)
        caller = new_caller(context, server.bind(address), loop=running)
        assert await until(lambda: caller.session.welcome)
        return server, caller
    server, caller = running.run_until_complete(begin())

    async def send() -> None:
        for note in notes(6):
            caller.session._transmit([packed(note)])
        assert await until(lambda: len(seen) == 6)
    with pytest.raises(KeyboardInterrupt):
        running.run_until_complete(send())
    assert running.run_until_complete(until(lambda: len(seen) == 6))
    assert seen == notes(6)
    caller.session.close()
    server.close()
    running.run_until_complete(asyncio.sleep(0))
    for task in asyncio.all_tasks(running):
        task.cancel()
    running.run_until_complete(asyncio.sleep(0))
    running.close()


def test_ends_whose_loop_is_closed_can_be_closed_and_leave_nothing(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    kept: list[Any] = []

    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        caller = new_caller(context, echo.server.bind(address), loop=running)
        assert await until(lambda: caller.session.welcome)
        kept.extend([echo, caller])
    run(test)
    echo, caller = kept
    caller.session.send(Note(b"to nobody"))
    echo.opened[0].send(Note(b"to nobody"))
    caller.session.close()
    echo.server.close()
    assert len(caller.ends) == 1


# -- several addresses ---------------------------------------------------------------------------------------------


def test_a_message_that_comes_while_another_address_is_served_is_not_forgotten(
        context: Context, place: Any, until: Any, new_caller: Any) -> None:
    """Sending to a peer takes the notice that something has come from it, also within another address's turn."""
    async def test() -> None:
        running = asyncio.get_running_loop()
        seen: list[Any] = []

        def relay(peer: Peer, parcel: Parcel) -> None:
            seen.append(parcel.message)
            for other in server.peers:
                if other is not peer:
                    other.send(Cancel(1))
                    other.flush()
        server = Server(context, running, "loop", on_parcel=relay)
        callers = [new_caller(context, server.bind(place(kind)), loop=running) for kind in ("ipc", "tcp", "inproc",
            "memory")]
        assert await until(lambda: len(server.peers) == 4)
        for turn in range(100):
            for caller in callers:
                caller.session.send(End(turn))
            assert await until(lambda: len(seen) == 4 * (turn + 1), 2.0), (turn, len(seen))  # noqa: B023
        assert await until(lambda: all(len(caller.got) == 300 for caller in callers))
        for caller in callers:
            caller.session.close()
        server.close()
    run(test)


def test_a_busy_address_leaves_the_loop_its_turns(
        context: Context, address: str, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        most = 0
        caller = new_caller(context, echo.server.bind(address), loop=running)
        assert await until(lambda: caller.session.welcome)
        for note in notes(20_000):
            caller.session.send(note)
        while len(caller.got) < 20_000:
            before = len(echo.seen)
            await asyncio.sleep(0)
            most = max(most, len(echo.seen) - before)
        assert most <= 3 * (loop.DRAIN + GATHER)  # in one turn: a notice, and a drain that was asked for
        caller.session.close()
        echo.server.close()
    run(test)


def test_one_address_is_left_and_the_others_stay(
        context: Context, place: Any, new_caller: Any, new_echo: Any, until: Any) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        first, second = echo.server.bind(place("ipc")), echo.server.bind(place("tcp"))
        assert echo.server.addresses == [first, second]
        left, stays = new_caller(context, first, loop=running), new_caller(context, second, loop=running)
        assert await until(lambda: left.session.welcome and stays.session.welcome)
        echo.server.unbind(first)
        echo.server.unbind(first)
        assert await until(lambda: left.ends == ["the listener closes"])
        stays.session.send(Note(b"still"))
        assert await until(lambda: stays.got)
        assert echo.server.addresses == [second]
        stays.session.close()
        echo.server.close()
    run(test)


def test_a_second_listener_is_refused_and_the_first_goes_on(context: Context, address: str, new_caller: Any,
    new_echo: Any, until: Any,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "REBIND", 0.05)

    async def test() -> None:
        running = asyncio.get_running_loop()
        echo = new_echo(context, running)
        bound = echo.server.bind(address)
        second = Server(context, running, "second", on_parcel=lambda peer, parcel: None)
        with pytest.raises(AddressInUse, match="cannot be bound"):
            second.bind(bound)
        assert second.addresses == []
        caller = new_caller(context, bound, loop=running)
        assert await until(lambda: caller.session.welcome == Welcome("loop"))
        caller.session.close()
        echo.server.close()
        assert second.bind(bound) == bound
        second.close()
    run(test)


def test_beyond_loopback_a_server_refuses_to_listen(context: Context) -> None:
    async def test() -> None:
        server = Server(context, asyncio.get_running_loop(), "loop", on_parcel=lambda peer, parcel: None)
        with pytest.raises(InvalidAddress, match="insecure=True"):
            server.bind("tcp://0.0.0.0:*")
        bound = server.bind("tcp://0.0.0.0:*", insecure=True)
        assert bound.startswith("tcp://0.0.0.0:")
        server.close()
    run(test)
