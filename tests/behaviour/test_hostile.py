"""What a hostile or broken peer may send to a node: it still answers."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from msgspec.structs import replace

import pyzmp
from pyzmp import runtime
from pyzmp.channels.channel import Channel
from pyzmp.protocol import codec, envelope, rows
from pyzmp.protocol.envelope import (
    Calls,
    Cancel,
    Code,
    Credit,
    End,
    Failure,
    Goodbye,
    Hello,
    Item,
    Note,
    Opened,
    Reply,
    Request,
    Results,
    Welcome,
)
from pyzmp.protocol.facts import Trait
from pyzmp.sessions import Target

MESSAGES = 100_000
PART = 5_000


class Adder(pyzmp.Node):
    @pyzmp.service
    def add(self, a: int, b: int) -> int:
        return a + b

    @pyzmp.service
    async def upwards(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @pyzmp.service
    async def echo(self, value: bytes) -> bytes:
        return value


def together(chance: random.Random) -> bytes:
    """The arguments of two calls, or of nearly that many, or of none."""
    body = bytearray(rows.pack([[1, 2], [3, chance.choice([4, "four", b"x" * 30])]]) or b"")
    if chance.random() < 0.5:
        body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body)


def damaged(chance: random.Random, number: int) -> list[bytes]:
    """One ZeroMQ message: noise, a batch with changed bytes, or a well-formed batch with a damaged value inside."""
    body = bytearray(codec.encode([[1, 2], {"c": [b"x" * 20, {"d": 1.5}]}])[0])
    if number % 3:
        body[chance.randrange(len(body))] = chance.randrange(256)
    service = chance.choice(["add", "echo", "no such", "__class__", "\u2028"])
    good: list[Any] = [
        Request(number + 1, chance.choice(["adder", "nobody"]), service, chance.choice([1.0, 0.0, -1.0, 1e300]),
                bytes(body), chance.choice([0, 0, 0, 1, -1])),
        chance.choice([Reply(number, b""), Cancel(number), Item(number, 0, b""), End(number), Credit(0, 1 << 60),
                       Note(bytes(body)), Hello(b"", "again"), Cancel(number, 1 << 60), Results(number, b"\x92", 2),
                       Calls(number + 2, "adder", service, 1.0, together(chance), chance.choice([2, 3, 1, 1 << 31]))])]
    head = bytearray(envelope.pack([envelope.encode(message) for message in good[:1 + number % 2]]))
    if number % 4 == 0:
        head[chance.randrange(len(head))] = chance.randrange(256)
    if number % 7 == 0:
        head = bytearray(b"\x01" + chance.randbytes(chance.randrange(40)))
    return [bytes(head), *([chance.randbytes(8)] if number % 5 == 0 else [])]


def parts(seed: int) -> Iterator[list[list[bytes]]]:
    chance = random.Random(seed)
    for start in range(0, MESSAGES, PART):
        yield [damaged(chance, number) for number in range(start, start + PART)]


def received(peer: zmq.Socket[bytes]) -> list[bytes]:
    assert peer.poll(10_000), "the node answers no more"
    return peer.recv_multipart()


@pytest.mark.timeout(60)
def test_a_hundred_thousand_damaged_messages_leave_a_node_as_it_was() -> None:
    with Adder("adder") as node, zmq.Context() as context:
        address = Adder.at("adder").add.providers[0][1]
        for number, part in enumerate(parts(seed=7)):
            with context.socket(zmq.DEALER) as peer:
                peer.set(zmq.LINGER, 5000)
                peer.connect(address)
                peer.send(envelope.pack([envelope.encode(Hello(b"hostile", "nobody"))]))
                for frames in part:
                    peer.send_multipart(frames)
                    while peer.poll(0):
                        peer.recv_multipart()
                # The last call is answered once all before it was read.  A damaged message may have ended the session.
                call = Request(1 << 40, "adder", "add", 5.0, codec.encode([[20, 22], {}])[0])
                peer.send(envelope.pack([envelope.encode(Hello(b"hostile", "nobody"))]))
                peer.send(envelope.pack([envelope.encode(call)]))
                while not any(isinstance(parcel.message, Reply) and parcel.message.call == call.call
                              for parcel in envelope.unpack(received(peer))):
                    pass
                peer.send(envelope.pack([envelope.encode(Goodbye(""))]))
            assert Adder.add(number, 1) == number + 1
        assert Adder.echo(b"still there") == b"still there"
        assert node.is_alive()


# -- a peer that is no node ----------------------------------------------------------------------------------------


class Impostor:
    """Listens where a node is announced, and answers a call with whatever a test sends."""

    def __init__(self, context: zmq.Context[Any], address: str, loop: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.bind(address)
        self.loop, self.key = loop, b""

    def heard(self, kind: type[Any]) -> Any:
        """The next message of *kind*; a greeting is answered."""
        while True:
            assert self.socket.poll(5000), f"no {kind.__name__} came"
            self.key, *frames = self.socket.recv_multipart()
            for parcel in envelope.unpack(frames):
                if isinstance(parcel.message, Hello):
                    self.send(Welcome(self.loop, 10, 1 << 20))
                if isinstance(parcel.message, kind):
                    return parcel.message

    def send(self, *messages: Any) -> None:
        self.socket.send_multipart([self.key, envelope.pack([envelope.encode(message) for message in messages])])


@pytest.fixture
def impostor(domain: Path) -> Iterator[Impostor]:
    """One that stands where the graph says that a node is."""
    with Adder("adder"), zmq.Context() as context:
        known = Adder.add.found()[0]
        made = Impostor(context, f"ipc://{domain}/impostor", known.loop)

        def found(channel: Any) -> list[Target]:
            traits = Trait.STREAM if channel.name == "upwards" else 0
            return [replace(known, address=f"ipc://{domain}/impostor", traits=traits)]
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Channel, "found", found)
                patch.setattr(Channel, "seen", found)
                yield made
        finally:
            made.socket.close(0)
            (domain / "impostor").unlink(missing_ok=True)


def answer(number: int) -> bytes:
    return codec.encode(number)[0]


def stray() -> int:
    return sum(line._calls.stray for line in runtime.current().sessions._shared.values())


def test_replies_for_nobody_twice_of_the_wrong_kind_or_too_late_are_counted_and_dropped(impostor: Impostor) -> None:
    first, second = Adder.add.submit(1, 2), Adder.add.submit(3, 4)
    one = impostor.heard(Request)
    two = Request(one.call + 1, "", "", 0.0, b"")
    for wrong in (Reply(999, answer(0)), Reply(0, answer(0)), Item(one.call, 0, answer(0)), End(one.call),
                  Credit(one.call, 5), Opened(one.call), Failure(999, Code.REFUSED, "no")):
        impostor.send(wrong)
    impostor.send(Reply(two.call, answer(7)), Reply(one.call, answer(3)))  # in any order
    assert (first.result(5), second.result(5)) == (3, 7)
    impostor.send(Reply(one.call, answer(30)), Failure(two.call, Code.REFUSED, "changed my mind"))
    third = Adder.add.with_options(timeout=0.1).submit(5, 6)
    assert isinstance(third.exception(5), pyzmp.CallTimeout)
    impostor.send(Reply(one.call + 2, answer(11)))
    fourth = Adder.add.submit(7, 8)
    impostor.heard(Request)
    impostor.heard(Request)
    impostor.send(Reply(one.call + 3, answer(15)))
    assert fourth.result(5) == 15
    assert first.result() == 3
    assert stray() == 7 + 2 + 1


@pytest.mark.parametrize(("messages", "text"), [
    ((Item(1, 1, answer(0)),), "item 1 of a stream, where item 0 is the next"),
    ((Item(1, 0, answer(0)), Item(1, 2, answer(0))), "item 2 of a stream, where item 1 is the next"),
    (tuple(Item(1, number, answer(0)) for number in range(600)), "goes beyond what was granted"),
    ((Item(1, 0, b"\xc1"),), "is not what it promises"),
    ((Item(1, 0, codec.encode("zero")[0]),), "is not what it promises"),
])
def test_a_stream_that_is_broken_ends_with_an_error(impostor: Impostor, messages: Any, text: str) -> None:
    items = Adder.upwards.with_options(window=2)(5)
    asked = threading.Thread(target=lambda: (impostor.heard(Request), impostor.send(Opened(1), *messages)))
    asked.start()
    with pytest.raises(pyzmp.RemoteError, match=text):
        list(items)
    asked.join()
    assert list(items) == []
    assert impostor.heard(Cancel).call == 1


def test_an_item_that_comes_twice_is_given_once(impostor: Impostor) -> None:
    items = Adder.upwards(5)
    asked = threading.Thread(target=lambda: (impostor.heard(Request), impostor.send(
        Opened(1), Item(1, 0, answer(0)), Item(1, 0, answer(0)), Item(1, 1, answer(1)), Item(1, 0, answer(0)), End(1))))
    asked.start()
    assert list(items) == [0, 1]
    asked.join()
    assert stray() == 2


def test_a_request_for_a_loop_that_is_gone_or_a_session_of_somebody_else_is_refused(domain: Path) -> None:
    with Adder("adder"), zmq.Context() as context:
        address = Adder.at("adder").add.providers[0][1]
        peers = [context.socket(zmq.DEALER) for _ in range(2)]
        call = Request(1, "adder", "add", 5.0, codec.encode([[20, 22], {}])[0])
        for peer in peers:
            peer.connect(address)
        peers[0].send(envelope.pack([envelope.encode(Hello(b"mine", "me", "another loop")), envelope.encode(call)]))
        (parcel,) = envelope.unpack(received(peers[0]))
        assert isinstance(parcel.message, Goodbye)
        assert "the loop another loop is gone" in parcel.message.reason
        assert not peers[0].poll(50), "and the call behind it was not taken"
        peers[0].send(envelope.pack([envelope.encode(Hello(b"mine", "me")), envelope.encode(call)]))
        kinds = [type(parcel.message) for _ in range(2) for parcel in envelope.unpack(received(peers[0]))]
        assert kinds == [Welcome, Reply]
        peers[1].send(envelope.pack([envelope.encode(Hello(b"mine", "a thief")), envelope.encode(call)]))
        (parcel,) = envelope.unpack(received(peers[1]))
        assert parcel.message == Goodbye("this session belongs to another connection")
        old = Request(2, "adder", "add", 5.0, call.body, incarnation=(7, 7))
        peers[0].send(envelope.pack([envelope.encode(old)]))
        (parcel,) = envelope.unpack(received(peers[0]))
        assert isinstance(parcel.message, Failure)
        assert (parcel.message.code, parcel.message.executed) == (Code.REFUSED, False)
        assert "was started again since" in parcel.message.text
        for peer in peers:
            peer.close(0)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x01", b"\x92\x01", b"\x93\x01\x02\x03", b"\xdd\xff\xff\xff\xff",
                                  b"\x92\xa1a\xa1b", b"\x92\x91\x01\x91\x02"])
def test_results_that_are_none_are_an_error_for_each(impostor: Impostor, body: bytes) -> None:
    mapped = Adder.add.map([1, 2], [3, 4])
    asked = threading.Thread(target=lambda: impostor.send(Results(impostor.heard(Calls).call, body, 2)))
    asked.start()
    for _ in range(2):
        with pytest.raises((pyzmp.RemoteError, pyzmp.PyzmpError)):
            next(mapped)
    asked.join()
    assert list(mapped) == []


def test_numbers_and_counts_that_cannot_be_are_refused_and_the_node_goes_on(domain: Path) -> None:
    body = rows.pack([[1, 2], [3, 4]]) or b""
    with Adder("adder"), zmq.Context() as context:
        with context.socket(zmq.DEALER) as peer:
            peer.set(zmq.LINGER, 0)
            peer.connect(Adder.at("adder").add.providers[0][1])
            peer.send(envelope.pack([envelope.encode(Hello(b"hostile", "nobody"))]))
            for call, count in ((1 << 63, 2), ((1 << 64) - 1, 2), (1, 1), (1, 0), (1, -1), (1, 1 << 31), (1, 4097)):
                peer.send(envelope.pack([envelope.encode(Calls(call, "adder", "add", 5.0, body, count))]))
            peer.send(envelope.pack([envelope.encode(Cancel(1, 1 << 62))] * 1000))
            for number in range(2, 6):  # the claims of each are much more than it has
                claim = b"\xdc\x10\x00" * number
                peer.send(envelope.pack([envelope.encode(Calls(number * 5000, "adder", "add", 5.0, claim, 4096))]))
            last = Calls((1 << 63) - 1, "adder", "add", 5.0, rows.pack([[1, "2"], [3, "4"]]) or b"", 2)
            peer.send(envelope.pack([envelope.encode(last)]))
            answered = set[int]()
            while len(answered) < 4 * 4096 + 2:
                answered.update(parcel.message.call for parcel in envelope.unpack(received(peer))
                                if isinstance(parcel.message, Failure) and parcel.message.executed is False)
            assert max(answered) == 1 << 63
        assert Adder.add(20, 22) == 42
