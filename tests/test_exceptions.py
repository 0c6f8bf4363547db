"""The tree of errors is as its docstring draws it, and errors survive the way between processes."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from pyzmp import exceptions
from pyzmp.exceptions import CallError, CannotTravel, InvalidCall, NodeExists, Overloaded, PyzmpError, RemoteError

CLASSES = sorted({error for _, error in inspect.getmembers(exceptions, inspect.isclass)
                  if issubclass(error, PyzmpError)}, key=lambda error: error.__name__)
CALL_ERRORS = [error for error in CLASSES if issubclass(error, CallError)]

ARGUMENTS = {
    RemoteError: (("KeyError", "'tea'"), {"traceback_text": "Traceback ...", "nodes": ["a", "b"], "service": "s"}),
    CannotTravel: (("Lock", "arguments[0]", "it is a lock"), {}),
    NodeExists: (("kitchen", "pid 1", "pid 2"), {}),
    exceptions.RecordingError: (("it is damaged", "a.rec", 5), {}),
}
EXECUTED = {"RemoteError": True, "UnknownService": False, "InvalidCall": False, "Overloaded": False, "Refused": False,
            "DeadlockError": False}


def an_error(cls: type[PyzmpError]) -> PyzmpError:
    args, kwargs = ARGUMENTS.get(cls, (("what went wrong",), {}))
    if issubclass(cls, CallError) and not kwargs:
        kwargs = {"service": "celsius", "node": "kitchen", "executed": None}
    return cls(*args, **kwargs)  # type: ignore[arg-type]


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """The tree in the docstring: name of each class, with its parent there and its builtin base."""
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (exceptions.__doc__ or "").splitlines():
        if match := re.match(r"( +[│ ]*(?:[├└]── )?)(\w+)(?: +\(also (\w+)\))?(?:  .*)?$", line):
            depth, name = len(match[1]), match[2]
            above = [(other, parent) for other, parent in above if other < depth]
            found[name] = (above[-1][1] if above else None, match[3])
            above.append((depth, name))
    return found


def in_fact(cls: type[PyzmpError]) -> tuple[str | None, str | None]:
    ours = [base.__name__ for base in cls.__bases__ if issubclass(base, PyzmpError)]
    others = [base.__name__ for base in cls.__bases__ if base is not Exception and base.__module__ == "builtins"]
    return (ours[0] if ours else None), (others[0] if others else None)


def test_the_tree_in_the_docstring_is_the_tree_in_fact() -> None:
    assert drawn() == {cls.__name__: in_fact(cls) for cls in CLASSES}
    assert len(drawn()) > 15


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_says_when_it_is_raised(cls: type[PyzmpError]) -> None:
    assert cls.__doc__
    assert cls.__doc__.strip().partition("\n")[0].endswith((".", ","))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_pickles_to_an_equal_one(cls: type[PyzmpError], protocol: int) -> None:
    error = an_error(cls)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_attributes_set_later_are_pickled_too() -> None:
    error = Overloaded("full")
    error.retry_after = 0.25
    assert pickle.loads(pickle.dumps(error)).retry_after == 0.25


def test_a_subclass_of_the_user_pickles_without_its_constructor() -> None:
    assert pickle.loads(pickle.dumps(Special(1, 2))).sum == 3


class Special(PyzmpError):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.sum = a + b


@pytest.mark.parametrize("cls", CLASSES)
def test_a_builtin_base_catches_it(cls: type[PyzmpError]) -> None:
    _, base = drawn()[cls.__name__]
    with pytest.raises(getattr(builtins, base) if base else PyzmpError):
        raise an_error(cls)


@pytest.mark.parametrize("cls", CALL_ERRORS)
def test_a_failed_call_says_whether_it_ran(cls: type[CallError]) -> None:
    error = cls("X", "x") if cls is RemoteError else cls("x")  # type: ignore[call-arg, arg-type]
    assert error.executed is EXECUTED.get(cls.__name__)


@pytest.mark.parametrize("told", [True, False, None])
def test_who_knows_better_says_whether_it_ran(told: bool | None) -> None:
    assert InvalidCall("x", executed=told).executed is told


@pytest.mark.parametrize("cls", CALL_ERRORS)
def test_a_failed_call_names_what_was_called(cls: type[CallError]) -> None:
    error = an_error(cls)
    assert isinstance(error, CallError)
    assert error.service in {"celsius", "s"}
    assert error.node in {"kitchen", "a"}


def test_the_text_is_a_sentence_and_not_the_repr_of_a_key() -> None:
    assert str(exceptions.UnknownService("nobody provides 'x'")) == "nobody provides 'x'"


def test_a_remote_error_shows_where_it_was_raised_and_the_traceback() -> None:
    error = RemoteError("KeyError", "'tea'", traceback_text="Traceback: line 1\n", nodes=["prices"], service="price")
    assert str(error) == "KeyError: 'tea' (raised in price of node 'prices')\n\nTraceback: line 1"
    assert (error.node, error.nodes) == ("prices", ("prices",))
    assert str(RemoteError("KeyError", "")) == "KeyError"
    assert "a hook" in str(RemoteError("KeyError", "", nodes=["a"]))


def test_a_value_that_cannot_travel_is_named_with_its_place_and_the_way_out() -> None:
    assert str(CannotTravel("Lock", "arguments[0]")).startswith("arguments[0]: a value of type Lock cannot travel")
    assert "send plain data" in str(CannotTravel("Lock", "arguments[0]"))
    assert str(CannotTravel("Lock", "value", "it locks")).endswith(": it locks")


def test_a_taken_name_names_both_owners_and_the_way_out() -> None:
    text = str(NodeExists("kitchen", "pid 1", "pid 2"))
    assert all(part in text for part in ("'kitchen'", "pid 1", "pid 2", "PYZMP_DOMAIN"))


def test_the_names_of_the_original_are_the_same_classes() -> None:
    assert exceptions.ServiceCallTimeout is exceptions.CallTimeout
    assert exceptions.UnknownServiceException is exceptions.UnknownService
    assert issubclass(exceptions.UnknownRequestTypeException, PyzmpError)
    assert issubclass(exceptions.UnknownResponseTypeException, PyzmpError)
