"""``pyzmp keys``, started as a user starts it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyzmp import cli, runtime
from pyzmp.registry import keys as files
from pyzmp.registry.domain import Domain
from pyzmp.transport.security import Keys


@pytest.fixture
def home() -> Domain:
    return Domain.named(runtime.settings().domain)


@pytest.fixture
def pyzmp() -> Callable[..., Result]:
    return lambda *argv: CliRunner().invoke(cli.main, ["keys", *argv])


def test_two_hosts_authorise_each_other(script: Any, domain: Path) -> None:
    hosts = [{"PYZMP_DIR": str(domain / name), "PYZMP_DOMAIN": "both"} for name in ("one", "two")]
    keys = [script.python("-m", "pyzmp", "keys", "export", env=host) for host in hosts]
    assert [(result.code, result.err, len(result.out)) for result in keys] == [(0, "", 41)] * 2
    result = script.python("-m", "pyzmp", "keys", "authorise", "two", keys[1].out.strip(), "--comment", "at home",
                           env=hosts[0])
    assert (result.code, result.out) == (0, "two is authorised in both\n")
    shown = script.python("-m", "pyzmp", "keys", "show", env=hosts[0]).out
    assert shown.splitlines() == [
        f"domain      both, in {domain}/one/both", f"own key     {keys[0].out.strip()}", "authorised  1",
        f"  two  {keys[1].out.strip()}  at home"]


def test_showing_makes_nothing(pyzmp: Any, home: Domain) -> None:
    result = pyzmp("show")
    assert result.exit_code == 0
    assert "none yet; pyzmp keys export makes one" in result.output
    assert "nobody else" in result.output
    assert not home.exists()


def test_a_secret_is_never_shown(pyzmp: Any, home: Domain) -> None:
    secret = files.load_or_make(home).secret
    for argv in (["show"], ["export"], ["authorise", "lab", Keys.make().public], ["authorise", "lab", "x"],
                 ["revoke", "lab"], ["revoke", "lab"], ["show"]):
        assert secret not in pyzmp(*argv).output


def test_a_key_may_begin_with_anything(pyzmp: Any, home: Domain) -> None:
    public = Keys.make().public
    keys = [start + public[len(start):] for start in ("-h", "--h", "-x", "--", "-", "*", "$", "@")]
    keys = [key for key in keys if len(key) == 40]
    for number, key in enumerate(keys):
        result = pyzmp("authorise", f"k{number}", key)
        if "Z85" not in result.output:  # another beginning may leave a group of characters too large for a key
            assert result.exit_code == 0, (key, result.output)
            assert pyzmp("revoke", key).exit_code == 0
    for start in ("-h", "--"):
        key = start + "0" * 38
        assert pyzmp("authorise", "lab", key).exit_code == 0
        assert files.authorised(home)[0].key == key
        assert pyzmp("revoke", key).output == f"lab is revoked in {home.name}\n"


@pytest.mark.parametrize(("argv", "code", "reason"), [
    ("authorise lab", 2, "Missing argument 'KEY'"), ("authorise lab x", 1, "Z85 text of 40 characters; 'x' is not"),
    ("authorise 'two words' {key}", 1, "no name for a key"), ("revoke lab", 1, "no key called 'lab' is authorised in"),
    ("revoke", 2, "Missing argument 'NAME'"), ("forget", 2, "No such command 'forget'"),
    ("authorise lab {key} more", 2, "unexpected extra argument")])
def test_what_is_wrong_is_told_in_one_line(pyzmp: Any, argv: str, code: int, reason: str) -> None:
    result = pyzmp(*shlex.split(argv.format(key=shlex.quote("0" * 40))))
    assert result.exit_code == code
    assert reason in result.output
    assert "Traceback" not in result.output


def test_a_file_that_others_can_read_is_told(pyzmp: Any, home: Domain) -> None:
    files.load_or_make(home)
    (Path(home.path) / "keys.own").chmod(0o644)
    for command in ("show", "export"):
        result = pyzmp(command)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {home.path}/keys.own has mode 0644")


def test_a_domain_that_cannot_be_is_told(pyzmp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.reset()
    monkeypatch.setenv("PYZMP_DOMAIN", "no/domain")
    result = pyzmp("show")
    assert (result.exit_code, result.output[:20]) == (1, "Error: 'no/domain' i")


@pytest.mark.parametrize("command", ["", "show", "export", "authorise", "revoke"])
def test_help_says_what_it_does(pyzmp: Any, command: str) -> None:
    result = pyzmp(*command.split(), "--help")
    assert result.exit_code == 0
    assert len(result.output.split("Options:")[0].split()) > 15
