"""What a subscription asks for."""

from __future__ import annotations

from typing import Any

import pytest

from pyzmp.channels.terms import Terms, terms_of
from pyzmp.protocol.feed import SIZE, Full


@pytest.mark.parametrize(("full", "length", "expected"), [
    ("drop_oldest", None, Terms()),
    ("drop_newest", 8, Terms(Full.DROP_NEWEST, 8)),
    ("block", 1, Terms(Full.BLOCK, 1)),
    ("latest", None, Terms(Full.DROP_OLDEST, 1, latest=True)),
])
def test_options_have_their_terms(full: str, length: int | None, expected: Terms) -> None:
    assert terms_of(full, length, SIZE, 0) == expected
    named = terms_of(full, length, 5, 3, who="lamp", events=True)
    assert (named.size, named.history, named.who, named.events) == (5, 3, "lamp", True)


@pytest.mark.parametrize(("options", "error", "text"), [
    (("drop", None, SIZE, 0), ValueError, "full: expected one of 'drop_oldest', 'drop_newest', 'latest', 'block', got"),
    (("latest", 3, SIZE, 0), ValueError, "takes no length"),
    (("block", 0, SIZE, 0), ValueError, "length: expected a number from 1 to 1099511627776, got 0"),
    (("block", True, SIZE, 0), TypeError, "length: expected a number, got True"),
    (("block", 2.0, SIZE, 0), TypeError, "length: expected a number"),
    (("block", None, 0, 0), ValueError, "size"),
    (("block", None, 1 << 50, 0), ValueError, "size"),
    (("block", None, SIZE, -1), ValueError, "history"),
    (("block", None, SIZE, None), TypeError, "history"),
])
def test_options_that_cannot_be_are_refused(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        terms_of(*options)
