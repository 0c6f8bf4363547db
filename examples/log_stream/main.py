"""Follows files line by line, in three processes: python main.py [--only REGEX] [--seconds N] [FILE ...]."""
from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import pyzmp
from follow import Follower, Line
from pyzmp.flow import Filter
from words import Words


def application(paths: list[str], only: str) -> pyzmp.Group:
    wanted = re.compile(only)

    def is_wanted(line: Line) -> bool:
        return wanted.search(line.text) is not None
    return pyzmp.Group("log-stream", [
        Words("words"),  # first who listens, then who speaks
        Follower.line | Filter(is_wanted, "wanted", kind="process", full="block", length=1000),
        Follower("follower", paths),
    ])


def show(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(1.0, seconds))
        counts = ", ".join(f"{word} {count}" for word, count in Words.counts(8).items())
        print(f"{Words.counted():7} lines; lately: {counts}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Follows text files, and counts the words in what is added to them.")
    parser.add_argument("files", nargs="*", help="by default the texts of this example, for a moment")
    parser.add_argument("--only", default="", metavar="REGEX", help="the lines that count")
    parser.add_argument("--seconds", type=float, help="how long; by default until Ctrl-C")
    given = parser.parse_args()
    files = given.files or [str(path) for path in sorted(Path(__file__).parent.glob("*.*"))]
    seconds = given.seconds or (float("inf") if given.files else 1.0)
    with application(files, given.only):
        show(seconds)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
