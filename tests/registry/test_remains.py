from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyzmp.registry.remains import remove_dead, sweep


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(0)
    return made


def dead(path: Path) -> Path:
    listening(path).close()
    assert path.is_socket()
    return path


@pytest.fixture
def living(domain: Path) -> Iterator[Path]:
    with listening(domain / "node-living"):
        yield domain / "node-living"
    (domain / "node-living").unlink()


@pytest.mark.parametrize("name", ["node-kitchen", "node~kitchen~0123456789abcdef"])
def test_a_dead_socket_of_a_node_is_removed(domain: Path, name: str) -> None:
    path = dead(domain / name)
    remove_dead(str(domain), f"ipc://{path}")
    assert not path.exists()
    remove_dead(str(domain), f"ipc://{path}")  # which is gone


def test_one_that_somebody_listens_to_stays_though_its_queue_is_full(domain: Path, living: Path) -> None:
    callers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    try:
        with pytest.raises(BlockingIOError):
            for caller in callers:
                caller.setblocking(False)
                caller.connect(str(living))
        remove_dead(str(domain), f"ipc://{living}")
        assert living.is_socket()
    finally:
        for caller in callers:
            caller.close()


def test_what_is_no_socket_of_a_node_here_stays(domain: Path) -> None:
    (domain / "deep").mkdir()
    others = [dead(domain / "registry-1"), dead(domain / "deep" / "node-a"), domain / "node-file"]
    others[-1].touch()
    for path in others:
        remove_dead(str(domain), f"ipc://{path}")
        assert path.exists()
        path.unlink()
    remove_dead(str(domain), "memory://node-a")


def test_all_dead_ones_are_swept_that_are_old_enough(domain: Path, living: Path) -> None:
    old, new = dead(domain / "node-old"), dead(domain / "node-new")
    os.utime(old, (1000.0, 1000.0))
    os.utime(living, (1000.0, 1000.0))
    sweep(str(domain), 2000.0)
    assert sorted(path.name for path in domain.iterdir()) == ["node-living", "node-new"]
    new.unlink()
