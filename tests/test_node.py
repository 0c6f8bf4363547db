"""How a node is declared, what its instances are before and while they run, and what can be held of it."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import copy
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

import pyzmp
from pyzmp.exceptions import InvalidAnnotation
from pyzmp.node import current_node

T = TypeVar("T")


class Kettle(pyzmp.Node):
    """A node of these tests."""

    water: float = 1.0

    @pyzmp.service
    def level(self, scale: float = 1.0) -> float:
        """How much water is in it."""
        return self.water * scale

    @pyzmp.service
    async def boil(self) -> str:
        return f"{self.level()} l boiled"

    def plain(self) -> str:
        return "no service"


@pytest.fixture(params=["process", "thread", "entity"])
def kettle(request: pytest.FixtureRequest) -> Iterator[Kettle]:
    with Kettle("kettle", kind=request.param) as node:
        yield node


# -- declarations -------------------------------------------------------------------------------------------------


def declared(**body: Callable[..., Any]) -> type:
    return type("Declared", (pyzmp.Node,), {name: pyzmp.service(function) for name, function in body.items()})


def test_a_plain_method_must_not_override_a_service() -> None:
    with pytest.raises(TypeError, match=r"Silent\.level overrides a service .* without being one"):
        class Silent(Kettle):
            def level(self, scale: float = 1.0) -> float:  # type: ignore[override]
                return 0.0


def test_a_service_overrides_a_service() -> None:
    class Cup(Kettle):
        @pyzmp.service
        def level(self, scale: float = 1.0) -> float:
            return 0.25 * scale

    with Cup("cup", kind="entity"), Kettle("kettle", kind="entity"):
        assert Cup.level() == 0.25
        assert Kettle.at("cup").level() == 0.25
        assert {Kettle.level() for _ in range(4)} == {0.25, 1.0}


@pytest.mark.parametrize("name", ["start", "shutdown", "name", "provides", "on_start", "task"])
def test_a_service_must_not_hide_what_a_node_has(name: str) -> None:
    def method(self: Any) -> None: ...
    with pytest.raises(TypeError, match=rf"would hide Node\.{name}; give the method another name"):
        declared(**{name: method})


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_service_is_no_static_or_class_method(kind: Any) -> None:
    with pytest.raises(TypeError, match=kind.__name__):
        pyzmp.service(kind(lambda x: x))


def test_an_annotation_that_cannot_be_checked_is_refused_where_it_is_declared() -> None:
    with pytest.raises(InvalidAnnotation, match=r"service .*Generic\.same: .*argument x: ~T cannot be checked.*; use "):
        class Generic(pyzmp.Node):
            @pyzmp.service
            def same(self, x: T) -> T: ...  # type: ignore[empty-body]
    with pytest.raises(InvalidAnnotation, match=r"Called\.back.*argument function.*Callable"):
        class Called(pyzmp.Node):
            @pyzmp.service
            def back(self, function: Callable[[], int]) -> None: ...
    with pytest.raises(InvalidAnnotation, match=r"Queued\.last.*deque.*use a dataclass"):
        class Queued(pyzmp.Node):
            @pyzmp.service
            def last(self) -> deque[int]: ...  # type: ignore[empty-body]


class Forward(pyzmp.Node):
    @pyzmp.service
    def later(self, value: Later) -> Later:
        return value


Later = int


def test_an_annotation_may_name_what_its_module_defines_later() -> None:
    with Forward("forward", kind="entity"):
        assert Forward.later(3) == 3
        with pytest.raises(pyzmp.InvalidCall, match="expected int, got str"):
            Forward.later("3")  # type: ignore[arg-type]


def test_an_async_worker_is_refused() -> None:
    with pytest.raises(TypeError, match=r"worker=True.*async"):
        @pyzmp.service(worker=True)
        async def work(self: Any) -> None: ...


def test_services_is_not_service() -> None:
    with pytest.raises(TypeError, match=r"did you mean @pyzmp.service\?"):
        @pyzmp.services
        def hello(self: Any) -> None: ...


def test_an_interface_is_an_abstract_class() -> None:
    class Sensor(pyzmp.Node, abc.ABC):
        @pyzmp.service
        @abc.abstractmethod
        def read(self) -> float: ...

    class Thermometer(Sensor):
        @pyzmp.service
        def read(self) -> float:
            return 21.5

    with pytest.raises(TypeError, match="abstract"):
        Sensor("sensor")  # type: ignore[abstract]
    with Thermometer("thermometer", kind="entity"):
        assert Sensor.read() == Thermometer.read() == Sensor.at("thermometer").read() == 21.5


class Counting:
    """A mixin that is no node."""

    count = 0

    @pyzmp.service
    def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count


class Meter(Counting, pyzmp.Node):
    pass


@pytest.mark.parametrize("kind", ["process", "thread", "entity"])
def test_services_come_from_a_mixin_too(kind: Any) -> None:
    with Meter("meter", kind=kind):
        assert [Counting.increment(2), Meter.increment(2), Meter.at("meter").increment()] == [2, 4, 5]


# -- instances ----------------------------------------------------------------------------------------------------


def test_before_the_start_services_are_plain_methods() -> None:
    kettle = Kettle("kettle")
    assert kettle.level(scale=2) == 2.0
    assert asyncio.run(kettle.boil()) == "1.0 l boiled"


def test_while_it_runs_its_services_are_asked_through_the_class(kettle: Kettle) -> None:
    method = kettle.level  # to look at it is no error
    with pytest.raises(RuntimeError) as caught:
        method()
    place = {"process": f"process {kettle.ident}", "thread": "a thread of its own", "entity": "its loop"}[kettle.kind]
    assert str(caught.value) == f"'kettle' runs in {place}; ask it with Kettle.at('kettle').level()"
    assert kettle.plain() == "no service"
    assert Kettle.boil() == "1.0 l boiled"  # inside, self.level() is a plain call
    kettle.shutdown()
    assert kettle.level() == 1.0


def test_attributes_set_before_the_start_are_seen_inside() -> None:
    for kind in ("process", "thread", "entity"):
        kettle = Kettle("kettle", kind=kind)  # type: ignore[arg-type]
        kettle.water = 0.5
        with kettle:
            assert Kettle.level() == 0.5


def test_the_kind_is_an_attribute_of_the_class_a_keyword_or_set_before_the_start() -> None:
    class Entity(Kettle):
        kind = "entity"

    node = Entity("node")
    assert (node.kind, Entity("node", kind="thread").kind, Kettle("node").kind) == ("entity", "thread", "process")
    node.kind = "thread"
    with node:
        assert "thread running" in repr(node)


def test_what_it_looks_like() -> None:
    kettle = Kettle("kettle", kind="thread")
    assert repr(kettle) == "<Kettle 'kettle' thread not started>"
    with kettle:
        assert repr(kettle) == f"<Kettle 'kettle' thread running pid {kettle.ident}>"
    assert repr(kettle) == "<Kettle 'kettle' thread stopped with exit code 0>"


def test_an_unnamed_node_has_a_name_of_its_own() -> None:
    with Kettle(kind="entity") as one, Kettle(kind="entity") as two:
        assert one.name != two.name
        assert {name for name, _ in Kettle.level.providers} == {one.name, two.name}
        with pytest.raises(RuntimeError, match="set its name before"):
            one.name = "kettle"


# -- provides and withholds ---------------------------------------------------------------------------------------


def double(n: int) -> int:
    return 2 * n


class Owner:
    """Holds a node instead of being one."""

    def __init__(self, kind: Any) -> None:
        self.factor = 3
        self.node = pyzmp.Node("held", kind=kind)
        self.node.provides(self.times)
        self.node.provides(double)

    def times(self, n: int) -> int:
        return self.factor * n


@pytest.mark.parametrize("kind", ["process", "thread", "entity"])
def test_a_class_that_holds_a_node(kind: Any) -> None:
    owner = Owner(kind)
    owner.factor = 4
    with owner.node:
        assert pyzmp.discover("times")(10) == 40  # type: ignore[misc]
        assert pyzmp.discover("double")(10) == 20  # type: ignore[misc]
        with pytest.raises(pyzmp.InvalidCall, match="argument n"):
            pyzmp.discover("held/double")("10")  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["process", "thread", "entity"])
def test_provides_and_withholds_before_the_start_and_while_it_runs(kind: Any) -> None:
    node = pyzmp.Node("node", kind=kind)
    node.provides(double)
    node.provides(double, "twice")
    node.provides(max, "largest")
    node.withholds("twice")
    with node:
        assert "twice" not in pyzmp.services
        assert pyzmp.discover("largest")(3, 4) == 4  # type: ignore[misc]
        node.provides(double, "again")
        assert pyzmp.discover("again")(4) == 8  # type: ignore[misc]
        node.withholds(double)
        assert set(pyzmp.services) == {"largest"}
        with pytest.raises(pyzmp.UnknownService):
            pyzmp.Service("double", node="node")(1)
    node.start()
    assert set(pyzmp.services) == {"largest"}
    node.shutdown()


def test_what_cannot_be_provided_is_refused() -> None:
    node = pyzmp.Node("node")
    for wrong in (3, None, "double"):
        with pytest.raises(TypeError, match=r"provides\(\) takes a callable"):
            node.provides(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="service_name"):
        node.provides(contextlib.nullcontext())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'node' does not provide 'double'"):
        node.withholds("double")


# -- handles ------------------------------------------------------------------------------------------------------


def test_handles_are_values_that_can_be_kept_copied_and_sent(kettle: Kettle) -> None:
    for service in (Kettle.level, Kettle.at("kettle").level, pyzmp.discover("level"), pyzmp.Service("level"),
                    Kettle.level.with_options(timeout=3)):
        for other in (pickle.loads(pickle.dumps(service)), copy.copy(service), copy.deepcopy(service)):
            assert other(scale=2.0) == 2.0
    proxy = pickle.loads(pickle.dumps(Kettle.at("kettle")))
    assert proxy.level() == 1.0
    assert "_targets" not in repr(pickle.dumps(Kettle.level))


def test_a_handle_kept_on_a_node_goes_with_it(kettle: Kettle) -> None:
    class Cook(pyzmp.Node):
        def __init__(self, name: str, asks: Any) -> None:
            super().__init__(name)
            self.asks = asks

        @pyzmp.service
        def measure(self) -> float:
            return self.asks() * 2  # type: ignore[no-any-return]

    if kettle.kind == "process":
        with Cook("cook", Kettle.at("kettle").level):
            assert Cook.measure() == 2.0


def test_looking_at_a_handle_does_nothing() -> None:
    from pyzmp import runtime
    assert repr(Kettle.level) == "<Service level(scale: float = 1.0) -> float>"
    assert repr(Kettle.at("kettle").level) == "<Service level(scale: float = 1.0) -> float: kettle>"
    assert repr(Kettle.at("kettle")) == "<Kettle at 'kettle'>"
    assert repr(pyzmp.Service("level")) == "<Service level(...)>"
    assert repr(pyzmp.services) == "<pyzmp.services>"
    assert not runtime.in_use()


def test_a_handle_shows_the_nodes_that_it_knows(kettle: Kettle) -> None:
    service = pyzmp.discover("level")
    assert repr(service) == "<Service level(...): kettle>"


def test_a_proxy_has_the_channels_of_its_class_only() -> None:
    with pytest.raises(AttributeError, match=r"Kettle declares no channel 'plain'; it has level, boil"):
        Kettle.at("kettle").plain  # noqa: B018
    with pytest.raises(TypeError, match="name of a node"):
        Kettle.at(3)  # type: ignore[arg-type]


def test_current_node_and_current_call_are_for_code_that_a_node_runs() -> None:
    for function in (current_node, pyzmp.current_call):
        with pytest.raises(RuntimeError, match=r"is for code that a"):
            function()


# -- where it runs ------------------------------------------------------------------------------------------------


def test_run_lives_in_the_calling_thread(eventually: Callable[..., None]) -> None:
    node = Kettle("kettle")
    thread = threading.Thread(target=node.run)
    thread.start()
    assert pyzmp.discover(Kettle.level, timeout=5)() == 1.0
    assert node.is_alive()
    assert node.shutdown() == 0
    thread.join()
    assert pyzmp.discover("level") is None


def test_an_entity_lives_on_the_users_asyncio_loop() -> None:
    class Where(pyzmp.Node):
        kind = "entity"

        @pyzmp.service
        async def where(self) -> bool:
            return asyncio.get_running_loop() is loop

    async def main() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        node = Where("where")
        assert await node.astart()
        assert await Where.where.acall()
        assert await asyncio.to_thread(Where.where)
        assert await node.ashutdown() == 0
        await node.ajoin()
        async with node:
            assert await Where.at("where").where.acall()
        assert pyzmp.discover("where") is None
    loop: Any = None
    asyncio.run(main())


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_async_with_starts_the_other_kinds_without_blocking_the_loop(kind: Any) -> None:
    async def main() -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)
        turning = asyncio.create_task(turn())
        async with Kettle("kettle", kind=kind) as node:
            assert await Kettle.boil.acall() == "1.0 l boiled"
        assert node.exitcode == 0
        assert turns > 3
        turning.cancel()
    asyncio.run(main())


def test_an_entity_lives_on_a_tornado_loop() -> None:
    ioloop = pytest.importorskip("tornado.ioloop")

    async def main() -> float:
        async with Kettle("kettle", kind="entity"):
            return await Kettle.level.acall(2.0)
    loop = ioloop.IOLoop(make_current=False)
    assert loop.run_sync(main) == 2.0
    loop.close(all_fds=True)


def test_many_entities_share_one_loop() -> None:
    pyzmp.configure(registry="memory")
    with contextlib.ExitStack() as stack:
        for n in range(100):
            stack.enter_context(Kettle(f"kettle-{n}", kind="entity"))
        assert len(Kettle.level.providers) == 100
        assert list(Kettle.level.map([1.0] * 200)) == [1.0] * 200
        assert Kettle.at("kettle-42").level() == 1.0
        assert len([thread for thread in threading.enumerate() if thread.name.startswith("pyzmp")]) == 2
    assert pyzmp.discover("level") is None
