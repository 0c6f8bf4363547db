"""A set of nodes that is itself a node."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp import runtime
from pyzmp.exceptions import NodeExists, StartError
from pyzmp.launchers.forkserver import server


@pytest.fixture(scope="module", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's."""
    server.ensure_running()


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is inside this process, which is faster."""
    monkeypatch.setenv("PYZMP_REGISTRY", "memory")


@pytest.fixture(params=["process", "thread", "entity"])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each kind of node; what is inside this process has a registry there."""
    if request.param != "process":
        request.getfixturevalue("inside")
    return request.param


class Worker(pyzmp.Node):
    @pyzmp.service(idempotent=True)
    def who(self) -> str:
        return self.name

    @pyzmp.service(idempotent=True)
    def mortal(self, victim: str) -> str:
        if self.name == victim:
            os._exit(3)
        return self.name


class Says(pyzmp.Node):
    """Writes down when it starts and when it stops."""

    def __init__(self, name: str, book: Path, **options: Any) -> None:
        super().__init__(name, **options)
        self.book = book

    def write(self, what: str) -> None:
        with self.book.open("a") as file:
            file.write(f"{what}{self.name} ")

    def on_start(self) -> None:
        self.write("+")

    def on_stop(self) -> None:
        self.write("-")


class Fails(Says):
    def on_start(self) -> None:
        raise ValueError("no device")


class Hangs(Says):
    """Does not get ready, and does not stop by itself either."""

    def on_start(self) -> None:
        self.write("+")
        time.sleep(60)


class Stays(Says):
    """Does not stop by itself."""

    def on_stop(self) -> None:
        time.sleep(60)


def known(name: str) -> Any:
    return runtime.current().facts().node(name)


def nodes_known() -> set[str]:
    return {node.name for node in runtime.current().facts().nodes()}


# -- its members under its name -----------------------------------------------------------------------------------


def test_its_name_stands_for_any_of_its_members(kind: Any) -> None:
    with pyzmp.Group("workers", [Worker(kind=kind) for _ in range(3)]) as group, Worker("alone", kind="entity"):
        names = {"workers/1", "workers/2", "workers/3"}
        assert [node.name for node in group.nodes] == sorted(names)
        who = Worker.at("workers").who
        assert {who() for _ in range(3)} == names  # in turn
        by_name = pyzmp.discover("workers/who", minimum_providers=3)
        assert by_name is not None
        assert {by_name() for _ in range(3)} == {name for name, _ in by_name.providers} == names
        assert Worker.at("workers/2").who() == "workers/2"
        assert len(pyzmp.discover(Worker.who).providers) == 4
    assert group.exitcode == 0
    assert nodes_known() == set()


def test_members_of_all_kinds_have_one_start_and_one_shutdown(tmp_path: Path) -> None:
    book = tmp_path / "book"
    members = [Says("one", book), Says("two", book, kind="thread"), Says("three", book, kind="entity"),
               pyzmp.Group("inner", [Says("four", book, kind="thread"), Says("five", book)])]
    group = pyzmp.Group("all", members)
    assert (group.kind, group.is_alive(), group.exitcode, group.has_started()) == ("group", False, None, False)
    assert group.shutdown() is None
    assert group.start() is True
    assert all(node.is_alive() for node in (group, *members))
    assert (group.exitcode, group.has_started()) == (None, True)
    assert nodes_known() == {"all", "one", "two", "three", "inner", "four", "five"}
    assert group.shutdown() == group.shutdown() == group.exitcode == 0
    assert not any(node.is_alive() for node in (group, *members))
    assert book.read_text() == "+one +two +three +four +five -five -four -three -two -one "
    assert nodes_known() == set()


def test_groups_in_groups() -> None:
    with pyzmp.Group("outer", [Worker(kind="thread"), pyzmp.Group(None, [Worker(kind="entity"), Worker("named")])]):
        assert {known(name).groups for name in ("outer/2/1", "named")} == {("outer/2", "outer")}
        assert (known("outer/2").kind, known("outer/2").groups) == ("group", ("outer",))
        assert len(pyzmp.discover(Worker.at("outer").who).providers) == 3
        assert {Worker.at("outer/2").who() for _ in range(10)} <= {"outer/2/1", "named"}


def test_names_follow_the_group_and_given_ones_stay() -> None:
    members = [Worker(), Worker("mine"), Worker()]
    group = pyzmp.Group(None, members)
    assert [node.name for node in members] == [f"{group.name}/1", "mine", f"{group.name}/3"]
    assert len(group.name) == 36
    members[2].name = "other"
    group.name = "team"
    assert [node.name for node in members] == ["team/1", "mine", "other"]
    outer = pyzmp.Group("league", [group])
    assert [node.name for node in members] == ["team/1", "mine", "other"]
    assert members[0]._groups == ("team", "league")
    outer.name = "cup"
    assert members[0]._groups == ("team", "cup")


def test_a_call_that_fails_is_tried_at_another_member(eventually: Callable[..., None]) -> None:
    with pyzmp.Group("workers", [Worker() for _ in range(2)]) as group:
        mortal = Worker.at("workers").mortal
        assert {mortal("workers/1") for _ in range(3)} == {"workers/2"}
        eventually(lambda: not group.nodes[0].is_alive())
    assert group.exitcode == 1


@pytest.mark.usefixtures("inside")
def test_what_no_member_provides_is_unknown() -> None:
    with pyzmp.Group("workers", [Worker(kind="entity") for _ in range(2)]):
        with pytest.raises(pyzmp.UnknownService, match=r"nobody provides 'whoo' in group 'workers' \(2 nodes known\); "
                                                       r"did you mean 'who'\?"):
            pyzmp.Service("whoo", node="workers")()
        with pytest.raises(pyzmp.UnknownService, match="did you mean 'workers'"):
            Worker.at("worker").who()
        assert pyzmp.discover("workers/whoo") is None
    with pytest.raises(pyzmp.UnknownService, match="there is no node 'workers'"):
        Worker.at("workers").who()


def test_a_process_sees_the_group_of_another(script: Any, eventually: Callable[..., None]) -> None:
    (script.folder / "owner.py").write_text(
        "import pyzmp\nclass A(pyzmp.Node):\n    @pyzmp.service\n    def name_(self) -> str: return self.name\n"
        "pyzmp.run(pyzmp.Group('abroad', [A(), A(kind='thread')]))\n")
    process = script.start("owner.py")
    found = pyzmp.discover("abroad/name_", timeout=10, minimum_providers=2)
    assert found is not None
    assert {found() for _ in range(2)} == {"abroad/1", "abroad/2"}
    with pytest.raises(NodeExists, match=r"'abroad' is already run by pid \d+ as Group"):
        pyzmp.Group("abroad", [Worker(kind="entity")]).start()
    process.kill()  # its name goes with its owner
    process.wait()
    eventually(lambda: not nodes_known(), 10)


# -- starting -----------------------------------------------------------------------------------------------------


class Together(pyzmp.Node):
    """Gets ready once so many are about to."""

    def __init__(self, folder: Path, many: int) -> None:
        super().__init__()
        self.folder, self.many = folder, many

    def on_start(self) -> None:
        (self.folder / f"{os.getpid()}").touch()
        over = time.monotonic() + 20
        while len(list(self.folder.iterdir())) < self.many:
            if time.monotonic() > over:
                raise TimeoutError("they do not start together")
            time.sleep(0.002)


def test_neighbours_of_one_class_start_together(tmp_path: Path) -> None:
    with pyzmp.Group("workers", [Together(tmp_path, 3) for _ in range(3)]) as group:
        assert len({node.ident for node in group.nodes}) == 3


@pytest.mark.parametrize("awaited", [False, True])
def test_a_member_that_fails_ends_those_before(tmp_path: Path, awaited: bool) -> None:
    book = tmp_path / "book"
    kinds: tuple[Any, ...] = ("process", "thread", "entity")
    begun = [Says(kind, book, kind=kind) for kind in kinds]
    never = Says("never", book)
    group = pyzmp.Group("some", [*begun, pyzmp.Group("inner", [Fails("broken", book)]), never])
    with pytest.raises(StartError, match="'inner' of the group 'some' did not start: StartError: 'broken' of the group "
                                         "'inner' did not start: ValueError: no device") as caught:
        asyncio.run(group.astart()) if awaited else group.start()
    assert isinstance(caught.value.__cause__.__cause__, ValueError)  # type: ignore[union-attr]
    assert book.read_text() == "+process +thread +entity -entity -thread -process "
    assert [node.exitcode for node in (group, *begun)] == [1, 0, 0, 0]
    assert (group.is_alive(), never.exitcode, nodes_known()) == (False, None, set())


def test_one_of_those_that_start_together_fails(tmp_path: Path) -> None:
    class Choosy(Says):
        def on_start(self) -> None:
            if self.name == "b":
                raise ValueError("not me")
    group = pyzmp.Group("abc", [Choosy(name, tmp_path / "book") for name in "abc"])
    with pytest.raises(StartError, match="'b' of the group 'abc' did not start: ValueError: not me"):
        group.start()
    assert not any(node.is_alive() for node in group.nodes)
    assert nodes_known() == set()


@pytest.mark.parametrize("awaited", [False, True])
def test_a_start_that_takes_too_long_leaves_nothing(tmp_path: Path, awaited: bool) -> None:
    book = tmp_path / "book"
    group = pyzmp.Group("slow", [Says("quick", book, kind="thread"), Hangs("hangs", book)])
    with Worker("there", kind="thread"):  # and with it a registry
        began = time.monotonic()
        assert (asyncio.run(group.astart(1.0)) if awaited else group.start(1.0)) is False
        assert time.monotonic() - began < 15  # and not the 30 s of a start without a timeout
        assert not any(node.is_alive() for node in (group, *group.nodes))
        assert book.read_text() in ("+quick +hangs -quick ", "+quick -quick ")  # the latter where a process takes long
        assert nodes_known() == {"there"}


def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path, eventually: Callable[..., None]) -> None:
    book = tmp_path / "book"
    group = pyzmp.Group("slow", [Says("quick", book, kind="entity"), Hangs("hangs", book)])

    async def main() -> None:
        task = asyncio.create_task(group.astart())
        await asyncio.to_thread(eventually, lambda: book.exists() and "+hangs" in book.read_text())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(node.is_alive() for node in (group, *group.nodes))
    asyncio.run(main())
    assert book.read_text() == "+quick +hangs -quick "
    assert nodes_known() == set()


def test_a_start_can_be_ended_from_elsewhere(tmp_path: Path, eventually: Callable[..., None]) -> None:
    group = pyzmp.Group("slow", [Hangs("hangs", tmp_path / "book"), Worker("after")])
    errors: list[Exception] = []

    def start() -> None:
        try:
            group.start()
        except StartError as error:
            errors.append(error)
    thread = threading.Thread(target=start)
    thread.start()
    eventually((tmp_path / "book").exists)
    group.shutdown(timeout=0.5)
    thread.join(10)
    assert re.match("'hangs' of the group 'slow' did not start", str(errors[0]))
    assert (group.is_alive(), group.nodes[1].exitcode) == (False, None)


class Quits(pyzmp.Node):
    """Ends its group while that is started."""

    def on_start(self) -> None:
        GROUPS[-1].shutdown()


class QuitsElsewhere(pyzmp.Node):
    """The same from a thread that is no member's."""

    def on_start(self) -> None:
        thread = threading.Thread(target=GROUPS[-1].shutdown, args=(False,))
        thread.start()
        thread.join()


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("cls", [Quits, QuitsElsewhere])
def test_a_stop_that_is_not_waited_for_ends_a_start(cls: Any, awaited: bool) -> None:
    before, after = Worker("before", kind="thread"), Worker("after", kind="thread")
    GROUPS.append(pyzmp.Group("quits", [before, pyzmp.Group(None, [cls(kind="thread")]), after]))
    with pytest.raises(StartError, match="'quits'"):
        asyncio.run(GROUPS[-1].astart()) if awaited else GROUPS[-1].start()
    assert (GROUPS.pop().is_alive(), before.exitcode, after.exitcode) == (False, 0, None)
    assert nodes_known() == set()


class Interrupts(Hangs):
    """The first of them: a Ctrl-C comes right before its process is there."""

    def _launcher(self) -> Any:
        if self.name == "first":
            os.kill(os.getpid(), signal.SIGINT)
        return super()._launcher()


def test_a_start_of_several_at_once_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    group = pyzmp.Group("several", [Interrupts(name, tmp_path / "book") for name in ("first", "second")])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        group.start()
    assert time.monotonic() - began < 15  # and not the 30 s of a start
    assert not any(node.is_alive() for node in (group, *group.nodes))
    assert nodes_known() == set()


class Stuck(pyzmp.Node):
    """Does not stop until its gate is open."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__(kind="thread")
        self.gate = gate

    def on_stop(self) -> None:
        self.gate.wait()


class Broken(pyzmp.Node):
    def on_start(self) -> None:
        raise ValueError("no device")


@pytest.mark.usefixtures("inside")
def test_what_a_start_has_begun_has_one_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyzmp.group.UNDO", 0.2)
    gate = threading.Event()
    group = pyzmp.Group("stuck", [Stuck(gate), Stuck(gate), Broken(kind="thread")])
    began = time.monotonic()
    with pytest.raises(StartError, match="no device"):
        group.start()
    took = time.monotonic() - began
    gate.set()
    for node in group.nodes:
        node.join(10)
    assert took < 6  # and not the 14 s of two that each have their own
    assert not group.is_alive()


@pytest.mark.parametrize("make", [lambda: Worker("one", kind="thread"),
                                  lambda: pyzmp.Group("some", [Worker("one", kind="thread")])])
def test_a_registry_that_does_not_answer_in_time_makes_it_late(make: Callable[[], pyzmp.Node], caplog: Any,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYZMP_REGISTRY", "tcp://127.0.0.1:1")
    node = make()
    assert node.start(timeout=0.2) is False
    assert not node.is_alive()
    assert "the group some ends without a registry" not in caplog.text  # as it has told it nothing


def test_a_running_group_is_started_anew() -> None:
    group = pyzmp.Group("workers", [Worker(), Worker(kind="thread")])
    group.start()
    before = group.nodes[0].ident
    group.start()
    assert group.nodes[0].ident != before
    assert group.shutdown() == 0


def test_a_taken_name_is_refused_and_stays_whose_it_is(kind: Any) -> None:
    with Worker("taken", kind=kind):
        member = Worker(kind="thread")
        with pytest.raises(NodeExists, match="'taken' is already run by"):
            pyzmp.Group("taken", [member]).start()
        assert member.exitcode is None
        assert Worker.at("taken").who() == "taken"
        with pytest.raises(StartError, match="'taken' of the group 'free' did not start: NodeExists: 'taken' is alr"):
            pyzmp.Group("free", [Worker("taken", kind="thread")]).start()
        assert nodes_known() == {"taken"}


# -- living and ending --------------------------------------------------------------------------------------------


def test_it_lives_on_without_a_member_that_died(eventually: Callable[..., None]) -> None:
    with pyzmp.Group("workers", [Worker(), Worker(kind="thread")]) as group:
        first = group.nodes[0]
        os.kill(first.ident or 0, signal.SIGKILL)
        first.join(10)
        assert (first.exitcode, group.is_alive(), group.exitcode) == (-9, True, None)
        eventually(lambda: known("workers/1") is None, 10)
        assert [Worker.at("workers").who() for _ in range(2)] == ["workers/2"] * 2
        first.start()  # it is in the group again
        assert len(pyzmp.discover(Worker.at("workers").who).providers) == 2
        os.kill(first.ident or 0, signal.SIGKILL)
    assert group.exitcode == 1


class Ends(pyzmp.Node):
    """Ends by itself."""

    status = 0

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self.status


class EndsBadly(Ends):
    status = 3


def test_it_ends_with_its_last_member(kind: Any) -> None:
    good = pyzmp.Group("good", [Ends(kind=kind), Ends(kind=kind)])
    good.start()
    good.join(10)
    assert (good.is_alive(), good.exitcode, known("good")) == (False, 0, None)
    bad = pyzmp.Group("bad", [Ends(kind=kind), pyzmp.Group(None, [EndsBadly(kind=kind)])])
    assert bad.run() == 1
    assert nodes_known() == set()


def test_one_time_is_for_all(tmp_path: Path) -> None:
    stays: list[pyzmp.Node] = [Stays("one", tmp_path / "book"), Worker("apart", kind="thread")]
    group = pyzmp.Group("tough", [*stays, Stays("two", tmp_path / "book")])
    group.start()
    began = time.monotonic()
    assert group.shutdown(timeout=1.0) == 1
    assert time.monotonic() - began < 5  # and not the 6 s that each of them has by itself
    assert [node.exitcode in (-15, -9) for node in group.nodes] == [True, False, True]


@pytest.mark.usefixtures("inside")
def test_many_that_do_not_stop_take_no_longer() -> None:
    gate = threading.Event()
    group = pyzmp.Group("stuck", [Stuck(gate) for _ in range(80)])
    group.start()
    began = time.monotonic()
    group.shutdown(timeout=0.1)
    took = time.monotonic() - began
    gate.set()
    group.join(10)
    assert took < 3.5  # and not the 4 s of a moment for each
    assert group.exitcode == 0


class Again(pyzmp.Node):
    """Where it is started again, its group has time to notice that it is gone for a moment."""

    group: pyzmp.Group
    starts = 0

    def on_start(self) -> None:
        self.starts += 1

    def _launcher(self) -> Any:
        if self.starts:
            self.group.join(0.2)
        return super()._launcher()

    async def ashutdown(self, join: bool = True, timeout: float | None = None) -> int | None:
        status = await super().ashutdown(join, timeout)
        if self.starts == 1:
            await asyncio.to_thread(self.group.join, 0.2)
        return status


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("awaited", [False, True])
def test_the_only_member_can_be_started_again_while_it_runs(awaited: bool) -> None:
    again = Again(kind="entity" if awaited else "thread")
    again.group = pyzmp.Group("solo", [again])

    async def restart() -> None:
        async with again.group:
            await again.astart()
            assert (again.is_alive(), again.group.is_alive()) == (True, True)
            assert known("solo") is not None
    if awaited:
        asyncio.run(restart())
    else:
        with again.group:
            again.start()
            assert (again.is_alive(), again.group.is_alive()) == (True, True)
            assert known("solo") is not None
    assert again.group.exitcode == 0


def test_it_can_be_asked_to_stop_without_waiting() -> None:
    group = pyzmp.Group("workers", [Worker(), Worker(kind="thread"), Worker(kind="entity")])
    group.start()
    group.shutdown(join=False)
    group.join(10)
    assert group.exitcode == 0


class Closer(pyzmp.Node):
    @pyzmp.service
    def close(self) -> int | None:
        return GROUPS[-1].shutdown()

    @pyzmp.service
    async def aclose(self) -> int | None:
        return await GROUPS[-1].ashutdown()


GROUPS: list[pyzmp.Group] = []


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("kind", ["thread", "entity"])
@pytest.mark.parametrize("service", ["close", "aclose"])
def test_a_member_may_ask_its_group_to_stop(kind: Any, service: str) -> None:
    GROUPS.append(pyzmp.Group("closing", [Worker(kind="thread"), pyzmp.Group(None, [Closer(kind=kind)])]))
    GROUPS[-1].start()
    assert pyzmp.Service(service)() is None
    GROUPS[-1].join(10)
    assert GROUPS.pop().exitcode == 0


def test_in_a_coroutine_entities_live_on_its_loop() -> None:
    class Here(pyzmp.Node):
        loop: Any = None

        async def on_start(self) -> None:
            self.loop = asyncio.get_running_loop()

    async def main() -> None:
        here = Here("here", kind="entity")
        async with pyzmp.Group("mixed", [here, Worker(), Worker(kind="thread")]) as group:
            assert here.loop is asyncio.get_running_loop()
            assert await Worker.at("mixed").who.acall() in ("mixed/2", "mixed/3")
            with pytest.raises(RuntimeError, match=r"write await group\.ashutdown"):
                group.shutdown()
            with pytest.raises(RuntimeError, match=r"write await group\.ajoin"):
                group.join()  # which would never end
            with pytest.raises(RuntimeError, match=r"write await node\.ajoin"):
                here.join()
            assert all(node.is_alive() for node in group.nodes)
            ended = asyncio.ensure_future(group.ajoin())
        await asyncio.wait_for(ended, 10)
        assert (group.exitcode, nodes_known()) == (0, set())
    asyncio.run(main())


def test_the_end_of_the_interpreter_is_its_end(script: Any) -> None:
    result = script("import pyzmp\ngroup = pyzmp.Group('left', [pyzmp.Node(), pyzmp.Node(kind='thread'), "
                    "pyzmp.Node(kind='entity')])\ngroup.start()\nprint(group)\n", strict=True)
    assert (result.code, result.out, result.err) == (0, "<Group 'left' of 3 nodes running>\n", "")


def test_memory_is_enough_for_a_group(script: Any) -> None:
    result = script("import pyzmp\npyzmp.configure(registry='memory')\nclass A(pyzmp.Node):\n    @pyzmp.service\n"
                    "    def me(self) -> str: return self.name\n"
                    "with pyzmp.Group('all', [A(kind='thread'), A(kind='entity')]):\n"
                    "    found = pyzmp.discover('all/me')\n    print(sorted(found() for _ in range(2)))\n"
                    "try: pyzmp.Group('all', [A(kind='thread'), A()]).start()\n"
                    "except pyzmp.PyzmpError as error: print(error)\n")
    assert result.out.startswith("['all/1', 'all/2']\n'all/2' is a process"), result.err


# -- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "said"), [
    ([], "takes one node or more, got none"), ([Worker], r"write Worker\(…\)"), (["greeter"], "got 'greeter'"),
    (Worker("w"), r"takes a list of nodes, got <Worker 'w'"), (None, "takes a list of nodes, got None"),
    ([pyzmp.CoProcess("c")], "got <CoProcess"),
])
def test_what_is_no_node_is_refused(given: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        pyzmp.Group("workers", given)


@pytest.mark.usefixtures("inside")
def test_a_node_is_in_one_group_once() -> None:
    node = Worker("w", kind="thread")
    with pytest.raises(ValueError, match="'w' is given 2 times"):
        pyzmp.Group("a", [node, node])
    group = pyzmp.Group("a", [node])
    with group, pytest.raises(ValueError, match="'w' is in the group 'a' already"):
        pyzmp.Group("b", [Worker(), node])
    assert node._groups == ("a",)


def test_a_node_leaves_a_group_that_is_gone() -> None:
    node = Worker()
    outer = pyzmp.Group("outer", [pyzmp.Group("inner", [node])])
    with pytest.raises(ValueError, match="'inner/1' is in the group 'inner' already"):
        pyzmp.Group("other", [node])
    inner = outer.nodes[0]
    del outer
    gc.collect()
    assert (inner._groups, node._groups) == ((), ("inner",))
    assert pyzmp.Group("other", [inner]).nodes == (inner,)
    del inner
    gc.collect()
    assert node._groups == ()
    team = pyzmp.Group("team", [node])
    assert (node.name, node._groups) == ("team/1", (team.name,))


@pytest.mark.usefixtures("inside")
def test_a_name_that_is_refused_changes_nothing() -> None:
    nodes = [Worker(kind="thread"), Worker(kind="thread")]
    group = pyzmp.Group("a", nodes)
    for name, error in (("b", RuntimeError), ("x" * 255, ValueError), (3, TypeError)):
        with nodes[1] if name == "b" else contextlib.nullcontext(), pytest.raises(error):
            group.name = name  # type: ignore[assignment]
        assert (group.name, [node.name for node in nodes]) == ("a", ["a/1", "a/2"])
        assert {node._groups for node in nodes} == {("a",)}


@pytest.mark.usefixtures("inside")
def test_a_node_that_runs_already_is_refused() -> None:
    node, other = Worker("w", kind="thread"), Worker("before", kind="thread")
    with node, pytest.raises(RuntimeError, match="'w' runs; put it into a group before"):
        pyzmp.Group("a", [node])
    group = pyzmp.Group("a", [other, node])
    with node, pytest.raises(RuntimeError, match="'w' of the group 'a' runs already; shut it down before"):
        group.start()
    assert (other.exitcode, group.is_alive(), known("a")) == (None, False, None)
    with group:
        assert node.is_alive()
    with node, pytest.raises(RuntimeError, match="runs already"):
        group.start()


def test_two_members_of_one_name_are_refused_before_anything_starts() -> None:
    first = Worker("same", kind="thread")
    with pytest.raises(ValueError, match="'same' is the name of 2 nodes of the group 'a'"):
        pyzmp.Group("a", [first, pyzmp.Group("b", [Worker("same")])]).start()
    assert first.exitcode is None


def test_a_group_runs_no_code_of_its_own() -> None:
    with pytest.raises(TypeError, match=r"Serves\.hello would be of no use"):
        type("Serves", (pyzmp.Group,), {"hello": pyzmp.service(lambda self: 1)})
    with pytest.raises(TypeError, match=r"Hooks\.on_start would be of no use"):
        type("Hooks", (pyzmp.Group,), {"on_start": lambda self: None})
    group = pyzmp.Group("workers", [Worker()])
    with pytest.raises(TypeError, match="has no services of its own"):
        group.provides(len)
    with pytest.raises(TypeError, match="takes no arguments"):
        group.run(1)
    group.kind = "thread"
    with pytest.raises(ValueError, match="expected 'group', got 'thread'"):
        group.start()
    with pytest.raises(ValueError, match="expected 'process', 'thread' or 'entity', got 'group'"):
        Worker(kind="group").start()  # type: ignore[arg-type]


@pytest.mark.usefixtures("inside")
def test_a_subclass_may_say_what_its_members_are() -> None:
    class Team(pyzmp.Group):
        def __init__(self, name: str, many: int) -> None:
            super().__init__(name, (Worker(kind="entity") for _ in range(many)))

    class Careless(pyzmp.Group):
        def __init__(self) -> None:
            pyzmp.Node.__init__(self, "careless")
    with Team("team", 2) as team:
        assert (repr(team), known("team").cls.endswith("Team")) == ("<Team 'team' of 2 nodes running>", True)
    assert repr(team) == "<Team 'team' of 2 nodes stopped with exit code 0>"
    with pytest.raises(TypeError, match=r"Careless\.__init__ did not call"):
        Careless().start()


@pytest.mark.usefixtures("inside")
def test_a_group_that_was_not_started_can_be_sent() -> None:
    group = pickle.loads(pickle.dumps(pyzmp.Group("sent", [Worker(kind="thread")])))
    assert repr(group) == "<Group 'sent' of 1 nodes not started>"
    with group:
        assert Worker.at("sent").who() == "sent/1"


# -- applications -------------------------------------------------------------------------------------------------

PROGRAM = """
import pyzmp
class Says(pyzmp.Node):
    def on_stop(self):
        print(self.name, flush=True)
    @pyzmp.service
    def hello(self) -> str:
        return self.name
class Other(Says):
    pass
pyzmp.run(pyzmp.Group("house", [Says(), Other("two", kind="thread"), pyzmp.Group("inner", [Says("three")])]),
          Says("last"))
print("over")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_application_stops_in_reverse_order(script: Any, number: int) -> None:
    (script.folder / "program.py").write_text(PROGRAM)
    process = script.start("program.py", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert pyzmp.discover("hello", timeout=10, minimum_providers=4) is not None
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    assert (process.communicate(timeout=10)[0], process.returncode) == ("last\nthree\ntwo\nhouse/1\nover\n", 0)


@pytest.mark.usefixtures("inside")
def test_an_application_ends_when_its_group_has_failed() -> None:
    other = Worker("other", kind="thread")
    with pytest.raises(pyzmp.NodeDied, match="'bad' ended by itself with exit code 1"):
        pyzmp.run(other, pyzmp.Group("bad", [Ends(kind="thread"), EndsBadly(kind="thread")]))
    assert other.exitcode == 0
