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


def test_its_attributes_are_services_of_the_node() -> None:
    service = Lamp.at("lamp").on
    assert (service.name, service.node) == ("switched", "lamp")


def test_a_service_that_streams_is_a_stream_of_the_node() -> None:
    class Lantern(Lamp):
        @pyzmp.service(name="blinked")
        def blinks(self) -> Iterator[bool]:
            yield True

    stream = Lantern.at("lamp").blinks
    assert type(stream) is StreamService
    assert (stream.name, stream.node) == ("blinked", "lamp")


@pytest.mark.parametrize("attribute", ["brightness", "switched", "start", "of"])
def test_it_has_channels_only(attribute: str) -> None:
    with pytest.raises(AttributeError, match=f"Lamp declares no channel '{attribute}'; it has on"):
        getattr(Lamp.at("lamp"), attribute)


def test_it_can_be_sent() -> None:
    again = pickle.loads(pickle.dumps(At(Lamp, "lamp")))
    assert repr(again) == "<Lamp at 'lamp'>"
    assert again.on.node == "lamp"


@pytest.mark.parametrize("name", ["", "a\n", 3])
def test_the_name_is_one_that_a_node_can_have(name: object) -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        Lamp.at(name)  # type: ignore[arg-type]
