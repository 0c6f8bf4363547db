"""The self-test: real nodes of every kind, over every transport of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyzmp import runtime
from pyzmp.channels.declare import service
from pyzmp.channels.discovery import discover
from pyzmp.channels.topic import Topic
from pyzmp.exceptions import CallTimeout, InvalidCall, NodeDied, NodeExists, RemoteError, UnknownService
from pyzmp.life import Kind
from pyzmp.node import Node
from pyzmp.registry import keys
from pyzmp.registry.domain import Domain, temporary_directory

SECURE = "tcp://127.0.0.1:*#"  # with the domain's own key behind it
BOUND = 10.0  # seconds that one check may wait for anything


class Probe(Node):
    """The node that the self-test asks, and listens to."""

    value = Topic(float)

    @service
    def tell(self, count: int) -> None:
        """Publish so many values."""
        for number in range(count):
            self.value.publish(number / 2)

    @service
    def add(self, a: int, b: int) -> int:
        """A plain service."""
        return a + b

    @service
    async def later(self, value: list[float]) -> list[float]:
        """An async one."""
        await asyncio.sleep(0.001)
        return value

    @service(worker=True)
    def hold(self, seconds: float) -> None:
        """One that blocks, in a worker thread."""
        time.sleep(seconds)

    @service
    def fail(self, key: str) -> None:
        """One that raises."""
        raise KeyError(key)

    @service
    def size(self, data: bytes) -> int:
        """One that gets much."""
        return len(data)

    @service
    def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()


Check = Callable[[], None]


def run(echo: Callable[[str], object]) -> bool:
    """Run every check, tell *echo* a line for each, and return whether all passed.

    It has a directory and a domain of its own, and leaves nothing behind but the directory of the
    user's own domain, which it makes where that is missing, as any program does.
    """
    began = time.monotonic()
    results = [_told("the directory of the user's own domain is private and writable", _own_directory, echo)]
    with contextlib.ExitStack() as stack:
        made: list[str] = []
        results.append(_told("a domain of the self-test's own",
                             lambda: made.append(stack.enter_context(world("selftest"))), echo))
        results += [_told(name, check, echo) for directory in made for name, check in _checks(directory)]
    results += [_told("nothing is left behind", lambda: _nothing_left(directory), echo)  # noqa: B023  at once
                for directory in made]
    failed = results.count(False)
    echo(f"{len(results) - failed} passed, {failed} failed in {time.monotonic() - began:.1f} s")
    return not failed


@contextlib.contextmanager
def world(name: str) -> Iterator[str]:
    """The domain *name*, in a directory of its own that is removed again."""
    directory = temporary_directory(name)
    before = os.environ.get("PYZMP_DIR")
    os.environ["PYZMP_DIR"] = directory
    try:
        runtime.reset()
        runtime.configure(domain=name, registry="")
        yield directory
    finally:
        runtime.reset()
        shutil.rmtree(directory, ignore_errors=True)
        if before is None:
            del os.environ["PYZMP_DIR"]
        else:
            os.environ["PYZMP_DIR"] = before


def _told(name: str, check: Check, echo: Callable[[str], object]) -> bool:
    began = time.monotonic()
    try:
        check()
        failure = ""
    except Exception as error:  # whatever is wrong is told, and the others go on
        failure = f"{type(error).__name__}: {error}"
    spent = (time.monotonic() - began) * 1000
    echo(f"{'FAILED' if failure else 'ok':6} {spent:7.1f} ms  {name}{': ' + failure if failure else ''}")
    return not failure


def _checks(directory: str) -> Iterator[tuple[str, Check]]:
    for kind in ("entity", "thread", "process"):
        yield f"{kind}: starts, is found by name, answers, stops", lambda kind=kind: _lifecycle(kind)  # type: ignore[misc]
        for transport, address in _transports(directory):
            if kind != "process" or transport not in ("memory", "inproc"):
                yield f"{kind} over {transport}", lambda k=kind, a=address: _over(k, a)  # type: ignore[misc]
        yield f"{kind}: publishes to whoever subscribes", lambda kind=kind: _published(kind)  # type: ignore[misc]
    yield "a program without nodes publishes", _program
    yield "errors keep their type and bring their traceback", _errors
    yield "arguments are checked, and the service does not run", _arguments
    yield "a call ends at its deadline", _deadline
    yield "an unknown service is told at once, with the nearest name", _unknown
    yield "a name is taken once", _unique
    yield "a killed node is noticed, and forgotten", _killed
    yield "an unrelated interpreter finds the nodes of this one", _unrelated


def _transports(directory: str) -> list[tuple[str, str | None]]:
    return [("memory", None), ("inproc", "inproc://pyzmp-selftest"), ("ipc", f"ipc://{directory}/own"),
            ("tcp", "tcp://127.0.0.1:*"), ("tcp with CURVE", SECURE)]


def _expect(condition: object, text: str) -> None:
    if not condition:
        raise RuntimeError(text)


def _raises(error: type[BaseException], call: Callable[[], Any]) -> Any:
    try:
        value = call()
    except error as raised:
        return raised
    raise RuntimeError(f"expected {error.__name__}, got {value!r}")


def _own_directory() -> None:
    Domain.named(runtime.settings().domain).make()


def _lifecycle(kind: Kind) -> None:
    node = Probe("probe", kind=kind)
    _expect(node.start(timeout=BOUND), "it was not ready in time")
    found = discover("add")
    _expect(found is not None and found(a=1, b=2) == 3, "its service was not found by name, or answered wrongly")
    here = Probe.at("probe").pid() == os.getpid()
    _expect(here != (kind == "process"), "it runs in the wrong place")
    _expect(node.shutdown(timeout=BOUND) == 0, f"it stopped with exit code {node.exitcode}")
    _expect(discover("add") is None, "it is still found after its end")


def _over(kind: Kind, address: str | None) -> None:
    if address == SECURE:
        address += keys.export(Domain.named(runtime.settings().domain))
    with Probe("probe", address, kind=kind):
        _expect(Probe.add(2, 3) == 5, "a plain call")
        _expect(Probe.later([0.5]) == [0.5], "an async service")
        _expect(list(Probe.add.map(range(100), range(100))) == list(range(0, 200, 2)), "a map of 100 calls")
        _expect(asyncio.run(Probe.add.acall(4, 5)) == 9, "an awaited call")
        _expect(Probe.add.submit(1, 1).result(BOUND) == 2, "a future")
        _expect(Probe.size(bytes(1_000_000)) == 1_000_000, "a megabyte")


def _published(kind: Kind) -> None:
    with Probe("probe", kind=kind), Probe.value.subscribe(timeout=BOUND) as values:
        Probe.tell(1000)
        _expect([next(values) for _ in range(1000)] == [number / 2 for number in range(1000)], "what was published")
        _expect((values.received, values.dropped, values.lost) == (1000, 0, 0), "the counts of what came")
        account = Probe.value.accounts()[-1]
        _expect((account.offered, account.dropped) == (1000, 0), f"the publisher says {account}")


def _program() -> None:
    said = Topic(str, "selftest/said")
    with said.subscribe(timeout=BOUND) as heard:
        said.wait_for_subscribers(timeout=BOUND)
        said.publish("something")
        _expect(next(heard) == "something", "what was published")


def _errors() -> None:
    with Probe("probe", kind="thread"):
        error = _raises(KeyError, lambda: Probe.fail("tea"))
        cause = error.__cause__
        _expect(isinstance(cause, RemoteError) and "in fail" in cause.traceback_text, "the traceback is missing")


def _arguments() -> None:
    with Probe("probe", kind="entity"):
        error = _raises(InvalidCall, lambda: Probe.add(1, "2"))  # type: ignore[arg-type]
        _expect("argument b" in str(error) and error.executed is False, f"the error says {error}")


def _deadline() -> None:
    with Probe("probe", kind="process"):
        began = time.monotonic()
        _raises(CallTimeout, lambda: Probe.hold.with_options(timeout=0.2)(0.5))
        _expect(time.monotonic() - began < 0.4, "it came late")


def _unknown() -> None:
    with Probe("probe", kind="entity"):
        error = _raises(UnknownService, lambda: Probe.at("prob").add(1, 2))
        _expect("'probe'" in str(error), f"the error says {error}")


def _unique() -> None:
    with Probe("probe", kind="thread"):
        _raises(NodeExists, Probe("probe", kind="process").start)


def _killed() -> None:
    node = Probe("probe", kind="process")
    node.start(timeout=BOUND)
    call = Probe.hold.submit(BOUND)
    os.kill(Probe.pid(), signal.SIGKILL)
    _raises(NodeDied, lambda: call.result(BOUND))
    node.join(BOUND)
    _expect(runtime.current().wait_until(lambda: not Probe.add.seen(), BOUND), "it is still known")
    _expect(node.shutdown() == -signal.SIGKILL, f"its exit code is {node.exitcode}")


def _unrelated() -> None:
    program = "import pyzmp; print(pyzmp.discover('add', timeout=5)(20, 22))"
    with Probe("probe", kind="process"):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND,
                              check=False, env={**os.environ, "PYZMP_DOMAIN": "selftest", "PYZMP_REGISTRY": ""})
    _expect(done.stdout.strip() == "42", f"it printed {done.stdout!r} {done.stderr!r}")


def _nothing_left(directory: str) -> None:
    _expect(not os.path.exists(directory), f"{directory} is still there")
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("pyzmp")]
    _expect(not threads, f"threads are still running: {threads}")
