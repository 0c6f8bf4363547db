"""All that is published on one loop: what is no subscription is refused, and what a hostile peer says does no harm."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.accounts import accounts
from pyzmp.protocol.envelope import Cancel, Failure, Parcel, Reply, Request, Subscribe, Subscribed, Taken
from pyzmp.protocol.schema import Type
from pyzmp.publishing import SUBSCRIPTIONS, Publishing
from pyzmp.transport.context import Context
from pyzmp.transport.server import Server


class Caller:
    """A peer that keeps what it is sent."""

    class hello(msgspec.Struct):  # as a peer has it
        caller: str = "somebody"

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.hello = type(self).hello()

    def send(self, message: Any, buffers: Any = ()) -> None:
        self.sent.append(message)

    def send_encoded(self, encoded: bytes, buffers: Any = ()) -> None:
        self.sent.append(encoded)

    def flush(self) -> None: ...


@pytest.fixture
def world() -> Any:
    loop, context = asyncio.new_event_loop(), Context()
    server = Server(context, loop, "loop", on_parcel=lambda peer, parcel: None)
    home = Publishing(server, lambda: [server])
    home.publisher("n", "n/t", Type.of(int))
    yield home
    loop.close()
    context.close()


def ask(home: Publishing, caller: Any, message: Any) -> bool:
    async def main() -> bool:
        return home.arrived(caller, Parcel(message))
    return home.loop.run_until_complete(main())


def test_only_what_is_about_topics_is_taken(world: Publishing) -> None:
    caller = Caller()
    assert not ask(world, caller, Cancel(1))
    assert not ask(world, caller, Request(1, "n", "t", 1.0, b""))
    assert not ask(world, caller, Request(1, "n", "n/u/accounts", 1.0, b""))
    assert ask(world, caller, Taken(1, 0, 1, 1))  # of one that has ended meanwhile
    assert ask(world, caller, Subscribe(1, "n", "n/t", size=1))
    assert ask(world, caller, Cancel(1))
    assert not ask(world, caller, Cancel(1))
    assert [type(message) for message in caller.sent] == [Subscribed]


@pytest.mark.parametrize("fields", [{"full": 3}, {"full": -1}, {"length": -1}, {"size": 0}, {"size": 1 << 50},
                                    {"history": -1}, {"since": (b"", -1)}])
def test_a_subscription_that_cannot_be_is_blamed(world: Publishing, fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        ask(world, Caller(), Subscribe(1, "n", "n/t", **{"size": 1, **fields}))


def test_a_call_number_is_used_once_and_room_is_granted_for_what_was_sent_only(world: Publishing) -> None:
    caller = Caller()
    ask(world, caller, Subscribe(1, "n", "n/t", size=1))
    with pytest.raises(MalformedMessage):
        ask(world, caller, Subscribe(1, "n", "n/t", size=1))
    with pytest.raises(MalformedMessage):
        ask(world, caller, Taken(1, 5, 1, 1))


def test_one_session_has_so_many_subscriptions_and_leaves_nothing_behind(world: Publishing) -> None:
    caller: Any = Caller()
    for call in range(SUBSCRIPTIONS + 1):
        ask(world, caller, Subscribe(call, "n", "n/t", size=1))
    assert [type(message) for message in caller.sent[-2:]] == [Subscribed, Failure]
    world.parted(caller)
    assert not world._subscriptions
    assert not world._peers


def test_the_end_of_a_publisher_leaves_its_successor_alone(world: Publishing) -> None:
    before, = world._publishers.values()
    world.publisher("n", "n/t", Type.of(int))
    world.loop.run_until_complete(world.end([before], "it has stopped"))
    caller = Caller()
    ask(world, caller, Subscribe(1, "n", "n/t", size=1))
    assert isinstance(caller.sent[0], Subscribed)


def test_a_subscription_ends_though_the_loop_is_closed(world: Publishing) -> None:
    publisher, = world._publishers.values()
    caller = Caller()
    publisher.on_demand(lambda wanted: None)
    ask(world, caller, Subscribe(1, "n", "n/t", size=1))
    world.loop.close()
    world.parted(caller)  # type: ignore[arg-type]
    assert [each.ended for each in publisher.accounts()] == [True]


def test_a_publisher_tells_its_accounts(world: Publishing) -> None:
    caller = Caller()
    ask(world, caller, Subscribe(1, "n", "n/t", size=1, who="kitchen"))
    assert ask(world, caller, Request(2, "n", "n/t/accounts", 1.0, b""))
    reply = caller.sent[-1]
    assert isinstance(reply, Reply)
    account, = accounts(codec.decode(reply.body))
    assert (account.subscriber, account.node, account.offered) == ("kitchen", "n", 0)
