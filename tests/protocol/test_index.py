from __future__ import annotations

import threading

from msgspec.structs import replace

from pyzmp.protocol.facts import Member, NodeFact, ParameterFact, PublisherFact, ServiceFact, SubscriberFact
from pyzmp.protocol.index import Facts

A = Member("a", "host", 1, "1")


def node(name: str, owner: Member, **changed: object) -> NodeFact:
    fact = NodeFact(name, owner.id, "loop", (f"ipc:///{name}",), "process", owner.host, owner.pid, "m.Thermometer")
    return replace(fact, **changed)


def service(of: str, name: str, owner: Member) -> ServiceFact:
    return ServiceFact(of, name, owner.id, ("m.Thermometer",), "schema", "() -> float")


def test_providers_are_one_object_until_they_change() -> None:
    facts = Facts()
    facts.change([node("kitchen", A), service("kitchen", "x", A)])
    before = facts.providers("x")
    facts.change([node("hall", A), service("hall", "y", A)])
    assert facts.providers("x") is before
    facts.change([node("kitchen", A, kind="thread")])
    assert facts.providers("x")[0][0].kind == "thread"
    assert set(facts.services()) == {"x", "y"}
    assert facts.services_of("hall") == [service("hall", "y", A)]
    facts.change(deletes=[("service", "kitchen", "x")])
    assert facts.providers("x") == ()
    assert set(facts.services()) == {"y"}


def test_a_service_that_comes_before_its_node_has_no_provider_until_then() -> None:
    facts = Facts()
    facts.change([service("kitchen", "x", A)])
    assert facts.providers("x") == ()
    facts.change([node("kitchen", A)])
    assert len(facts.providers("x")) == 1


def test_lookups_from_another_thread_see_whole_states() -> None:
    facts, wrong, done = Facts(), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            found = facts.providers("x")
            if any(provider.name != offer.node for provider, offer in found) or len(facts.nodes()) > 300:
                wrong.append(found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(3):
            for number in range(300):
                facts.change([node(f"n{number}", A), service(f"n{number}", "x", A)])
            for number in range(300):
                facts.change(deletes=[("node", f"n{number}")])
    finally:
        done.set()
        thread.join()
    assert wrong == []
    assert facts.providers("x") == ()


def test_a_group_has_the_services_of_those_in_it() -> None:
    facts = Facts()
    facts.change([node("house", A, kind="group"), node("floor", A, kind="group", groups=("house",)),
                  node("kitchen", A, groups=("floor", "house")), node("hall", A, groups=("house",)), node("shed", A),
                  *(service(name, "x", A) for name in ("kitchen", "hall", "shed"))])
    assert {one.name for one in facts.members("house")} == {"floor", "kitchen", "hall"}
    assert [one.name for one, _ in facts.provider("house", "x")] == ["kitchen", "hall"]
    assert [one.name for one, _ in facts.provider("floor", "x")] == ["kitchen"]
    assert facts.provider("house", "x") is facts.provider("house", "x")
    assert [one.name for one, _ in facts.provider("shed", "x")] == ["shed"]
    facts.change([node("kitchen", A)])
    assert facts.provider("floor", "x") == ()
    facts.change(deletes=[("node", "hall")])
    assert facts.provider("house", "x") == ()
    assert [one.name for one in facts.members("house")] == ["floor"]
    assert set(facts.services()) == {"x"}


def test_a_node_that_is_in_a_group_twice_leaves_it_once() -> None:
    facts = Facts()
    facts.change([node("kitchen", A, groups=("house", "house")), service("kitchen", "x", A)])
    facts.change(deletes=[("node", "kitchen")])
    assert len(facts) == 0
    assert facts.members("house") == []
    assert facts.services() == {}


def test_what_belongs_to_a_node_is_found_and_goes_with_it() -> None:
    facts = Facts()
    parts = [service("kitchen", "x", A), ParameterFact("kitchen", "rate", "a", b"1"),
             PublisherFact("kitchen", "heat", "a"), SubscriberFact("kitchen", "heat", "a")]
    facts.change([A, node("kitchen", A), *parts, node("hall", A), SubscriberFact("hall", "heat", "a")])
    assert facts.parts("kitchen") == parts
    assert facts.parameter("kitchen", "rate") == parts[1]
    assert facts.parameter("kitchen", "other") is None
    assert facts.publishers("heat") == [parts[2]]
    assert [fact.node for fact in facts.subscribers("heat")] == ["kitchen", "hall"]
    facts.change([ParameterFact("kitchen", "rate", "a", b"2")], deletes=[("subscriber", "hall", "heat")])
    assert facts.parameter("kitchen", "rate") == ParameterFact("kitchen", "rate", "a", b"2")
    assert [fact.node for fact in facts.subscribers("heat")] == ["kitchen"]
    facts.change(deletes=[("node", "kitchen")])
    assert facts.all() == [A, node("hall", A)]
    assert (facts.publishers("heat"), facts.subscribers("heat"), facts.parts("kitchen")) == ([], [], [])
    facts.change(gone=["a"])
    assert len(facts) == 0
