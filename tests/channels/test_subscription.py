"""Subscriptions of plain programs.  What comes over a session is shown with `pyzmp.subscribing`."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.channels.message import Gap, Joined, Left, Message, Refused
from pyzmp.channels.opening import Opening, Raw
from pyzmp.channels.selection import Selection
from pyzmp.channels.subscription import Subscription, asubscribe_to, subscribe_to
from pyzmp.exceptions import DeadlockError, TopicMismatch
from pyzmp.protocol import codec
from pyzmp.protocol.schema import Type
from pyzmp.protocol.topics import Pattern

WAIT = 30.0


class Lamp(pyzmp.Node):
    kind = "entity"
    light = pyzmp.Topic(int, keep=10)
    words = pyzmp.Topic(str)

    @pyzmp.service
    async def shine(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.light.publish(number)

    @pyzmp.service
    def subscribers(self) -> int:
        return self.light.subscribers

    @pyzmp.service
    def accounts(self) -> list[tuple[int, int, int, int, int]]:
        return [(each.offered, each.received, each.dropped, each.waiting, each.lost)
                for each in self.light.accounts()]


@pytest.fixture
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


pytestmark = pytest.mark.usefixtures("_in_memory")


def selected(text: str) -> Selection:
    return Selection(text, Pattern(text))


def test_what_is_published_comes_in_order_and_is_counted() -> None:
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT) as lights:
        assert lights.publishers == ["lamp"]
        Lamp.at("lamp").shine(0, 200)
        assert [next(lights) for _ in range(200)] == list(range(200))
        assert (lights.received, lights.dropped, lights.lost, lights.failed) == (200, 0, 0, 0)
        assert repr(lights).startswith("<Subscription to Lamp.light")
    assert list(lights) == []
    assert lights.publishers == []
    assert "closed" in repr(lights)


def test_messages_say_whose_they_are() -> None:
    with Lamp("lamp"), Lamp.at("lamp").light.subscribe(timeout=WAIT) as lights:
        Lamp.at("lamp").shine(5, 8)
        messages = lights.messages()
        first, value, last = next(messages), next(lights), next(messages)
        assert (first, value, last) == (Message(5, "lamp/light", "lamp", 0, first.time), 6,
                                        Message(7, "lamp/light", "lamp", 2, last.time))
        assert first.time <= last.time
        messages.close()
        assert list(lights) == []


def test_it_is_iterated_on_a_loop_too() -> None:
    async def main() -> None:
        async with Lamp("lamp"):
            lights = await Lamp.light.asubscribe(timeout=WAIT)
            assert lights.publishers == ["lamp"]
            await Lamp.at("lamp").shine.acall(0, 50)
            async for value in lights:
                if value == 49:
                    break
            await Lamp.at("lamp").shine.acall(50, 51)
            messages = lights.messages()
            assert (await messages.__anext__()).value == 50
            await messages.aclose()
            assert [value async for value in lights] == []
    asyncio.run(main())


def test_the_history_comes_first_and_without_a_hole() -> None:
    with Lamp("lamp"):
        Lamp.at("lamp").shine(0, 20)
        with Lamp.light.subscribe(timeout=WAIT, history=4) as lights:
            Lamp.at("lamp").shine(20, 22)
            assert [next(lights) for _ in range(6)] == list(range(16, 22))


def test_a_wait_without_a_message_ends_and_can_be_asked_again() -> None:
    async def awaits(lights: Subscription[int]) -> None:
        with pytest.raises(TimeoutError, match=r"nothing has come of Lamp.light for 0.02 s"):
            await lights.__anext__()
    with Lamp("lamp"), Lamp.light.subscribe(timeout=0.02) as lights:
        with pytest.raises(TimeoutError, match=r"nothing has come of Lamp.light for 0.02 s"):
            next(lights)
        asyncio.run(awaits(lights))
        Lamp.at("lamp").shine(0, 1)
        found: list[int] = []
        while not found:
            try:
                found.append(next(lights))
            except TimeoutError:
                continue
        assert found == [0]


def test_the_latest_is_what_whoever_waits_gets() -> None:
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT, full="latest") as lights:
        Lamp.at("lamp").shine(0, 100)
        assert next(lights) == 99
        assert (lights.received, lights.dropped) == (1, 99)


@pytest.mark.parametrize(("full", "numbers"), [("drop_oldest", [0, 1, 2, 3, 96, 97, 98, 99]),
                                               ("drop_newest", [0, 1, 2, 3, 4, 5, 6, 7])])
def test_a_full_queue_drops_and_says_so(full: Any, numbers: list[int], eventually: Callable[..., None],
                                        caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT, full=full, length=8, on_event=events.append) as lights:
        Lamp.at("lamp").shine(0, 100)
        assert [next(lights) for _ in range(8)] == numbers
        Lamp.at("lamp").shine(100, 101)
        assert next(lights) == 100
        assert (lights.received, lights.dropped, lights.lost) == (9, 92, 0)
        gap = Gap("lamp/light", "lamp", 4 if full == "drop_oldest" else 8, 92, True)
        assert events == [Joined("lamp/light", "lamp"), gap]
        assert "lamp/light of 'lamp': 92 messages were dropped" in caplog.text
        eventually(lambda: Lamp.at("lamp").accounts() == [(101, 9, 92, 0, 0)])


def test_the_publisher_soon_knows_what_was_taken_however_slowly(eventually: Callable[..., None]) -> None:
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT) as lights:
        Lamp.at("lamp").shine(0, 30)
        eventually(lambda: lights._tray.asked)  # it was looked, and nothing was taken
        for count in range(1, 4):
            next(lights)
            eventually(lambda count=count: Lamp.at("lamp").accounts()[0][1] == count)
        assert Lamp.at("lamp").accounts() == [(30, 3, 0, 27, 0)]


def test_publishers_may_come_later_and_go_and_come_back(eventually: Callable[..., None]) -> None:
    events: list[Any] = []
    with Lamp.light.subscribe(timeout=0.01, on_event=events.append) as lights:
        assert lights.publishers == []
        for _ in range(2):
            with Lamp("lamp"):
                eventually(lambda: lights.publishers == ["lamp"])
                Lamp.at("lamp").shine(0, 3)
                assert taken(lights, 3, eventually) == [0, 1, 2]
            eventually(lambda: lights.publishers == [])
        left = Left("lamp/light", "lamp", "'lamp' has stopped")
        eventually(lambda: drained(lights) or events == [Joined("lamp/light", "lamp"), left] * 2)
        assert (lights.received, lights.lost) == (6, 0)


def taken(lights: Subscription[Any], count: int, eventually: Callable[..., None]) -> list[Any]:
    """So many values of a subscription with a short timeout."""
    got: list[Any] = []
    eventually(lambda: drained(lights, got) or len(got) >= count)
    return got


def drained(lights: Subscription[Any], into: list[Any] | None = None) -> bool:
    try:
        value = next(lights)
    except TimeoutError:
        return False
    if into is not None:
        into.append(value)
    return False


def test_a_name_or_a_pattern_selects_and_nothing_that_only_begins_like_it() -> None:
    with Lamp("lamp"), Lamp("lamp2"):
        for text, names in (("lamp/light", ["lamp"]), ("lamp*/light", ["lamp", "lamp2"]), ("lamp", []),
                            ("**/light", ["lamp", "lamp2"]), ("lamp/lig", [])):
            with subscribe_to(selected(text), timeout=WAIT) as lights:
                assert sorted(lights.publishers) == names, text


def test_a_group_stands_for_its_members() -> None:
    class Bulb(Lamp): ...
    with pyzmp.Group("house", [Lamp("attic"), Lamp("hall")]), Bulb("bulb"):
        with Lamp.at("house").light.subscribe(timeout=WAIT) as lights:
            assert sorted(lights.publishers) == ["attic", "hall"]
        with Lamp.light.subscribe(timeout=WAIT) as lights:
            assert sorted(lights.publishers) == ["attic", "bulb", "hall"]


def test_a_type_that_nobody_publishes_is_refused_and_names_both() -> None:
    with Lamp("lamp"):
        wrong = pyzmp.Topic(int, "lamp/words")
        with pytest.raises(TopicMismatch, match="lamp/words is expected to be int, and 'lamp' publishes it as str"):
            wrong.subscribe()

        async def main() -> None:
            with pytest.raises(TopicMismatch, match="is expected to be int"):
                await wrong.asubscribe()
        asyncio.run(main())
        assert Lamp.at("lamp").subscribers() == 0


def test_one_that_does_not_fit_among_others_is_told_and_logged(eventually: Callable[..., None],
                                                              caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []
    with Lamp("lamp"):
        numbers = Selection("lamp/*", Pattern("lamp/*"), type=Type.of(int))
        with subscribe_to(numbers, timeout=WAIT, on_event=events.append) as lights:
            Lamp.at("lamp").shine(0, 1)
            assert next(lights) == 0
            refused, = [event for event in events if isinstance(event, Refused)]
            assert (refused.topic, refused.node) == ("lamp/words", "lamp")
            assert "expected to be int" in refused.reason
            eventually(lambda: caplog.text.count(refused.reason) == 1)


def test_a_callback_is_called_in_a_thread_of_its_own_in_order(eventually: Callable[..., None],
                                                             caplog: pytest.LogCaptureFixture) -> None:
    got: list[Any] = []

    def callback(value: int) -> None:
        got.append((value, threading.current_thread().name))
        if value == 1:
            raise SystemExit
    with Lamp("lamp"):
        lights = Lamp.light.subscribe(callback)
        Lamp.at("lamp").shine(0, 3)
        eventually(lambda: len(got) == 3)
        assert got == [(value, "pyzmp-subscription") for value in range(3)]
        eventually(lambda: lights.received == 3)
        assert lights.failed == 1
        assert "callback" in caplog.text
        lights.close()
        eventually(lambda: Lamp.at("lamp").subscribers() == 0)
        Lamp.at("lamp").shine(3, 4)
        assert len(got) == 3
        assert Lamp.at("lamp").accounts()[0][:2] == (3, 3)


def test_a_callback_gets_messages_where_it_is_annotated_so(eventually: Callable[..., None]) -> None:
    got: list[Message[int]] = []

    def callback(message: Message[int]) -> None:
        got.append(message)
    with Lamp("lamp"):
        lights = Lamp.light.subscribe(callback)
        Lamp.at("lamp").shine(0, 2)
        eventually(lambda: len(got) == 2)
        assert [(message.value, message.number) for message in got] == [(0, 0), (1, 1)]

        async def main() -> None:
            await lights.aclose()
        asyncio.run(main())


def test_a_callback_may_close_its_subscription(eventually: Callable[..., None]) -> None:
    got: list[int] = []
    made: list[Any] = []

    def callback(value: int) -> None:
        got.append(value)
        made[0].close()
    with Lamp("lamp"):
        made.append(Lamp.light.subscribe(callback))
        Lamp.at("lamp").shine(0, 30)
        eventually(lambda: Lamp.at("lamp").subscribers() == 0)
        assert got == [0]


async def acallback(value: int) -> None: ...
def wrong_callback(value: str) -> None: ...
def generating(value: int) -> Any:
    yield value
async def agenerating(value: int) -> Any:
    yield value


class Thing:
    def no_argument(self) -> None: ...
    def __call__(self, value: int) -> Any:
        yield value


@pytest.mark.parametrize(("arguments", "error", "text"), [
    (((3,), {}), TypeError, "expected a function to call, got 3"),
    (((print,), {"timeout": 1}), TypeError, "leave one of the two out"),
    (((acallback,), {}), TypeError, "outside of nodes callbacks are called in a thread; iterate in async for"),
    (((), {"on_event": acallback}), TypeError, "on_event is to be a plain function"),
    (((), {"on_event": 3}), TypeError, "on_event is to be a plain function, got 3"),
    (((lambda: None,), {}), TypeError, r"<lambda>\(\) is to take one argument: the value, or the Message"),
    (((lambda a, b: None,), {}), TypeError, "is to take one argument"),
    (((Thing().no_argument,), {}), TypeError, r"callback Thing.no_argument\(\).* is to take one argument"),
    (((generating,), {}), TypeError, "callback generating is a generator; nobody would iterate"),
    (((agenerating,), {}), TypeError, "callback agenerating is a generator"),
    (((Thing(),), {}), TypeError, "is a generator"),
    (((wrong_callback,), {}), TypeError, "takes str, and Lamp.light is int"),
    (((), {"timeout": -1}), ValueError, "positive"),
    (((), {"full": "latest", "length": 3}), ValueError, "takes no length"),
])
def test_what_cannot_be_is_refused(arguments: Any, error: type[Exception], text: str) -> None:
    args, options = arguments
    with pytest.raises(error, match=text):
        Lamp.light.subscribe(*args, **options)


def test_to_wait_on_the_loop_that_publishes_is_a_deadlock() -> None:
    async def main() -> None:
        async with Lamp("lamp"):
            lights = Lamp.light.subscribe(timeout=WAIT)
            while not lights.publishers:  # noqa: ASYNC110
                await asyncio.sleep(0)
            with pytest.raises(DeadlockError, match="iterate in async for"):
                next(lights)
            await Lamp.at("lamp").shine.acall(0, 1)
            assert await lights.__anext__() == 0
            lights.close()
    asyncio.run(main())


def test_what_nobody_holds_is_closed() -> None:
    with Lamp("lamp"):
        lights = Lamp.light.subscribe(timeout=WAIT)
        assert Lamp.at("lamp").subscribers() == 1
        del lights
        gc.collect()
        assert Lamp.at("lamp").subscribers() == 0


def test_whoever_waits_ends_with_pyzmp(eventually: Callable[..., None]) -> None:
    lights = Lamp.light.subscribe()
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.extend(["ended", *lights]))
    thread.start()
    runtime.reset()
    thread.join(WAIT)
    assert ended == ["ended"]
    lights.close()


def test_raw_values_are_not_decoded() -> None:
    async def later() -> None:
        lights = await asubscribe_to(selected("lamp/light"), timeout=WAIT, raw=True)
        await Lamp.at("lamp").shine.acall(0, 1)
        assert await lights.__anext__() == Raw(codec.encode(0)[0], (), Type.of(int).shape)
        lights.close()
    with Lamp("lamp"):
        asyncio.run(later())


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_a_ctrl_c_loses_nothing_that_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT, full="block") as lights:
        Lamp.at("lamp").shine(0, 2)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Opening, "values", interrupted)
            next(lights)
        assert [next(lights), next(lights), lights.received] == [0, 1, 2]


def test_whoever_waits_for_the_latest_asks_for_it_again_after_a_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT, full="latest") as lights:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Subscription, "_post", interrupted)
            next(lights)
        Lamp.at("lamp").shine(0, 1)
        assert next(lights) == 0


def test_an_exit_in_an_event_callback_does_not_end_the_thread_of_a_callback(eventually: Callable[..., None]) -> None:
    got: list[int] = []

    def left(event: Any) -> None:
        raise SystemExit
    with Lamp("lamp"):
        lights = Lamp.light.subscribe(got.append, on_event=left)
        Lamp.at("lamp").shine(0, 1)
        eventually(lambda: got == [0])
        with pytest.raises(TypeError, match="calls a function with what comes"):
            next(lights)
        lights.close()
        with Lamp.light.subscribe(on_event=left) as iterated, pytest.raises(SystemExit):
            next(iterated)


def test_whoever_is_called_back_by_a_call_may_subscribe(eventually: Callable[..., None]) -> None:
    got: list[Any] = []

    def called(future: Any) -> None:
        got.append(Lamp.light.subscribe(timeout=WAIT))
        with pytest.raises(DeadlockError):
            next(got[0])
        got.append("done")
    with Lamp("lamp"):
        Lamp.at("lamp").shine.submit(0, 0).add_done_callback(called)
        eventually(lambda: len(got) == 2)
        eventually(lambda: got[0].publishers == ["lamp"])
        Lamp.at("lamp").shine(0, 1)
        assert next(got[0]) == 0
        got[0].close()


def test_a_callback_that_always_fails_is_logged_in_two_lines(eventually: Callable[..., None],
                                                            caplog: pytest.LogCaptureFixture) -> None:
    with Lamp("lamp"):
        lights = Lamp.light.subscribe(lambda value: acallback(value) if value >= 0 else None)
        Lamp.at("lamp").shine(0, 50)
        eventually(lambda: lights.failed == 50)
        lights.close()
        assert repr(lights) == "<Subscription to Lamp.light: closed, 50 received, 50 failed>"
    first, rest = [record.getMessage() for record in caplog.records if "raised" in record.getMessage()]
    assert first.startswith("lamp/light of 'lamp': the callback <function")
    assert "raised 49 more times, at last TypeError: " in rest
    assert rest.endswith("outside of nodes callbacks are called in a thread; iterate in async for")


def test_it_shows_what_became_of_it(eventually: Callable[..., None]) -> None:
    with Lamp("lamp"), Lamp.light.subscribe(timeout=WAIT, length=2) as lights:
        assert repr(lights) == "<Subscription to Lamp.light: 1 publisher, 0 received>"
        Lamp.at("lamp").shine(0, 50)
        assert next(lights) == 0
        eventually(lambda: Lamp.at("lamp").accounts()[0][:2] == (50, 1))
        next(lights)
        assert repr(lights).startswith("<Subscription to Lamp.light: 1 publisher, 2 received, ")
        assert repr(lights).endswith(" dropped>")
