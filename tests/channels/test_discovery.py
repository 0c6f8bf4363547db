"""Looking for services.  How they are found is shown by the behaviour of nodes; here is what else there is to say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import pyzmp
from pyzmp.channels.discovery import Services
from pyzmp.channels.streaming import StreamService


class Lamp(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def on(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _in_memory() -> None:
    pyzmp.configure(registry="memory")


@pytest.mark.parametrize("wrong", [None, 3, b"on", "", Lamp])
def test_what_is_no_service_is_refused(wrong: Any) -> None:
    for look in (pyzmp.discover, lambda channel: asyncio.run(pyzmp.adiscover(channel))):
        with pytest.raises(TypeError, match=r"discover\(\) takes a service such as Class.method, or the name of one"):
            look(wrong)


def test_a_timeout_is_no_negative_number_whatever_is_found() -> None:
    def check() -> None:
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                pyzmp.discover("on", timeout=wrong)
            with pytest.raises(ValueError, match="timeout"):
                asyncio.run(pyzmp.adiscover("on", timeout=wrong))
    check()
    with Lamp("lamp"):
        check()


def test_a_timeout_of_zero_looks_once() -> None:
    assert pyzmp.discover("on", timeout=0) is None
    assert asyncio.run(pyzmp.adiscover("on", timeout=0)) is None
    with Lamp("lamp"):
        assert pyzmp.discover("on", timeout=0)() is True  # type: ignore[misc]


def test_by_name_fewer_providers_than_asked_for_are_better_than_none() -> None:
    with Lamp("lamp"):
        for found in (pyzmp.discover("on", 0.01, 2), asyncio.run(pyzmp.adiscover("on", 0.01, 2)),
                      pyzmp.Service.discover("on", 0.01, 2)):
            assert found is not None
            assert found() is True
        with pytest.raises(pyzmp.UnknownService):
            pyzmp.discover(Lamp.on, 0.01, 2)


def test_what_is_found_is_ones_own() -> None:
    with Lamp("lamp"):
        for found in (pyzmp.discover(Lamp.on), asyncio.run(pyzmp.adiscover(Lamp.on))):
            found.name = "other"
            assert Lamp.on.name == "on"
            assert Lamp.on() is True


class Lantern(pyzmp.Node):
    kind = "entity"

    @pyzmp.service
    def blinks(self) -> Iterator[bool]:
        yield True


def test_a_stream_is_found_as_any_service_is() -> None:
    with pytest.raises(pyzmp.UnknownService, match="nobody provides 'blinks'"):
        pyzmp.discover(Lantern.blinks)
    with pytest.raises(pyzmp.UnknownService, match="there is no node 'lantern'"):
        asyncio.run(pyzmp.adiscover(Lantern.at("lantern").blinks))
    with Lantern("lantern"):
        for found in (pyzmp.discover(Lantern.blinks), asyncio.run(pyzmp.adiscover(Lantern.blinks, timeout=1))):
            assert type(found) is StreamService
            found.name = "other"
            assert Lantern.blinks.name == "blinks"
        assert pyzmp.discover("blinks") is not None


def test_a_name_with_a_node_means_the_service_of_that_node() -> None:
    with Lamp("house/lamp"):
        found = pyzmp.discover("house/lamp/on")
        assert found is not None
        assert (found.node, found.name, found()) == ("house/lamp", "on", True)
        assert pyzmp.discover("lamp/on") is None


def test_an_unknown_service_says_what_there_is_instead() -> None:
    with Lamp("lamp"):
        with pytest.raises(pyzmp.UnknownService, match=r"there is no node 'lump' .*did you mean 'lamp'\?"):
            pyzmp.discover(Lamp.at("lump").on)
        with pytest.raises(pyzmp.UnknownService, match=r"nobody provides 'one' in node 'lamp'; did you mean 'on'\?"):
            pyzmp.Service("one", node="lamp")()


def test_the_mapping_is_read_only_and_equal_for_all() -> None:
    assert not hasattr(Services(), "__setitem__")
    with Lamp("lamp"):
        assert dict(Services()) == dict(pyzmp.services) == {"on": Lamp.on.providers}
