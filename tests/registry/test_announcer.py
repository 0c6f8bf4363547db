from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from pyzmp.exceptions import AnnouncementRefused, NodeExists, RegistryUnavailable
from pyzmp.protocol import facts
from pyzmp.protocol.facts import Change, Epoch, Member, NodeFact, ParameterFact, Position, Refusal, ServiceFact, Settled
from pyzmp.registry.announcer import Announcer

ME = Member("me", "host", 1, "1")
HERE = Position(Epoch(1, "n"), 5)


def node(name: str, **more: object) -> NodeFact:
    more.setdefault("cls", "m.Oven")
    more.setdefault("addresses", ())
    return NodeFact(name, "me", "", kind="process", host="host", pid=1, **more)  # type: ignore[arg-type]


class Bench:
    """An announcer, what it said, and a view that has reached everything unless told otherwise."""

    def __init__(self) -> None:
        self.said: list[facts.Message] = []
        self.reached = True
        self.announcer = Announcer(ME, asyncio.get_running_loop(), self.said.append, lambda position: self.reached)

    def proposals(self) -> list[facts.Propose]:
        return [message for message in self.said if isinstance(message, facts.Propose)]

    def introduce(self) -> None:
        self.announcer.introduce()
        last = self.proposals()[-1]
        self.announcer.settle(Settled(last.id, HERE))
        self.said.clear()


def on_a_loop(test: Callable[[Bench], Coroutine[None, None, None]]) -> Callable[[], None]:
    def run() -> None:
        async def inside() -> None:
            await test(Bench())

        asyncio.run(inside())

    run.__name__ = test.__name__
    return run


@on_a_loop
async def test_what_is_asked_for_in_one_turn_travels_together(bench: Bench) -> None:
    bench.introduce()
    asked = [bench.announcer.announce([node(name)]) for name in "abc"]
    await asyncio.sleep(0)
    (proposal,) = bench.proposals()
    assert proposal.changes == tuple(Change((node(name),)) for name in "abc")
    bench.announcer.settle(Settled(proposal.id, HERE))
    assert await asyncio.gather(*asked) == [HERE] * 3


@on_a_loop
async def test_an_answer_waits_until_the_view_contains_it(bench: Bench) -> None:
    bench.introduce()
    bench.reached = False
    asked = bench.announcer.announce([node("a")])
    await asyncio.sleep(0)
    bench.announcer.settle(Settled(bench.proposals()[0].id, HERE))
    assert not asked.done()
    bench.reached = True
    bench.announcer.arrive()
    assert asked.result() == HERE


@on_a_loop
async def test_a_refusal_fails_its_own_change_only(bench: Bench) -> None:
    bench.introduce()
    a, b = bench.announcer.announce([node("a")]), bench.announcer.announce([node("b")])
    await asyncio.sleep(0)
    taken = Refusal(0, "a", "pid 2 as Stove", "pid 1 as Oven")
    bench.announcer.settle(Settled(bench.proposals()[0].id, HERE, (taken,)))
    with pytest.raises(NodeExists, match="pid 2 as Stove"):
        await a
    assert await b == HERE
    bench.said.clear()
    bench.announcer.introduce()
    assert [change.puts for change in bench.proposals()[0].changes] == [(node("b"),), ()]


@on_a_loop
async def test_two_nodes_of_one_process_have_two_names(bench: Bench) -> None:
    first = bench.announcer.announce([node("a")])
    with pytest.raises(NodeExists, match="pid 1 as Oven; pid 1 as Oven"):
        bench.announcer.announce([node("a")])
    bench.announcer.withdraw([("node", "a")])
    bench.announcer.announce([node("a")])
    assert not first.done()


@on_a_loop
async def test_a_new_registry_hears_everything_and_settles_what_was_on_its_way(bench: Bench) -> None:
    bench.introduce()
    service = ServiceFact("a", "x", "me")
    asked = bench.announcer.announce([node("a"), service])
    gone = bench.announcer.withdraw([("node", "old")])
    await asyncio.sleep(0)
    bench.said.clear()
    bench.announcer.interrupt()
    waiting = bench.announcer.announce([node("b")])
    await asyncio.sleep(0)
    assert bench.said == []
    bench.announcer.introduce()
    join, propose = bench.said
    assert join == facts.Join(ME, number=2)
    assert isinstance(propose, facts.Propose)
    assert propose.complete
    assert propose.changes == (Change((node("a"), service)), Change((node("b"),)), Change())
    bench.announcer.settle(Settled(propose.id, HERE))
    assert await asyncio.gather(asked, gone, waiting) == [HERE] * 3


@on_a_loop
async def test_own_facts_are_announced_again_with_their_incarnation(bench: Bench) -> None:
    bench.announcer.announce([node("a")])
    bench.announcer.learn([node("a", incarnation=(1, 4)), NodeFact("b", "you", "", (), "", "", 2, "")])
    bench.announcer.introduce()
    assert bench.proposals()[0].changes[0].puts == (node("a", incarnation=(1, 4)),)
    bench.announcer.announce([node("a", incarnation=(1, 4), labels=(("room", "small"),))])


@on_a_loop
async def test_what_nobody_waits_for_any_more_is_withdrawn(bench: Bench) -> None:
    bench.introduce()
    asked = bench.announcer.announce([node("a")])
    await asyncio.sleep(0)
    bench.announcer.give_up(asked)
    await asyncio.sleep(0)
    assert bench.proposals()[-1].changes == (Change(deletes=(("node", "a"),)),)
    assert asked.cancelled()


@on_a_loop
async def test_giving_up_one_service_leaves_the_node_and_its_others(bench: Bench) -> None:
    bench.announcer.announce([node("a"), ServiceFact("a", "x", "me")])
    asked = bench.announcer.announce([ServiceFact("a", "y", "me")])
    bench.announcer.introduce()  # which tells all of the node at once
    bench.announcer.give_up(asked)
    await asyncio.sleep(0)
    assert bench.proposals()[-1].changes == (Change(deletes=(("service", "a", "y"),)),)


@on_a_loop
async def test_a_node_too_large_for_a_message_goes_in_several_and_counts_with_the_last(bench: Bench) -> None:
    bench.introduce()
    asked = bench.announcer.announce([node("a"), *(ServiceFact("a", f"service {n}", "me") for n in range(30_000))])
    await asyncio.sleep(0)
    *first, last = bench.proposals()
    assert all(len(facts.encode(message)) < 2 * facts.PIECE for message in bench.said)
    assert first[0].changes[0].puts[0] == node("a")
    assert sum(len(change.puts) for message in (*first, last) for change in message.changes) == 30_001
    for message in first:
        bench.announcer.settle(Settled(message.id, HERE))
    assert not asked.done()
    bench.announcer.settle(Settled(last.id, HERE))
    assert asked.result() == HERE


@on_a_loop
async def test_a_node_in_several_messages_is_refused_with_the_first(bench: Bench) -> None:
    bench.introduce()
    asked = bench.announcer.announce([node("a"), *(ServiceFact("a", f"service {n}", "me") for n in range(3000))])
    await asyncio.sleep(0)
    taken = Refusal(0, "a", "pid 2 as Stove", "pid 1 as Oven")
    for message in bench.proposals():
        bench.announcer.settle(Settled(message.id, HERE, (taken,)))
        taken = Refusal(0, "service 'a/...' is not for pid 1 on host to announce")
    with pytest.raises(NodeExists, match="pid 2 as Stove"):
        await asked


@on_a_loop
async def test_what_no_registry_could_read_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(AnnouncementRefused, match=r"service 'a/xxx.*length <= 255"):
        bench.announcer.announce([node("a"), ServiceFact("a", "x" * 300, "me")])
    bench.introduce()
    bench.announcer.announce([node("a", cls="C" * 300), ServiceFact("a", "x", "me", text="(" * 20_000)])
    await asyncio.sleep(0)
    (proposal,) = bench.proposals()
    assert facts.decode(facts.encode(proposal)) == proposal
    assert isinstance(proposal.changes[0].puts[1], ServiceFact)
    assert proposal.changes[0].puts[1].text.endswith("((…")


@on_a_loop
async def test_many_go_in_messages_of_bounded_size(bench: Bench) -> None:
    bench.introduce()
    for number in range(2000):
        bench.announcer.announce([node(f"node {number}")])
    await asyncio.sleep(0)
    assert len(bench.proposals()) > 1
    assert all(len(facts.encode(message)) < 2 * facts.PIECE for message in bench.said)
    assert sum(len(message.changes) for message in bench.proposals()) == 2000


@on_a_loop
async def test_the_end_fails_who_waits_and_says_so(bench: Bench) -> None:
    bench.introduce()
    asked = bench.announcer.announce([node("a")])
    assert bench.announcer.close(RegistryUnavailable("closed"))
    assert not bench.announcer.close(RegistryUnavailable("closed again"))
    assert bench.said == [facts.Leave()]
    with pytest.raises(RegistryUnavailable, match="closed"):
        await asked


@on_a_loop
async def test_another_value_of_what_was_announced_outlives_that_nobody_waits_for_it(bench: Bench) -> None:
    bench.announcer.announce([node("a"), ParameterFact("a", "x", "me", b"old")])
    bench.introduce()
    bench.announcer.interrupt()
    wider = node("a", incarnation=(1, 4), addresses=("tcp://here",))
    bench.announcer.learn([node("a", incarnation=(1, 4))])
    for fact in (ParameterFact("a", "x", "me", b"new"), wider):
        bench.announcer.give_up(bench.announcer.announce([fact]))
    bench.announcer.introduce()
    assert bench.proposals()[-1].changes[0].puts == (wider, ParameterFact("a", "x", "me", b"new"))
