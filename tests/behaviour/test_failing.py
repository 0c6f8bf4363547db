"""What a caller gets when a call cannot succeed, wherever the node lives; the node goes on in every case."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import CannotTravel, DeadlockError, Refused
from tests.campaigns.history import SCALE


class Spilled(Exception):
    """A user's own error, whose constructor nobody could guess."""

    def __init__(self, what: str, *, litres: float) -> None:
        super().__init__(f"{litres} l of {what}")
        self.what, self.litres = what, litres


class Local(Exception):
    pass


class Server(pyzmp.Node):
    def on_start(self) -> None:
        self.ran = 0

    @pyzmp.service
    def count(self) -> int:
        return self.ran

    @pyzmp.service
    def typed(self, number: int, text: str = "", *, ratio: float = 0.0, many: list[int] | None = None) -> None:
        self.ran += 1

    @pyzmp.service
    def spill(self, what: str) -> None:
        raise Spilled(what, litres=0.5)

    @pyzmp.service
    async def aspill(self, what: str) -> None:
        await asyncio.sleep(0)
        raise Spilled(what, litres=0.5)

    @pyzmp.service(worker=True)
    def wspill(self, what: str) -> None:
        raise Spilled(what, litres=0.5)

    @pyzmp.service
    def unknown_type(self) -> None:
        raise type("OnlyThere", (Exception,), {"__module__": "elsewhere"})("gone")

    @pyzmp.service
    def burdened(self) -> None:
        error = ValueError("burdened")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        error.size = 3  # type: ignore[attr-defined]
        raise error

    @pyzmp.service
    def unspeakable(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")
        raise Mute

    @pyzmp.service
    def chained(self) -> None:
        try:
            {}["tea"]
        except KeyError as error:
            raise ValueError("no tea") from error

    @pyzmp.service
    def leave(self) -> None:
        raise SystemExit(3)

    @pyzmp.service
    def stop(self) -> None:
        raise StopIteration

    @pyzmp.service
    async def cancelled(self) -> None:
        raise asyncio.CancelledError

    @pyzmp.service
    def late(self) -> None:
        raise pyzmp.CallTimeout("somebody else's")

    @pyzmp.service
    def lock(self) -> Any:
        return [threading.Lock()]

    @pyzmp.service
    def lies(self) -> int:
        return "five"  # type: ignore[return-value]

    @pyzmp.service
    async def alies(self) -> int:
        return "five"  # type: ignore[return-value]

    @pyzmp.service(worker=True)
    def wlies(self) -> int:
        return "five"  # type: ignore[return-value]

    @pyzmp.service
    def lies_deeply(self) -> dict[str, list[int]]:
        return {"a": [1, "two"]}  # type: ignore[list-item]

    @pyzmp.service
    def counted(self) -> Iterator[int]:
        yield 1

    @pyzmp.service
    def echo(self, value: Any) -> Any:
        return value

    @pyzmp.service(worker=True)
    def hold(self, seconds: float) -> None:
        self.ran += 1
        time.sleep(seconds)

    @pyzmp.service(worker=True)
    def stay(self, until: str) -> None:
        self.ran += 1
        while not os.path.exists(until):
            time.sleep(0.005)

    @pyzmp.service
    def block(self, seconds: float) -> None:
        self.ran += 1
        time.sleep(seconds)

    @pyzmp.service
    def whole(self) -> float:
        return 1.0


class Middle(pyzmp.Node):
    """Asks the server on behalf of its own callers."""

    @pyzmp.service(worker=True)
    def sync(self, seconds: float) -> None:
        Server.at("server").hold(seconds)

    @pyzmp.service
    async def awaited(self, seconds: float) -> None:
        await Server.at("server").hold.acall(seconds)

    @pyzmp.service
    async def spill(self, what: str) -> None:
        await Server.aspill.acall(what)

    @pyzmp.service
    async def remaining(self) -> float:
        return pyzmp.current_call().remaining

    @pyzmp.service
    def blocking_self(self) -> float:
        return Middle.at(self.name).remaining()


@pytest.fixture
def server(place: Any) -> Server:
    return place.start(Server("server"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("service", ["spill", "aspill", "wspill"])
def test_an_error_keeps_its_type_and_attributes_and_has_its_traceback(server: Server, service: str) -> None:
    with pytest.raises(Spilled) as caught:
        getattr(Server, service)("milk")
    error = caught.value
    assert (str(error), error.what, error.litres) == ("0.5 l of milk", "milk", 0.5)
    cause = error.__cause__
    assert isinstance(cause, pyzmp.RemoteError)
    assert (cause.type_name.rpartition(".")[2], cause.message) == ("Spilled", "0.5 l of milk")
    assert (cause.nodes, cause.service, cause.executed) == (("server",), service, True)
    assert f"in {service}\n" in cause.traceback_text
    assert "raise Spilled(what, litres=0.5)" in cause.traceback_text


def test_futures_and_awaited_calls_raise_the_same(server: Server) -> None:
    for error in (Server.spill.submit("tea").exception(5), _raised(lambda: asyncio.run(Server.spill.acall("tea"))),
                  _raised(lambda: Server.spill.submit("tea").result(5))):
        assert isinstance(error, Spilled)
        assert isinstance(error.__cause__, pyzmp.RemoteError)


def _raised(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_an_error_whose_type_is_not_here_is_a_remote_error(home: Any) -> None:
    home.start(Server("server"))
    error = _raised(Server.unknown_type)
    assert type(error) is pyzmp.RemoteError
    assert (error.type_name, error.message) == ("elsewhere.OnlyThere", "gone")
    assert "raised in unknown_type of node 'server'" in str(error)


def test_errors_that_cannot_travel_whole_still_arrive(home: Any) -> None:
    home.start(Server("server"))
    error = _raised(Server.burdened)
    assert type(error) is ValueError
    assert str(error) == "burdened"
    assert error.size == 3  # type: ignore[attr-defined]
    assert "lock" in str(error.__cause__)
    assert "Mute" in str(_raised(Server.unspeakable))
    assert Server.count() == 0


def test_the_causes_of_an_error_are_in_its_traceback(home: Any) -> None:
    home.start(Server("server"))
    assert "KeyError: 'tea'" in str(_raised(Server.chained).__cause__)


@pytest.mark.parametrize(("service", "name"), [("leave", "SystemExit"), ("stop", "StopIteration"),
                                               ("cancelled", "CancelledError"), ("late", "CallTimeout")])
def test_what_would_be_taken_for_something_else_arrives_as_a_remote_error(home: Any, service: str, name: str) -> None:
    home.start(Server("server"))
    error = _raised(getattr(Server, service))
    assert type(error) is pyzmp.RemoteError
    assert name in error.type_name
    assert Server.count() == 0


CALLS: list[tuple[tuple[Any, ...], dict[str, Any], list[str]]] = [
    (("1",), {}, ["typed()", "argument number", "expected int", "got str"]),
    ((1.0,), {}, ["argument number", "expected int", "got float"]),
    ((True,), {}, ["argument number", "expected int", "got bool"]),
    ((None,), {}, ["argument number", "expected int"]),
    ((1, 2), {}, ["argument text", "expected str", "got int"]),
    ((1,), {"ratio": "0.5"}, ["argument ratio", "expected float", "got str"]),
    ((1,), {"many": [1, "2"]}, ["argument many", "1", "expected int", "got str"]),
    ((), {}, ["missing", "number"]),
    ((1, "", 3), {}, ["typed()", "positional"]),
    ((1,), {"volume": 3}, ["volume"]),
    ((1,), {"number": 1}, ["number"]),
]


@pytest.mark.parametrize(("args", "kwargs", "words"), CALLS)
def test_arguments_that_do_not_fit_are_refused_by_the_caller(args: tuple[Any, ...], kwargs: dict[str, Any],
                                                             words: list[str]) -> None:
    pyzmp.configure(registry="memory")
    with Server("server", kind="entity"):
        calls: list[Callable[[], Any]] = [
            lambda: Server.typed(*args, **kwargs), lambda: Server.typed.submit(*args, **kwargs),
            lambda: asyncio.run(Server.typed.acall(*args, **kwargs))]
        for call in calls:
            error = _raised(call)
            assert isinstance(error, pyzmp.InvalidCall)
            assert isinstance(error, TypeError)
            assert all(word in str(error) for word in words), str(error)
            assert error.executed is False
        assert Server.count() == 0


@pytest.mark.parametrize(("args", "kwargs", "words"), CALLS)
def test_or_by_the_node_where_the_caller_knows_no_types(args: tuple[Any, ...], kwargs: dict[str, Any],
                                                        words: list[str]) -> None:
    pyzmp.configure(registry="memory")
    with Server("server", kind="entity"):
        typed = pyzmp.discover("typed")
        assert typed is not None
        error = _raised(lambda: typed(*args, **kwargs))
        assert isinstance(error, pyzmp.InvalidCall)
        assert all(word in str(error) for word in words), str(error)
        assert error.executed is False
        assert Server.count() == 0


def test_invalid_calls_are_refused_over_every_transport(server: Server) -> None:
    typed = pyzmp.discover("typed")
    assert typed is not None
    for service in (Server.typed, typed):
        with pytest.raises(pyzmp.InvalidCall, match="argument number"):
            service("1")
    assert Server.count() == 0
    assert Server.typed(1, "a", ratio=1, many=[2]) is None
    assert Server.count() == 1


def test_what_cannot_travel_is_said_where_it_was_sent(server: Server) -> None:
    with pytest.raises(CannotTravel, match=r"argument 1: .*lock"):
        Server.echo(threading.Lock())
    with pytest.raises(CannotTravel, match=r"PurePosixPath"):
        Server.echo({"deep": [PurePosixPath("/")]})
    error = _raised(Server.lock)
    assert "the result of lock()" in str(error)
    assert "a value of type lock cannot travel" in str(error)
    assert Server.echo(1) == 1


def test_a_result_of_another_type_than_promised_is_the_services_fault(home: Any) -> None:
    home.start(Server("server"))
    error = _raised(Server.lies)
    assert isinstance(error, TypeError)
    assert not isinstance(error, pyzmp.InvalidCall)
    assert "lies()" in str(error)
    assert "expected int, got str" in str(error)


def test_unknown_names_are_told_at_once_with_the_nearest(server: Server) -> None:
    began = time.monotonic()
    asked = pyzmp.Service("cuont")
    for call in (asked, asked.submit, lambda: asyncio.run(asked.acall())):
        error = _raised(call)
        assert isinstance(error, pyzmp.UnknownService)
        assert isinstance(error, LookupError)
        assert "nobody provides 'cuont' in domain" in str(error)
        assert "1 node known" in str(error)
        assert "did you mean 'count'?" in str(error)
        assert error.executed is False
    assert "did you mean 'server'?" in str(_raised(Server.at("sever").count))
    assert "did you mean 'count'?" in str(_raised(pyzmp.Service("cont", node="server")))
    assert time.monotonic() - began < 1 * SCALE


@pytest.mark.parametrize("service", ["hold", "block"])
def test_a_call_ends_at_its_deadline(place: Any, service: str) -> None:
    place.start(Server("server"))
    assert Server.whole() == 1.0  # the way there is open
    began = time.monotonic()
    with pytest.raises(pyzmp.CallTimeout, match=rf"{service}\(\) of 'server'.*0.1 s") as caught:
        getattr(Server, service).with_options(timeout=0.1)(0.3 * SCALE)
    assert 0.1 <= time.monotonic() - began < 0.25 * SCALE
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.executed is None
    assert Server.whole() == 1.0


def test_futures_and_awaited_calls_end_at_their_deadline_too(home: Any) -> None:
    home.start(Server("server"))
    began = time.monotonic()
    hold = Server.hold.with_options(timeout=0.1)
    assert isinstance(hold.submit(0.3 * SCALE).exception(5), pyzmp.CallTimeout)
    assert isinstance(_raised(lambda: asyncio.run(hold.acall(0.3 * SCALE))), pyzmp.CallTimeout)
    assert 0.2 <= time.monotonic() - began < 0.5 * SCALE


@pytest.mark.parametrize("service", ["sync", "awaited"])
def test_a_nested_call_inherits_what_is_left_of_the_deadline(home: Any, service: str) -> None:
    home.start(Server("server"), Middle("middle"))
    began = time.monotonic()
    # Both deadlines come at the same moment, and either may be told first.
    with pytest.raises((pyzmp.CallTimeout, pyzmp.RemoteError), match="gave no answer in"):
        getattr(Middle, service).with_options(timeout=0.2)(0.4 * SCALE)
    assert time.monotonic() - began < 0.35 * SCALE


def test_a_nested_error_keeps_its_type_and_names_the_nodes_it_crossed(home: Any) -> None:
    home.start(Server("server"), Middle("middle"))
    error = _raised(lambda: Middle.spill("tea"))
    assert isinstance(error, Spilled)
    assert error.litres == 0.5
    assert error.__cause__.nodes == ("server", "middle")  # type: ignore[union-attr]


def test_a_timeout_inside_of_a_service_is_not_the_callers(home: Any) -> None:
    class Impatient(pyzmp.Node):
        @pyzmp.service(worker=True)
        def ask(self) -> None:
            Server.at("server").hold.with_options(timeout=0.05)(0.2)

    home.start(Server("server"), Impatient("impatient"))
    error = _raised(Impatient.ask)
    assert type(error) is pyzmp.RemoteError
    assert "CallTimeout" in error.type_name


def test_a_blocking_call_to_ones_own_loop_is_a_deadlock_at_once(home: Any) -> None:
    home.start(Middle("middle"))
    began = time.monotonic()
    error = _raised(Middle.blocking_self)
    assert "DeadlockError" in str(error)
    assert "acall" in str(error)
    assert time.monotonic() - began < 1 * SCALE


def test_a_blocking_call_to_an_entity_of_the_running_loop_is_one_too() -> None:
    async def ask() -> None:
        async with Server("server", kind="entity"):
            with pytest.raises(DeadlockError, match="acall"):
                Server.whole()
            assert await Server.whole.acall() == 1.0
    asyncio.run(ask())


def test_a_blocking_call_in_a_coroutine_is_allowed_elsewhere() -> None:
    async def ask() -> float:
        return Server.whole()  # a notebook's cell
    with Server("server", kind="thread"):
        assert asyncio.run(ask()) == 1.0


def test_a_stopping_node_finishes_what_runs_and_refuses_what_comes(home: Any, eventually: Callable[..., None],
                                                                   tmp_path: Path) -> None:
    node = home.start(Server("server"))
    asked = Server.at("server")
    target = asked.whole.found()
    running = asked.stay.submit(str(tmp_path / "end"))
    eventually(lambda: Server.count() == 1)
    node.shutdown(join=False)
    eventually(lambda: not asked.whole.found())
    service = asked.whole
    service._targets, service.found = target, lambda: target  # type: ignore[method-assign]  # as one who has not heard yet
    errors: list[BaseException | None] = []

    def ends() -> bool:  # it may have left the graph a moment before
        errors.append(service.submit().exception(5))
        return errors[-1] is not None
    eventually(ends)
    assert isinstance(errors[-1], Refused), errors[-1]
    assert errors[-1].executed is False
    (tmp_path / "end").touch()
    assert running.result(5) is None
    assert node.shutdown() == 0


# -- what is wrong where it is given -------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "error", "text"), [
    ({"timeout": 0}, ValueError, "positive"), ({"timeout": -1}, ValueError, "positive"),
    ({"timeout": float("nan")}, ValueError, "finite"), ({"timeout": float("inf")}, ValueError, "finite"),
    ({"timeout": 10 ** 400}, ValueError, "finite"), ({"timeout": "1"}, TypeError, "number"),
    ({"timeout": True}, TypeError, "number"), ({"timeout": [1]}, TypeError, "number"),
    ({"attempts": 0}, ValueError, "1 or more"), ({"attempts": -1}, ValueError, "1 or more"),
    ({"attempts": 1.5}, TypeError, "whole number"), ({"attempts": True}, TypeError, "whole number"),
    ({"attempts": "2"}, TypeError, "whole number"),
])
def test_options_that_cannot_be_are_refused_where_they_are_given(options: dict[str, Any], error: type[Exception],
                                                                 text: str) -> None:
    for service in (Server.whole, Server.at("server").whole, pyzmp.Service("whole"), Server.counted):
        with pytest.raises(error, match=text) as caught:
            service.with_options(**options)
        assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize(("window", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError),
                                               ("2", TypeError)])
def test_so_is_a_window_of_nothing(window: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="window"):
        Server.counted.with_options(window=window)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True])
def test_so_is_a_timeout_in_a_declaration(timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout"):
        pyzmp.service(timeout=timeout)(lambda self: None)


@pytest.mark.parametrize("service", ["lies", "alies", "wlies", "lies_deeply"])
def test_a_service_that_breaks_its_promise_is_blamed_and_not_its_caller(home: Any, service: str) -> None:
    home.start(Server("server"))
    typed, by_name = getattr(Server, service), pyzmp.discover(service)
    assert by_name is not None
    for call in (typed, lambda: typed.submit().result(5), lambda: asyncio.run(typed.acall()), by_name):
        error = _raised(call)
        assert type(error) is TypeError
        assert f"{service}() promises" in str(error)
        assert "got str" in str(error)
        assert isinstance(error.__cause__, pyzmp.RemoteError)
        assert error.__cause__.executed is True
        assert error.__cause__.nodes == ("server",)
    assert Server.whole() == 1.0
