from __future__ import annotations

import asyncio

import pytest

from pyzmp.protocol import facts
from pyzmp.protocol.envelope import Note
from pyzmp.protocol.facts import Beat, Epoch, Position
from pyzmp.registry.link import Native
from pyzmp.transport.context import Context
from pyzmp.transport.server import Peer, Server

HERE = Position(Epoch(1, "nonce"), 0)


def test_what_both_sides_say_arrives_and_what_is_none_of_it_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        context, came, heard = Context(), asyncio.Queue[bytes](), asyncio.Queue[facts.Message]()
        over = asyncio.get_running_loop().create_future()

        def opened(peer: Peer) -> None:
            for body in (b"nonsense", facts.encode(Beat(HERE))):
                peer.send(Note(body))

        server = Server(context, asyncio.get_running_loop(), "registry", on_open=opened,
                        on_parcel=lambda peer, parcel: came.put_nowait(parcel.message.body))  # type: ignore[union-attr]
        place = Native(context, server.bind("memory://here"), 7)
        assert (place.address, place.counter) == ("memory://here", 7)
        link = place.open(heard.put_nowait, over.set_result)
        link.say(facts.Follow())
        assert facts.decode(await asyncio.wait_for(came.get(), 5)) == facts.Follow()
        assert await asyncio.wait_for(heard.get(), 5) == Beat(HERE)
        server.close()
        assert "closes" in await asyncio.wait_for(over, 5)
        link.say(facts.Leave())
        link.close()
        link.close()
        context.close()

    asyncio.run(run())
    assert "memory://here sent a malformed message" in caplog.text
