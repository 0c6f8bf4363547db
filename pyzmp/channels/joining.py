"""What is said of ``left | right`` where nothing on the right joins."""

from __future__ import annotations

from typing import Any


def no_step(left: Any, part: Any) -> Any:
    """Raise TypeError, with what to write, where *part* on the right of ``left | part`` is no step of a flow.

    NotImplemented where it is asked by Python what that would be.
    """
    if any("__ror__" in vars(each) for each in type(part).__mro__) and not isinstance(part, type):
        return NotImplemented
    name = getattr(part, "__name__", "function").replace("<lambda>", "lambda …: …")
    step = isinstance(part, type) and hasattr(part, "listen_to")
    if isinstance(part, str) or hasattr(part, "full_name"):
        full = part if isinstance(part, str) else part.full_name or "house/alerts"
        way = f"to publish it as another topic, under a full name, write Forward({full!r})"
    elif callable(part):
        way = f"{name} is a class of steps, write {name}(…)" if step else f"for a function write Map({name})"
    else:
        way = "write one such as Map(function)"
    raise TypeError(f"on the right of {left!r} | stands a step, got {part!r}; {way}")
