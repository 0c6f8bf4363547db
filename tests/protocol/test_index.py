from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pyzmp.protocol.facts import Member, NodeFact, ParameterFact, PublisherFact, ServiceFact, SubscriberFact
from pyzmp.protocol.index import Facts
from pyzmp.protocol.topics import Pattern

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


def test_the_version_is_another_with_each_change_and_with_each_set() -> None:
    facts = Facts()
    versions = [Facts().version, facts.version]
    for deletes in ((), [("node", "kitchen")], [("node", "nobody")]):
        facts.change([] if deletes else [node("kitchen", A)], deletes)
        versions.append(facts.version)
    assert len(set(map(id, versions))) == 5


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


def publisher(node: str, topic: str, *marks: str) -> PublisherFact:
    return PublisherFact(node, topic, "a", marks=marks)


def test_publishers_are_selected_by_name_mark_and_node() -> None:
    facts = Facts()
    attic = publisher("attic", "attic/heat", "Oven.heat", "Grill.heat")
    hall = publisher("hall", "hall/heat", "Oven.heat")
    other, news = publisher("other", "other/heat"), publisher("hall", "news")
    facts.change([A, *(node(name, A) for name in ("attic", "hall", "other")), attic, hall, other, news])
    assert set(facts.selected()) == {attic, hall, other, news}
    assert facts.selected(name=Pattern("hall/heat")) == (hall,)
    assert facts.selected(name=Pattern("hall")) == ()
    assert set(facts.selected(name=Pattern("*/heat"))) == {attic, hall, other}
    assert facts.selected(mark="Oven.heat") == (attic, hall)
    assert facts.selected(mark="Grill.heat") == (attic,)
    assert facts.selected(mark="heat") == ()
    assert facts.selected(mark="Oven.heat", node="hall") == (hall,)
    assert facts.selected(node="hall") == (hall, news)
    assert facts.selected(node="cellar") == ()
    assert facts.selected(name=Pattern("hall/**"), mark="Oven.heat") == (hall,)
    assert facts.selected(name=Pattern("attic/heat"), node="hall") == ()


def test_the_publishers_in_a_group_are_selected_by_its_name() -> None:
    facts = Facts()
    attic, hall = publisher("attic", "attic/heat", "Oven.heat"), publisher("hall", "hall/heat", "Oven.heat")
    facts.change([A, node("house", A, kind="group"), node("attic", A, groups=("house",)), node("hall", A), attic, hall])
    assert facts.selected(mark="Oven.heat", node="house") == (attic,)
    facts.change([node("hall", A, groups=("house",))])
    assert facts.selected(mark="Oven.heat", node="house") == (attic, hall)
    facts.change([node("attic", A)])
    assert facts.selected(mark="Oven.heat", node="house") == (hall,)
    facts.change(deletes=[("node", "hall")])
    assert facts.selected(mark="Oven.heat", node="house") == ()


def test_what_is_selected_is_one_object_until_it_changes() -> None:
    facts = Facts()
    heat = publisher("hall", "hall/heat", "Oven.heat")
    facts.change([A, node("hall", A), heat])
    before = facts.selected(mark="Oven.heat")
    facts.change([ParameterFact("hall", "rate", "a", b"1"), SubscriberFact("hall", "news", "a")])
    assert facts.selected(mark="Oven.heat") is before == (heat,)
    facts.change([publisher("hall", "hall/heat", "Grill.heat")])
    assert facts.selected(mark="Oven.heat") == ()
    assert facts.selected(mark="Grill.heat") == (publisher("hall", "hall/heat", "Grill.heat"),)
    facts.change(deletes=[("publisher", "hall", "hall/heat")])
    assert facts.selected() == facts.selected(mark="Grill.heat") == facts.selected(name=Pattern("hall/*")) == ()


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(["x/h", "y/h", "h"]), st.sets(st.sampled_from("MN")),
                          st.sampled_from(["put", "put", "part", "node", "group"])), max_size=20))
def test_what_is_selected_is_what_looking_at_all_would_find(steps: list[tuple[str, str, set[str], str]]) -> None:
    facts = Facts()
    facts.change([A, node("g", A, kind="group")])
    asked: list[dict[str, Any]] = [
        {}, {"mark": "M"}, {"name": Pattern("**/h")}, {"name": Pattern("x/h")}, {"node": "x"}, {"node": "g"},
        {"node": "g", "mark": "N"}, {"name": Pattern("*"), "mark": "M"}]
    for name, topic, marks, what in steps:
        if what == "put":
            facts.change([node(name, A), publisher(name, topic, *sorted(marks))])
        elif what == "group":
            facts.change([node(name, A, groups=("g",))])
        else:
            facts.change(deletes=[("node", name) if what == "node" else ("publisher", name, topic)])
        known = [fact for fact in facts.all() if isinstance(fact, PublisherFact)]
        inside = {each.name for each in facts.members("g")}
        for wanted in asked:
            assert set(facts.selected(**wanted)) == {
                fact for fact in known
                if wanted.get("mark", "") in ("", *fact.marks)
                and ("name" not in wanted or wanted["name"].matches(fact.topic))
                and ("node" not in wanted or fact.node in ({wanted["node"]} if wanted["node"] != "g" else inside))}
    facts.change(gone=["a"], deletes=[("node", name) for name in "xyzg"])
    assert len(facts) == 0
    assert facts.selected() == facts.selected(mark="M") == ()
