from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.exceptions import AnnouncementRefused, MalformedMessage, NodeExists
from pyzmp.protocol import facts
from pyzmp.protocol.facts import Change, Epoch, Member, NodeFact, Position, ServiceFact

MEMBER = Member("id", "host", 42, "7", "program")
NODE = NodeFact("kitchen", "id", "loop", ("ipc:///a", "tcp://127.0.0.1:1"), "process", "host", 42, "m.Oven",
                (("a", "b"),))
SERVICE = ServiceFact("kitchen", "bake", "id", ("m.Oven", "m.Stove"), "abc", "(n: int) -> str", facts.Trait.IDEMPOTENT)
HERE = Position(Epoch(3, "nonce"), 9)
MESSAGES = [
    facts.Join(MEMBER), facts.Hold((MEMBER, NODE)), facts.Follow(), facts.Follow(HERE), facts.Leave(), facts.Beat(HERE),
    facts.Propose(1, (Change((NODE, SERVICE), (("node", "hall"),)),), complete=True),
    facts.Snapshot(HERE, 0, True, (MEMBER, NODE, SERVICE)), facts.Commit(HERE, 3, (NODE,), (SERVICE.key,), ("other",)),
    facts.Settled(1, HERE, (facts.Refusal(0, "kitchen", "pid 1 as Oven", "pid 2 as Stove"),)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: facts.Message) -> None:
    assert facts.decode(facts.encode(message)) == message


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        facts.decode(data)
    except MalformedMessage:
        pass


@given(st.sampled_from(MESSAGES), st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_a_damaged_message_is_a_message_or_malformed(message: facts.Message, place: int, byte: int, cut: bool) -> None:
    data = bytearray(facts.encode(message))
    place %= len(data)
    data[place] = byte
    try:
        facts.decode(data[:place] if cut else data)
    except MalformedMessage:
        pass


@pytest.mark.parametrize("wrong", [
    ["follow", [[-1, "nonce"], 3]], ["join", ["", "host", 1, "7", ""]], ["beat", None], ["unknown"], [], None, ["join"],
    ["hold", [["node", "n" * 256, "id", "", [], "", "", 1, ""]]], ["commit", [[1, "n"], 1], [["window", "w"]]],
])
def test_what_has_another_shape_is_malformed(wrong: object) -> None:
    with pytest.raises(MalformedMessage):
        facts.decode(msgspec.msgpack.encode(wrong))


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        facts.decode(b"\x91" * 100_000)


def test_an_oversized_message_is_malformed_before_it_is_looked_at() -> None:
    with pytest.raises(MalformedMessage, match="the limit is"):
        facts.decode(bytes(facts.SIZE + 1))


def test_pieces_keep_the_order_and_the_size() -> None:
    many = [NodeFact(f"n{number}", "id", "", (), "entity", "h", 1, "m.C") for number in range(1000)]
    parts = list(facts.pieces(many, 4096))
    assert [fact for part in parts for fact in part] == many
    assert len(parts) > 1
    assert all(len(msgspec.msgpack.encode(part)) <= 4096 + 3 for part in parts)


def test_a_fact_larger_than_a_piece_goes_alone_and_nothing_is_one_empty_piece() -> None:
    assert list(facts.pieces([NODE, SERVICE], 1)) == [(NODE,), (SERVICE,)]
    assert list(facts.pieces([], 1)) == [()]


def test_keys_and_owners() -> None:
    assert [fact.key for fact in (MEMBER, NODE, SERVICE)] == [
        ("member", "id"), ("node", "kitchen"), ("service", "kitchen", "bake")]
    assert {fact.owner for fact in (MEMBER, NODE, SERVICE)} == {"id"}


def test_a_refusal_becomes_the_error_it_stands_for() -> None:
    taken = facts.Refusal(0, "kitchen", "pid 1 as Oven", "pid 2 as Stove").error()
    assert isinstance(taken, NodeExists)
    assert "pid 1 as Oven" in str(taken)
    assert "pid 2 as Stove" in str(taken)
    assert isinstance(facts.Refusal(0, "not yours").error(), AnnouncementRefused)
