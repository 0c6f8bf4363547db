"""A program without nodes as a publisher."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.program import KIND, Program, name_of
from pyzmp.protocol.facts import Member
from pyzmp.registry.domain import check_node_name

alerts = pyzmp.Topic(str, "house/alerts", keep=1)


def test_a_program_publishes_with_one_line_and_others_find_it(script: Any) -> None:
    listens = ("import pyzmp, sys\n"
               "for value in pyzmp.Topic(str, 'house/alerts').subscribe(timeout=15, history=1):\n"
               "    print(value); break\n")
    alerts.publish("fire")
    result = script(listens)
    assert (result.code, result.out) == (0, "fire\n"), result.err
    node, = pyzmp.graph().nodes
    assert (node.name, node.kind, node.publishes) == (name_of(runtime.current().member), KIND, ("house/alerts",))


@pytest.mark.parametrize(("program", "name"), [("slow.py", "slow.py[42]-0d673c87"), ("-c", "python[42]-0d673c87"),
                                               ("", "python[42]-0d673c87"), ("a b*/\n", "a_b_[42]-0d673c87")])
def test_it_is_called_by_its_program(program: str, name: str) -> None:
    member = Member("0d673c87ddaba05d", "host", 42, "7", program)
    assert name_of(member) == check_node_name(name)


def test_what_a_short_program_publishes_is_heard_by_those_who_were_there(
        script: Any, eventually: Callable[..., None]) -> None:
    shot = "import pyzmp; pyzmp.Topic(str, 'one/shot').publish('x')"
    heard: list[str] = []

    class Listens(pyzmp.Node):
        kind = "thread"

        @pyzmp.subscribe("one/shot")
        def hear(self, message: pyzmp.Message[str]) -> None:
            heard.append(message.node)
    with Listens("listens"), pyzmp.Topic(str, "one/shot").subscribe(timeout=15) as shots:
        result = script.python("-c", shot)
        assert (result.code, result.out, result.err) == (0, "", "")
        message = next(shots.messages())
        assert (message.value, message.number) == ("x", 0)
        eventually(lambda: heard == [message.node])
        assert message.node.startswith("python[")


def test_a_program_that_has_published_nothing_waits_for_nobody_when_it_ends() -> None:
    assert alerts.subscribers == 0
    assert not runtime.in_use()  # to look makes no publisher
    alerts.on_demand(lambda wanted: None)
    program = Program.of(runtime.current())
    assert program.publisher("house/alerts", alerts.typed(), 0, lambda timeout: 1.0).awaited() == 0


def test_it_sees_its_subscribers_and_is_told_of_them(eventually: Callable[..., None]) -> None:
    told: list[bool] = []
    threads: list[str] = []
    alerts.on_demand(lambda wanted: (told.append(wanted), threads.append(threading.current_thread().name)))
    assert alerts.subscribers == 0
    with alerts.subscribe(timeout=10) as subscription:
        alerts.wait_for_subscribers(timeout=10)
        alerts.publish("fire")
        assert next(subscription) == "fire"
        assert alerts.subscribers == 1
        assert repr(alerts) == "<Topic house/alerts: str, 1 subscriber>"
        account, = alerts.accounts()
        assert (account.topic, account.offered, account.ended) == ("house/alerts", 1, False)
    eventually(lambda: told == [True, False])
    assert set(threads) == {"pyzmp-demand"}
    with pytest.raises(TimeoutError, match="0 subscribers and not 2"):
        alerts.wait_for_subscribers(2, timeout=0.01)


def test_one_name_has_one_type_in_one_program() -> None:
    alerts.publish("fire")
    with pytest.raises(TypeError, match="as str already, and not as int"):
        pyzmp.Topic(int, "house/alerts").publish(3)
    pyzmp.Topic(str, "house/alerts").publish("again")


def test_it_tells_its_accounts_before_the_graph_has_heard_of_it() -> None:
    with pytest.raises(pyzmp.UnknownService):
        alerts.accounts()
    alerts.publish("fire")
    assert alerts.accounts() == asyncio.run(alerts.aaccounts()) == []


def test_of_one_name_as_much_is_kept_as_any_of_its_topics_asks_for(eventually: Callable[..., None]) -> None:
    numbers, more = pyzmp.Topic(int, "house/numbers"), pyzmp.Topic(int, "house/numbers", keep=2)
    for number in range(3):
        numbers.publish(number)
        more.publish(number)
    eventually(lambda: pyzmp.graph().topics)  # those who were there before get all
    with numbers.subscribe(history=9, timeout=10) as subscription:
        assert [next(subscription), next(subscription)] == [2, 2]


def test_it_is_the_same_for_coroutines_and_other_threads() -> None:
    async def main() -> list[str]:
        subscription = await alerts.asubscribe(timeout=10)
        await alerts.await_for_subscribers(timeout=10)
        await alerts.apublish("one")
        await asyncio.to_thread(alerts.publish, "two")
        async with subscription:
            return [await anext(subscription), await anext(subscription)]
    assert asyncio.run(main()) == ["one", "two"]


def test_it_ends_with_the_runtime_and_begins_anew_with_the_next() -> None:
    alerts.publish("fire")
    before = Program.of(runtime.current())
    runtime.reset()
    alerts.publish("again")
    assert Program.of(runtime.current()) is not before


def test_one_that_publishes_and_ends_at_once_complains_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            alerts.publish("fire")
            runtime.reset()
        gc.collect()
    assert not caplog.records


def test_what_was_published_last_leaves_before_the_program_ends(script: Any) -> None:
    publishes = ("import pyzmp\n"
                 "topic = pyzmp.Topic(int, 'house/numbers')\n"
                 "topic.wait_for_subscribers(timeout=15)\n"
                 "for number in range(3000): topic.publish(number)\n")
    with pyzmp.Topic(int, "house/numbers").subscribe(timeout=15) as numbers:
        assert script(publishes).code == 0
        assert [next(numbers) for _ in range(3000)] == list(range(3000))
