"""A blocking call beside the same call with what else one might use, each in its usual and fastest honest way.

Each peer's caller is a process of its own, on the one core, and what it calls others, on the other: so that no peer's
threads disturb another one's.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.managers
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
from call import Adder, raw
from harness import QUICK, apart, compare, peer, world

SECONDS = 0.005 if QUICK else 0.2  # that a round of each takes
Add = Callable[[int, int], int]
Calling = contextlib.AbstractContextManager[Add]


class Plain:
    """What peers serve."""

    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b


def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@contextlib.contextmanager
def process(serve: Callable[..., None], *arguments: object) -> Iterator[Any]:
    """A process that serves, from when it says so; the end of a pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    server.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
    finally:
        server.kill()
        server.join()


# -- ours, and the limit ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pyzmp(folder: str) -> Iterator[Add]:
    """A node."""
    with Adder("adder"):
        yield Adder.add


@contextlib.contextmanager
def pyzmq(folder: str) -> Iterator[Add]:
    """DEALER and ROUTER, with a poller and msgpack on both sides."""
    with raw(f"ipc://{folder}/raw") as (call, _):
        yield call


# -- the peers -------------------------------------------------------------------------------------------------------


def serve_pyro(ready: Any, folder: str) -> None:
    """A daemon of Pyro5."""
    api = peer("Pyro5.api")
    assert api is not None
    with api.Daemon(unixsocket=f"{folder}/pyro") as daemon:
        daemon.register(api.expose(Plain)(), "adder")
        ready.send(None)
        daemon.requestLoop()


@contextlib.contextmanager
def pyro(folder: str) -> Iterator[Add]:
    """Over a unix socket, with marshal, the fastest of its serializers."""
    api = need("Pyro5.api")
    api.config.SERIALIZER = "marshal"
    with process(serve_pyro, folder), api.Proxy(f"PYRO:adder@./u:{folder}/pyro") as proxy:
        yield proxy.add


def serve_rpyc(ready: Any, folder: str) -> None:
    """A server of RPyC, a thread for each connection."""
    rpyc, server = peer("rpyc"), peer("rpyc.utils.server")
    assert rpyc is not None
    assert server is not None
    service = type("Served", (rpyc.Service,), {"exposed_add": Plain.add})
    served = server.ThreadedServer(service, socket_path=f"{folder}/rpyc")
    served._listen()
    ready.send(None)
    served.start()


@contextlib.contextmanager
def rpyc(folder: str) -> Iterator[Add]:
    """Over a unix socket, with the remote method looked up once."""
    connection = need("rpyc.utils.factory").unix_connect
    with process(serve_rpyc, folder), contextlib.closing(connection(f"{folder}/rpyc")) as opened:
        yield opened.root.add


def serve_zerorpc(ready: Any, folder: str) -> None:
    """A server of zerorpc."""
    zerorpc = peer("zerorpc")
    assert zerorpc is not None
    server = zerorpc.Server(Plain())
    server.bind(f"ipc://{folder}/zerorpc")
    ready.send(None)
    server.run()


@contextlib.contextmanager
def zerorpc(folder: str) -> Iterator[Add]:
    """Over ipc."""
    module = need("zerorpc")
    with process(serve_zerorpc, folder), contextlib.closing(module.Client(f"ipc://{folder}/zerorpc")) as client:
        yield client.add


def serve_grpc(ready: Any, folder: str) -> None:
    """A server of gRPC with one thread."""
    grpc, futures = peer("grpc"), peer("concurrent.futures")
    assert grpc is not None
    assert futures is not None
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: add(*request), request_deserializer=msgpack.unpackb, response_serializer=msgpack.packb)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Plain", {"add": handler}),))
    server.add_insecure_port(f"unix:{folder}/grpc")
    server.start()
    ready.send(None)
    server.wait_for_termination()


@contextlib.contextmanager
def grpc(folder: str) -> Iterator[Add]:
    """Over a unix socket, without TLS, with msgpack where a generated class would have its protobuf."""
    with process(serve_grpc, folder), need("grpc").insecure_channel(f"unix:{folder}/grpc") as channel:
        call = channel.unary_unary("/Plain/add", request_serializer=msgpack.packb,
                                   response_deserializer=msgpack.unpackb)
        yield lambda a, b: call((a, b))


@contextlib.contextmanager
def ray(folder: str) -> Iterator[Add]:
    """An actor."""
    module = need("ray")
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1",
                      RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    module.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, logging_level=logging.ERROR,
                log_to_driver=False, configure_logging=False, _temp_dir=f"{folder}/ray")
    try:
        actor = module.remote(Plain).remote()
        yield lambda a, b: module.get(actor.add.remote(a, b))
    finally:
        module.shutdown()


@contextlib.contextmanager
def dask(folder: str) -> Iterator[Add]:
    """An actor at the one worker of a local cluster, without the dashboard."""
    os.environ["DASK_TEMPORARY_DIRECTORY"] = folder
    module = need("distributed")
    with module.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None,
                             local_directory=folder, silence_logs=logging.ERROR) as cluster, \
            module.Client(cluster) as client:
        actor = client.submit(Plain, actor=True).result()
        yield lambda a, b: actor.add(a, b).result()


def serve_pipe(pipe: Any) -> None:
    """Answer what comes through a pipe."""
    pipe.send(None)
    while True:
        pipe.send(add(*pipe.recv()))


@contextlib.contextmanager
def pipe(folder: str) -> Iterator[Add]:
    """One pipe between two processes: no names, no threads, no timeouts, no checks."""
    with process(serve_pipe) as end:
        def call(a: int, b: int) -> int:
            end.send((a, b))
            return end.recv()  # type: ignore[no-any-return]
        yield call


class Manager(multiprocessing.managers.BaseManager):
    """A manager of the standard library."""


Manager.register("Plain", Plain)


@contextlib.contextmanager
def manager(folder: str) -> Iterator[Add]:
    """A proxy of an object in a manager's process."""
    with Manager() as started:
        yield started.Plain().add  # type: ignore[attr-defined]


@contextlib.contextmanager
def pool(folder: str) -> Iterator[Add]:
    """Apply at a pool of one process."""
    with multiprocessing.Pool(1) as started:
        yield lambda a, b: started.apply(add, (a, b))


# -- how it is measured ----------------------------------------------------------------------------------------------

PEERS: dict[str, Callable[[str], Calling]] = {
    "raw DEALER/ROUTER and msgpack": pyzmq,
    "pyzmp": pyzmp,
    "Pyro5": pyro,
    "RPyC": rpyc,
    "zerorpc": zerorpc,
    "grpcio": grpc,
    "Ray actor": ray,
    "dask.distributed actor": dask,
    "multiprocessing Pipe": pipe,
    "multiprocessing Manager": manager,
    "multiprocessing Pool.apply": pool,
}


def need(name: str) -> Any:
    """A peer's module; ends this caller where it is missing."""
    module = peer(name)
    if module is None:
        sys.exit(1)
    return module


def below(process: int) -> Iterator[int]:
    """The processes that *process* has started, and those that they have."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        yield from more
        found |= more


def calls(name: str, folder: str) -> None:
    """Be the caller: for each number that comes, make so many calls, and answer with microseconds of one."""
    warnings.simplefilter("ignore")
    with PEERS[name](folder) as call:
        call(1, 2)
        apart(*below(os.getpid()))
        print("ready", flush=True)
        for line in sys.stdin:
            began = time.perf_counter()
            for number in range(int(line)):
                if call(number, 2) != number + 2:
                    raise ValueError(number)
            print((time.perf_counter() - began) / int(line) * 1e6, flush=True)


class Caller:
    """A peer's caller, asked for figures."""

    def __init__(self, name: str, folder: str) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, name, folder], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.missing = self.answer()
        self.number = 0 if self.missing else max(10, min(int(SECONDS * 1e6 / self.ask(10)), 3000))

    def answer(self) -> str:
        """Why it is left out; empty where it is there."""
        said = []
        for line in self.process.stdout or ():
            if line == "ready\n":
                return ""
            said.append(line.strip())
        return " ".join(said[-1:]) or f"its caller ended with {self.process.wait()}"

    def ask(self, number: int) -> float:
        """Microseconds of one of so many calls."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def __call__(self) -> float:
        """Microseconds of one call."""
        return self.ask(self.number)

    def close(self) -> None:
        """End it, and what it started."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def main() -> None:
    """Print the comparison."""
    with world() as folder, contextlib.ExitStack() as stack:
        callers = {}
        for name in PEERS:
            callers[name] = Caller(name, folder)
            stack.callback(callers[name].close)
        compare("a blocking call of add(a: int, b: int) -> int of another process", "µs a call",
                {name: caller.missing or caller for name, caller in callers.items()}, target={"pyzmp": 1.1})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        calls(*sys.argv[1:])
    else:
        main()
