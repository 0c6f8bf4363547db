"""What calling a service is like, wherever its node lives and however it is reached."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import pyzmp
from tests.campaigns.history import SCALE


@dataclass
class Point:
    x: float
    y: float = 0.0


class Server(pyzmp.Node):
    def on_start(self) -> None:
        self.calls = 0
        self.gate = asyncio.Event()
        self.noted: list[int] = []

    @pyzmp.service
    def note(self, number: int) -> None:
        self.noted.append(number)

    @pyzmp.service
    async def anote(self, number: int) -> None:
        self.noted.append(number)
        await asyncio.sleep(0)

    @pyzmp.service
    def notes(self) -> list[int]:
        return self.noted

    @pyzmp.service
    def add(self, a: int, b: int = 10, *, c: int = 100) -> int:
        self.calls += 1
        return a + b + c

    @pyzmp.service
    def gather(self, *numbers: int, **named: int) -> dict[str, Any]:
        return {"numbers": list(numbers), "named": named}

    @pyzmp.service
    async def double(self, value: float) -> float:
        await asyncio.sleep(0)
        return 2 * value

    @pyzmp.service(worker=True)
    def thread(self) -> str:
        return threading.current_thread().name

    @pyzmp.service(worker=True)
    def hold(self, seconds: float) -> None:
        time.sleep(seconds)

    @pyzmp.service
    def mirror(self, point: Point) -> Point:
        return Point(point.y, point.x)

    @pyzmp.service
    def echo(self, value: Any) -> Any:
        return value

    @pyzmp.service
    async def wait(self) -> str:
        await self.gate.wait()
        return "opened"

    @pyzmp.service
    def open(self) -> None:
        self.gate.set()

    @pyzmp.service
    def named(self) -> str:
        return self.name

    @pyzmp.service
    def twice(self, n: int) -> int:
        return self.add(n, 0, c=0) * 2  # inside of the node: a plain call

    @pyzmp.service
    def about(self) -> list[Any]:
        call = pyzmp.current_call()
        return [pyzmp.current_node().name, call.node, call.service, call.remaining, bool(call.caller)]

    @pyzmp.service(name="renamed", timeout=0.1)
    async def never(self) -> None:
        await asyncio.sleep(0.3)


class Lamp(pyzmp.Node):
    @pyzmp.service
    def named(self) -> str:
        return "a lamp"


def test_arguments_by_position_by_name_with_defaults_and_keyword_only(place: Any) -> None:
    place.start(Server("server"))
    assert Server.add(1) == 111
    assert Server.add(1, 2) == 103
    assert Server.add(b=1, a=2, c=3) == 6
    assert Server.gather(1, 2, z=3) == {"numbers": [1, 2], "named": {"z": 3}}


def test_sync_async_and_worker_services(place: Any) -> None:
    place.start(Server("server"))
    assert Server.double(1.5) == 3.0
    assert "server-worker" in Server.thread()
    assert Server.twice(4) == 8


def test_call_submit_acall_and_by_name_are_the_same_call(place: Any) -> None:
    place.start(Server("server"))
    assert Server.add(1, c=1) == 12
    assert Server.add.submit(1, c=1).result(5) == 12
    assert asyncio.run(Server.add.acall(1, c=1)) == 12
    by_name = pyzmp.discover("add")
    assert by_name is not None
    assert by_name(1, c=1) == by_name.submit(1, c=1).result(5) == asyncio.run(by_name.acall(1, c=1)) == 12


def test_async_calls_interleave_and_a_worker_holds_nobody_up(place: Any) -> None:
    place.start(Server("server"))
    waiting = [Server.wait.submit() for _ in range(3)]
    busy = Server.hold.submit(0.1 * SCALE)
    assert Server.add(1) == 111
    assert not any(future.done() for future in waiting)
    Server.open()
    assert [future.result(5) for future in waiting] == ["opened"] * 3
    busy.result(5)


def test_a_map_is_in_order_for_for_and_for_async_for(place: Any) -> None:
    place.start(Server("server"))
    assert list(Server.double.map(range(2500))) == [2.0 * n for n in range(2500)]
    assert list(Server.add.map([1, 2], [3, 4])) == [104, 106]

    async def collect() -> list[float]:
        return [value async for value in Server.double.map(range(300))]
    assert asyncio.run(collect()) == [2.0 * n for n in range(300)]


def test_a_map_can_be_endless_and_left_early(place: Any) -> None:
    place.start(Server("server"))
    taken = []

    def numbers() -> Any:
        n = 0
        while True:
            taken.append(n)
            yield n
            n += 1
    with Server.double.map(numbers()) as doubled:
        assert [next(doubled) for _ in range(3)] == [0.0, 2.0, 4.0]
    assert list(doubled) == []
    assert len(taken) < 5000


def test_an_error_in_a_map_stands_in_its_place(home: Any) -> None:
    home.start(Server("server"))
    mapped = Server.double.map([1.0, "two", 3.0])
    assert next(mapped) == 2.0
    with pytest.raises(pyzmp.InvalidCall, match="argument value"):
        next(mapped)
    assert next(mapped) == 6.0


def test_a_dataclass_is_one_typed_and_a_dict_by_name(place: Any) -> None:
    place.start(Server("server"))
    assert Server.mirror(Point(1, 2)) == Point(2, 1)
    by_name = pyzmp.discover("mirror")
    assert by_name is not None
    assert by_name({"x": 1.0, "y": 2.0}) == {"x": 2.0, "y": 1.0}


def test_bytes_of_any_size(place: Any) -> None:
    place.start(Server("server"))
    for size in (0, 100_000, 3_000_000):
        value = {"data": bytes(size), "n": [size]}
        assert Server.echo(value) == value
        assert Server.echo.submit(value).result(10) == value


def test_calls_of_one_session_begin_in_their_order_and_async_ones_get_to_their_first_await(home: Any) -> None:
    home.start(Server("server"))
    for future in [(Server.anote if n % 3 == 0 else Server.note).submit(n) for n in range(1000)]:
        future.result(5)
    assert Server.notes() == list(range(1000))


def test_many_threads_call_one_service_at_once(place: Any) -> None:
    place.start(Server("server"))
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(Server.double, range(400)))
    assert results == [2.0 * n for n in range(400)]


def test_calls_go_to_all_providers_in_turn_or_to_the_one_that_is_named(place: Any) -> None:
    place.start(Server("one"), Server("two"), Server("three"))
    assert sorted(Server.named() for _ in range(6)) == sorted(["one", "two", "three"] * 2)
    assert {Server.at("two").named() for _ in range(5)} == {"two"}
    assert {name for name, _ in Server.named.providers} == {"one", "two", "three"}
    named = pyzmp.discover("three/named")
    assert named is not None
    assert named() == "three"


def test_a_node_that_leaves_is_asked_no_more(home: Any) -> None:
    home.start(Server("one"))
    with home.settle(Server("two")):
        assert {Server.named() for _ in range(4)} == {"one", "two"}
    assert {Server.named() for _ in range(4)} == {"one"}


def test_inside_of_a_service_the_node_and_the_call_are_known(place: Any) -> None:
    place.start(Server("server"))
    node, called, service, remaining, caller = Server.about.with_options(timeout=2)()
    assert (node, called, service, caller) == ("server", "server", "about", True)
    assert 1 < remaining <= 2


def test_a_declared_name_and_timeout_count_for_callers(home: Any) -> None:
    home.start(Server("server"))
    assert pyzmp.discover("never") is None
    began = time.monotonic()
    with pytest.raises(pyzmp.CallTimeout):
        Server.never()
    with pytest.raises(pyzmp.CallTimeout):
        pyzmp.discover("renamed").with_options(timeout=0.1)()  # type: ignore[union-attr]
    assert 0.2 <= time.monotonic() - began < 1 * SCALE


def test_with_options_is_a_new_value(home: Any) -> None:
    home.start(Server("server"))
    patient = Server.add.with_options(timeout=3)
    assert patient is not Server.add
    assert (patient(1), Server.add(1)) == (111, 111)
    with pytest.raises(ValueError, match="timeout"):
        Server.add.with_options(timeout=0)
    with pytest.raises(TypeError, match="timeout"):
        Server.add.with_options(timeout="1")  # type: ignore[arg-type]


def test_a_call_can_wait_for_its_provider(home: Any) -> None:
    waiting = ThreadPoolExecutor(1)
    with pytest.raises(pyzmp.UnknownService):
        Server.add(1)
    future = waiting.submit(lambda: Server.add.with_options(timeout=10, wait=True)(1))
    home.start(Server("server"))
    assert future.result(5) == 111
    waiting.shutdown()


def test_an_awaited_call_can_wait_for_its_provider_too(home: Any) -> None:
    async def ask() -> int:
        asking = asyncio.create_task(Server.add.with_options(timeout=10, wait=True).acall(1))
        async with home.settle(Server("server")):
            return await asking
    assert asyncio.run(ask()) == 111


def test_a_wait_for_a_provider_ends_with_the_call(home: Any) -> None:
    began = time.monotonic()
    with pytest.raises(pyzmp.UnknownService):
        Server.add.with_options(timeout=0.2, wait=True)(1)
    with pytest.raises(pyzmp.UnknownService):
        asyncio.run(Server.add.with_options(timeout=0.2, wait=True).acall(1))
    assert time.monotonic() - began < 3.0 * SCALE


def test_a_future_can_be_cancelled_while_it_waits(home: Any) -> None:
    home.start(Server("server"))
    future = Server.wait.submit()
    assert not future.running()
    assert future.cancel()
    Server.open()
    assert Server.add(1) == 111


def test_cancelling_an_awaited_call_raises_asyncios_own_error(home: Any) -> None:
    home.start(Server("server"))

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(Server.wait.acall(), 0.05)
    asyncio.run(give_up())
    Server.open()
    assert Server.add(1) == 111


def test_a_futures_callback_gets_the_result(home: Any, eventually: Callable[..., None]) -> None:
    home.start(Server("server"))
    seen: list[int] = []
    Server.add.submit(1).add_done_callback(lambda future: seen.append(future.result()))
    eventually(lambda: seen == [111])


def test_discover_finds_typed_and_by_name(home: Any) -> None:
    assert pyzmp.discover("add") is None
    with pytest.raises(pyzmp.UnknownService):
        pyzmp.discover(Server.add)
    home.start(Server("server"))
    assert pyzmp.discover(Server.add)(1) == 111
    assert pyzmp.discover(Server.at("server").add)(1) == 111
    assert pyzmp.discover("add")(1) == 111  # type: ignore[misc]
    assert pyzmp.discover("server/add")(1) == 111  # type: ignore[misc]
    assert pyzmp.discover("other/add") is None
    with pytest.raises(TypeError, match=r"discover\(\) takes"):
        pyzmp.discover(3)  # type: ignore[call-overload]


def test_adiscover_does_so_in_a_coroutine(home: Any) -> None:
    async def find() -> None:
        assert await pyzmp.adiscover("add") is None
        with pytest.raises(pyzmp.UnknownService):
            await pyzmp.adiscover(Server.add, timeout=0.05)
        looking = asyncio.create_task(pyzmp.adiscover(Server.add, timeout=10))
        async with home.settle(Server("server")):
            found = await looking
            assert await found.acall(1) == 111
            assert await (await pyzmp.adiscover("add")).acall(1) == 111  # type: ignore[union-attr]
    asyncio.run(find())


def test_discover_waits_for_so_many_providers(home: Any) -> None:
    home.start(Server("one"))
    began = time.monotonic()
    assert len(pyzmp.discover("add", timeout=0.1, minimum_providers=2).providers) == 1  # type: ignore[union-attr]
    assert 0.1 <= time.monotonic() - began < 1.5 * SCALE
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(pyzmp.discover, "add", 10, 2)
        home.start(Server("two"))
        assert len(found.result(5).providers) == 2


def test_two_classes_with_a_service_of_one_name_are_not_one_pool(home: Any) -> None:
    home.start(Server("server"), Lamp("lamp"))
    assert {Lamp.named() for _ in range(4)} == {"a lamp"}
    assert {Server.named() for _ in range(4)} == {"server"}
    assert len(pyzmp.discover("named").providers) == 2  # type: ignore[union-attr]
    with pytest.raises(pyzmp.UnknownService) as caught:
        Lamp.at("server").named()
    assert "nobody provides 'named' of Lamp in" in str(caught.value)
    assert "of the same name there is " in str(caught.value)
    assert "named() -> str of Server" in str(caught.value)


def test_the_mapping_of_services_follows_the_graph(home: Any) -> None:
    assert "add" not in pyzmp.services
    with home.settle(Server("server")) as node:
        address = Server.add.providers[0][1]
        assert pyzmp.services["add"] == [("server", address)]
        assert {"add", "double", "renamed"} <= set(pyzmp.services)
        assert len(pyzmp.services) == len(list(pyzmp.services))
        assert node.is_alive()
    assert "add" not in pyzmp.services
    with pytest.raises(KeyError):
        pyzmp.services["add"]
