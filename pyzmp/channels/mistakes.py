"""What is easily got wrong with topics, and would go unnoticed."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, get_origin

from pyzmp.channels.expecting import is_async
from pyzmp.protocol.topics import Pattern

ASKS = frozenset({"subscribers", "wait_for_subscribers()", "await_for_subscribers()", "on_demand(…)"})


def check_declared(topic: type, given: Any, name: object, keep: object) -> None:
    """Raise TypeError or ValueError for what cannot be given to *topic*, which is the class of topics."""
    if given is topic or isinstance(given, topic) or get_origin(given) is topic:
        raise TypeError(f"a topic is of values, and its type is theirs; got {given!r}")
    if isinstance(given, str) and name is None and "/" in given:
        with contextlib.suppress(ValueError):  # a type that is defined later
            Pattern(given)
            raise TypeError(f"Topic({given!r}): the type of the values comes first, as in Topic(float, {given!r})")
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise TypeError(f"keep: expected a number of messages, got {keep!r}")
    if keep < 0:
        raise ValueError(f"keep: expected 0 or more messages, got {keep}")
    if keep and isinstance(name, str) and "*" in name:
        raise ValueError(f"keep: {name!r} is a pattern, which selects topics to subscribe to; only whoever publishes "
                         "keeps messages")


def refuse_assignment(owner: type, attribute: str) -> None:
    """Have it be a TypeError to assign to the topic *attribute* of an instance of *owner*, or of its subclasses.

    A ``__set__`` of the topic would do that too, and have each look at it cost a call.
    """
    before: Any = vars(owner).get("__setattr__")
    guarded: set[str] | None = getattr(before, "guarded", None)
    if guarded is not None:
        guarded.add(attribute)
        return
    names = {attribute}

    def assign(self: Any, name: str, value: Any) -> None:
        if name in names:
            raise TypeError(f"{name} is a topic: write self.{name}.publish({value!r})")
        if before is not None:
            before(self, name, value)
        else:
            super(owner, self).__setattr__(name, value)  # type: ignore[arg-type]
    assign.guarded = names  # type: ignore[attr-defined]
    owner.__setattr__ = assign  # type: ignore[assignment, method-assign]


def check_demand(callback: Any, topic: str) -> None:
    """Raise TypeError for what `Topic.on_demand` cannot call."""
    shown = f"on_demand() of {topic}"
    if not callable(callback):
        raise TypeError(f"{shown}: expected a function to call, got {callback!r}")
    if is_async(callback):
        raise TypeError(f"{shown}: nobody would await what {callback!r} gives; make it a plain function")
    try:
        signature = inspect.signature(callback)
    except (ValueError, TypeError):  # a builtin that does not tell
        return
    try:
        signature.bind(True)
    except TypeError:
        raise TypeError(f"{shown}: {callback!r} takes {signature}, and is to take one argument: whether anybody "
                        "subscribes") from None


def elsewhere(name: str, attribute: str, node: str | None, owner: type | None, verb: str) -> Exception:
    """That *verb* is not for the topic of a class, or of a *node* by its name, but for the node itself."""
    if node is not None:
        cls = owner.__name__ if owner is not None else "its class"
        way = "ask accounts() from here" if verb in ASKS else "call a service of it from here"
        return RuntimeError(f"{name} is published by {node!r} itself, and what {cls}.at({node!r}) gives is for its "
                            f"subscribers; write self.{attribute}.{verb} in {cls}, and {way}")
    if verb in ASKS:
        return TypeError(f"{name} is that of all nodes of the class, and {verb} is for a single one: write "
                         f"self.{attribute}.{verb} in its code, or ask accounts() for all")
    return TypeError(f"{name} belongs to a node; publish from an instance, or give the topic a full name")
