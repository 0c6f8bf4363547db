"""What ``@service`` and ``@every`` make of a method.  The rules for classes of nodes are tested with the nodes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from pyzmp.channels.declare import ServiceMethod, check_class, every, marks_of, methods_of, service, timers_of
from pyzmp.channels.service import Service


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
