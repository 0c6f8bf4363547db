"""What the tests of launchers share."""

from __future__ import annotations

import pytest

from pyzmp.launchers.forkserver import server


@pytest.fixture(scope="session", autouse=True)
def _shared_forkserver() -> None:
    """The fork server is this process's, and no single test's."""
    server.ensure_running()


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def start_method(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]
