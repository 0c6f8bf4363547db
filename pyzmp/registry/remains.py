"""Sockets that killed processes left in the directory of a domain."""

from __future__ import annotations

import contextlib
import os
import socket
import stat


def remove_dead(directory: str, address: str) -> None:
    """Remove the socket of a node in *directory* at *address*, if it is one and nobody listens there any more."""
    path = address.removeprefix("ipc://")
    place, name = os.path.split(path)
    with contextlib.suppress(OSError):
        if place == directory and name.startswith(("node-", "node~")) and _is_dead(path):
            os.unlink(path)


def sweep(directory: str, before: float) -> None:
    """Remove the sockets of nodes in *directory* that were made *before* that time and that nobody listens to."""
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            if os.lstat(f"{directory}/{name}").st_mtime < before:
                remove_dead(directory, f"ipc://{directory}/{name}")


def _is_dead(path: str) -> bool:
    """Whether a socket of this user is at *path* that nobody listens to; raises OSError where that cannot be told."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # the queue of one that is alive may be full
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False
