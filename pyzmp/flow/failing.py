"""What is told of a function that fails."""

from __future__ import annotations

from types import TracebackType


def own_part(error: Exception) -> Exception:
    """*error* for a log, with the part of its traceback that is the user's: without ours before and after it."""
    parts, part = list[TracebackType](), error.__traceback__
    while part is not None:
        parts.append(part)
        part = part.tb_next
    theirs = [place for place, each in enumerate(parts)
              if each.tb_frame.f_globals.get("__name__", "").partition(".")[0] != "pyzmp"]
    kept: TracebackType | None = None
    for each in reversed(parts[theirs[0]:theirs[-1] + 1] if theirs else ()):
        kept = TracebackType(kept, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return error.with_traceback(kept)
