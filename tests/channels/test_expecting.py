"""What a callback expects, by its annotations."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from pyzmp.channels.expecting import expected, expecting, is_async, wants_messages
from pyzmp.channels.message import Message
from pyzmp.channels.message import Message as Got
from pyzmp.channels.selection import Selection
from pyzmp.protocol.schema import Type


def plain(value): ...  # type: ignore[no-untyped-def]
def number(value: float) -> None: ...
def message(value: Message[float]) -> None: ...
def any_message(value: Message) -> None: ...  # type: ignore[type-arg]
def anything(value: Any) -> None: ...
def later(value: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def later_message(value: Message[Later]) -> Later: ...  # type: ignore[name-defined]  # noqa: F821
def known_message(value: Message[float]) -> Later: ...  # type: ignore[name-defined]  # noqa: F821
def nothing() -> None: ...
def bound(value: Got[int], more: int = 0) -> None: ...


class Handler:
    def handle(self, value: int) -> None: ...


@pytest.mark.parametrize(("function", "wants", "text"), [
    (plain, False, None), (number, False, "float"), (message, True, "float"), (any_message, True, None),
    (anything, False, None), (later, False, None), (later_message, True, None),
    (known_message, True, "float"), (nothing, False, None), (Handler().handle, False, "int"),
    (print, False, None), (functools.partial(bound, more=1), True, "int"),
    (functools.partial(Handler().handle), False, "int"),
])
def test_a_callback_expects_what_it_is_annotated_with(function: Any, wants: bool, text: str | None) -> None:
    assert wants_messages(function) is wants
    found = expected(function, "it")
    assert (found.text if found is not None else None) == text


def test_a_selection_takes_the_type_of_the_callback_where_that_fits() -> None:
    numbers = Selection("n", type=Type.of(int))
    assert expecting(numbers, plain, "it") is numbers
    wider = expecting(numbers, number, "it")
    assert wider.type is not None
    assert wider.type.text == "float"
    assert expecting(Selection("n"), message, "it").type is not None
    with pytest.raises(TypeError, match="it takes int, and n is str: published str, expected int"):
        expecting(Selection("n", type=Type.of(str)), Handler().handle, "it")


def test_a_callback_may_name_what_has_no_value_yet() -> None:
    def callback(value: int) -> None:
        made.close()
    assert getattr(expected(callback, "it"), "text", None) == "int"
    made: Any = None


def test_an_object_may_be_called_as_a_coroutine() -> None:
    class Awaited:
        async def __call__(self, value: int) -> None: ...
    assert is_async(Awaited())
    assert is_async(Awaited().__call__)
    assert not is_async(Handler().handle)
    assert not is_async(print)
