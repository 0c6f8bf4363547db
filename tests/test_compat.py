"""What programs for pyzmp 0.0.17 expect of its root, its nodes and its services.  CoProcess has tests of its own."""

from __future__ import annotations

import contextlib
import inspect
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp.exceptions import NodeExists, StartError
from pyzmp.launchers.forkserver import server
from tests.campaigns.history import SCALE


@pytest.fixture(scope="session", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's."""
    server.ensure_running()


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def start_method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to start a process."""
    monkeypatch.setenv("PYZMP_START_METHOD", request.param)
    return request.param  # type: ignore[no-any-return]


every_way = pytest.mark.usefixtures("start_method")  # of starting a process


def found(name: str) -> Any:
    service = pyzmp.discover(name)
    assert service is not None, f"{name} was not found"
    return service


class TestNode(pyzmp.Node):
    """As the original's own tests declare theirs."""

    __test__ = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.magic_number = 666
        self.provides(self.magic)
        self.provides(self.add)
        self.provides(self.fail)
        self.provides(self.who)
        self.provides(self.static)

    def magic(self) -> int:
        return self.magic_number

    def add(self, a: Any, b: Any = 1) -> Any:
        return a + b

    def fail(self) -> None:
        raise KeyError("no such thing")

    def who(self) -> str:
        return pyzmp.current_node().name

    @staticmethod
    def static(value: Any) -> Any:
        return value


# -- a node ----------------------------------------------------------------------------------------------------


def test_without_a_name_it_gets_a_uuid() -> None:
    assert str(uuid.UUID(pyzmp.Node().name)) != str(uuid.UUID(pyzmp.Node().name))


def test_its_constructor_takes_what_it_took() -> None:
    assert list(inspect.signature(pyzmp.Node).parameters)[:6] == [
        "name", "socket_bind", "context_manager", "loop_target", "args", "kwargs"]


@every_way
def test_start_returns_the_address_and_the_same_again(domain: Path) -> None:
    node = TestNode("node")
    address = node.start()
    assert isinstance(address, str)
    assert address.startswith(f"ipc://{domain}/")
    assert found("magic").providers == [("node", address)]
    assert node.shutdown() == 0
    assert node.start() == address
    assert node.start() == address
    assert found("magic").call() == 666
    assert node.shutdown() == node.shutdown() == 0
    assert [path.name for path in domain.rglob("node*")] == []


@every_way
def test_socket_bind_is_where_it_is_reached() -> None:
    node = TestNode("node", socket_bind="tcp://127.0.0.1:*")
    address = node.start()
    assert address.startswith("tcp://127.0.0.1:")
    assert found("magic").providers == [("node", address)]
    assert found("magic").call() == 666
    node.shutdown()


def test_start_is_false_when_the_time_ran_out() -> None:
    @contextlib.contextmanager
    def slow() -> Iterator[None]:
        time.sleep(0.5)
        yield
    node = pyzmp.Node("node", context_manager=slow)
    assert node.start(timeout=0.1) is False
    assert not node.is_alive()
    assert node.start(timeout=10)
    node.shutdown()


class Counts(pyzmp.Node):
    count = 0

    def __init__(self, **options: Any) -> None:
        super().__init__("counts", **options)
        self.provides(self.seen)

    def update(self, *args: Any, timedelta: float, **kwargs: Any) -> Any:
        self.count += 1
        self.last = [list(args), kwargs, timedelta]
        return kwargs.get("status")

    def seen(self) -> Any:
        return [self.count, *self.last]


@every_way
def test_update_gets_args_kwargs_and_timedelta() -> None:
    with Counts(args=(1, 2), kwargs={"three": 3}):
        count, args, kwargs, timedelta = found("seen").call()
        assert (args, kwargs) == ([1, 2], {"three": 3})
        assert count >= 1
        assert 0 <= timedelta < 0.5
        later = [found("seen").call()[0] for _ in range(20)]
        assert later[-1] > count + 5  # after the turns that handled a message, and not each 100 ms only


@every_way
def test_a_return_value_of_update_ends_the_node() -> None:
    node = Counts(kwargs={"status": 5})
    node.start()
    node.join(10)
    assert node.exitcode == node.shutdown() == 5


def test_loop_target_takes_the_place_of_update(tmp_path: Path) -> None:
    def target(name: str, *, timedelta: float) -> int:
        (tmp_path / name).write_text(str(timedelta))
        return 0
    node = pyzmp.Node("node", loop_target=target, args=("turn",))
    node.start()
    node.join(10)
    assert float((tmp_path / "turn").read_text()) >= 0


@every_way
def test_an_update_replaced_on_the_instance_counts() -> None:
    node = TestNode("node")
    node.update = lambda timedelta: 9  # type: ignore[method-assign,assignment,misc]
    node.start()
    node.join(10)
    assert node.exitcode == 9


@every_way
def test_the_context_gives_the_first_arguments() -> None:
    @contextlib.contextmanager
    def context(*args: int) -> Iterator[tuple[str, str]]:
        yield "first", "second"
    with Counts(context_manager=context, args=(3,)):
        assert found("seen").call()[1] == ["first", "second", 3]


@every_way
def test_attributes_set_before_the_start_are_seen_by_services() -> None:
    node = TestNode("node")
    node.magic_number = 42
    with node:
        assert found("magic").call() == 42
        node.magic_number = 43
        assert found("magic").call() == 42


@every_way
def test_with_starts_and_shuts_down_and_leaves_a_running_node_as_it_is() -> None:
    node = TestNode("node")
    with node as entered:
        assert entered is node
        pid = node.ident
        with node:
            assert node.ident == pid
        assert not node.is_alive()
    assert pyzmp.discover("magic") is None


def test_provides_takes_any_callable() -> None:
    node = pyzmp.Node("node")
    node.provides(max)
    node.provides(dict)
    node.provides(str.upper, "shout")
    with pytest.raises(TypeError, match="service_name"):
        node.provides(contextlib.nullcontext())  # type: ignore[arg-type]
    with node:
        assert found("max").call((3, 4)) == 4
        assert found("dict").call(kwargs={"a": 1}) == {"a": 1}
        assert found("shout").call(("hey",)) == "HEY"


class Delegate:
    """Holds a node; its method keeps this object."""

    def __init__(self) -> None:
        self.answer = 42
        self.node = pyzmp.Node("delegate")
        self.node.provides(self.ask)

    def ask(self) -> int:
        return self.answer


@every_way
def test_a_method_bound_to_another_object_keeps_it() -> None:
    delegate = Delegate()
    with delegate.node:
        assert found("ask").call() == 42


@every_way
def test_withholds_takes_it_back_also_while_the_node_runs() -> None:
    node = TestNode("node")
    node.withholds(node.add)
    node.withholds("fail")
    with node:
        assert pyzmp.discover("add") is None
        assert pyzmp.discover("fail") is None
        node.withholds("magic")
        assert pyzmp.discover("magic") is None
        node.provides(node.magic, "spell")
        assert found("spell").call() == 666


def test_what_pickling_cannot_carry_is_named_and_a_fork_carries_it(start_method: str) -> None:
    node = TestNode("node")
    node.gate = multiprocessing.get_context("fork").Event()  # type: ignore[attr-defined]
    if start_method != "fork":
        with pytest.raises(StartError, match="attribute 'gate'"):
            node.start()
    forked = TestNode("forked", start_method="fork")
    gate = forked.gate = multiprocessing.get_context("fork").Event()  # type: ignore[attr-defined]
    forked.provides(gate.set, "open")
    with forked:
        found("open").call()
        assert gate.wait(5)


@every_way
def test_a_second_copy_of_a_program_fails_with_both_owners_named(script: Any) -> None:
    with TestNode("node") as node:
        other = script("import pyzmp\npyzmp.Node('node').start()\n")
        assert other.code == 1
        assert f"'node' is already run by pid {node.ident} as " in other.err
        assert "PYZMP_DOMAIN" in other.err
        with pytest.raises(NodeExists):
            TestNode("node").start()
        program = "import pyzmp\nwith pyzmp.Node('node'):\n    print('up')\n"
        elsewhere = script(program, env={"PYZMP_DOMAIN": "elsewhere"})
        assert (elsewhere.out, elsewhere.err) == ("up\n", "")


# -- services ----------------------------------------------------------------------------------------------------


@every_way
def test_discover_does_not_wait_without_a_timeout() -> None:
    began = time.monotonic()
    assert pyzmp.discover("magic") is None
    assert pyzmp.Service.discover("magic") is None
    assert time.monotonic() - began < 1.5 * SCALE
    with TestNode("node"):
        assert found("magic").name == "magic"
        assert pyzmp.Service.discover("magic", 1, 1).call() == 666  # type: ignore[union-attr]
    assert pyzmp.discover("magic") is None


@every_way
def test_discover_waits_for_so_many_providers() -> None:
    with TestNode("one"):
        began = time.monotonic()
        two = pyzmp.discover("magic", timeout=0.2, minimum_providers=2)
        assert time.monotonic() - began >= 0.2
        assert two is None or len(two.providers) == 1
        other = TestNode("two")
        thread = threading.Thread(target=other.start)
        thread.start()
        assert len(pyzmp.discover("magic", 10, 2).providers) == 2  # type: ignore[union-attr]
        thread.join()
        other.shutdown()


@every_way
def test_services_maps_names_to_providers() -> None:
    with TestNode("node") as node:
        assert pyzmp.services["magic"] == found("magic").providers
        assert set(pyzmp.services) == {"magic", "add", "fail", "who", "static"}
        assert node.name == pyzmp.services["who"][0][0]
    assert dict(pyzmp.services) == {}


@every_way
def test_call_takes_a_tuple_a_dict_a_node_and_milliseconds() -> None:
    with TestNode("one"), TestNode("two"):
        add = found("add")
        assert add.call((1, 2)) == 3
        assert add.call(args=(1,), kwargs={"b": 5}) == 6
        assert add.call((1,), None, "two", 1000, 5000, object()) == 2
        assert {found("who").call(node=name) for name in ("one", "two")} == {"one", "two"}
        assert add.call((1,), send_timeout=None, recv_timeout=-1) == 2
        with pytest.raises(TypeError, match=r"write service\(3\)"):
            add.call(3)


@every_way
def test_an_error_is_raised_with_its_remote_traceback() -> None:
    with TestNode("node"), pytest.raises(KeyError, match="no such thing") as caught:
        found("fail").call()
    assert 'raise KeyError("no such thing")' in str(caught.value.__cause__)


def test_no_answer_is_a_timeout() -> None:
    node = pyzmp.Node("node")
    node.provides(time.sleep)
    with node:
        began = time.monotonic()
        with pytest.raises(pyzmp.ServiceCallTimeout):
            found("sleep").call((0.3,), recv_timeout=100)
        assert 0.1 <= time.monotonic() - began < 0.25 * SCALE


@every_way
def test_a_name_that_the_node_does_not_provide_is_an_unknown_service() -> None:
    with TestNode("node"):
        service = found("magic")
        service.name = "tragic"
        with pytest.raises(pyzmp.UnknownServiceException, match="magic"):
            service.call(send_timeout=50)
        with pytest.raises(pyzmp.UnknownServiceException):
            service.call(node="node")
        service.name = "magic"
        assert service.call() == 666


@every_way
def test_a_child_that_multiprocessing_forks_can_call() -> None:
    def child(results: Any) -> None:
        results.put([found("add").call((n,)) for n in range(3)])
    with TestNode("node"):
        assert found("add").call((1,)) == 2  # the parent has sessions that the child must not use
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        processes = [context.Process(target=child, args=(results,)) for _ in range(2)]
        for process in processes:
            process.start()
        assert [results.get() for _ in processes] == [[1, 2, 3]] * 2
        assert found("add").call((1,)) == 2
        for process in processes:
            process.join()
        results.close()


@every_way
def test_current_node_has_the_nodes_name() -> None:
    with TestNode("node"):
        assert found("who").call() == "node"


@every_way
def test_a_value_that_cannot_travel_is_an_error_at_the_side_that_sent_it() -> None:
    with TestNode("node"):
        with pytest.raises(TypeError, match=r"argument 1: .*lock"):
            found("static").call((threading.Lock(),))
        node = pyzmp.Node("locks")
        node.provides(threading.Lock, "lock")
        with node, pytest.raises(pyzmp.RemoteError, match=r"CannotTravel: the result of lock\(\)"):
            found("lock").call()
        assert list(found("static").call(((1, "two", b"three"),))) == [1, "two", b"three"]


# -- known bad in the original, and right here ------------------------------------------------------------


@every_way
def test_a_malformed_message_does_not_end_the_node(caplog: pytest.LogCaptureFixture) -> None:
    zmq = pytest.importorskip("zmq")
    with TestNode("node") as node, caplog.at_level(logging.ERROR):
        address = found("magic").providers[0][1]
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 100
            socket.connect(address)
            for message in (b"", b"nonsense", b"\xff" * 1000, b"\x80\x04K\x01."):
                socket.send(message)
                socket.send_multipart([message, b"", message])
        for _ in range(20):
            assert found("magic").call() == 666
        assert node.is_alive()


@every_way
def test_a_killed_node_is_advertised_no_more(eventually: Callable[..., None]) -> None:
    with TestNode("node") as node:
        os.kill(node.ident, signal.SIGKILL)  # type: ignore[arg-type]
        eventually(lambda: pyzmp.discover("magic") is None, 1)
        assert node.shutdown() == -signal.SIGKILL


def test_an_exception_that_cannot_be_pickled_keeps_its_type() -> None:
    def fail() -> None:
        error = ValueError("with a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error
    node = pyzmp.Node("node")
    node.provides(fail)
    with node, pytest.raises(ValueError, match="with a lock"):
        found("fail").call()


def test_one_slow_service_does_not_stop_the_others() -> None:
    class Mixed(pyzmp.Node):
        @pyzmp.service(worker=True)
        def slow(self) -> None:
            time.sleep(0.3)

        @pyzmp.service
        def quick(self) -> int:
            return 1
    with Mixed("mixed"):
        slow = Mixed.slow.submit()
        assert Mixed.quick() == 1
        assert not slow.done()
        slow.result(5)


@every_way
def test_unrelated_programs_find_each_other(script: Any) -> None:
    with TestNode("node"):
        result = script("import pyzmp\nprint(pyzmp.discover('magic', timeout=5).call())\n")
    assert (result.out, result.err) == ("666\n", "")


# -- whole programs ------------------------------------------------------------------------------------------

PROGRAM = """\
import pyzmp

class TestNode(pyzmp.Node):
    def __init__(self, *args, **kwargs):
        super(TestNode, self).__init__(*args, **kwargs)
        self.provides(self.magic)
        self.ticks = 0

    def magic(self):
        return 666

    def update(self, *args, **kwargs):
        self.ticks += kwargs["timedelta"]

node = TestNode(name="test_node")
print(node.start() != False)
print(pyzmp.discover("magic").call())
"""


@pytest.mark.parametrize("end", ["node.shutdown()", "", "raise SystemExit(0)", "import sys; sys.exit()"],
                         ids=["shutdown", "forgotten", "SystemExit", "exit"])
def test_a_program_ends_by_itself_and_leaves_nothing(script: Any, domain: Path, start_method: str, end: str) -> None:
    moment = "import time; print(time.monotonic())\n"  # one clock for all processes of a host
    result = script(PROGRAM + moment + end, strict=start_method != "fork", env={"PYZMP_START_METHOD": start_method})
    *said, last = result.out.split()
    assert (result.code, said, result.err) == (0, ["True", "666"], "")
    assert time.monotonic() - float(last) < 2
    assert [path.name for path in domain.rglob("node*")] == []


def test_the_names_at_the_root() -> None:
    for name in ("Node", "CoProcess", "Service", "discover", "services", "current_node", "ServiceCallTimeout",
                 "UnknownServiceException", "UnknownRequestTypeException", "UnknownResponseTypeException"):
        assert hasattr(pyzmp, name)
        assert name in pyzmp.__all__
    assert len([name for name in pyzmp.__all__ if not name.startswith("__")]) <= 30
    assert pyzmp.ServiceCallTimeout is pyzmp.CallTimeout
    assert issubclass(pyzmp.Node, pyzmp.CoProcess)


def test_an_import_starts_nothing(domain: Path) -> None:
    look = ("import threading, os, sys; before = len(os.listdir('/proc/self/fd')); import pyzmp; "
            "print(threading.active_count(), len(os.listdir('/proc/self/fd')) - before, "
            "[name for name in ('tornado', 'click', 'rich', 'numpy', 'cloudpickle') if name in sys.modules], "
            "os.listdir(os.environ['PYZMP_DIR']))")
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "1 0 [] []\n"
