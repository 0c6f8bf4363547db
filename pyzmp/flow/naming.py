"""What steps are called where nobody has named them, and what options they take."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import uuid
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

LONGEST = 60  # characters of what a step is, in its name


def shown(what: Any) -> str:
    """A function, a service or a value, for messages: ``celsius``, ``<lambda>``, ``'house/alerts'``."""
    if isinstance(what, functools.partial):
        return shown(what.func)
    name = getattr(what, "__name__", None) or getattr(what, "name", None)
    return name if isinstance(name, str) else type(what).__name__ if callable(what) else repr(what)


def unique(what: str) -> str:
    """A name that no other node has: ``Map.celsius-4f8e12ab34cd`` for ``Map(celsius)``."""
    words = ".".join(re.findall(r"[\w-]+", what))[:LONGEST].strip(".")
    return f"{words}-{uuid.uuid4().hex[:12]}"


def check_options(cls: type, options: Iterable[str]) -> None:
    """Raise TypeError, which names the nearest, for an option that no class of a step's takes."""
    known = {name for each in cls.__mro__[:-1] if "__init__" in vars(each)
             for name in inspect.signature(vars(each)["__init__"]).parameters} - {"self", "args", "kwargs", "options"}
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            raise TypeError(f"{cls.__name__}(…) takes no option {option!r}"
                            + (f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(sorted(known))}"))


@contextlib.contextmanager
def told_of(cls: type) -> Iterator[None]:
    """Have what is wrong with an option say which step it was given to."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise
        raise type(error)(f"{cls.__name__}(…): {error}") from None
