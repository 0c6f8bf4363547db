"""How parameters of other nodes are set.  Between processes: behaviour/test_parameters.py."""

from __future__ import annotations

import pytest

import pyzmp
from pyzmp.channels.setting import Setting
from pyzmp.exceptions import Refused, UnknownService


class Oven(pyzmp.Node):
    kind = "entity"
    heat = pyzmp.Parameter(180.0)
    light = pyzmp.Parameter(False, settable=False)


def test_whoever_may_not_set_a_parameter_is_told_without_a_call() -> None:
    pyzmp.configure(registry="memory")
    with Oven("oven"):
        with pytest.raises(Refused, match="light of 'oven' is not settable"):
            Oven.at("oven").light.set(True)
        Oven.at("oven").heat.set(200.0)
        assert Oven.at("oven").heat.get() == 200.0


def test_an_unknown_parameter_is_named_with_those_that_there_are() -> None:
    pyzmp.configure(registry="memory")
    with Oven("oven"):
        with pytest.raises(UnknownService, match=r"there is no parameter 'heta' in node 'oven'.*heat"):
            Setting("heta/set", node="oven")(1.0)
        with pytest.raises(UnknownService, match="there is no node 'oben'"):
            Setting("heat/set", node="oben")(1.0)
