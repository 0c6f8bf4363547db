"""What one loop shares among its nodes.  That calls are served as promised is shown by the behaviour of nodes."""

from __future__ import annotations

import asyncio

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.host import Host


class Lamp(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def on(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def test_the_nodes_of_a_loop_share_one_host_until_the_last_has_left() -> None:
    async def main() -> None:
        here = runtime.current()
        async with Lamp("one"):
            loop = asyncio.get_running_loop()
            host: Host = here.hosts[loop]
            async with Lamp("two"):
                assert here.hosts[loop] is host
                assert set(host.guests) == {"one", "two"}
                assert len({address for _, address in Lamp.on.providers}) == 1
            assert set(host.guests) == {"one"}
        assert loop not in here.hosts
        async with Lamp("three"):
            assert here.hosts[loop] is not host
            assert await Lamp.on.acall()
    asyncio.run(main())


def test_a_refused_node_leaves_the_first_one_alone() -> None:
    with Lamp("one"), pytest.raises(pyzmp.PyzmpError, match="already run"):
        Lamp("one").start()
    with Lamp("one"):
        with pytest.raises(pyzmp.PyzmpError, match="already run"):
            Lamp("one", "inproc://other").start()
        assert Lamp.at("one").on()


def test_an_error_of_the_host_is_an_answer_and_the_next_call_is_served(monkeypatch: pytest.MonkeyPatch,
                                                                      caplog: pytest.LogCaptureFixture) -> None:
    with Lamp("lamp"):
        assert Lamp.on()
        with monkeypatch.context() as broken:
            broken.setattr("pyzmp.serving.arguments", lambda request, buffers: 1 / 0)
            broken.setattr("pyzmp.several.Several._read", lambda several: 1 / 0)
            broken.setattr("pyzmp.protocol.rows.Rows.one", lambda rows, body: 1 / 0)
            calls = [Lamp.on.submit() for _ in range(3)]
            assert [type(call.exception(5)) for call in calls] == [ZeroDivisionError] * 3
        assert "on() of lamp could not be served" in caplog.text
        assert Lamp.on()
