"""Follows text files as they grow, and publishes each line of them."""
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyzmp


@dataclass
class Line:
    path: str
    text: str


class Tail:
    """The lines of a file, whole ones only: it may come later, be rotated, be truncated, and grow again."""

    def __init__(self, path: str) -> None:
        self.path, self.rest = path, b""
        self.file: BinaryIO | None = None

    def lines(self) -> list[str]:
        """What has come since the last time."""
        *lines, self.rest = (self.rest + self.read()).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def read(self) -> bytes:
        if self.file is None:
            if not os.path.isfile(self.path):
                return b""
            self.file = open(self.path, "rb")
        opened = os.fstat(self.file.fileno())  # asked first: what was written before that is read below
        try:
            rotated = not os.path.samestat(os.stat(self.path), opened)
        except FileNotFoundError:  # between two
            rotated = False
        if opened.st_size < self.file.tell():  # truncated: it begins anew
            self.file.seek(0)
            self.rest = b""
        data = self.file.read(1 << 20)
        if rotated and not data:
            self.file.close()
            self.file = None
            return b"\n" if self.rest else b""  # what the old one ended with is a line
        return data


class Follower(pyzmp.Node):
    line = pyzmp.Topic(Line)

    def __init__(self, name: str, paths: list[str], **options: Any) -> None:
        super().__init__(name, **options)
        self.tails = [Tail(path) for path in paths]

    @pyzmp.every(0.05)
    async def follow(self) -> None:
        await self.line.await_for_subscribers(1, timeout=60)  # so that the first line is heard too
        for tail in self.tails:
            for text in tail.lines():
                await self.line.apublish(Line(tail.path, text))  # waits for those who asked for it: full="block"
