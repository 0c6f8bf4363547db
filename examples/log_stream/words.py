"""Counts words by windows of time, and serves the current counts."""
from __future__ import annotations

import re
from collections import Counter, deque

import pyzmp
from follow import Line

WORD = re.compile(r"[^\W\d_]{3,}")


class Words(pyzmp.Node):
    window = pyzmp.Parameter(1.0)  # seconds
    windows = 60  # that the counts are for

    def on_start(self) -> None:
        self.now, self.lately = Counter[str](), deque[Counter[str]](maxlen=self.windows)
        self.lines = 0

    @pyzmp.subscribe("wanted/output", full="block", length=1000)  # none is left out, however slow this is
    def count(self, line: Line) -> None:
        self.lines += 1
        self.now.update(word.lower() for word in WORD.findall(line.text))

    @pyzmp.every(window)
    def turn(self) -> None:
        self.lately.append(self.now)
        self.now = Counter()

    @pyzmp.service
    def counts(self, most: int = 10) -> dict[str, int]:
        """The words that were the most frequent in the last windows, and in the one that goes on."""
        return dict(sum(self.lately, self.now).most_common(most))

    @pyzmp.service
    def counted(self) -> int:
        """How many lines have come."""
        return self.lines
