"""The settings of a process.  How they are set and inherited: test_runtime.py."""

from __future__ import annotations

import pytest

from pyzmp.settings import Settings


def test_changed_settings_are_others_and_checked() -> None:
    plain = Settings("home")
    assert plain.changed({"timeout": 2.0}) == Settings("home", timeout=2.0)
    assert plain == Settings("home")
    with pytest.raises(ValueError, match="'a/b' is no name for a domain"):
        plain.changed({"domain": "a/b"})
