"""Rounds that alternate between the candidates, and a table of what they took.

The environment may say:

- ``PYZMP_BENCHMARKS``: a file to which each comparison appends one line of JSON.
- ``PYZMP_BENCHMARK_QUICK``: where it is set, one round of each, and `count` gives a hundredth: to see that a program
  works.  Its figures mean nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from types import ModuleType
from typing import Literal

QUICK = bool(os.environ.get("PYZMP_BENCHMARK_QUICK"))
CORES = sorted(os.sched_getaffinity(0))
Candidates = Mapping[str, "Callable[[], float] | str | None"]
PACKAGES = {"Pyro5.api": "Pyro5", "grpc": "grpcio", "zenoh": "eclipse-zenoh", "pykka": "Pykka",
            "dask.distributed": "distributed"}  # of modules that are not called like their package


def compare(title: str, unit: str, candidates: Candidates, *, rounds: int = 9,
            target: Mapping[str, float] | None = None, better: Literal["less", "more"] = "less") -> dict[str, float]:
    """Run each candidate *rounds* times in turn; print medians, spread and the ratio to the first; the medians.

    A candidate returns its own figure, in *unit*; one that is None was left out, and so was one that is a sentence,
    which says why.  The first one is the limit that *target* speaks of: the ratio to it that is to be reached, at most,
    or at least where *better* is "more".  One round before the others warms everything up.
    """
    runs = {name: run for name, run in candidates.items() if callable(run)}
    skipped = {name: run or "it is missing" for name, run in candidates.items() if not callable(run)}
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(0 if QUICK else -1, 1 if QUICK else rounds):
        for name in list(runs)[::1 if number % 2 else -1]:  # each as often before the others as after them
            figure = runs[name]()
            if number >= 0:
                figures[name].append(figure)
    medians = {name: median(values) for name, values in figures.items()}
    limit = medians.get(next(iter(candidates)))
    ratios = {name: value / limit for name, value in medians.items()} if limit else {}
    targets = {name: {"ratio": ratio, "reached": ratios[name] <= ratio if better == "less" else ratios[name] >= ratio}
               for name, ratio in (target or {}).items() if name in ratios}
    print(f"{title} ({unit}, {better} is better; {'a quick round' if QUICK else f'{rounds} rounds'})")
    width = max(map(len, candidates))
    for name, value in medians.items():
        spread = f"{_shown(min(figures[name]))} to {_shown(max(figures[name]))}"
        ratio = f"ratio {_shown(ratios[name])}" if ratios else ""
        print(f"  {name:{width}}  {_shown(value):>12}   {spread:>26}   {ratio}{_judged(targets.get(name))}")
    for name, reason in skipped.items():
        print(f"  {name:{width}}  left out: {reason}")
    print(end="", flush=True)
    if place := os.environ.get("PYZMP_BENCHMARKS"):
        with open(place, "a", encoding="utf-8") as file:
            file.write(json.dumps({
                "title": title, "unit": unit, "better": better, "figures": figures, "medians": medians,
                "ratios": ratios, "targets": targets, "skipped": skipped}) + "\n")
    return medians


def peer(name: str) -> ModuleType | None:
    """A module that pyzmp does not need; None where it is missing, and then it says what installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out ({error}): pip install {PACKAGES.get(name, name)}", flush=True)
        return None


def count(number: int, least: int = 1) -> int:
    """So many, or a hundredth of it where it is to be quick, and *least* at the least."""
    return max(number // 100, least) if QUICK else number


def apart(*servers: int) -> None:
    """Keep who calls, this process or thread, on one core and *servers* on another, where there are two.

    They are given by their pids, or by the native ids of threads of this process.  Left to itself, the scheduler puts a
    caller and its server now on one core and now on two.  One takes half the time of two, where each does little, so
    that it would be luck which of two pairs is faster.
    """
    own = os.listdir("/proc/self/task")
    _pin({int(task) for task in own} - set(servers), CORES[0])
    for server in servers:
        _pin({server} if str(server) in own else map(int, os.listdir(f"/proc/{server}/task")), CORES[-1])


def _pin(threads: Iterable[int], core: int) -> None:
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, {core})


@contextlib.contextmanager
def world() -> Iterator[str]:
    """A folder that is gone afterwards, with everything of pyzmp in it: here, and in processes that are started."""
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        before = os.environ.get("PYZMP_DIR")
        os.environ["PYZMP_DIR"] = folder
        try:
            yield folder
        finally:
            os.environ.pop("PYZMP_DIR")
            if before is not None:
                os.environ["PYZMP_DIR"] = before


def _judged(target: Mapping[str, float | bool] | None) -> str:
    return "" if target is None else f"   target {target['ratio']:g}: {'reached' if target['reached'] else 'missed'}"


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}" if figure >= 1 \
        else f"{figure:.3g}"
