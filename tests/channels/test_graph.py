"""The graph as users see it: snapshots, waiting and watching.  That its views are true is shown with the registry."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels.graph import Edge, Graph, GraphParameter, _look, packed, unpacked
from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import codec
from pyzmp.protocol.facts import Commit, Epoch, Fact, Member, NodeFact, Position, PublisherFact, SubscriberFact
from pyzmp.protocol.graph import View


class Lamp(pyzmp.Node):
    kind = "entity"
    brightness = pyzmp.Parameter(3)

    @pyzmp.service
    def on(self, seconds: float = 1.0) -> bool:
        return True


class Dog(pyzmp.Node):
    kind = "thread"

    @pyzmp.service
    def barks(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def test_a_snapshot_has_what_there_is() -> None:
    with Lamp("lamp"), Dog("dog"):
        found = pyzmp.graph()
        here = runtime.current()
    dog, lamp = found.nodes
    assert (dog.name, dog.kind, dog.cls, dog.pid, dog.host) == (
        "dog", "thread", "Dog", here.member.pid, here.member.host)
    assert lamp.addresses
    assert lamp.groups == lamp.labels == lamp.publishes == lamp.subscribes == ()
    assert 0 <= lamp.confirmed < 60
    assert [str(service) for service in lamp.services] == ["on(seconds: float = 1.0) -> bool"]
    assert [(each.name, each.value, each.type, each.settable) for each in lamp.parameters] == [
        ("brightness", 3, "int", True)]
    assert [(service.node, service.name) for service in found.services] == [("dog", "barks"), ("lamp", "on")]
    assert found.parameters == lamp.parameters
    assert found.topics == found.edges == ()
    assert (found.stale_since, found.age) == (None, 0.0)
    assert found.epoch is not None
    assert found.version > 0


def test_it_is_a_value() -> None:
    with Lamp("lamp"):
        found = pyzmp.graph()
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(found) == hash(pickle.loads(pickle.dumps(found)))
    with pytest.raises(AttributeError):
        found.version = 3  # type: ignore[misc]
    assert not hasattr(found, "__dict__")
    assert "lamp" in found  # though it is gone by now
    assert "lamp" not in pyzmp.graph()


def test_its_names_are_looked_up() -> None:
    with Lamp("lamp"), Lamp("lantern"):
        found = pyzmp.graph()
    assert found.node("lamp").service("on").signature == "(seconds: float = 1.0) -> bool"
    assert found.node("lamp").parameter("brightness").value == 3
    assert [node.name for node in found.providers("on")] == ["lamp", "lantern"]
    assert found.providers("off") == found.members("house") == ()
    assert 3 not in found
    for look, sentence in (
            (lambda: found.node("lampe"), r"no node 'lampe' among the 2 that are known; did you mean 'lamp'\?"),
            (lambda: found.node("lamp").service("one"), "there is no service 'one' of node 'lamp'; did you mean 'on'"),
            (lambda: found.node("lamp").parameter("on"), "there is no parameter 'on' of node 'lamp'"),
            (lambda: found.topic("news"), "there is no topic 'news' among the 0 that are known")):
        with pytest.raises(LookupError, match=sentence):
            look()


def test_what_is_no_name_is_refused() -> None:
    found = graph_of(View())
    for look, sentence in (
            (lambda: found.node(3), "the name of a node is a str, got 3"),  # type: ignore[arg-type]
            (lambda: found.topic(None), "the name of a topic is a str, got None"),  # type: ignore[arg-type]
            (lambda: found.providers(Lamp.on), "name of a service, got <Service on")):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=sentence):
            look()


def test_it_is_shown_for_people() -> None:
    assert repr(pyzmp.graph) == "<pyzmp.graph>"
    nothing = graph_of(View(), stale_since=1.0)
    assert (repr(nothing), str(nothing)) == ("<Graph of 0 nodes, no registry found>", "no registry found")
    assert (nothing.epoch, nothing.version) == (None, 0)
    assert nothing.stale_since == 1.0
    with Lamp("lamp"):
        found = pyzmp.graph()
    where = f"version {found.version} of epoch 1, up to date"
    assert repr(found) == f"<Graph of 1 node, 1 service, 1 parameter, {where}>"
    lamp = found.node("lamp")
    assert str(found) == (f"{where}\nlamp: Lamp, entity of pid {lamp.pid} on {lamp.host}\n"
                          "  on(seconds: float = 1.0) -> bool\n  brightness: int = 3")


def test_a_coroutine_takes_one_too() -> None:
    with Lamp("lamp"):
        assert "lamp" in asyncio.run(pyzmp.graph.acall())


def test_a_view_that_is_not_kept_up_says_since_when() -> None:
    with Lamp("lamp"):
        assert pyzmp.graph().stale_since is None
        found = graph_of(runtime.current().replica.view, stale_since=1.0)
    assert found.stale_since == 1.0
    assert found.age > 0
    assert "not heard of for" in repr(found)
    assert "lamp" in found


# -- topics, as they are announced ---------------------------------------------------------------------------------


def test_edges_are_from_who_publishes_to_who_listens() -> None:
    member = Member("m", "host", 1, "now")
    view = View()
    nodes = [NodeFact(name, "m", "loop", (), "thread", "host", 1, "C") for name in ("a", "b", "c")]
    parts = [PublisherFact("a", "news", "m", "s", "str"), SubscriberFact("b", "news", "m", "s", "Any"),
             SubscriberFact("c", "news", "m"), SubscriberFact("c", "rain", "m", "s", "float")]
    view.facts.change([member, *nodes, *parts])
    found = graph_of(view)
    assert found.edges == (Edge("news", "a", "b"), Edge("news", "a", "c"))
    assert [(topic.name, topic.type) for topic in found.topics] == [("news", "str"), ("rain", "float")]
    assert found.topic("news").subscribers == ("b", "c")
    assert (found.node("a").publishes, found.node("c").subscribes) == (("news",), ("news", "rain"))
    assert "publishes news" in str(found.node("a"))
    assert "listens to rain" in str(found.node("c"))


def announced(*facts: Fact, groups: dict[str, tuple[str, ...]] | None = None) -> Graph:
    """A graph of nodes with these parts, and the *groups* that some are in."""
    view = View()
    inside = groups or {}
    names = {fact.node for fact in facts if isinstance(fact, (PublisherFact, SubscriberFact))}
    nodes = [NodeFact(name, "m", "loop", (), "thread", "host", 1, "C", groups=inside.get(name, ())) for name in names]
    over = [NodeFact(name, "m", "loop", (), "group", "host", 1, "Group") for each in inside.values() for name in each]
    view.facts.change([Member("m", "host", 1, "now"), *nodes, *over, *facts])
    return graph_of(view)


def test_a_pattern_listens_to_every_topic_that_it_selects() -> None:
    found = announced(PublisherFact("a", "a/heat", "m", text="float"), PublisherFact("b", "b/heat", "m", text="float"),
                      PublisherFact("b", "b/heating", "m", text="bool"), SubscriberFact("c", "*/heat", "m"),
                      SubscriberFact("d", "a/**", "m"), SubscriberFact("e", "x/**", "m"))
    assert found.edges == (Edge("a/heat", "a", "c"), Edge("a/heat", "a", "d"), Edge("b/heat", "b", "c"))
    assert [(topic.name, topic.type) for topic in found.topics] == [
        ("a/heat", "float"), ("b/heat", "float"), ("b/heating", "bool")]  # a pattern is the name of none
    assert found.node("c").subscribes == ("*/heat",)


def test_who_listens_to_what_a_class_declares_listens_to_nobody_else() -> None:
    mark = ("Oven.heat",)
    found = announced(PublisherFact("a", "a/heat", "m", marks=("Grill.heat", *mark)), PublisherFact("b", "b/heat", "m"),
                      PublisherFact("b", "a/heat", "m"), SubscriberFact("c", "**/heat", "m", marks=mark),
                      SubscriberFact("d", "b/heat", "m", marks=mark), SubscriberFact("e", "a/heat", "m"))
    assert found.edges == (Edge("a/heat", "a", "c"), Edge("a/heat", "a", "e"), Edge("a/heat", "b", "e"))
    assert found.topic("a/heat").apart == {("b", "c")}
    assert found.topic("b/heat").subscribers == ("d",)


def test_the_name_of_a_group_stands_for_its_members_where_a_class_is_meant() -> None:
    mark, inside = ("Oven.heat",), {"a": ("floor", "house"), "b": ("house",)}
    found = announced(PublisherFact("a", "a/heat", "m", marks=mark), PublisherFact("b", "b/heat", "m", marks=mark),
                      PublisherFact("c", "c/heat", "m", marks=mark), SubscriberFact("d", "house/heat", "m", marks=mark),
                      SubscriberFact("e", "floor/heat", "m", marks=mark), SubscriberFact("f", "house/heat", "m"),
                      groups=inside)
    assert found.edges == (Edge("a/heat", "a", "d"), Edge("a/heat", "a", "e"), Edge("b/heat", "b", "d"))
    assert found.topic("house/heat").subscribers == ("f",)


def test_a_pattern_that_is_none_listens_to_nothing() -> None:
    found = announced(PublisherFact("a", "a/heat", "m"), SubscriberFact("b", "a**/*", "m"))
    assert found.edges == ()


def graph_of(view: View, stale_since: float | None = None) -> Graph:
    """What is to be seen of *view*."""
    here = runtime.current()
    here.facts()
    before, here.replica.view = here.replica.view, view
    here.replica.stale_since = stale_since
    try:
        found = _look(here, None)
        assert found is not None
        return found[1]()
    finally:
        here.replica.view, here.replica.stale_since = before, None


def test_what_a_snapshot_holds_belongs_together() -> None:
    """Each change puts one node and takes another: whoever looks in between sees both, or neither."""
    view = View()
    epoch, over = Epoch(1, ""), threading.Event()

    def change() -> None:
        name = 0
        view.facts.change([_node(0)])
        view.position = Position(epoch, 0)
        while not over.is_set():
            name += 1
            view.apply(Commit(Position(epoch, name), name - 1, (_node(name),), (("node", str(name - 1)),)))
    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen = [view.whole() for _ in range(2000)]
    finally:
        over.set()
        thread.join()
    assert len(seen) == 2000
    for position, facts in seen:
        assert position is None or [fact.key for fact in facts] == [("node", str(position.version))]


def _node(name: int) -> NodeFact:
    return NodeFact(str(name), "m", "loop", (), "thread", "host", 1, "C")


# -- waiting -------------------------------------------------------------------------------------------------------


def _wait(what: Any, **options: Any) -> Graph:
    return pyzmp.graph.wait_for(what, **options)


def _await(what: Any, **options: Any) -> Graph:
    async def main() -> Graph:
        return await pyzmp.graph.await_for(what, **options)
    return asyncio.run(main())


both = pytest.mark.parametrize("wait", [_wait, _await])


@both
@pytest.mark.parametrize("what", ["lamp", Lamp.on, Lamp.at("lamp").on, lambda graph: "lamp" in graph],
                         ids=["node", "service", "service of a node", "condition"])
def test_what_is_waited_for_is_in_what_comes_back(wait: Callable[..., Graph], what: Any) -> None:
    lamp = Lamp("lamp")
    thread = threading.Thread(target=lamp.start)
    thread.start()
    found = wait(what, timeout=10)
    thread.join()
    assert found.node("lamp").cls == "Lamp"
    assert "lamp" in wait(what, timeout=10)
    lamp.shutdown()


@both
def test_so_many_providers_are_waited_for(wait: Callable[..., Graph]) -> None:
    with Lamp("lamp"):
        with pytest.raises(TimeoutError, match="1 of the 2 providers that were asked for provide 'on' in domain"):
            wait(Lamp.on, providers=2, timeout=0.02)
        with Lamp("lantern"):
            assert len(wait(Lamp.on, providers=2, timeout=10).providers("on")) == 2


@both
def test_what_does_not_come_in_time_is_named(wait: Callable[..., Graph]) -> None:
    with pytest.raises(TimeoutError, match=r"there is no node 'lamp' in domain '.*' after 0.02 s \(0 nodes known\)"):
        wait("lamp", timeout=0.02)
    with Lamp("lamp"):
        with pytest.raises(TimeoutError, match=r"after 0.02 s \(1 node known\); did you mean 'lamp'\?"):
            wait("lampe", timeout=0.02)
        with pytest.raises(TimeoutError, match=r"what was waited for, <function .*, does not hold in domain"):
            wait(lambda graph: graph.edges, timeout=0.02)


@both
def test_what_cannot_be_waited_for_is_refused(wait: Callable[..., Graph]) -> None:
    with pytest.raises(TypeError, match="expected the name of a node, a service or a condition, got 3"):
        wait(3, timeout=1)
    with pytest.raises(ValueError, match="timeout"):
        wait("lamp", timeout=0)
    with pytest.raises(ValueError, match="providers"):
        wait(Lamp.on, providers=0, timeout=1)
    with pytest.raises(ZeroDivisionError):
        wait(lambda graph: 1 / 0, timeout=1)


# -- watching ------------------------------------------------------------------------------------------------------


def test_watching_shows_each_change() -> None:
    with pyzmp.graph.watch(timeout=10) as graphs:
        assert not next(graphs).nodes
        with Lamp("lamp"):
            assert next(found for found in graphs if "lamp" in found).node("lamp").services
        assert "lamp" not in next(found for found in graphs if "lamp" not in found)


def test_what_changes_nothing_is_no_change() -> None:
    with Lamp("lamp"), pyzmp.graph.watch(timeout=0.05) as graphs:
        next(graphs)
        replica = runtime.current().replica
        replica._loop.call_soon_threadsafe(replica._changed)
        with pytest.raises(TimeoutError, match=r"the graph has not changed for 0.05 s"):
            next(graphs)


def test_a_callback_is_told_of_the_graph(eventually: Callable[..., None]) -> None:
    found: list[Graph] = []
    with pyzmp.graph.watch(found.append):
        with Lamp("lamp"):
            eventually(lambda: found and "lamp" in found[-1])
        eventually(lambda: "lamp" not in found[-1])


# -- values --------------------------------------------------------------------------------------------------------


def test_a_value_comes_back_out_of_the_graph() -> None:
    for value in (None, 3, "x" * 100, [1, {"a": b"x"}], bytes(40_000)):
        encoded = packed(*codec.encode(value))
        assert unpacked(encoded) == value
        assert GraphParameter("lamp", "x", "Any", True, encoded).value == value


def test_what_is_no_value_is_malformed_and_can_be_shown() -> None:
    for encoded in (b"", b"\xc1", b"\x01", packed(b"\xc1", []), packed(b"\xc0\xc0", [])):
        parameter = GraphParameter("lamp", "x", "Any", True, encoded)
        with pytest.raises(MalformedMessage):
            _ = parameter.value
        assert str(parameter).startswith("x: Any = <")


def test_a_long_value_is_cut_where_it_is_shown() -> None:
    shown = str(GraphParameter("lamp", "x", "str", True, packed(*codec.encode("y" * 1000))))
    assert len(shown) < 80
    assert shown.endswith("…")
