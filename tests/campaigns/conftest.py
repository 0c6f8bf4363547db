"""What the fault campaigns share: the seed of a run, and the processes that no single test owns."""

from __future__ import annotations

import os
import random

import pytest
import zmq

from pyzmp.launchers.forkserver import server


@pytest.fixture(scope="session", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's; so is the thread that frees what pyzmq has sent."""
    server.ensure_running()
    zmq.Frame(bytes(100_000), copy=False)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The moments of a campaign.  Another seed with every run; ``PYZMP_TEST_SEED`` repeats one, a failure names it."""
    seed = int(os.environ.get("PYZMP_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    request.node.add_report_section("setup", "seed", f"PYZMP_TEST_SEED={seed}")
    return random.Random(seed)
