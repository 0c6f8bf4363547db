"""The registry's process: that it serves and leaves is shown with its server; here, why it must not go on."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry.domain import Domain
from pyzmp.registry.process import GRACE, grace, supersession, watch


@pytest.fixture
def home(domain: Path) -> Domain:
    made = Domain.named("home")
    made.make()
    return made


def test_a_later_registry_supersedes_one(home: Domain) -> None:
    counter, lock = home.claim(0)
    superseded = supersession(home, counter)
    assert superseded() is None
    home.claim(5)[1].release()  # dead by now, but its members have seen it
    assert superseded() == "superseded by registry 6"
    assert asyncio.run(watch(superseded)) == "superseded by registry 6"
    lock.release()


def test_so_does_the_loss_of_its_directory(home: Domain) -> None:
    counter, lock = home.claim(0)
    superseded = supersession(home, counter)
    os.rename(home.path, f"{home.path}.old")
    assert superseded() == "the directory is gone"
    home.make()
    assert superseded() == "the directory was replaced"
    lock.release()
    shutil.rmtree(f"{home.path}.old")


def test_one_that_cannot_serve_tells_who_started_it(home: Domain) -> None:
    os.mkdir(f"{home.path}/registry-1")  # where its socket would be
    with pytest.raises(RegistryUnavailable, match="failed to start: AddressInUse: "):
        home.start(0, 1, 1).outcome()


def test_names_wait_in_a_new_epoch_unless_the_last_member_had_left(home: Domain, eventually: Any) -> None:
    assert grace(home) == 0
    home.claim(0)[1].release()  # as when it was killed
    assert grace(home) == GRACE
    assert home.start(0, 0.01, 1).outcome() == 2  # nobody comes
    eventually(lambda: home.current() is None, 20)
    assert grace(home) == 0
