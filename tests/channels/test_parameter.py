"""Parameters as they are declared, and as they are without any node.  Nodes with some: behaviour/test_parameters.py."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import pyzmp
from pyzmp.channels.parameter import Parameter
from pyzmp.exceptions import CannotTravel, DeadlockError, InvalidAnnotation
from pyzmp.protocol.facts import VALUE


@dataclasses.dataclass
class Range:
    low: float
    high: float


class Oven(pyzmp.Node):
    heat = pyzmp.Parameter(180.0)
    light = pyzmp.Parameter(False)
    range: pyzmp.Parameter[Range | None] = pyzmp.Parameter(None)
    recipes: ClassVar[pyzmp.Parameter[list[str]]] = pyzmp.Parameter([])
    anything = pyzmp.Parameter(None)
    picture = pyzmp.Parameter(np.zeros(3))
    later: pyzmp.Parameter[Later | None] = pyzmp.Parameter(None)
    bare: pyzmp.Parameter = pyzmp.Parameter(1)  # type: ignore[type-arg]


class Grill(Oven):
    heat = pyzmp.Parameter(250.0)
    range = pyzmp.Parameter(None)


@dataclasses.dataclass
class Later:
    minutes: int


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


def test_on_an_instance_it_is_a_plain_value() -> None:
    oven = Oven("oven")
    assert (oven.heat, oven.light, oven.range, Grill("grill").heat) == (180.0, False, None, 250.0)
    oven.heat = 200
    oven.range = Range(1.0, 2.0)
    oven.later = Later(3)
    assert (oven.heat, oven.range, oven.later) == (200, Range(1.0, 2.0), Later(3))
    assert Oven("other").heat == 180.0


def test_each_instance_has_a_default_of_its_own() -> None:
    oven = Oven("oven")
    oven.recipes.append("bread")
    assert (oven.recipes, Oven("other").recipes, Oven.recipes.default) == (["bread"], [], [])


def test_it_may_be_set_before_the_node_is_initialized() -> None:
    class Early(Oven):
        def __init__(self) -> None:
            self.heat = 90.0
            super().__init__("early")

    assert Early().heat == 90.0


def test_its_type_is_annotated_or_that_of_the_default() -> None:
    for name, text in {"heat": "float", "light": "bool", "range": "Range | None", "recipes": "list[str]",
                       "anything": "Any", "picture": "ndarray", "later": "Later | None", "bare": "int"}.items():
        assert Oven.__dict__[name].typed().text == text
        assert repr(getattr(Oven, name)) == f"<Parameter Oven.{name}: {text}>"


def test_a_class_below_keeps_the_annotation() -> None:
    assert Grill.range.typed().text == "Range | None"
    assert repr(Grill.at("grill").heat) == "<Parameter Grill.heat: float of 'grill'>"


WRONG = [
    ("heat", "hot", r"Oven.heat: expected float, got str"),
    ("light", 1, r"Oven.light: expected bool, got int"),
    ("range", Range("a", 1.0), r"Oven.range.low: expected float"),  # type: ignore[arg-type]
    ("recipes", ["a", 3], r"Oven.recipes\[1\]: expected str"),
    ("anything", object(), "Oven.anything: a value of type object cannot travel"),
    ("recipes", ["x" * VALUE], rf"Oven.recipes: .* it takes \d+ bytes, .* {VALUE} bytes at most; let a service")]


def test_another_value_is_refused_and_changes_nothing() -> None:
    oven = Oven("oven")
    for name, value, sentence in WRONG:
        before = getattr(oven, name)
        with pytest.raises(TypeError, match=sentence) as raised:
            setattr(oven, name, value)
        assert isinstance(raised.value, CannotTravel) is ("travel" in sentence or "bytes" in sentence)
        assert getattr(oven, name) is before


def test_the_parameter_of_a_class_is_that_of_no_node() -> None:
    for use in (Oven.heat.get, lambda: Oven.heat.set(1.0), Oven.heat.watch, lambda: Oven.heat.aget().send(None)):
        with pytest.raises(TypeError, match=r"Oven.heat is a parameter of every Oven; .* write Oven.at\(name\).heat"):
            use()
    with pytest.raises(AttributeError):
        del Oven("oven").heat
    with pytest.raises(TypeError, match=r"settable: expected True or False, got 1"):
        pyzmp.Parameter(1, settable=1)  # type: ignore[arg-type]


def test_that_of_a_node_is_a_value() -> None:
    other = pickle.loads(pickle.dumps(Grill.at("grill").heat))
    assert repr(other) == "<Parameter Grill.heat: float of 'grill'>"
    assert other.default == 250.0


PROGRAM = """
from __future__ import annotations
import dataclasses, pyzmp

@dataclasses.dataclass
class Range:
    low: float

class Oven(pyzmp.Node):
    heat = pyzmp.Parameter(60.0)
    range: pyzmp.Parameter[Range | None] = pyzmp.Parameter(None)
    baked = pyzmp.Parameter(0, settable=False)

    @pyzmp.every(heat)
    def tick(self) -> None:
        self.baked += 1

    @pyzmp.service
    def shows(self) -> str:
        return f"{self.range}"

oven = Oven("oven")
oven.range = Range(1.0)
with oven:
    print(Oven.at("oven").range.get(), Oven.shows())
    Oven.at("oven").range.set(Range(2.0))
    print(Oven.at("oven").range.get(), Oven.shows())
    Oven.at("oven").heat.set(0.01)
    print(next(baked for baked in Oven.at("oven").baked.watch(timeout=20) if baked) > 0)
"""


def test_it_travels_with_a_class_of_a_script(script: Any) -> None:
    result = script(PROGRAM)
    assert (result.out, result.err) == ("Range(low=1.0) Range(low=1.0)\nRange(low=2.0) Range(low=2.0)\nTrue\n", "")


# -- what cannot be ------------------------------------------------------------------------------------------------


def _hiding() -> None:
    class Bad(pyzmp.Node):
        kind = pyzmp.Parameter("x")  # type: ignore[assignment]


def _plain() -> None:
    class Bad(Oven):
        heat = 3.0  # type: ignore[assignment]


def _service_over_parameter() -> None:
    class Bad(Oven):
        @pyzmp.service
        def heat(self) -> float:  # type: ignore[override]
            return 1.0


class Bell(pyzmp.Node):
    @pyzmp.service
    def ring(self) -> None: ...


def _parameter_over_service() -> None:
    class Bad(Bell):
        ring = pyzmp.Parameter(1)  # type: ignore[assignment]


def _method_over_parameter() -> None:
    class Bad(Oven):
        def heat(self) -> float:  # type: ignore[override]
            return 1.0


def _two_names() -> None:
    class Bad(pyzmp.Node):
        a = b = pyzmp.Parameter(1)


def _one_name_for_two() -> None:
    class Bad(pyzmp.Node):
        heat = pyzmp.Parameter(1)

        @pyzmp.service(name="heat")
        def ask(self) -> None: ...


def _wrong_default() -> None:
    class Bad(pyzmp.Node):
        heat: pyzmp.Parameter[float] = pyzmp.Parameter("hot")  # type: ignore[arg-type]


def _large_default() -> None:
    class Bad(pyzmp.Node):
        heat = pyzmp.Parameter(bytes(VALUE))


def _annotated_otherwise() -> None:
    class Bad(pyzmp.Node):
        heat: float = pyzmp.Parameter(1.0)  # type: ignore[assignment]


def _unchecked() -> None:
    class Bad(pyzmp.Node):
        heat: pyzmp.Parameter[Callable[[], int] | None] = pyzmp.Parameter(None)


def _foreign_period() -> None:
    class Bad(pyzmp.Node):
        @pyzmp.every(pyzmp.Parameter(1.0))
        def tick(self) -> None: ...


def _no_period() -> None:
    class Bad(pyzmp.Node):
        period = pyzmp.Parameter(0.0)

        @pyzmp.every(period)
        def tick(self) -> None: ...


def _period_below() -> None:
    class Good(pyzmp.Node):
        period = pyzmp.Parameter(1.0)

        @pyzmp.every(period)
        def tick(self) -> None: ...

    class Bad(Good):
        period = pyzmp.Parameter(-1.0)


BAD = {
    _hiding: "Bad.kind would hide Node.kind",
    _plain: r"Bad.heat overrides a parameter of .*Bad without being one; write heat = Parameter\(...\)",
    _service_over_parameter: "Bad.heat overrides a parameter",
    _parameter_over_service: "Bad.ring overrides a service",
    _method_over_parameter: "Bad.heat overrides a parameter",
    _two_names: r"Bad.b has the name 'a' already",
    _one_name_for_two: "Bad.ask is the service 'heat', which is a parameter too",
    _wrong_default: "the default of parameter .*Bad.heat: expected float, got str",
    _large_default: "the default of parameter .*Bad.heat: .* bytes at most",
    _annotated_otherwise: r"Bad.heat is annotated float; write Parameter\[…\]",
    _unchecked: "parameter .*Bad.heat: .* cannot be checked",
    _foreign_period: "expected a number of seconds, or a Parameter that is an attribute of the class too",
    _no_period: "Bad.period, a period: expected a positive, finite number of seconds",
    _period_below: "Bad.period, a period: expected a positive, finite number of seconds",
}


def test_what_cannot_be_is_refused_when_the_class_is_made() -> None:
    for make, sentence in BAD.items():
        with pytest.raises((TypeError, ValueError), match=sentence):
            make()


def test_an_unchecked_annotation_is_what_it_is_for_services() -> None:
    with pytest.raises(InvalidAnnotation):
        _unchecked()


def test_a_period_is_a_positive_number() -> None:
    class Clock(pyzmp.Node):
        period = pyzmp.Parameter(1.0)

        @pyzmp.every(period)
        def tick(self) -> None: ...

    clock = Clock("clock")
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive, finite"):
            clock.period = wrong
    assert clock.period == 1.0


def test_a_class_that_is_no_node_may_have_some_for_one_that_is() -> None:
    class Warm:
        heat = pyzmp.Parameter(1.0)

    class Both(Warm, pyzmp.Node):
        pass

    warm = Warm()
    warm.heat = 2.0
    assert warm.heat == 2.0
    assert isinstance(Both.heat, Parameter)
    assert Both("both").heat == 1.0


def test_the_period_of_a_timer_below_is_any_number_above() -> None:
    class Plain(pyzmp.Node):
        gap = pyzmp.Parameter(1.0)

    class Timed(Plain):
        @pyzmp.every(Plain.gap)
        def tick(self) -> None: ...

    plain, timed = Plain("plain"), Timed("timed")
    plain.gap = 0.0
    with pytest.raises(ValueError, match="positive, finite"):
        timed.gap = 0.0
    assert repr(Timed.at("timed").gap) == f"<Parameter {Timed.__qualname__}.gap: float of 'timed'>"
    assert pickle.loads(pickle.dumps(Oven.at("oven").heat)).timed is False


class Grilling(pyzmp.Node):
    kind = "entity"
    heat = pyzmp.Parameter(1.0)


def test_on_the_loop_of_its_node_nobody_blocks() -> None:
    async def main() -> None:
        heat = Grilling.at("oven").heat
        async with Grilling("oven"):
            with pytest.raises(DeadlockError, match=r"call of heat.set\(…\) of 'oven' .* await ….aset") as raised:
                heat.set(2.0)
            assert raised.value.service == "heat.set"
            with heat.watch() as values:
                assert next(values) == 1.0
                with pytest.raises(DeadlockError, match=r"a change of heat of 'oven' holds up .*; iterate in async"):
                    next(values)
                await heat.aset(3.0)
                assert await anext(values) == 3.0
    asyncio.run(main())


def test_that_of_a_group_is_that_of_a_member() -> None:
    with pyzmp.Group("kitchen", [Grilling("left"), Lights("right")]):
        for use in (Grilling.at("kitchen").heat.get, lambda: Grilling.at("kitchen").heat.set(3.0)):
            with pytest.raises(pyzmp.UnknownService, match=r"'kitchen' is a group, .*; ask a member, such as 'left'"):
                use()
        with pytest.raises(pyzmp.UnknownService, match="none of its members has 'light' either"):
            Oven.at("kitchen").light.get()


class Lights(pyzmp.Node):
    kind = "entity"
