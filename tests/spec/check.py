"""Check the model of the registry, ``registry.pml``: the rule must hold, and without any part of it must not.

``python tests/spec/check.py [--all] [name ...]``; needs spin (Debian package ``spin``) and gcc.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MODEL = Path(__file__).with_name("registry.pml")
MEMORY = 3000  # MB for one search, at most
DEPTH = 10_000  # steps of one run, at most; the longest take a few hundred
TIMEOUT = 600  # seconds for one search, at most


class Variant(NamedTuple):
    """One search.  ``broken`` is what must be found; empty where nothing may be."""

    name: str
    flags: str
    broken: str = ""
    cycles: bool = False


LOST, BACK, PREFIX, DIFFER = "a_view_lost_the_living", "a_view_went_back", "a_view_is_no_prefix", "views_differ_at_rest"
TRUTH = "facts_at_rest_are_not_those_of_the_living"
RULE = [
    Variant("rule: 1 member, 1 observer, 3 epochs", "-DNM=1 -DNO=1 -DNE=3"),
    Variant("the same, untidied", "-DNM=1 -DNO=1 -DNE=3 -DUNTIDY"),
    Variant("rule: 2 members, 2 epochs", "-DNM=2 -DNO=0 -DNE=2"),
    Variant("rule: 2 members, 3 epochs, no withdrawal", "-DNM=2 -DNO=0 -DNE=3 -DONCE"),
    Variant("rule: 2 members, 1 observer, 2 epochs, no withdrawal", "-DNM=2 -DNO=1 -DNE=2 -DONCE"),
    Variant("rule: 1 member, 1 owner, 1 observer, 2 epochs", "-DNM=2 -DNO=1 -DNE=2 -DBLIND"),
    Variant("rest comes: 1 member, 1 observer, 3 epochs", "-DNM=1 -DNO=1 -DNE=3", cycles=True),
    Variant("rest comes: 2 members, 2 epochs", "-DNM=2 -DNO=0 -DNE=2", cycles=True),
]
LONG = [Variant("rule: 2 members, 3 epochs", "-DNM=2 -DNO=0 -DNE=3")]
WORLD = "-DNM=2 -DNO=1 -DNE=3 -DBLIND"
MUTANTS = [
    Variant(name, f"{WORLD} -D{name}", broken) for name, broken in (
        ("NOEPOCH", BACK), ("NOGAP", PREFIX), ("NOBEAT", DIFFER), ("ANYSNAP", BACK), ("NOSETTLE", LOST),
        ("HELD", LOST), ("MUTE", LOST), ("KEEPOLD", LOST), ("EARLY", LOST), ("LATE", LOST), ("NEVER", TRUTH),
        ("NOSTEP", DIFFER), ("STAYS", DIFFER), ("FORGET", BACK))
] + [Variant("RESTLESS", "-DNM=2 -DNO=0 -DNE=2 -DRESTLESS", "non-progress cycle", cycles=True)]


def run(variant: Variant, place: str) -> tuple[str, str, int, float]:
    """Search, and return what was found (nothing: ""), what is wrong with the search, states and seconds."""
    kind = ["-DNP"] if variant.cycles else ["-DSAFETY"]
    for command in (["spin", "-a", *variant.flags.split(), str(MODEL)],
                    ["gcc", "-O1" if variant.broken else "-O2", "-w", "-o", "pan", "pan.c", "-DCOLLAPSE",
                     "-DNOFAIR", f"-DMEMLIM={MEMORY}", *kind]):
        made = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if made.returncode:
            return "", f"{command[0]}: {made.stdout}{made.stderr}".strip(), 0, 0.0
    began = time.monotonic()
    search = [f"{place}/pan", f"-m{DEPTH}", "-n", *(["-l"] if variant.cycles else [])]
    try:
        said = subprocess.run(search, cwd=place, capture_output=True, text=True, timeout=TIMEOUT, check=False).stdout
    except subprocess.TimeoutExpired:
        return "", f"not done after {TIMEOUT} s", 0, float(TIMEOUT)
    seconds = time.monotonic() - began
    stored = re.search(r"([0-9.e+]+) states, stored", said)
    states = int(float(stored[1])) if stored else 0
    found = re.search(r"pan:\d+: ((?:assertion|non-progress|invalid).*?)(?: \(at depth|$)", said, re.MULTILINE)
    wrong = ""
    if not found and (
            "Search not completed" in said or "max search depth too small" in said or "MEMLIM" in said
            or "errors:" not in said):
        wrong = "the search was cut short: " + "; ".join(re.findall(r"(?:error: |pan: ).*", said)[:2])
    what = found[1] if found else ""
    named = re.findall(r"\|\|(\w+)\)", what)
    return named[-1] if named else what, wrong, states, seconds


def main(arguments: list[str]) -> int:
    """Run what is asked for, or all that takes less than four minutes; the number of failures."""
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing:
        print(f"{' and '.join(missing)} not found: install the Debian package{'s' * (len(missing) > 1)} "
              f"{' and '.join(missing)} (apt-get install {' '.join(missing)})", file=sys.stderr)
        return 2
    names = [argument for argument in arguments if argument != "--all"]
    chosen = [*RULE, *(LONG if "--all" in arguments else ()), *MUTANTS]
    failures = 0
    for variant in (one for one in chosen if not names or any(name in one.name for name in names)):
        with tempfile.TemporaryDirectory() as place:
            found, wrong, states, seconds = run(variant, place)
        good = not wrong and (found == variant.broken)
        failures += not good
        verdict = wrong or (found or "holds")
        wanted = "" if good or wrong else f", wanted: {variant.broken or 'that it holds'}"
        print("ok  " if good else "FAIL", f"{variant.name:52} {states:>10,} states {seconds:6.1f} s  {verdict}{wanted}",
              flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
