"""A class as callers of one of its nodes see it.  That its channels are those of that node is shown with nodes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

import pyzmp
from pyzmp.channels.at import At
from pyzmp.channels.streaming import StreamService


class Lamp(pyzmp.Node):
    brightness = 3

    @pyzmp.service(name="switched")
    def on(self) -> bool:
        return True


class Lantern(Lamp):
    heat = pyzmp.Parameter(20)


def test_its_attributes_are_services_of_the_node() -> None:
    service = Lamp.at("lamp").on
    assert (service.name, service.node) == ("switched", "lamp")


def test_a_service_that_streams_is_a_stream_of_the_node() -> None:
    class Beacon(Lamp):
        @pyzmp.service(name="blinked")
        def blinks(self) -> Iterator[bool]:
            yield True

    stream = Beacon.at("lamp").blinks
    assert type(stream) is StreamService
    assert (stream.name, stream.node) == ("blinked", "lamp")


@pytest.mark.parametrize("attribute", ["brightness", "switched", "start", "of"])
def test_it_has_channels_only(attribute: str) -> None:
    with pytest.raises(AttributeError, match=f"Lamp declares no channel '{attribute}'; it has on"):
        getattr(Lamp.at("lamp"), attribute)


def test_nothing_of_it_is_assigned() -> None:
    with pytest.raises(AttributeError, match=r"'heat' of <Lantern at 'lamp'> cannot be .*; write ….heat.set\(…\)"):
        Lantern.at("lamp").heat = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="'on' of <Lamp at 'lamp'> cannot be assigned; it has channels only"):
        Lamp.at("lamp").on = None


def test_it_can_be_sent() -> None:
    again = pickle.loads(pickle.dumps(At(Lamp, "lamp")))
    assert repr(again) == "<Lamp at 'lamp'>"
    assert again.on.node == "lamp"


@pytest.mark.parametrize("name", ["", "a\n", 3])
def test_the_name_is_one_that_a_node_can_have(name: object) -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        Lamp.at(name)  # type: ignore[arg-type]
