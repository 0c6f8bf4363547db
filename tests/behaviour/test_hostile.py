"""What a hostile or broken peer may send to a node: it still answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import zmq

import pyzmp
from pyzmp.protocol import codec, envelope
from pyzmp.protocol.envelope import Cancel, Credit, End, Goodbye, Hello, Item, Note, Reply, Request

MESSAGES = 100_000
PART = 5_000


class Adder(pyzmp.Node):
    @pyzmp.service
    def add(self, a: int, b: int) -> int:
        return a + b

    @pyzmp.service
    async def echo(self, value: bytes) -> bytes:
        return value


def damaged(chance: random.Random, number: int) -> list[bytes]:
    """One ZeroMQ message: noise, a batch with changed bytes, or a well-formed batch with a damaged value inside."""
    body = bytearray(codec.encode([[1, 2], {"c": [b"x" * 20, {"d": 1.5}]}])[0])
    if number % 3:
        body[chance.randrange(len(body))] = chance.randrange(256)
    service = chance.choice(["add", "echo", "no such", "__class__", "\u2028"])
    good = [Request(number + 1, chance.choice(["adder", "nobody"]), service, chance.choice([1.0, 0.0, -1.0, 1e300]),
                    bytes(body), chance.choice([0, 0, 0, 1, -1])),
            chance.choice([Reply(number, b""), Cancel(number), Item(number, 0, b""), End(number), Credit(0, 1 << 60),
                           Note(bytes(body)), Hello(b"", "again")])]
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
