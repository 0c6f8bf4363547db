"""An exception arrives as itself where it can, as a RemoteError where not, and never as another problem."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyzmp.exceptions import CallTimeout, CannotTravel, NodeDied, PyzmpError, RemoteError
from pyzmp.protocol import codec, failure

if sys.version_info < (3, 11):
    ExceptionGroup = None


class Plain(Exception):
    """As users write them."""


class Demanding(Exception):
    """Its constructor takes what its arguments do not tell, and must not run again."""

    made = 0

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.detail = code, detail
        type(self).made += 1


class Stubborn(Exception):
    def __new__(cls, *args: object, **more: object) -> Any:
        if "allowed" not in more:
            raise SystemExit("made behind the user's back")
        return super().__new__(cls, *args)

    def __init__(self, *args: object, allowed: bool) -> None:
        super().__init__(*args)


class Both(KeyError, ValueError):
    pass


class Disk(OSError):
    def __init__(self, disk: str) -> None:
        super().__init__(5, "broken", disk)
        self.disk = disk


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Nosy(Exception):
    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"asked for {name}")


class Slotted(Exception):
    __slots__ = ("extra",)


class Local:
    class Inner(Exception):
        pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def there(error: BaseException, *, node: str = "kitchen", service: str | None = "celsius") -> Any:
    return failure.rebuild(failure.describe(raised(error), node=node, service=service))


@pytest.mark.parametrize("error", [
    ValueError("text", 3), KeyError("key"), KeyError(("a", 1)), ZeroDivisionError(), Plain("x"), Both("k"),
    Local.Inner(1),
    UnicodeDecodeError("utf-8", b"\xff\xfe", 0, 1, "invalid start byte"), OSError(2, "gone"), IndexError(None),
    FileNotFoundError(2, "gone", "a.txt"), OSError(18, "crosses", "a", None, "b"), subprocess.CalledProcessError(3,
        "ls"),
    UnicodeEncodeError("ascii", "é", 0, 1, "ordinal"), SyntaxError("bad", ("f.py", 1, 2, "x y", 1, 3)),
    TimeoutError("late"),
    asyncio.TimeoutError(), ConnectionResetError(104, "reset"), MemoryError(), RecursionError("deep"),
    ImportError("no", name="x"),
    NameError("who", name="x"), AttributeError("which", name="y"), Slotted("s"), NotImplementedError(), EOFError()],
    ids=lambda error: type(error).__name__)
def test_an_exception_keeps_its_type_text_arguments_and_attributes(error: Exception) -> None:
    arrived = there(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)
    for name in ("errno", "strerror", "filename", "filename2", "name", "start", "lineno", "returncode", "cmd"):
        assert getattr(arrived, name, None) == getattr(error, name, None)
    cause = arrived.__cause__
    assert type(cause) is RemoteError
    assert (cause.nodes, cause.node, cause.service, cause.executed) == (("kitchen",), "kitchen", "celsius", True)
    assert cause.message == str(error)
    assert cause.type_name.rpartition(".")[2] == type(error).__name__
    assert "Traceback (most recent call last)" in cause.traceback_text
    assert "in raised" in cause.traceback_text


def test_a_constructor_does_not_run_again() -> None:
    error = Demanding(7, detail="why")
    arrived = there(error)
    assert type(arrived) is Demanding
    assert (arrived.code, arrived.detail, arrived.args, Demanding.made) == (7, "why", ("code 7",), 1)
    assert type(there(Stubborn("x", allowed=True))) is Stubborn


def test_the_fields_of_an_oserror_arrive_in_a_type_of_the_users() -> None:
    arrived = there(Disk("sda"))
    assert type(arrived) is Disk
    assert (arrived.errno, arrived.strerror, arrived.filename, arrived.disk) == (5, "broken", "sda", "sda")
    assert str(arrived) == str(Disk("sda"))


def test_attributes_and_notes_travel() -> None:
    error = Plain("x")
    error.where = {"row": 3, "cells": (1, 2)}  # type: ignore[attr-defined]
    error.__notes__ = ["first", "second"]  # type: ignore[attr-defined,unused-ignore]
    arrived = there(error)
    assert arrived.where == {"row": 3, "cells": (1, 2)}
    assert arrived.__notes__ == ["first", "second"]


def test_causes_travel_with_their_types() -> None:
    try:
        try:
            try:
                {}["key"]  # type: ignore[var-annotated]
            except KeyError as error:
                raise OSError(2, "gone") from error
        except OSError:
            raise Plain("top")  # noqa: B904
    except Plain as error:
        arrived = failure.rebuild(failure.describe(error, node="kitchen"))
    assert type(arrived) is Plain
    first = arrived.__cause__
    assert isinstance(first, RemoteError)
    assert type(first.__cause__) is FileNotFoundError or type(first.__cause__) is OSError
    second = first.__cause__.__cause__
    assert isinstance(second, RemoteError)
    assert repr(second.__cause__) == "KeyError('key')"


def test_a_hidden_context_stays_hidden() -> None:
    try:
        try:
            raise KeyError("secret")
        except KeyError:
            raise Plain("shown") from None
    except Plain as error:
        arrived = failure.rebuild(failure.describe(error, node="n"))
    assert arrived.__cause__ is not None
    assert arrived.__cause__.__cause__ is None


def test_a_circle_or_a_thousand_of_causes_ends() -> None:
    first, second = Plain(1), Plain(2)
    first.__cause__, second.__cause__ = second, first
    assert type(there(first)) is Plain
    top: Exception = Plain(0)
    for number in range(1000):
        new = Plain(number)
        new.__cause__ = top
        top = new
    assert type(there(top)) is Plain


UNREBUILT = [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError("c"), StopIteration(4),
             StopAsyncIteration(), CallTimeout("late"), NodeDied("n"), CannotTravel("T", "value"), PyzmpError("p"),
             BaseException("b")]


@pytest.mark.parametrize("error", UNREBUILT, ids=lambda error: type(error).__name__)
def test_what_would_mean_something_else_here_becomes_a_remote_error(error: BaseException) -> None:
    arrived = there(error)
    assert type(arrived) is RemoteError
    assert arrived.type_name.endswith(type(error).__qualname__)
    assert arrived.nodes == ("kitchen",)


def test_a_type_that_is_unknown_here_becomes_a_remote_error() -> None:
    hidden = type("Hidden", (Exception,), {"__module__": "no.such.module"})
    arrived = there(hidden("text"))
    assert type(arrived) is RemoteError
    assert (arrived.type_name, arrived.message) == ("no.such.module.Hidden", "text")
    assert "no.such.module" not in sys.modules
    local = type("Local", (Exception,), {})
    assert type(there(local("x"))) is RemoteError


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [
    threading.Lock(), deep(), cyclic(), "x" * 10_000_000, bytes(10_000_000), bytearray(20_000), lambda: None,
    object(), list(range(200_000)), "\ud800", Mute(), sys, type("Odd", (), {"__reduce__": None})()], ids=
    lambda value: type(value).__name__)
def test_attributes_that_cannot_travel_are_named(value: object) -> None:
    error = Plain("text", value)
    error.good, error.bad = 1, value  # type: ignore[attr-defined]
    body = failure.describe(raised(error), node="kitchen", service="celsius")
    assert len(body) < 600_000
    arrived: Any = failure.rebuild(body)
    assert type(arrived) is Plain
    assert (arrived.good, hasattr(arrived, "bad"), arrived.args[0]) == (1, False, "text")
    told = "\n".join(arrived.__notes__)
    assert "lost on the way" in told
    assert "attribute 'bad'" in told
    assert "args[1]" in told
    assert "attribute 'bad'" in arrived.__cause__.traceback_text


@pytest.mark.parametrize("error", [Mute("x"), Leaving("x"), Nosy("x"), Plain("\ud800\udfff"), Plain(Mute())],
                         ids=lambda error: type(error).__name__)
def test_an_exception_whose_text_cannot_be_made_arrives(error: Exception) -> None:
    assert type(there(error)) is type(error)


def test_odd_notes_and_names_do_no_harm() -> None:
    error = Plain("x")
    error.__notes__ = [Mute(), 3, "\ud800"]  # type: ignore[attr-defined,unused-ignore]
    assert len(there(error).__notes__) == 3
    error.__notes__ = 5  # type: ignore[attr-defined,unused-ignore]
    assert type(there(error)) is Plain
    vars(error)[7] = 1  # type: ignore[index]
    vars(error)["\ud800"] = 1
    assert isinstance(there(error), (Plain, RemoteError))


def test_an_exception_that_is_too_large_in_all_arrives_with_its_text_alone() -> None:
    arrived = there(Plain(*["x" * 30_000] * 100))
    assert type(arrived) is Plain
    assert len(arrived.args) == 1
    assert arrived.__notes__ == ["lost on the way: its details: they take more than 1048576 bytes"]
    assert "in raised" in arrived.__cause__.traceback_text
    assert len(failure.describe(Plain(*["x" * 30_000] * 100), node="n")) < 200_000


def test_an_argument_as_deep_as_may_be_is_too_deep_inside_an_exception() -> None:
    value: list[Any] = []
    for _ in range(62):
        value = [value]
    codec.encode(value)
    arrived = there(Plain(value))
    assert type(arrived) is Plain
    assert "its details" in arrived.__notes__[0]
    assert arrived.__cause__.nodes == ("kitchen",)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups")
def test_a_group_arrives_as_a_remote_error() -> None:
    arrived = there(ExceptionGroup("several", [ValueError(1), KeyError(2)]))
    assert arrived.type_name == "ExceptionGroup"
    assert "ValueError: 1" in arrived.traceback_text


def test_the_way_of_an_exception_through_nodes_is_told() -> None:
    first = there(Plain("x"), node="attic", service="inner")
    second = there(first, node="hall", service="outer")
    assert type(second) is Plain
    assert (second.__cause__.nodes, second.__cause__.service) == (("attic", "hall"), "inner")


def test_an_exception_unknown_on_its_way_keeps_its_name_and_text() -> None:
    hidden = type("Hidden", (Exception,), {"__module__": "no.such.module"})
    first = there(hidden("text"), node="attic", service="inner")
    second = there(first, node="hall", service="outer")
    assert (second.type_name, second.message) == ("no.such.module.Hidden", "text")
    assert (second.nodes, second.service) == (("attic", "hall"), "inner")
    assert "in raised" in second.traceback_text


def test_an_exception_that_was_made_of_a_remote_one_is_its_own_nodes() -> None:
    remote = RemoteError("no.such.Hidden", "text", nodes=["attic"], service="inner")
    error = Plain("mine")
    error.__cause__ = remote
    arrived = there(error, node="hall", service="outer")
    assert (arrived.__cause__.nodes, arrived.__cause__.service) == (("hall",), "outer")
    assert arrived.__cause__.__cause__.nodes == ("attic", "hall")


def is_safe(error: object) -> bool:
    return isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)) and (
        type(error) is RemoteError or not isinstance(error, PyzmpError))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_become_an_error_and_never_raise(body: bytes) -> None:
    assert is_safe(failure.rebuild(body))


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8),
    st.sampled_from(
    ["builtins:ValueError", "builtins:OSError", "builtins:eval", "os:system", "builtins:StopIteration",
        "builtins:KeyError",
     "builtins:UnicodeDecodeError", "builtins:ExceptionGroup", "pyzmp.exceptions:CallTimeout",
     f"{__name__}:Demanding", "sys:modules",
     "builtins:SyntaxError", "builtins:KeyboardInterrupt", ":", ""]))
values = st.recursive(leaves, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(
        ["args", "errno", "filename", "__class__", "__dict__", "__cause__", "__notes__", "name"])), inner,
        max_size=4)), max_leaves=12)
forms = st.fixed_dictionaries(
    {"type": values, "message": values, "args": values, "state": values, "notes": values, "trace": values,
     "nodes": values, "service": values, "lost": values}, optional={"cause": values})
whole = st.fixed_dictionaries(
    {"type": leaves, "message": leaves, "args": st.lists(values, max_size=5), "state": st.dictionaries(st.sampled_from(
        ["errno", "filename", "name", "path", "__class__", "__traceback__", "x"]), values), "notes": st.lists(values,
        max_size=2),
     "trace": leaves, "nodes": st.lists(leaves, max_size=2), "service": leaves, "lost": st.lists(leaves, max_size=2)})


@settings(max_examples=400)
@given(st.one_of(values, forms, whole, st.builds(lambda outer, inner: {**outer, "cause": inner}, whole, whole)))
def test_hostile_forms_become_an_error_and_never_raise(form: Any) -> None:
    arrived = failure.rebuild(codec.encode(form)[0])
    assert is_safe(arrived)
    failure.describe(arrived, node="n")
    assert isinstance(arrived.__cause__, RemoteError) or type(arrived) is RemoteError


@given(st.data())
def test_a_mutated_description_becomes_an_error(data: st.DataObject) -> None:
    body = bytearray(failure.describe(FileNotFoundError(2, "gone", "a"), node="n", service="s"))
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert is_safe(failure.rebuild(bytes(body)))


def test_modules_that_raise_when_looked_at_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("looked at")

    monkeypatch.setitem(sys.modules, "trap", Trap())  # type: ignore[arg-type]
    body = failure.describe(Plain("x"), node="n").replace(__name__.encode() + b":Plain",
        b"trap:" + b"x" * (len(__name__) + 1))
    assert type(failure.rebuild(body)) is RemoteError
