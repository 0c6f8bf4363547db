"""Many calls at once: futures, awaited calls, `map`, and eight threads; beside raw DEALER/ROUTER and peers.

Each is of ``add(a: int, b: int) -> int``, checked, over ipc, by one process of a node in another.  The limit is one
message for each call, made by one thread that keeps as many calls under way: msgpack on both sides, and each side
reads all that is there before it polls again.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import msgpack
import zmq
from harness import apart, compare, count, peer, world

import pyzmp

CALLS = count(20_000, 100)
MAPPED = count(100_000, 200)
FUTURES, AWAITED, THREADS = 1000, 500, 8


class Adder(pyzmp.Node):
    """What is called."""

    @pyzmp.service
    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b

    @pyzmp.service
    def pid(self) -> int:
        """Its process."""
        return os.getpid()


def add(a: int, b: int) -> int:
    """The same, for peers that call functions."""
    return a + b


def add_pair(pair: tuple[int, int]) -> int:
    """The same, for peers that give one argument."""
    return pair[0] + pair[1]


def rate(calls: int, run: Callable[[], int]) -> float:
    """Calls a second; *run* makes them and returns the sum of the results, which are 2 more than 0, 1, 2 and so on."""
    began = time.perf_counter()
    total = run()
    spent = time.perf_counter() - began
    if total != calls * (calls - 1) // 2 + 2 * calls:
        raise ValueError(total)
    return calls / spent


# ------------------------------------------------------------------------------------------------ raw DEALER/ROUTER

def serve(address: str) -> None:
    """The raw server: what has come is answered, one message for each call."""
    server = zmq.Context().socket(zmq.ROUTER)
    server.set_hwm(0)
    server.bind(address)
    unpack, pack, now = msgpack.unpackb, msgpack.packb, int(zmq.NOBLOCK)
    while server.poll():
        with contextlib.suppress(zmq.Again):
            while True:
                caller, request = server.recv_multipart(now)
                number, (a, b) = unpack(request)
                server.send_multipart((caller, pack((number, a + b))))


def raw(address: str, calls: int, window: int) -> float:
    """Calls a second with *window* of them under way, in one thread."""
    caller = zmq.Context.instance().socket(zmq.DEALER)
    caller.set_hwm(0)
    caller.connect(address)
    unpack, pack, now = msgpack.unpackb, msgpack.packb, int(zmq.NOBLOCK)

    def run() -> int:
        begun = ended = total = 0
        waiting = {}
        while ended < calls:
            while begun < calls and begun - ended < window:
                waiting[begun] = begun
                caller.send(pack((begun, (begun, 2))))
                begun += 1
            if not caller.poll(5000):
                raise TimeoutError
            with contextlib.suppress(zmq.Again):
                while True:
                    number, result = unpack(caller.recv(now))
                    del waiting[number]
                    total += result
                    ended += 1
        return total
    try:
        return rate(calls, run)
    finally:
        caller.close(0)


# ------------------------------------------------------------------------------------------------------------ pyzmp

def futures(calls: int, window: int) -> float:
    """Calls a second by futures, of which *window* are under way."""
    def run() -> int:
        total, submit = 0, Adder.add.submit
        under_way = deque(submit(number, 2) for number in range(min(window, calls)))
        for number in range(window, calls):
            total += under_way.popleft().result()
            under_way.append(submit(number, 2))
        return total + sum(future.result() for future in under_way)
    return rate(calls, run)


def awaited(calls: int, window: int) -> float:
    """Calls a second by *window* coroutines, each of which awaits one call after the other."""
    async def some(numbers: range) -> int:
        total, acall = 0, Adder.add.acall
        for number in numbers:
            total += await acall(number, 2)
        return total

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(some(range(first, calls, window)) for first in range(window))))
    return rate(calls, lambda: asyncio.run(all_of_them()))


def mapped(calls: int) -> float:
    """Calls a second by `map`."""
    return rate(calls, lambda: sum(Adder.add.map(range(calls), [2] * calls)))


def threads(calls: int, number: int) -> float:
    """Calls a second of so many threads that block."""
    totals: list[int] = []

    def some(numbers: range) -> None:
        add = Adder.add
        totals.append(sum(add(each, 2) for each in numbers))

    def run() -> int:
        made = [threading.Thread(target=some, args=(range(first, calls, number),)) for first in range(number)]
        for thread in made:
            thread.start()
        for thread in made:
            thread.join()
        return sum(totals)
    return rate(calls, run)


# ------------------------------------------------------------------------------------------------------------ peers

FEW = count(5_000, 50)  # calls of peers that take long


def pool(chunk: int) -> Iterator[Callable[[], float]]:
    """`multiprocessing.Pool.map`, with one process."""
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        yield lambda: rate(CALLS, lambda: sum(workers.map(add_pair, ((n, 2) for n in range(CALLS)), chunk)))


def executor(chunk: int) -> Iterator[Callable[[], float]]:
    """`concurrent.futures.ProcessPoolExecutor.map`, with one process."""
    calls = CALLS if chunk > 1 else FEW
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        yield lambda: rate(calls, lambda: sum(workers.map(add, range(calls), [2] * calls, chunksize=chunk)))


def ray() -> Iterator[Callable[[], float]]:
    """A Ray actor, with all calls under way at once."""
    module: Any = peer("ray")
    if module is not None:
        module.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        actor = module.remote(Plain).remote()
        module.get(actor.add.remote(1, 2))
        yield lambda: rate(FEW, lambda: sum(module.get([actor.add.remote(n, 2) for n in range(FEW)])))
        module.shutdown()


def dask() -> Iterator[Callable[[], float]]:
    """Dask's `Client.map`, with one worker process."""
    module: Any = peer("distributed")
    if module is not None:
        few = count(1_000, 20)
        with module.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None,
                                 silence_logs=50) as cluster, \
                module.Client(cluster) as client:
            yield lambda: rate(few, lambda: sum(client.gather(client.map(add, range(few), [2] * few, pure=False))))


class Plain:
    """What an actor of a peer is."""

    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b


def serve_grpc(address: str) -> None:
    """gRPC's server, with msgpack instead of protocol buffers."""
    grpc: Any = peer("grpc")
    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(lambda pair, context: add(*pair), msgpack.unpackb, msgpack.packb)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Adder", {"add": method}),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def grpc_futures(folder: str) -> Iterator[Callable[[], float]]:
    """gRPC's futures over a Unix socket, with as many under way."""
    grpc: Any = peer("grpc")
    if grpc is not None:
        address = f"unix:{folder}/grpc"
        server = multiprocessing.get_context("spawn").Process(target=serve_grpc, args=(address,), daemon=True)
        server.start()
        with grpc.insecure_channel(address) as channel:
            submit = channel.unary_unary("/Adder/add", msgpack.packb, msgpack.unpackb).future

            def run() -> int:
                total = 0
                under_way = deque(submit((n, 2), wait_for_ready=True) for n in range(min(FUTURES, FEW)))
                for number in range(FUTURES, FEW):
                    total += under_way.popleft().result()
                    under_way.append(submit((number, 2)))
                return total + sum(future.result() for future in under_way)
            yield lambda: rate(FEW, run)
        server.terminate()
        server.join()


def main() -> None:
    """Print the comparisons."""
    with world() as folder, contextlib.ExitStack() as stack:
        address = f"ipc://{folder}/raw"
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(address,), daemon=True)
        server.start()
        stack.callback(server.join)
        stack.callback(server.terminate)
        stack.enter_context(Adder("adder"))
        apart(server.pid or 0, Adder.pid())
        compare(f"futures of add(a: int, b: int) -> int, {FUTURES:,} under way", "calls/s", {
            "raw DEALER/ROUTER and msgpack": lambda: raw(address, CALLS, FUTURES),
            "pyzmp": lambda: futures(CALLS, FUTURES)}, target={"pyzmp": 2.5}, better="more", rounds=7)
        compare(f"the same, awaited, {AWAITED} under way", "calls/s", {
            "raw DEALER/ROUTER and msgpack": lambda: raw(address, CALLS, AWAITED),
            "pyzmp": lambda: awaited(CALLS, AWAITED)}, target={"pyzmp": 3}, better="more", rounds=7)
        compare("map over many small arguments", "calls/s", {
            "raw DEALER/ROUTER and msgpack": lambda: raw(address, CALLS, FUTURES),
            "pyzmp": lambda: mapped(MAPPED)}, target={"pyzmp": 8}, better="more", rounds=7)
        compare("blocking calls of many threads", "calls/s", {
            "pyzmp, one thread": lambda: threads(CALLS // 5, 1),
            f"pyzmp, {THREADS} threads": lambda: threads(CALLS // 5, THREADS)},
            target={f"pyzmp, {THREADS} threads": 1}, better="more", rounds=5)
        others = {"multiprocessing.Pool.map, chunks of 1": pool(1),
                  "multiprocessing.Pool.map, chunks of 1,000": pool(1000),
                  "ProcessPoolExecutor.map, chunks of 1": executor(1),
                  "ProcessPoolExecutor.map, chunks of 1,000": executor(1000), "gRPC, futures": grpc_futures(folder),
                  "Ray, an actor": ray(), "Dask, Client.map": dask()}
        compare("many calls, by others", "calls/s", {
            "raw DEALER/ROUTER and msgpack": lambda: raw(address, CALLS, FUTURES), "pyzmp, map": lambda: mapped(MAPPED),
            "pyzmp, futures": lambda: futures(CALLS, FUTURES),
            **{name: stack.enter_context(contextlib.contextmanager(_or_none)(other)) for name, other in others.items()},
        }, better="more", rounds=3)


def _or_none(candidate: Iterator[Callable[[], float]]) -> Iterator[Callable[[], float] | None]:
    """What a generator gives; None where it gives nothing."""
    yield next(candidate, None)
    for _ in candidate:
        pass


if __name__ == "__main__":
    main()
