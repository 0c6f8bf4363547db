"""Declaring what nodes listen to."""

from __future__ import annotations

from typing import Any

import pytest

import pyzmp
from pyzmp import Topic
from pyzmp.channels.message import Message
from pyzmp.channels.subscribe import listening_of, subscribe

light = Topic(float, "house/light")
words = Topic(str, "house/words")


class Lamp(pyzmp.Node):
    power = Topic(int)

    @subscribe(light, full="latest")
    @subscribe("sensors/*", length=3, history=2)
    def see(self, value: float) -> None: ...

    @subscribe(power)
    async def own(self, value: Message[int]) -> None: ...


def test_a_handler_stays_a_method_and_says_what_it_is_called_for() -> None:
    Lamp("lamp").see(1.0)
    listens = listening_of(Lamp)
    assert list(listens) == ["see", "own"]
    latest, pattern = listens["see"]
    assert (latest.selection().text, pattern.selection().text) == ("house/light", "sensors/*")
    assert pattern.selection().pattern is not None
    assert (latest.terms("lamp").latest, pattern.terms("lamp").length, pattern.terms("lamp").history) == (True, 3, 2)
    assert latest.terms("lamp").who == "lamp"
    assert listens["own"][0].selection().mark == "Lamp.power"


def test_a_subclass_inherits_handlers_and_may_declare_them_again() -> None:
    class Bulb(Lamp):
        @subscribe(words)
        def see(self, value: str) -> None: ...  # type: ignore[override]
    assert [each.topic for each in listening_of(Bulb)["see"]] == [words]
    assert listening_of(Bulb)["own"] == listening_of(Lamp)["own"]


def test_the_argument_decides_the_type_of_a_pattern() -> None:
    lamp = Lamp("lamp")
    latest, pattern = listening_of(Lamp)["see"]
    for each in (latest, pattern):
        wanted = each.handled(lamp.see).type
        assert wanted is not None
        assert wanted.text == "float"


def test_an_override_that_is_no_handler_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Bulb\.see overrides a handler of .*Bulb without being one; put"):
        class Bulb(Lamp):
            def see(self, value: float) -> None: ...


def test_a_handler_whose_argument_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match=r"handler .*Bulb\.see takes int, and house/words is str: published str, expec"):
        class Bulb(pyzmp.Node):
            @subscribe(words)  # type: ignore[arg-type]
            def see(self, value: int) -> None: ...
    with pytest.raises(TypeError, match="takes int, and house/words is str"):
        class Other(pyzmp.Node):
            @subscribe(words)  # type: ignore[arg-type]
            def see(self, value: Message[int]) -> None: ...


def test_a_handler_may_take_a_wider_type_or_any_or_one_that_is_defined_later() -> None:
    class Bulb(pyzmp.Node):
        @subscribe(light)
        def maybe(self, value: float | None) -> None: ...
        @subscribe(light)
        def anything(self, value: Any) -> None: ...
        @subscribe(light)
        def untyped(self, value): ...  # type: ignore[no-untyped-def]
        @subscribe("any/thing")
        def later(self, value: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    assert len(listening_of(Bulb)) == 4


@pytest.mark.parametrize("wrong", [staticmethod, classmethod])
def test_a_handler_is_a_plain_method(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"a handler inside of a|goes on a plain method"):
        class Inside(pyzmp.Node):
            see = wrong(subscribe("a/b")(lambda self, value: None))
    with pytest.raises(TypeError, match="goes on a plain method, that gets the node as self, got"):
        subscribe("a/b")(wrong(lambda self, value: None))


def test_a_handler_takes_one_argument() -> None:
    with pytest.raises(TypeError, match=r"Nothing.see\(self\) .*is to take one argument besides self"):
        class Nothing(pyzmp.Node):
            @subscribe("a/b")
            def see(self) -> None: ...
    with pytest.raises(TypeError, match="is to take one argument"):
        class Two(pyzmp.Node):
            @subscribe("a/b")
            def see(self, value: int, other: int) -> None: ...
    with pytest.raises(TypeError, match="is a generator"):
        class Generates(pyzmp.Node):
            @subscribe("a/b")
            def see(self, value: int) -> Any:
                yield value


def test_what_is_no_topic_is_refused() -> None:
    for wrong in (3, None, Lamp):
        with pytest.raises(TypeError, match="@subscribe takes a topic, a name or a pattern of names, got"):
            subscribe(wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="a//b"):
        subscribe("a//b")
    with pytest.raises(ValueError, match="full: expected one of"):
        subscribe("a/b", full="never")  # type: ignore[call-overload]


def test_a_method_is_a_service_or_a_handler() -> None:
    with pytest.raises(TypeError, match=r"Bulb\.see is a service and a handler; make it one or the other"):
        class Bulb(pyzmp.Node):
            @pyzmp.service
            @subscribe(words)
            def see(self, value: str) -> None: ...
    with pytest.raises(TypeError, match=r"Other\.see is a service, .*; make it one or the other"):
        class Other(pyzmp.Node):
            @subscribe(words)  # type: ignore[arg-type]
            @pyzmp.service
            def see(self, value: str) -> None: ...


def test_a_function_outside_of_a_class_is_no_handler() -> None:
    def local(self: Any, value: str) -> None: ...
    for function in (local, outside):
        with pytest.raises(TypeError, match=rf"{function.__name__} is none; in a program write topic\.subscribe\("):
            subscribe(words)(function)


def outside(self: Any, value: str) -> None: ...


def test_a_handler_is_for_a_topic() -> None:
    with pytest.raises(TypeError, match=r"takes a topic, .* write @pyzmp\.subscribe\(Sensor\.reading\)"):
        subscribe()  # type: ignore[call-overload]


@pytest.mark.parametrize("annotation", ["Flot", "Message[Flot]", Message["Flot"]])  # type: ignore[name-defined]
def test_a_name_that_nobody_has_defined_by_the_start_is_an_error(annotation: Any) -> None:
    class Bulb(pyzmp.Node):
        kind = "entity"

        def see(self, value): ...  # type: ignore[no-untyped-def]
        see.__annotations__["value"] = annotation
        subscribe(words)(see)
    pyzmp.configure(registry="memory")
    with pytest.raises(TypeError, match=r"Bulb\.see: .*Flot'?.* not defined"):
        Bulb("bulb").start()
