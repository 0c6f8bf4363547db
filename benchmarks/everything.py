"""All benchmarks, one after the other, and what they found: a table, the same for programs, and plots.

Each program runs in a process of its own, with a time limit.  The results go into the folder ``results``: latest.md,
latest.json, and a plot of each program.  It exits with 1 where a program failed, which the table names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import peer

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PROGRAMS = sorted(path.stem for path in HERE.glob("*.py")
                  if path.stem != "everything" and "__main__" in path.read_text("utf-8"))
PACKAGES = ["pyzmp", "pyzmq", "msgspec", "msgpack", "numpy", "Pyro5", "rpyc", "zerorpc", "grpcio", "ray", "distributed",
            "eclipse-zenoh", "Pykka"]
BEGIN, END = "<!-- what benchmarks/everything.py --readme writes -->", "<!-- up to here -->"
GREY, OURS, MARK = "#b8b8b8", "#2a6f97", "#c1121f"


# -- running ---------------------------------------------------------------------------------------------------------


def run(name: str, limit: float) -> dict[str, Any]:
    """Run one program; what it compared, how long it took, and what went wrong, if anything did."""
    print(f"\n== {name}.py", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pzb") as folder:
        lines = Path(folder, "lines")
        process = subprocess.Popen(
            [sys.executable, HERE / f"{name}.py"], cwd=folder, start_new_session=True,
            env={**os.environ, "PYZMP_BENCHMARKS": str(lines), "PYTHONPATH": paths()})
        try:
            code = process.wait(limit)
            failure = f"it ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            failure = f"it took more than {limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found = [json.loads(line) for line in lines.read_text("utf-8").splitlines()] if lines.exists() else []
    if failure:
        print(f"{name}.py failed: {failure}", file=sys.stderr)
    return {"comparisons": found, "failure": failure, "seconds": round(time.monotonic() - began, 1)}


def paths() -> str:
    """The pyzmp that is beside the benchmarks is the one that is measured."""
    return os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                break
        else:
            line = ""
    zmq = peer("zmq")
    return {"processor": line.partition(":")[2].strip() or platform.machine(), "cores": os.cpu_count(),
            "kernel": f"{platform.system()} {platform.release()}",
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "libzmq": zmq.zmq_version() if zmq else None, "packages": dict(versions())}


def versions() -> Iterator[tuple[str, str]]:
    """The versions of what is measured, where it is there."""
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield package, metadata.version(package)


# -- telling ---------------------------------------------------------------------------------------------------------


def is_ours(name: str, comparison: dict[str, Any]) -> bool:
    """Whether a candidate is pyzmp, rather than a limit or a peer."""
    return name.startswith("pyzmp") or name in comparison["targets"]


def rows(program: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table: each way of ours beside the limit, and beside each peer."""
    for comparison in program["comparisons"]:
        medians, limit = comparison["medians"], next(iter(comparison["medians"]), None)
        ours = [name for name in medians if is_ours(name, comparison)]
        for name in ours:
            work = comparison["title"] + (f": {name}" if name != "pyzmp" else "")
            for other in (other for other in medians if other not in ours):
                ratio = f"{medians[name] / medians[other]:.3g}" if medians[other] else ""
                target = judged(comparison, name) if other == limit else ["", ""]
                yield [work, f"{other}: {shown(medians[other])}", f"{shown(medians[name])} {comparison['unit']}",
                       ratio, *target]
        for name, reason in comparison["skipped"].items():
            yield [comparison["title"], f"{name}: left out, {reason}", "", "", "", ""]


def judged(comparison: dict[str, Any], name: str) -> list[str]:
    """The ratio that was to be reached, and whether it was."""
    target = comparison["targets"].get(name)
    if target is None:
        return ["", ""]
    sign = "≤" if comparison["better"] == "less" else "≥"
    return [f"{sign} {target['ratio']:g}", "reached" if target["reached"] else "**missed**"]


def table(lines: Iterator[list[str]]) -> str:
    """A table in Markdown."""
    head = ["work", "limit or peer", "ours", "ratio", "target", ""]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def shown(figure: float) -> str:
    """A figure, with three digits where it is small."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def page(results: dict[str, Any], folder: Path) -> str:
    """The results as a page, for a folder with the plots."""
    here = results["machine"]
    parts = ["# What the benchmarks found",
             f"Measured on {results['when']}, on {here['processor']} with {here['cores']} cores, {here['kernel']}, "
             f"{here['python']}, libzmq {here['libzmq']}, "
             + ", ".join(f"{name} {version}" for name, version in here["packages"].items())
             + ". A ratio is ours to the other's in the same run; both are medians of alternating rounds."]
    for name, program in results["programs"].items():
        failed = f"**It failed: {program['failure']}.**\n\n" if program["failure"] else ""
        plot = f"\n\n![{name}]({name}.svg)" if (folder / f"{name}.svg").exists() else ""
        parts.append(f"## {name}.py\n\n{failed}{table(rows(program))}{plot}")
    return "\n\n".join(parts) + "\n"


def plot(program: dict[str, Any], place: Path) -> None:
    """Draw the ratios to each limit, as bars."""
    matplotlib = peer("matplotlib")
    pyplot, found = matplotlib and peer("matplotlib.pyplot"), [one for one in program["comparisons"] if one["ratios"]]
    if matplotlib is None or pyplot is None or not found:
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = place.stem  # the same figures, the same file
    heights = [len(one["ratios"]) + 1.5 for one in found]
    figure, axes = pyplot.subplots(len(found), squeeze=False, figsize=(9, 0.35 * sum(heights) + 0.5),
                                   height_ratios=heights, layout="constrained")
    for axis, comparison in zip(axes[:, 0], found, strict=True):
        ratios = comparison["ratios"]
        bars = axis.barh(list(ratios), list(ratios.values()),
                         color=[OURS if is_ours(each, comparison) else GREY for each in ratios])
        axis.bar_label(bars, [f" {ratio:.3g}" for ratio in ratios.values()])
        axis.invert_yaxis()
        axis.margins(x=0.12)
        if max(ratios.values()) > 20 * min(ratios.values()) > 0:
            axis.set_xscale("log")
        for target in {target["ratio"] for target in comparison["targets"].values()}:
            axis.axvline(target, color=MARK, linestyle="--", linewidth=1)
        axis.set_title(f"{comparison['title']} ({comparison['better']} is better)", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(place, metadata={"Date": None})
    pyplot.close(figure)


def readme(results: dict[str, Any]) -> None:
    """Write the rows that have a target into README.md."""
    text = README.read_text("utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{README} has no place for it: a line {BEGIN} and a line {END}")
    before, _, rest = text.partition(BEGIN)
    lines = [[work, f"{other.rpartition(':')[0]}", ratio, target.replace("≤", "at most").replace("≥", "at least")]
             for program in results["programs"].values()
             for work, other, _, ratio, target, _ in rows(program) if target]
    head = [["work", "beside", "ratio", "wanted"], ["---"] * 4]
    made = "\n".join(f"| {' | '.join(line)} |" for line in [*head, *lines])
    README.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", "utf-8")


def main() -> None:
    """Run them, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"only these; all are {', '.join(PROGRAMS)}")
    parser.add_argument("--limit", type=float, default=180, help="seconds that each may take; 180 without it")
    parser.add_argument("--readme", action="store_true", help="run none, and write the latest results into README.md")
    parser.add_argument("--into", type=Path, default=HERE / "results", help="where the results go, and come from")
    options = parser.parse_args()
    if unknown := set(options.programs) - set(PROGRAMS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; all are {', '.join(PROGRAMS)}")
    folder: Path = options.into
    latest = folder / "latest.json"
    results: dict[str, Any] = json.loads(latest.read_text("utf-8")) if latest.exists() else {"machine": None}
    if options.readme:
        readme(results)
        return
    here = machine()
    known: dict[str, Any] = results["programs"] if results["machine"] == here else {}  # of programs that do not run now
    ran = {name: run(name, options.limit) for name in options.programs or PROGRAMS}
    programs = {name: program for name, program in sorted({**known, **ran}.items()) if name in PROGRAMS}
    results = {"when": datetime.now(timezone.utc).date().isoformat(), "machine": here, "programs": programs}
    folder.mkdir(parents=True, exist_ok=True)
    latest.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for name, program in ran.items():
        plot(program, folder / f"{name}.svg")
    (folder / "latest.md").write_text(page(results, folder), "utf-8")
    print(f"\nThe results are in {folder}")
    sys.exit(any(program["failure"] for program in ran.values()))


if __name__ == "__main__":
    main()
