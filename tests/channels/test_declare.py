"""What ``@service`` and ``@every`` make of a method.  The rules for classes of nodes are tested with the nodes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pyzmp.channels.declare import ServiceMethod, check_class, every, marks_of, methods_of, service, timers_of
from pyzmp.channels.service import Service
from pyzmp.channels.streaming import StreamService
from pyzmp.protocol.facts import Trait

if TYPE_CHECKING:
    class Defined: ...


class Base:
    @service
    def first(self, n: int) -> str:
        """The first."""
        return str(n)

    @every(0.5)
    def tick(self) -> None: ...


class Derived(Base):
    @service(name="other", timeout=3, idempotent=True)
    def second(self) -> None: ...

    @service
    def first(self, n: int) -> str:
        return "derived"


def test_on_the_class_it_is_the_channel_and_on_an_instance_the_method() -> None:
    assert isinstance(Base.first, Service)
    assert Base.first is Base.first
    assert Base().first(3) == "3"
    assert Derived().first(3) == "derived"
    assert inspect.getattr_static(Base, "first").__doc__ == "The first."
    assert dict(inspect.getmembers(Base()))["first"](1) == "1"


def test_the_services_of_a_class_are_those_it_declares_and_inherits() -> None:
    assert list(methods_of(Derived)) == ["first", "second"]
    found = methods_of(Derived)["second"]
    assert (found.name, found.timeout, found.idempotent, found.worker) == ("other", 3.0, True, False)
    assert Derived.second.name == "other"


def test_a_provider_carries_the_mark_of_each_class_that_declares_the_service() -> None:
    marks = marks_of(Derived, "first")
    assert [mark.partition(":")[0] for mark in marks] == ["Derived", "Base"]
    assert marks_of(Base, "first") == marks[1:]


def test_the_timers_of_a_class_have_periods() -> None:
    assert timers_of(Derived) == {"tick": 0.5}
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"every\(\)"):
            every(wrong)
    with pytest.raises(TypeError):
        every("1")  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", [3, None, "text"])
def test_a_service_is_made_of_a_method_only(thing: Any) -> None:
    with pytest.raises(TypeError, match="goes on a method"):
        ServiceMethod(thing)


def test_a_timeout_is_a_positive_number() -> None:
    for wrong in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="timeout"):
            service(timeout=wrong)(lambda self: None)


class Root:
    def start(self) -> None: ...

    def __init_subclass__(cls) -> None:
        check_class(cls, Root)


class Plain:
    def first(self) -> None: ...


class Starts:
    @service
    def start(self) -> None: ...


def test_what_a_mixin_hides_is_seen_through_the_whole_line_of_classes() -> None:
    class Good(Root, Base): ...
    with pytest.raises(TypeError, match=r"Plain\.first overrides a service of Bad without being one"):
        type("Bad", (Plain, Good), {})
    with pytest.raises(TypeError, match=r"service Starts\.start would hide Root\.start"):
        type("Bad", (Starts, Root), {})
    type("Right", (Good, Plain), {})


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_service_inside_of_a_static_or_class_method_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match=rf"Bad\.one is a service inside of a {kind.__name__}"):
        type("Bad", (Root,), {"one": kind(service(lambda self: None))})


def test_two_services_of_a_class_have_two_names() -> None:
    with pytest.raises(TypeError, match=r"Bad\.first and Bad\.other are both the service 'first'"):
        type("Bad", (Root, Base), {"other": service(name="first")(lambda self: None)})
    type("Right", (Root, Base), {"first": service(name="another")(lambda self: None)})


@pytest.mark.parametrize("name", ["", "a/b", "x" * 300, "two\nlines"])
def test_a_service_has_a_name_that_can_be_looked_for(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a service"):
        service(name=name)(lambda self: None)


# -- streams ------------------------------------------------------------------------------------------------------


class Streams:
    @service
    def numbers(self) -> Iterator[int]:
        yield 1

    @service
    def given(self) -> Iterator[int]:
        return iter([1])

    @service
    def sent(self) -> Generator[int, str, bool]:
        yield 1
        return True

    @service
    async def later(self) -> AsyncIterator[int]:
        yield 1

    @service(worker=True)
    def lines(self, items: Iterable[int]) -> Iterator[int]:
        yield from items

    @service
    async def taken(self, items: AsyncIterator[int]) -> int:
        return sum([item async for item in items])

    @service
    def plain(self) -> list[int]:
        return [1]


def test_a_service_that_streams_its_result_is_another_channel() -> None:
    for attribute in ("numbers", "given", "sent", "later", "lines"):
        channel = getattr(Streams, attribute)
        assert type(channel) is StreamService
        assert channel is getattr(Streams, attribute)
        assert channel.name == attribute
    for attribute in ("taken", "plain"):
        assert type(getattr(Streams, attribute)) is Service


def test_on_an_instance_a_stream_is_the_method() -> None:
    assert list(Streams().lines(iter([1, 2]))) == [1, 2]
    assert inspect.isasyncgenfunction(Streams().later)


def test_what_callers_should_know_of_a_service_are_its_traits() -> None:
    class Repeated:
        @service(idempotent=True)
        def one(self) -> None: ...
        @service(deduplicate=True)
        def two(self) -> None: ...
        @service(idempotent=True, deduplicate=True)
        def three(self) -> None: ...

    found = {attribute: method.traits() for cls in (Repeated, Streams) for attribute, method in methods_of(cls).items()}
    assert found == {"one": Trait.IDEMPOTENT, "two": Trait.DEDUPLICATE, "three": Trait.IDEMPOTENT | Trait.DEDUPLICATE,
                     "numbers": Trait.STREAM, "given": Trait.STREAM, "sent": Trait.STREAM, "later": Trait.STREAM,
                     "lines": Trait.STREAM, "taken": 0, "plain": 0}
    assert methods_of(Repeated)["two"].declared().traits == Trait.DEDUPLICATE


def inline(self: Any, items: Iterator[int]) -> int: ...  # type: ignore[empty-body]
def echo(self: Any, items: Iterable[int]) -> Iterator[int]: yield from items
async def blocking(self: Any, items: Iterable[int]) -> None: ...
def awaiting(self: Any, items: AsyncIterator[int]) -> None: ...
async def returned(self: Any) -> AsyncIterator[int]: ...  # type: ignore[empty-body]
async def agen(self: Any) -> AsyncIterator[int]: yield 1
def numbers(self: Any) -> Iterator[int]: yield 1
async def taken(self: Any, items: AsyncIterable[int]) -> None: ...


@pytest.mark.parametrize(("function", "options", "said"), [
    (inline, {}, "the loop that it holds up; make it async, or worker=True, or annotate items as a list"),
    (echo, {}, "echo takes a stream, which would have to arrive on the loop that it holds up"),
    (blocking, {}, "is async, and could not wait for the items of argument items; annotate AsyncIterator[...]"),
    (awaiting, {"worker": True}, "in a thread, and could not wait for the items of argument items; annotate Iterator["),
    (returned, {}, "returned is async and returns an iterator; write it as an async generator"),
    (agen, {"worker": True}, "agen is async, and runs on the node's loop"),
    (numbers, {"idempotent": True}, "numbers is a stream, which is never begun again by itself; leave idempotent out"),
    (agen, {"deduplicate": True}, "agen is a stream, which is never begun again by itself; leave deduplicate out"),
    (taken, {"idempotent": True}, "taken takes a stream, which is never begun again by itself; leave idempotent out"),
], ids=lambda value: getattr(value, "__name__", None))
def test_a_stream_that_could_not_work_is_refused_when_it_is_declared(function: Any, options: dict[str, Any],
                                                                   said: str) -> None:
    with pytest.raises(TypeError) as raised:
        service(**options)(function)
    assert said in str(raised.value)
    for works in (numbers, agen, taken):
        service(works)


def test_a_stream_of_what_is_defined_later_is_known_by_its_looks_and_checked_once_it_can_be() -> None:
    class Early:
        @service
        def numbers(self) -> Iterator[Defined]:
            yield Defined()

        @service
        def total(self, items: Iterator[Defined]) -> int: ...  # type: ignore[empty-body]

    assert type(Early.numbers) is StreamService
    globals()["Defined"] = dataclass(type("Defined", (), {}))
    try:
        assert methods_of(Early)["numbers"].traits() == Trait.STREAM
        with pytest.raises(TypeError, match="total takes a stream"):
            methods_of(Early)["total"].declared()
    finally:
        del globals()["Defined"]


def test_a_stream_is_found_in_the_declaration_that_travels() -> None:
    again = pickle.loads(pickle.dumps(Declaring.numbers))
    assert type(again) is StreamService
    assert again.name == "numbers"


class Declaring:
    @service
    def numbers(self) -> Iterator[int]:
        yield 1
