"""``pyzmp registry``, started as a user starts it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pyzmp import cli
from pyzmp.registry import keys
from pyzmp.registry.domain import Domain

MEMBER = """
import pyzmp
class Lamp(pyzmp.Node):
    kind = "thread"
    @pyzmp.service
    def on(self) -> str:
        return "yes"
with Lamp("lamp"):
    print(Lamp.on(), pyzmp.discover("on").providers)
"""


def started(script: Any, *options: str) -> Any:
    return script.start("-m", "pyzmp", "registry", "--bind", "tcp://127.0.0.1:*", "--domain", "house", *options,
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_how_others_reach_it_and_ends_cleanly(script: Any, number: int) -> None:
    process = started(script, "--beacon", "127.255.255.255:1025")
    first = process.stdout.readline()
    assert first == "registry 1 of domain 'house' serves; only programs on this host reach it, with\n"
    said = process.stdout.readline().strip()
    where = said.removeprefix("PYZMP_REGISTRY='").removesuffix("'")
    assert where.startswith("tcp://127.0.0.1:")
    home = Domain.named("house")
    assert where.endswith(f"#{keys.export(home)}")
    result = script(MEMBER, env={"PYZMP_REGISTRY": where, "PYZMP_DOMAIN": "house"}, strict=True)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("yes [('lamp', 'ipc://")
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "registry 1 ends: it was told to" in error
    assert not Path(home.path, "registry-1").exists()


def test_quiet_it_prints_nothing(script: Any, eventually: Any) -> None:
    process = started(script, "--quiet")
    eventually(lambda: Domain.named("house").current(), 20)
    process.terminate()
    assert process.communicate(timeout=20) == ("", "")


@pytest.mark.parametrize(("options", "text"), [
    (["--bind", "ipc:///tmp/x"], "a registry for other hosts listens at tcp://HOST:PORT"),
    (["--bind", "tcp://127.0.0.1:*", "--domain", "a/b"], "'a/b' is no name for a domain"),
    (["--bind", "tcp://127.0.0.1:*", "--beacon", "kitchen"], "'kitchen' is no place for beacons"),
    (["--bind", "tcp://192.0.2.1:1", "--domain", "house"], "tcp://192.0.2.1:1"),
    (["--bind", "nonsense"], "'nonsense' is no address"), ([], "--bind")])
def test_what_it_cannot_do_is_told_in_one_line(options: list[str], text: str) -> None:
    result = CliRunner().invoke(cli.main, ["registry", *options])
    assert result.exit_code != 0
    assert text in result.output
    assert "Traceback" not in result.output
