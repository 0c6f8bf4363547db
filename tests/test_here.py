"""When a process has a runtime, and what has to be imported for one.  What it does: test_runtime.py."""

from __future__ import annotations

import sys
from typing import Any

import pyzmp
from pyzmp import here, runtime
from pyzmp.settings import Settings

LOOK = """
import sys
import pyzmp

class Lamp(pyzmp.Node):
    kind = "entity"
    @pyzmp.service
    def on(self) -> int:
        return 1

print("zmq" in sys.modules, "pyzmp.here" in sys.modules)
with Lamp("lamp"):
    print("pyzmp.here" in sys.modules, Lamp.on())
"""


def test_what_a_runtime_needs_is_imported_with_the_first_one(script: Any) -> None:
    assert script(LOOK).out.split() == ["False", "False", "True", "1"]


def test_a_runtime_is_forgotten_before_it_ends() -> None:
    forgotten: list[here.Runtime] = []
    made = here.Runtime(Settings(registry="memory"), forgotten.append)
    made.close()
    assert forgotten == [made]
    assert made.closed


def test_the_runtime_is_found_where_it_is_asked_for() -> None:
    assert runtime.Runtime is here.Runtime is sys.modules["pyzmp.here"].Runtime  # type: ignore[attr-defined]
    assert not hasattr(runtime, "Anything")
    assert not hasattr(pyzmp, "Anything")
