"""Services that give many values, and services that take them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
from msgspec.structs import replace

import pyzmp
from pyzmp import runtime
from pyzmp.exceptions import CannotTravel, DeadlockError
from tests.campaigns.history import SCALE

KINDS = ["plain", "awaited", "worked"]  # how a generator runs: inline, as a task, in a worker thread
ENDLESS = 1 << 40
PARTS = [bytes(20_000)] * 1100  # more large buffers than one message may have


class Spilled(Exception):
    def __init__(self, litres: float) -> None:
        super().__init__(f"{litres} l")
        self.litres = litres


class Tap(pyzmp.Node):
    """Gives numbers, and notes how far it came."""

    def on_start(self) -> None:
        self.given = 0
        self.log: list[str] = []

    @pyzmp.service
    def plain(self, count: int = 10, spill: int = -1) -> Iterator[int]:
        yield from self._numbers(count, spill)

    @pyzmp.service
    async def awaited(self, count: int = 10, spill: int = -1) -> AsyncIterator[int]:
        numbers = self._numbers(count, spill)
        try:
            for number in numbers:
                yield number
        finally:
            await asyncio.sleep(0)  # a generator that is closed may still await
            numbers.close()

    @pyzmp.service(worker=True)
    def worked(self, count: int = 10, spill: int = -1) -> Iterator[int]:
        yield from self._numbers(count, spill)

    def _numbers(self, count: int, spill: int) -> Iterator[int]:
        self.given = 0
        try:
            for number in range(count):
                if number == spill:
                    raise Spilled(0.5)
                self.given = number + 1
                yield number
        finally:
            self.log.append("closed")

    @pyzmp.service
    async def far(self) -> int:
        return self.given

    @pyzmp.service
    async def said(self) -> list[str]:
        said, self.log = self.log, []
        return said

    @pyzmp.service
    async def dry(self, first: int = 0) -> AsyncIterator[int]:
        for number in range(first):
            yield number
        try:
            await asyncio.sleep(60)
        finally:
            self.log.append("closed")

    @pyzmp.service
    async def slowly(self, pause: float, count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(pause)
            yield number

    @pyzmp.service
    def hold(self, seconds: float) -> None:
        time.sleep(seconds)

    @pyzmp.service
    def lies(self) -> Iterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    @pyzmp.service
    def locked(self) -> Iterator[Any]:
        yield 1
        yield threading.Lock()

    @pyzmp.service
    async def parts(self) -> AsyncIterator[list[bytes]]:
        yield []
        yield PARTS

    @pyzmp.service(worker=True)
    def wparts(self) -> Iterator[list[bytes]]:
        yield []
        yield PARTS

    @pyzmp.service
    def single(self) -> Iterator[int]:
        return 5  # type: ignore[return-value]

    @pyzmp.service
    async def large(self, sizes: list[int]) -> AsyncIterator[bytes]:
        for size in sizes:
            yield bytes([size % 251]) * size


class Bucket(pyzmp.Node):
    """Takes numbers."""

    def on_start(self) -> None:
        self.log: list[str] = []
        self.got = 0

    @pyzmp.service
    async def asum(self, numbers: AsyncIterator[int], most: int = ENDLESS) -> int:
        total = got = 0
        async for number in numbers:
            total, got = total + number, got + 1
            if got >= most:
                break
        return total

    @pyzmp.service(worker=True)
    def wsum(self, numbers: Iterator[int], most: int = ENDLESS) -> int:
        total = got = 0
        for number in numbers:
            total, got = total + number, got + 1
            if got >= most:
                break
        return total

    @pyzmp.service
    async def leaky(self, numbers: AsyncIterator[int]) -> None:
        async for _ in numbers:
            raise Spilled(1.5)

    @pyzmp.service
    async def noted(self, numbers: AsyncIterator[int]) -> None:
        self.log.append("begun")
        try:
            async for _ in numbers:
                self.got += 1
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        self.log.append("all")

    @pyzmp.service(worker=True)
    def wnoted(self, numbers: Iterator[int]) -> None:
        self.log.append("begun")
        try:
            for _ in numbers:
                self.got += 1
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        self.log.append("all")

    @pyzmp.service
    async def doubled(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        try:
            async for number in numbers:
                yield 2 * number
        finally:
            self.log.append("closed")

    @pyzmp.service(worker=True)
    def tripled(self, numbers: Iterator[int]) -> Iterator[int]:
        try:
            for number in numbers:
                yield 3 * number
        finally:
            self.log.append("closed")

    @pyzmp.service
    async def weigh(self, blobs: AsyncIterator[bytes]) -> list[int]:
        return [len(blob) async for blob in blobs]

    @pyzmp.service
    async def said(self) -> list[str]:
        return self.log


def stream(kind: str, *args: Any, **options: Any) -> Any:
    return getattr(Tap, kind).with_options(**options)(*args)


async def collected(items: Any) -> list[Any]:
    return [item async for item in items]


def closed() -> bool:
    return "closed" in Tap.said()


async def anumbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


def broken(wait: Callable[[], object] = lambda: None) -> Iterator[int]:
    yield 1
    wait()
    raise KeyError("mine")


async def abroken() -> AsyncIterator[int]:
    yield 1
    raise KeyError("mine")


def raised(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


# -- services that give --------------------------------------------------------------------------------------------


def test_a_generator_is_a_stream_for_for_and_for_async_for(place: Any) -> None:
    place.start(Tap("tap"))
    for kind in KINDS:
        assert list(stream(kind, 1000)) == list(range(1000))
        assert asyncio.run(collected(stream(kind, 1000))) == list(range(1000))
        assert list(stream(kind, 0)) == []
        found = pyzmp.discover(kind)
        assert found is not None
        assert list(found(3)) == [0, 1, 2]


def test_nothing_is_called_before_the_first_item_is_asked_for(home: Any) -> None:
    home.start(Tap("tap"))
    unused = Tap.plain(5)
    assert iter(unused) is unused
    assert repr(unused) == "<Stream of plain()>"
    assert Tap.far() == 0
    assert next(unused) == 0
    assert Tap.far() > 0
    with pytest.raises(pyzmp.UnknownService):
        next(Tap.at("nobody").plain())
    untold = Tap.plain("five")  # type: ignore[arg-type]
    with pytest.raises(pyzmp.InvalidCall, match="argument count"):
        next(untold)


def test_a_stream_that_ended_stays_ended(home: Any) -> None:
    home.start(Tap("tap"))
    items = Tap.plain(2)
    assert [*items, *items] == [0, 1]
    items.close()
    assert list(items) == []
    never = Tap.plain(2)
    never.close()
    assert list(never) == []
    assert asyncio.run(collected(never)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_a_stream_early_closes_its_generator(home: Any, eventually: Any, kind: str) -> None:
    home.start(Tap("tap"))
    with stream(kind, ENDLESS) as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
    eventually(closed)
    assert list(items) == []

    for number in stream(kind, ENDLESS):  # nobody holds it after the break
        if number == 5:
            break
    gc.collect()
    eventually(closed)

    async def leave() -> None:
        async with stream(kind, ENDLESS) as awaited:
            assert await anext(awaited) == 0
    asyncio.run(leave())
    eventually(closed)

    async def give_up() -> None:
        seen = asyncio.Event()

        async def follow() -> None:
            async for _ in stream(kind, ENDLESS):
                seen.set()
        task = asyncio.create_task(follow())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    asyncio.run(give_up())
    eventually(closed)


def test_cancelling_the_wait_for_an_item_closes_a_quiet_stream_and_no_other(home: Any, eventually: Any) -> None:
    home.start(Tap("tap"))

    async def run() -> None:
        other = Tap.slowly(0.01, 10)
        assert await anext(other) == 0

        async def follow() -> None:
            async for _ in Tap.dry(1):
                pass
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(follow(), 0.1)
        assert await collected(other) == list(range(1, 10))
    asyncio.run(run())
    eventually(closed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_runs_ahead_by_its_window_and_no_more(home: Any, eventually: Any, kind: str) -> None:
    home.start(Tap("tap"))
    with stream(kind, ENDLESS) as items:
        assert next(items) == 0
        eventually(lambda: Tap.far() >= 256)
        assert Tap.far() <= 256 + 2
        assert [next(items) for _ in range(1000)] == list(range(1, 1001))
        eventually(lambda: Tap.far() >= 1001 + 128)
        assert Tap.far() <= 1001 + 256 + 2
    with stream(kind, ENDLESS, window=4) as items:
        assert next(items) == 0
        eventually(lambda: Tap.far() >= 4)
        for _ in range(3):
            assert Tap.far() <= 4 + 2
    with stream(kind, 100, window=1) as items:
        assert list(items) == list(range(100))


def test_large_items_wait_for_room_in_bytes_and_the_largest_travel_alone(place: Any) -> None:
    place.start(Tap("tap"))
    sizes = [0, 100, 20_000, 500_000, 3_000_000, 1, 700_000, 700_000]
    assert [len(item) for item in Tap.large(sizes)] == sizes
    assert [len(item) for item in asyncio.run(collected(Tap.large(sizes)))] == sizes


class Camera(pyzmp.Node):
    @pyzmp.service
    async def frames(self, count: int) -> AsyncIterator[Any]:
        import numpy as np
        for number in range(count):
            yield np.full((100, 200), number)

    @pyzmp.service
    async def mean(self, frames: AsyncIterator[Any]) -> float:
        return float(sum([frame.mean() async for frame in frames]))


def test_arrays_travel_as_items(home: Any) -> None:
    pytest.importorskip("numpy")
    home.start(Camera("camera"))
    frames = list(Camera.frames(20))
    assert [(frame.shape, int(frame[99, 199])) for frame in frames] == [((100, 200), n) for n in range(20)]
    assert Camera.mean(iter(frames)) == sum(range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_mid_stream_follows_the_items_before_it(home: Any, kind: str) -> None:
    home.start(Tap("tap"))
    items, seen = stream(kind, 10, 4), []
    with pytest.raises(Spilled) as caught:
        for item in items:
            seen.append(item)  # noqa: PERF402 - it is to be there when the error comes
    assert seen == [0, 1, 2, 3]
    assert caught.value.litres == 0.5
    cause = caught.value.__cause__
    assert isinstance(cause, pyzmp.RemoteError)
    assert (cause.nodes, cause.service, cause.executed) == (("tap",), kind, True)
    assert list(items) == []
    assert Tap.said() == ["closed"]
    with pytest.raises(Spilled):
        asyncio.run(collected(stream(kind, 10, 0)))


def test_an_item_that_is_not_as_promised_is_the_services_fault(home: Any) -> None:
    home.start(Tap("tap"))
    lies = Tap.lies()
    assert next(lies) == 1
    error = raised(lambda: next(lies))
    assert type(error) is TypeError
    assert "lies() promises items of int and gave another item: expected int, got str" in str(error)
    locked = Tap.locked()
    assert next(locked) == 1
    assert "an item of locked()" in str(raised(lambda: next(locked)))
    assert "single() promises a stream and gave int" in str(raised(lambda: list(Tap.single())))
    assert list(Tap.plain(2)) == [0, 1]


# -- their time ----------------------------------------------------------------------------------------------------


def test_the_timeout_bounds_how_long_a_stream_may_take_to_begin(home: Any) -> None:
    home.start(Tap("tap"))
    assert Tap.far() == 0
    busy = Tap.hold.submit(0.5 * SCALE)
    began = time.monotonic()
    for items in (Tap.plain.with_options(timeout=0.1)(1), Tap.awaited.with_options(timeout=0.1)(1)):
        with pytest.raises(pyzmp.CallTimeout, match=r"gave no answer in 0\.1 s"):
            next(items)
        assert list(items) == []
    assert time.monotonic() - began < 0.5 * SCALE
    busy.result()


def test_a_quiet_stream_is_no_failure_where_no_timeout_was_given(home: Any) -> None:
    home.start(Tap("tap"))
    slowly = Tap.slowly.with_options()
    declared = Tap.slowly._declaration()  # type: ignore[misc]
    slowly._declaration = lambda: replace(declared, timeout=0.15)  # as one that was declared with it
    assert list(slowly(0.3, 2)) == [0, 1]
    assert asyncio.run(collected(slowly(0.3, 1))) == [0]


@pytest.mark.parametrize("typed", [True, False])
def test_each_item_is_waited_for_no_longer_than_the_timeout_that_was_given(home: Any, eventually: Any,
                                                                           typed: bool) -> None:
    home.start(Tap("tap"))
    dry: Any = Tap.dry if typed else pyzmp.discover("dry")
    for ask in (list, lambda items: asyncio.run(collected(items))):
        began = time.monotonic()
        with pytest.raises(pyzmp.CallTimeout, match=r"dry\(\) of 'tap' gave no further item in time") as caught:
            ask(dry.with_options(timeout=0.15)(2))
        assert caught.value.executed is True
        assert 0.15 <= time.monotonic() - began < 0.6 * SCALE
        eventually(closed)
    slowly: Any = Tap.slowly if typed else pyzmp.discover("slowly")
    assert list(slowly.with_options(timeout=0.3)(0.1, 4)) == [0, 1, 2, 3]


class Relay(pyzmp.Node):
    @pyzmp.service
    async def awaited(self) -> int:
        return len([item async for item in Tap.dry(2)])

    @pyzmp.service(worker=True)
    def blocking(self) -> int:
        return len(list(Tap.dry(2)))


def test_a_stream_in_a_service_ends_with_the_call_that_is_served(home: Any, eventually: Any) -> None:
    home.start(Tap("tap"), Relay("relay"))
    for service in (Relay.awaited, Relay.blocking):
        began = time.monotonic()
        with pytest.raises((pyzmp.CallTimeout, pyzmp.RemoteError)):  # both come to their end at the same moment
            service.with_options(timeout=0.2)()
        assert time.monotonic() - began < 0.6 * SCALE
        eventually(closed)


# -- their end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "dry"])
def test_a_node_that_is_killed_ends_its_streams(kind: str) -> None:
    with Tap("tap") as node:
        items: Any = getattr(Tap, kind)(ENDLESS if kind == "plain" else 1)
        assert next(items) == 0
        os.kill(node.ident, signal.SIGKILL)  # type: ignore[arg-type]
        with pytest.raises(pyzmp.NodeDied) as caught:
            for _ in items:
                pass
        assert caught.value.executed is True
        assert list(items) == []


def test_a_node_that_stops_ends_its_streams_with_an_error(home: Any) -> None:
    node = home.start(Tap("tap"))
    streams: list[Any] = [Tap.dry(1), Tap.plain(ENDLESS), Tap.worked(ENDLESS)]
    assert [next(items) for items in streams] == [0, 0, 0]
    stopping = threading.Thread(target=node.shutdown, kwargs={"timeout": 2})
    stopping.start()
    for items in streams:
        with pytest.raises((pyzmp.RemoteError, pyzmp.NodeDied)) as caught:
            for _ in items:
                pass
        assert caught.value.executed is True
    stopping.join()
    assert not node.is_alive()


def test_the_streams_of_a_caller_that_is_gone_are_closed(script: Any, eventually: Any) -> None:
    program = ("import pyzmp, os, signal, sys\n"
               f"streams = [pyzmp.discover(kind, timeout=5)({ENDLESS}) for kind in {KINDS}]\n"
               "assert [next(items) for items in streams] == [0, 0, 0]\n"
               "if sys.argv[1:]:\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    with Tap("tap"):
        for argv in (["killed"], []):
            said: list[str] = []
            script(program, *argv) if not argv else script.python("-c", program, *argv)
            eventually(lambda said=said: len(said.extend(Tap.said()) or said) == len(KINDS))


def test_a_stream_is_closed_where_the_user_interrupts_it(script: Any, eventually: Any) -> None:
    with Tap("tap"):
        done = script("""
import os, pyzmp, signal, threading
items = pyzmp.discover("dry", timeout=5)(1)
assert next(items) == 0
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    with items:
        next(items)
except KeyboardInterrupt:
    print("interrupted")
print(list(items), list(pyzmp.discover("plain")(3)))
""")
        assert done.out == "interrupted\n[] [0, 1, 2]\n", done.err
        eventually(closed)


class Selfish(Tap):
    @pyzmp.service
    def blocking(self) -> list[int]:
        return list(Selfish.at(self.name).plain(2))

    @pyzmp.service
    async def awaiting(self) -> list[int]:
        return [item async for item in Selfish.at(self.name).plain(2)]


def test_a_stream_cannot_be_waited_for_on_the_loop_that_serves_it(home: Any) -> None:
    home.start(Selfish("selfish"))
    assert "DeadlockError" in str(raised(Selfish.blocking))
    assert Selfish.awaiting() == [0, 1]


def test_a_loop_takes_the_streams_of_its_own_nodes_in_async_for() -> None:
    async def run() -> None:
        async with Tap("tap", kind="entity"):
            with pytest.raises(DeadlockError):
                next(Tap.plain(3))
            assert await collected(Tap.plain(3)) == [0, 1, 2]
    asyncio.run(run())


def test_a_stream_that_was_begun_in_async_for_cannot_be_waited_for_on_its_own_loop() -> None:
    async def run() -> None:
        async with Tap("tap", kind="entity"):
            items = Tap.dry(1)
            assert await anext(items) == 0
            with pytest.raises(DeadlockError) as caught:
                next(items)
            assert caught.value.executed is True
            assert await collected(items) == []
            while await Tap.said.acall() != ["closed"]:
                pass
    asyncio.run(run())


class Asker(pyzmp.Node):
    @pyzmp.service
    def begin(self) -> int:
        self.items = Giver.give()
        return next(self.items)

    @pyzmp.service
    def answer(self) -> int:
        return 42

    @pyzmp.service(worker=True)
    def rest(self) -> list[int]:
        return list(self.items)


class Giver(pyzmp.Node):
    begun = threading.Event()

    @pyzmp.service
    def give(self) -> Iterator[int]:
        yield 1
        self.begun.wait(5)
        yield Asker.answer()


def test_a_stream_may_call_whoever_waited_only_for_its_beginning() -> None:
    with Asker("asker", kind="thread"), Giver("giver", kind="thread"):
        Giver.begun.clear()
        assert Asker.begin() == 1
        Giver.begun.set()
        assert Asker.rest() == [42]


def test_a_forked_child_hears_that_its_parents_streams_are_not_its_own(script: Any) -> None:
    result = script("""
import os, signal, pyzmp
from collections.abc import Iterator

class Tap(pyzmp.Node):
    @pyzmp.service
    def numbers(self) -> Iterator[int]:
        yield from range(100)

with Tap("tap"):
    items, left = Tap.numbers.with_options(window=2)(), Tap.numbers()
    print(next(items), next(left))
    pid = os.fork()
    if not pid:
        signal.alarm(5)
        left.close()
        try:
            next(items)
        except pyzmp.NodeDied as error:
            print("child:", error.executed, list(items), list(left), flush=True)
        os._exit(0)
    print("status", os.waitpid(pid, 0)[1])
    print("parent:", sum(items), sum(left))
""")
    assert result.out == "0 0\nchild: None [] []\nstatus 0\nparent: 4950 4950\n", result.err


def test_a_stream_and_a_single_result_are_told_apart(home: Any) -> None:
    home.start(Tap("tap"))
    by_name: Any = pyzmp.discover("plain")
    calls: list[Callable[[], Any]] = [lambda: by_name.submit(3), lambda: by_name.post(3),
                                      lambda: asyncio.run(by_name.acall(3))]
    for call in calls:
        with pytest.raises(pyzmp.InvalidCall, match=r"plain\(\) is a stream: iterate over it"):
            call()


def test_twenty_streams_at_once_share_a_node(place: Any) -> None:
    place.start(Tap("tap"))

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(collected(stream(KINDS[number % 3], 600)) for number in range(20)))
    assert asyncio.run(all_of_them()) == [list(range(600))] * 20
    streams = [stream(KINDS[number % 3], 100, window=8) for number in range(20)]
    rows = [[next(items) for items in streams] for _ in range(100)]
    assert rows == [[number] * 20 for number in range(100)]
    assert [list(items) for items in streams] == [[]] * 20


# -- services that take --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["asum", "wsum"])
def test_a_service_takes_a_stream(place: Any, service: str) -> None:
    place.start(Bucket("bucket"))
    total = getattr(Bucket, service)
    expected = sum(range(1000))
    assert total(iter(range(1000))) == expected
    assert total(numbers=(number for number in range(1000))) == expected
    assert total.submit(range(1000)).result(5) == expected
    assert asyncio.run(total.acall(iter(range(1000)))) == expected
    assert total(iter([])) == 0
    assert total([1, 2, 3]) == total((1, 2, 3)) == 6  # as values

    async def awaited() -> int:
        return await total.acall(anumbers(1000))  # type: ignore[no-any-return]
    assert asyncio.run(awaited()) == expected
    by_name = pyzmp.discover(service)
    assert by_name is not None
    assert by_name(iter(range(1000))) == by_name.submit(iter(range(1000))).result(5) == expected


def test_large_items_travel_to_a_service_too(place: Any) -> None:
    place.start(Bucket("bucket"))
    sizes = [0, 100, 20_000, 500_000, 3_000_000, 1, 700_000, 700_000]
    assert Bucket.weigh(bytes(size) for size in sizes) == sizes


@pytest.mark.parametrize("service", ["asum", "wsum"])
def test_a_service_that_takes_no_more_ends_the_call(home: Any, service: str) -> None:
    home.start(Bucket("bucket"))
    taken = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1
    assert getattr(Bucket, service)(endless(), 3) == 0 + 1 + 2
    assert len(taken) < 2000


def test_a_service_that_fails_ends_the_call(home: Any) -> None:
    home.start(Bucket("bucket"))
    calls: list[Callable[[], Any]] = [
        lambda: Bucket.leaky(iter(range(10_000))), lambda: Bucket.leaky.submit(iter(range(10_000))).result(5),
        lambda: asyncio.run(Bucket.leaky.acall(iter(range(10_000))))]
    for call in calls:
        with pytest.raises(Spilled) as caught:
            call()
        assert caught.value.litres == 1.5


@pytest.mark.parametrize("service", ["noted", "wnoted"])
def test_an_error_of_the_callers_own_stream_is_his_and_ends_the_service(home: Any, eventually: Any,
                                                                        service: str) -> None:
    home.start(Bucket("bucket"))
    note = getattr(Bucket, service)

    async def acall() -> None:
        await note.acall(abroken())
    calls: list[Callable[[], Any]] = [lambda: note(broken()), lambda: note.submit(broken()).result(5),
                                      lambda: asyncio.run(acall())]
    ends = "CancelledError" if service == "noted" else "Cancelled"
    for call in calls:
        with pytest.raises(KeyError, match="mine"):
            call()
    eventually(lambda: Bucket.said().count("begun") == Bucket.said().count(ends))  # each that came to its turn
    assert "all" not in Bucket.said()


def test_that_error_is_his_also_where_the_service_ends_before_he_hears_of_it(
        home: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home.start(Bucket("bucket"))
    sessions, gone = runtime.current().sessions, []
    give_up = sessions.give_up

    def give_up_and_wait(begun: Any) -> None:
        give_up(begun)
        eventually(lambda: "CancelledError" in Bucket.said())
        gone.append(begun)
    monkeypatch.setattr(sessions, "give_up", give_up_and_wait)
    future = Bucket.noted.submit(broken(lambda: eventually(lambda: "begun" in Bucket.said())))
    with pytest.raises(KeyError, match="mine"):
        future.result(10)
    eventually(lambda: gone)


def test_items_that_do_not_fit_are_refused(home: Any, eventually: Any) -> None:
    home.start(Bucket("bucket"))

    def mixed() -> Iterator[Any]:
        yield from (1, "two")

    def unsendable() -> Iterator[Any]:
        yield from (1, PurePosixPath("/"))
    with pytest.raises(pyzmp.InvalidCall, match=r"argument numbers.*: expected int, got str"):
        Bucket.wsum(mixed())
    by_name = pyzmp.discover("noted")
    assert by_name is not None
    with pytest.raises(CannotTravel, match=r"an item for noted\(\)"):
        by_name(unsendable())
    error = raised(lambda: by_name(mixed()))  # the caller knows no types, so that the service meets it
    assert "argument numbers" in str(error)
    assert "expected int, got str" in str(error)
    with pytest.raises(pyzmp.InvalidCall, match="numbers"):
        Bucket.asum(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("service", ["parts", "wparts"])
def test_an_item_that_no_message_can_hold_is_the_error_of_who_gives_it(place: Any, service: str) -> None:
    place.start(Tap("tap"))
    items = getattr(Tap, service)()
    assert next(items) == []
    error = raised(lambda: next(items))
    assert isinstance(error, pyzmp.RemoteError)
    assert error.type_name == "pyzmp.exceptions.CannotTravel"
    assert f"an item of {service}()" in str(error)
    assert "1100 large buffers" in str(error)


def test_so_it_is_at_the_caller(place: Any) -> None:
    place.start(Bucket("bucket"))
    by_name = pyzmp.discover("weigh")
    assert by_name is not None
    for call in (lambda: by_name(iter([PARTS])), lambda: by_name.submit(iter([PARTS])).result(5)):
        with pytest.raises(CannotTravel, match=r"an item for weigh\(\).*1100 large buffers"):
            call()


def test_an_async_iterable_is_for_coroutines_only(home: Any) -> None:
    home.start(Bucket("bucket"))
    calls: list[Callable[[], Any]] = [lambda: Bucket.asum(anumbers(3)),
                                      lambda: Bucket.asum.submit(anumbers(3)).result(5)]
    for call in calls:
        with pytest.raises(pyzmp.InvalidCall, match="an async iterable can be sent by a coroutine only"):
            call()


class Slow(pyzmp.Node):
    def on_start(self) -> None:
        self.gate = asyncio.Event()

    @pyzmp.service
    async def take(self, numbers: AsyncIterator[int]) -> int:
        await self.gate.wait()
        return len([number async for number in numbers])

    @pyzmp.service
    async def open(self) -> None:
        self.gate.set()


def test_a_caller_sends_no_faster_than_the_service_takes(home: Any, eventually: Any) -> None:
    home.start(Slow("slow"))
    sent = []

    def numbers() -> Iterator[int]:
        for number in range(2000):
            sent.append(number)
            yield number
    future = Slow.take.submit(numbers())
    eventually(lambda: len(sent) >= 256)
    assert len(sent) <= 257
    Slow.open()
    assert future.result(5) == 2000


def test_a_call_that_takes_a_stream_ends_at_its_deadline(home: Any, eventually: Any) -> None:
    home.start(Bucket("bucket"))
    gate = threading.Event()

    def stalls() -> Iterator[int]:
        yield 1
        gate.wait(3)
        yield 2

    async def astalls() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(3)
        yield 2

    async def acall() -> None:
        await Bucket.noted.with_options(timeout=0.2).acall(astalls())
    calls: list[Callable[[], Any]] = [lambda: asyncio.run(acall()),
                                      lambda: Bucket.noted.with_options(timeout=0.2).submit(stalls()).result(3)]
    for number, call in enumerate(calls):
        began = time.monotonic()
        with pytest.raises(pyzmp.CallTimeout, match=r"gave no answer in 0\.2 s"):
            call()
        assert time.monotonic() - began < 0.5 * SCALE
        eventually(lambda number=number: Bucket.said() == ["begun", "CancelledError"] * (number + 1))
    gate.set()


def test_the_end_of_a_service_reaches_a_caller_whose_stream_stalls(home: Any) -> None:
    home.start(Bucket("bucket"))
    ended = []

    async def astalls() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(3)
            yield 2
        finally:
            ended.append(True)

    async def acall() -> int:
        return await Bucket.asum.acall(astalls(), 1)
    began = time.monotonic()
    assert asyncio.run(acall()) == 1
    assert time.monotonic() - began < 1 * SCALE
    assert ended == [True]


def test_cancelling_a_call_that_takes_a_stream_ends_it(home: Any, eventually: Any) -> None:
    home.start(Bucket("bucket"))

    async def astalls() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(60)

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(Bucket.noted.acall(astalls()), 0.2)
    asyncio.run(give_up())
    eventually(lambda: Bucket.said() == ["begun", "CancelledError"])
    gate = threading.Event()

    def stalls() -> Iterator[int]:
        yield 1
        gate.wait(5)
    future = Bucket.noted.submit(stalls())
    eventually(lambda: Bucket.said()[-1] == "begun")
    assert future.cancel()
    eventually(lambda: Bucket.said()[-1] == "CancelledError")
    gate.set()


def test_a_node_that_is_killed_ends_the_calls_that_send_to_it() -> None:
    with Bucket("bucket") as node:
        def numbers() -> Iterator[int]:
            for number in range(ENDLESS):
                if number == 1000:
                    os.kill(node.ident, signal.SIGKILL)  # type: ignore[arg-type]
                yield number
        with pytest.raises(pyzmp.NodeDied) as caught:
            Bucket.asum(numbers())
        assert caught.value.executed is None


# -- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("service", "factor"), [("doubled", 2), ("tripled", 3)])
def test_a_stream_goes_in_and_another_comes_out(place: Any, eventually: Any, service: str, factor: int) -> None:
    place.start(Bucket("bucket"))
    both = getattr(Bucket, service)
    expected = [factor * number for number in range(1000)]
    assert list(both(iter(range(1000)))) == expected

    async def run() -> None:
        assert await collected(both(anumbers(1000))) == expected
        assert await collected(both(iter(range(1000)))) == expected
    asyncio.run(run())
    assert Bucket.said() == ["closed"] * 3
    with both(iter(range(ENDLESS))) as items:
        assert next(items) == 0
    eventually(lambda: Bucket.said() == ["closed"] * 4)
    for item in both(iter(range(ENDLESS))):
        assert item == 0
        break
    gc.collect()
    eventually(lambda: Bucket.said() == ["closed"] * 5)


def test_an_error_of_what_goes_in_ends_what_comes_out(home: Any, eventually: Any) -> None:
    home.start(Bucket("bucket"))

    async def run() -> None:
        await collected(Bucket.doubled(abroken()))
    for call in (lambda: list(Bucket.doubled(broken())), lambda: asyncio.run(run())):
        with pytest.raises(KeyError, match="mine"):
            call()
    eventually(lambda: set(Bucket.said()) <= {"closed"})
    assert list(Bucket.doubled(iter([1]))) == [2]
