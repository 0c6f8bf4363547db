"""Structs that a program defines itself, in processes that it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEFINED = """
from __future__ import annotations
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar
import msgspec
import pyzmp
if TYPE_CHECKING:
    from nowhere import Nothing

class Part(msgspec.Struct, frozen=True, kw_only=True, tag="part", forbid_unknown_fields=True):
    \"\"\"A part.\"\"\"
    unit: ClassVar[str] = "g"
    weight: Decimal
    parts: list[Part] = []
    price: float = msgspec.field(default=1.5, name="cost")

    def total(self) -> Decimal:
        return self.weight + sum(part.total() for part in self.parts)

    def light(self) -> Part:
        return Part(weight=self.weight / 2)

class Wheel(Part, frozen=True, kw_only=True, tag="wheel"):
    spokes: int

def told(part):
    return repr([part, part.total(), part.light(), Part.__doc__, Part.unit, msgspec.json.encode(part),
                 Part.__struct_config__.frozen, Wheel(weight=Decimal(1), spokes=3).total()])

class Scale(pyzmp.Node):
    @pyzmp.service
    def weigh(self, part: Part) -> str:
        return told(part)

    @pyzmp.service
    def wheel(self, weight: Decimal) -> Wheel:
        return Wheel(weight=weight, spokes=8)

with Scale("scale"):
    part = Part(weight=Decimal(3), parts=[Part(weight=Decimal("0.5"))])
    print(Scale.weigh(part) == told(part))
    print(Scale.wheel(Decimal(2)))
"""


def test_structs_of_the_program_itself_travel_with_all_they_have(script: Any, domain: Path) -> None:
    result = script(DEFINED)
    assert (result.code, result.err) == (0, "")
    assert result.out == "True\nWheel(weight=Decimal('2'), parts=[], price=1.5, spokes=8)\n"
