"""The keys of a domain: made once, kept private, and changed by one process at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry import keys as files
from pyzmp.registry.domain import Domain, Lock
from pyzmp.registry.keys import Authorised, authorise, authorised, export, load_or_make, own, revoke, security
from pyzmp.transport.security import Keys

Eventually = Callable[..., None]

CROWD = """
import sys
from pyzmp.registry import keys
from pyzmp.registry.domain import Domain
from pyzmp.transport.security import Keys
home = Domain.named("home")
print(keys.export(home))
for number in range(10):
    keys.authorise(home, f"{sys.argv[1]}-{number}", Keys.make().public)
    if number % 2:
        keys.revoke(home, f"{sys.argv[1]}-{number}")
"""


@pytest.fixture
def home() -> Domain:
    return Domain.named("home")


@pytest.fixture
def key() -> str:
    return Keys.make().public


def test_looking_makes_nothing(home: Domain) -> None:
    assert own(home) is None
    assert authorised(home) == []
    assert not home.exists()


def test_a_key_pair_is_made_once_and_is_private(home: Domain) -> None:
    made = load_or_make(home)
    assert load_or_make(home) == own(home) == made
    assert own(home).secret == made.secret  # type: ignore[union-attr]
    assert export(home) == made.public
    assert export(Domain.named("other")) != made.public
    assert {path.name: path.stat().st_mode & 0o777 for path in Path(home.path).iterdir()} == {
        "keys.own": 0o600, "keys.lock": 0o600}


def test_the_files_are_private_whatever_the_umask(home: Domain, key: str) -> None:
    before = os.umask(0)
    try:
        load_or_make(home)
        authorise(home, "lab", key)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in Path(home.path).iterdir()} == {0o600}


def test_what_is_authorised_is_listed_by_name_until_it_is_revoked(home: Domain, key: str) -> None:
    other = Keys.make().public
    assert authorise(home, "lab", key, "the one in the cellar") == Authorised("lab", key, "the one in the cellar")
    authorise(home, "Desk.2@home", other)
    assert authorised(home) == [Authorised("Desk.2@home", other), Authorised("lab", key, "the one in the cellar")]
    assert revoke(home, "lab").key == key
    assert revoke(home, other).name == "Desk.2@home"
    assert authorised(home) == []


def test_a_name_can_get_another_key(home: Domain, key: str) -> None:
    authorise(home, "lab", Keys.make().public)
    authorise(home, "lab", key)
    assert authorised(home) == [Authorised("lab", key)]


@pytest.mark.parametrize(("change", "reason"), [
    ({"name": "two words"}, "no name for a key"), ({"name": ""}, "no name for a key"), ({"name": "-x"}, "no name"),
    ({"name": "x" * 65}, "no name for a key"), ({"name": "a\nb"}, "no name for a key"), ({"key": "*"}, "Z85 text"),
    ({"key": "~" * 40}, "Z85 text of 40"), ({"key": "#" * 40}, "Z85 text of 40"), ({"key": ""}, "Z85 text of 40"),
    ({"comment": "one\ntwo"}, "no comment")])
def test_what_cannot_be_authorised_is_told_and_nothing_is_written(
        home: Domain, key: str, change: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        authorise(home, **{"name": "lab", "key": key, "comment": "", **change})
    assert authorised(home) == []


def test_a_key_has_one_name(home: Domain, key: str) -> None:
    authorise(home, "lab", key)
    with pytest.raises(ValueError, match="authorised already, as 'lab'"):
        authorise(home, "cellar", key)


def test_what_is_not_authorised_cannot_be_revoked(home: Domain, key: str) -> None:
    authorise(home, "lab", key)
    with pytest.raises(LookupError, match=r"no key called 'cellar' is authorised in .*home; those that are: lab"):
        revoke(home, "cellar")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
@pytest.mark.parametrize("name", ["keys.own", "keys.authorised"])
def test_a_file_that_others_can_reach_is_refused(home: Domain, key: str, mode: int, name: str) -> None:
    secret = load_or_make(home).secret
    authorise(home, "lab", key)
    (Path(home.path) / name).chmod(mode)
    with pytest.raises(RegistryUnavailable, match=f"{name} has mode {mode:04o}, so others can") as caught:
        security(home)
    assert secret not in str(caught.value)


def test_a_directory_that_others_can_reach_is_refused(home: Domain) -> None:
    load_or_make(home)
    Path(home.path).chmod(0o755)
    for look in (own, load_or_make, export, authorised, security):
        with pytest.raises(RegistryUnavailable, match="has mode 0755"):
            look(home)


def test_a_file_of_another_user_is_refused(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_make(home)
    path = f"{home.path}/keys.own"
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(RegistryUnavailable, match=r"keys.own belongs to user .* and this is user 4242"):
        files._read(path)


@pytest.mark.parametrize("name", ["keys.own", "keys.authorised", "keys.lock"])
def test_a_symbolic_link_is_not_followed(home: Domain, domain: Path, key: str, name: str) -> None:
    home.make()
    (domain / "elsewhere").write_text("precious\n")
    (domain / "elsewhere").chmod(0o600)
    (Path(home.path) / name).symlink_to(domain / "elsewhere")
    with pytest.raises(RegistryUnavailable, match=name):
        authorise(home, "lab", key)
        security(home)
    assert (domain / "elsewhere").read_text() == "precious\n"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_told(home: Domain, make: Any) -> None:
    home.make()
    make(Path(home.path) / "keys.own")
    with pytest.raises(RegistryUnavailable, match=r"keys.own (is no file of keys|cannot be read)"):
        load_or_make(home)


def test_a_damaged_key_pair_is_told_and_not_shown(home: Domain) -> None:
    made = load_or_make(home)
    path = Path(home.path) / "keys.own"
    for text in (f"{made.secret}\n", f"{Keys.make().public}\n{made.secret}\n",
                 f"{made.secret}\n{made.public}\nx\n", "\xff"):
        path.write_text(text)
        with pytest.raises(RegistryUnavailable, match=r"keys.own holds no key pair; remove it") as caught:
            load_or_make(home)
        assert made.secret not in repr(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("line", ["lab", "lab x", "two  {key}", "* {key}", "{key} lab", "lab\t{key}", ""])
def test_a_damaged_line_is_named(home: Domain, key: str, line: str) -> None:
    authorise(home, "good", key)
    path = Path(home.path) / "keys.authorised"
    path.write_text(path.read_text() + line.format(key=Keys.make().public) + "\n")
    for look in (authorised, security):
        with pytest.raises(RegistryUnavailable, match=r"line 2 of .*keys.authorised: .*expected NAME KEY COMMENT"):
            look(home)


def test_a_crowd_of_processes_makes_one_key_pair_and_loses_no_change(home: Domain, script: Any) -> None:
    (script.folder / "crowd.py").write_text(CROWD)
    started = [script.start("crowd.py", str(number), stdout=-1) for number in range(4)]
    said = {process.communicate(timeout=30)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert said == {f"{export(home)}\n"}
    assert {entry.name for entry in authorised(home)} == {f"{a}-{b}" for a in range(4) for b in range(0, 10, 2)}
    assert sorted(os.listdir(home.path)) == ["keys.authorised", "keys.lock", "keys.own"]


def test_what_a_killed_process_left_half_written_is_no_hindrance(home: Domain, key: str) -> None:
    home.make()
    for name in ("keys.own.new", "keys.authorised.new"):
        (Path(home.path) / name).write_text("half")
    load_or_make(home)
    authorise(home, "lab", key)
    assert sorted(os.listdir(home.path)) == ["keys.authorised", "keys.lock", "keys.own"]


def test_another_process_that_does_not_let_go_is_told(home: Domain, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home.make()
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    held = Lock.take(f"{home.path}/keys.lock")
    assert held is not None
    with pytest.raises(RegistryUnavailable, match=r"keys.lock is held by another process"):
        authorise(home, "lab", key)
    held.release()
    authorise(home, "lab", key)


def test_a_full_disk_is_told_and_what_was_there_stays(home: Domain, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    authorise(home, "lab", key)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RegistryUnavailable, match=r"keys.authorised cannot be written: No space left on device"):
        authorise(home, "desk", Keys.make().public)
    assert [entry.name for entry in authorised(home)] == ["lab"]


def test_members_let_in_each_other_and_what_is_authorised_now(home: Domain, key: str) -> None:
    one, two = security(home), security(home)
    assert one.keys == two.keys
    assert one.access.allows(two.keys.public)
    authorise(home, "lab", key)
    assert not one.access.allows(key)
    one.access.refresh()
    assert one.access.allows(key)
    revoke(home, "lab")
    one.access.refresh()
    assert not one.access.allows(key)
    assert one.access.allows(one.keys.public)


def test_what_has_not_changed_is_not_read_again(home: Domain, key: str) -> None:
    authorise(home, "lab", key)
    source = files._Source(home, "own")
    assert source() == ["own", key]
    assert source() is None
    (Path(home.path) / "keys.authorised").unlink()
    assert source() == ["own"]
    assert source() is None


def test_a_file_that_became_readable_lets_nobody_new_in(home: Domain, key: str, caplog: Any) -> None:
    access = security(home).access
    authorise(home, "lab", key)
    path = Path(home.path) / "keys.authorised"
    path.chmod(0o644)
    for _ in range(3):
        access.refresh()
    assert access.judge(key)[0] == b"500"
    assert len(caplog.messages) == 1
    path.chmod(0o600)
    access.refresh()
    assert access.judge(key)[0] == b"200"


def test_threads_may_do_it_at_once(home: Domain) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(export(home))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8
