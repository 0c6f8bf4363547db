"""Servers of etcd, for those tests that ask for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.registry.etcd_server import Server, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One that no test ends; each has a domain of its own in it."""
    with running() as (one,):
        yield one


@pytest.fixture
def own() -> Iterator[Server]:
    """One that the test may end."""
    with running() as (one,):
        yield one
