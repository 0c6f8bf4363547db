"""What is easily got wrong with topics, and would go unnoticed."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, get_origin

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


def assigned(topic: object, instance: object, value: Any) -> TypeError:
    """The error that something was assigned to a topic of *instance*.

    A ``__set__`` of the topic raises it: a ``__setattr__`` of the class made every assignment to a node four times as
    slow.
    """
    name = next(name for owner in type(instance).__mro__ for name, known in vars(owner).items() if known is topic)
    return TypeError(f"{name} is a topic: write self.{name}.publish({value!r})")


def check_demand(callback: Any, topic: str) -> None:
    """Raise TypeError for what `Topic.on_demand` cannot call."""
    from pyzmp.channels.expecting import is_async

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
