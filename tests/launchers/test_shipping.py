"""What is carried to a new process, and what is said where that cannot be."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import threading
from collections import abc
from pathlib import Path
from typing import Any

import pytest

from pyzmp.exceptions import StartError
from pyzmp.launchers.base import Control, Handle, end
from pyzmp.launchers.process import ProcessLauncher
from pyzmp.launchers.shipping import Unsendable, dumps


def launch(body: Any, start_method: str | None = None, name: str = "n") -> Handle:
    return ProcessLauncher(start_method).launch(body, name=name)


class Camera:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def body(self, control: Control) -> None:
        control.ready(sorted(self.__dict__))


def test_a_module_that_the_child_could_not_import_travels_by_value(tmp_path: Path) -> None:
    name = "module_without_a_home"
    module = type(sys)(name)
    module.__file__ = str(tmp_path / "nowhere.py")
    sys.modules[name] = module
    try:
        exec("VALUE = 5\ndef body(control):\n    control.ready(VALUE)\n", module.__dict__)
        handle = launch(module.body)
        assert handle.wait_ready(20) == 5
        assert handle.join(5)
    finally:
        del sys.modules[name]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_cannot_be_carried_is_named_with_the_ways_out(method: str) -> None:
    camera = Camera(fine=1, _device=threading.Lock())
    with pytest.raises(TypeError, match="cannot start 'cam'") as caught:
        ProcessLauncher(method).launch(camera.body, name="cam", open_in="on_start")
    assert isinstance(caught.value, Unsendable)
    assert isinstance(caught.value, StartError)
    text = str(caught.value)
    assert "attribute 'device' (lock) cannot be sent to a process; open it in on_start" in text
    assert "start_method='fork'" in text


def test_what_is_deep_inside_an_attribute_is_named_too() -> None:
    camera = Camera(args=(1, {"key": [threading.Lock()]}))
    with pytest.raises(Unsendable, match=r"attribute \"args\[1\]\['key'\]\[0\]\" \(lock\)"):
        launch(camera.body)


def test_fork_carries_what_pickling_cannot() -> None:
    handle = launch(Camera(device=threading.Lock()).body, "fork")
    assert handle.wait_ready(20) == ["device"]
    assert handle.join(5)


@pytest.mark.parametrize("context", ["forkserver", "spawn"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_locks_queues_and_pipes_of_multiprocessing_travel(method: str, context: Any) -> None:
    there = multiprocessing.get_context(context)
    event, (read, write) = there.Event(), there.Pipe()

    def body(control: Control) -> None:
        event.set()
        write.send("through the pipe")
        control.ready()
        control.wait_stop()

    handle = launch(body, method)
    with read, write:
        assert handle.wait_ready(20) is True
        assert event.is_set()
        assert read.recv() == "through the pipe"
        end([handle], 5, 1, 1)


def test_a_lock_of_the_fork_context_is_refused_by_all_but_fork(start_method: str) -> None:
    camera = Camera(event=multiprocessing.get_context("fork").Event())
    if start_method == "fork":
        handle = launch(camera.body, start_method)
        assert handle.wait_ready(20) == ["event"]
        assert handle.join(5)
    else:
        with pytest.raises(Unsendable, match=r"attribute 'event' \(Event\)"):
            launch(camera.body, start_method)


def test_the_abstract_classes_of_the_standard_library_are_not_copied() -> None:
    for kind in (abc.Iterator, abc.AsyncIterator, abc.Callable):  # frozen into the interpreter since Python 3.13
        assert pickle.loads(dumps(kind, name="node", open_in="on_start")) is kind


ANNOTATED = """
from __future__ import annotations
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated
import msgspec
import pyzmp
if TYPE_CHECKING:
    from nowhere import Nothing

@dataclass
class Tree:
    value: Annotated[Decimal, msgspec.Meta(title="what counts")]
    children: list[Tree] = field(default_factory=list)

class Adder(pyzmp.Node):
    @pyzmp.service
    def total(self, tree: Tree, factor: Annotated[int, msgspec.Meta(gt=0)]) -> Decimal:
        return factor * (tree.value + sum(child.value for child in tree.children))

    def other(self, value: Nothing) -> Nothing:
        return value

with Adder("adder"):
    print(Adder.total(Tree(Decimal(3), [Tree(Decimal(4))]), 2))
    try:
        Adder.total(Tree(Decimal(3)), 0)
    except pyzmp.InvalidCall as error:
        print("refused")
"""


def test_names_that_a_program_uses_in_annotations_only_travel_too(script: Any, domain: Path) -> None:
    result = script(ANNOTATED)
    assert (result.code, result.out, result.err) == (0, "14\nrefused\n", "")
