from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry import domain as domains
from pyzmp.registry.domain import (
    Domain,
    Lock,
    check_node_name,
    check_service_name,
    is_gone,
    temporary_directory,
    this_process,
)
from pyzmp.transport.address import PATH, parse

Eventually = Callable[..., None]


@pytest.fixture
def home(domain: Path) -> Domain:
    made = Domain.named("home")
    made.make()
    return made


def test_the_directory_is_made_private(domain: Path) -> None:
    home = Domain.named("home")
    assert not home.exists()
    home.make()
    assert home.exists()
    assert home.path == f"{domain}/home"
    assert Path(home.path).stat().st_mode & 0o777 == 0o700


def test_naming_a_domain_makes_nothing(domain: Path) -> None:
    Domain.named("home")
    assert list(domain.iterdir()) == []


def test_a_missing_base_is_made(domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYZMP_DIR", str(domain / "a" / "b"))
    Domain.named("home").make()
    assert (domain / "a" / "b" / "home").is_dir()


def test_without_a_choice_it_is_the_runtime_directory_or_the_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYZMP_DIR")
    path = Path(Domain.named("home").path).parent
    assert path.name in ("pyzmp", f"pyzmp-{os.geteuid()}")


def test_another_users_runtime_directory_is_not_ours(domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYZMP_DIR")
    monkeypatch.setattr(domains.os, "access", lambda path, mode: False)
    assert Path(Domain.named("home").path).parent.name == f"pyzmp-{os.geteuid()}"


@pytest.mark.parametrize("link", ["base", "domain"])
def test_a_symbolic_link_is_not_followed(domain: Path, monkeypatch: pytest.MonkeyPatch, link: str) -> None:
    (domain / "target").mkdir(mode=0o700)
    if link == "base":
        (domain / "link").symlink_to(domain / "target")
        monkeypatch.setenv("PYZMP_DIR", str(domain / "link"))
    else:
        (domain / "home").symlink_to(domain / "target")
    with pytest.raises(RegistryUnavailable, match=r"symbolic link.*PYZMP_DIR"):
        Domain.named("home").make()
    assert list((domain / "target").iterdir()) == []


def test_a_file_in_its_place_is_told(domain: Path) -> None:
    (domain / "home").write_text("")
    with pytest.raises(RegistryUnavailable, match="no directory"):
        Domain.named("home").make()


def test_a_directory_that_others_can_reach_into_is_refused(home: Domain) -> None:
    Path(home.path).chmod(0o750)
    with pytest.raises(RegistryUnavailable, match=r"mode 0750.*chmod 700"):
        home.make()
    with pytest.raises(RegistryUnavailable, match="mode 0750"):
        home.exists()


def test_a_base_that_others_can_write_is_refused(domain: Path) -> None:
    domain.chmod(0o777)
    with pytest.raises(RegistryUnavailable, match="mode 0777"):
        Domain.named("home").make()
    domain.chmod(0o755)
    Domain.named("home").make()


def test_a_directory_of_another_user_is_refused(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(domains.os, "geteuid", lambda: owner + 1)
    with pytest.raises(RegistryUnavailable, match=f"belongs to user {owner}, and this is user {owner + 1}"):
        home.make()


def test_a_directory_that_is_not_writable_is_told(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RegistryUnavailable, match=r"not writable.*PYZMP_DIR"):
        home.make()


def test_a_path_too_long_for_sockets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYZMP_DIR", "/tmp/" + "x" * 80)
    with pytest.raises(RegistryUnavailable, match=r"too many.*PYZMP_DIR"):
        Domain.named("home")


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a b", "-x", "x" * 41, "é", "a\n"])
def test_a_domain_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="domain"):
        Domain.named(name)


@pytest.mark.parametrize("name", ["kitchen", "group/1", "Küche 7", "x" * 255])
def test_a_node_may_have_any_printable_name(name: str) -> None:
    assert check_node_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 256, "é" * 128])
def test_a_service_has_a_name_that_can_be_looked_for(name: str) -> None:
    assert check_service_name("x" * 255) == "x" * 255
    with pytest.raises(ValueError, match="no name for a service"):
        check_service_name(name)


@pytest.mark.parametrize("name", ["", "a\nb", "\x00", "x" * 256, "\udc80"])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a node"):
        check_node_name(name)


def test_a_name_is_a_text() -> None:
    with pytest.raises(TypeError, match="got int"):
        check_node_name(7)


def test_addresses_are_different_valid_and_the_same_each_time(home: Domain) -> None:
    names = ["kitchen", "Kitchen", "KITCHEN", "group/1", "group-1", "group1", "Küche", "x" * 255, "x" * 254, "x" * 253,
             "registry-1", "start.lock", "..", ".", "~", "node-kitchen", "a~b"]
    addresses = [home.address_for(name) for name in names]
    assert len(set(addresses)) == len(names)
    assert addresses == [home.address_for(name) for name in names]
    for address in addresses:
        path = Path(parse(address).rest)
        assert str(path.parent) == home.path
        assert path.name.startswith("node")
    assert home.address_for("kitchen").endswith("/node-kitchen")
    assert "/node~x" in home.address_for("x" * 255)


def test_addresses_fit_even_in_the_longest_directory(domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = PATH - domains.RESERVED - len("/home")
    monkeypatch.setenv("PYZMP_DIR", "/" + "x" * (room - 1))
    home = Domain.named("home")
    for name in ["a", "some-longer-name", "Küche", "x" * 255]:
        assert len(parse(home.address_for(name)).rest) <= PATH
    assert len(parse(home.registry(9_999_999_999)).rest) <= PATH


# -- locks -------------------------------------------------------------------------------------------------------------

def test_a_counter_is_claimed_once_and_above_all_others(home: Domain) -> None:
    assert home.current() is None
    first, lock = home.claim(0)
    assert (first, home.current(), home.current(above=1)) == (1, 1, None)
    lock.release()
    assert home.current() is None
    second, lock = home.claim(0)
    third, other = home.claim(10)
    assert (second, third) == (2, 11)
    assert home.current() == 11
    other.release()
    assert home.current() == 2
    lock.release()


def test_files_of_dead_registries_go_and_the_highest_stays(home: Domain) -> None:
    for expected in (1, 2, 3):
        counter, lock = home.claim(0)
        assert counter == expected
        Path(home.path, f"registry-{counter}").touch()
        lock.release()
    assert sorted(path.name for path in Path(home.path).iterdir()) == ["registry-3", "registry-3.lock"]


def test_so_do_old_sockets_of_dead_nodes(home: Domain) -> None:
    for name, age in (("node-old", 1000.0), ("node-new", None)):
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"{home.path}/{name}")
        if age is not None:
            os.utime(f"{home.path}/{name}", (age, age))
    _, lock = home.claim(0)
    lock.release()
    assert sorted(path.name for path in Path(home.path).iterdir()) == ["node-new", "registry-1.lock"]
    Path(home.path, "node-new").unlink()


def test_a_temporary_directory_is_short_enough_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tempfile.gettempdir()
    short = Path(temporary_directory("test"))
    (tmp_path / ("x" * 90)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 90)))
    other = Path(temporary_directory("test"))
    try:
        assert str(short.parent) == before
        assert len(f"{other}/test") + domains.RESERVED <= PATH
    finally:
        short.rmdir()
        other.rmdir()


def test_files_of_a_living_registry_stay(home: Domain) -> None:
    _, lock = home.claim(0)
    _, other = home.claim(0)
    assert home.counters() == [2, 1]
    lock.release()
    other.release()


def test_the_start_lock_is_for_one(home: Domain) -> None:
    lock = home.start_lock()
    assert lock is not None
    assert home.start_lock() is None
    lock.release()
    again = home.start_lock()
    assert again is not None
    again.release()


def test_a_released_lock_is_free_though_a_forked_child_has_a_copy(home: Domain) -> None:
    lock = home.start_lock()
    assert lock is not None
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        lock.release()
        again = home.start_lock()
        assert again is not None
        again.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_closing_an_inherited_copy_leaves_the_lock_to_the_parent(home: Domain) -> None:
    lock = home.start_lock()
    assert lock is not None
    copy = Lock(os.dup(lock.descriptor))
    copy.close_inherited()
    copy.release()
    assert home.start_lock() is None
    lock.release()


def test_a_lock_file_that_is_a_link_is_not_followed(home: Domain, domain: Path) -> None:
    Path(home.path, "start.lock").symlink_to(domain / "elsewhere")
    with pytest.raises(RegistryUnavailable, match=r"start\.lock cannot be made"):
        home.start_lock()
    assert not (domain / "elsewhere").exists()


def test_a_file_system_without_locks_is_told(home: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(domains.fcntl, "flock", none)
    with pytest.raises(RegistryUnavailable, match=r"has no locks.*local file system"):
        home.start_lock()


# -- processes ---------------------------------------------------------------------------------------------------------

def test_this_process_is_not_gone_and_is_another_member_each_time() -> None:
    member = this_process("program")
    assert not is_gone(member)
    assert (member.pid, member.program) == (os.getpid(), "program")
    assert this_process().id != member.id


def test_an_ended_process_is_gone_also_before_it_is_collected(eventually: Eventually) -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    started = domains._started(child)
    mine = this_process()
    member = replace(mine, pid=child, started=f"{mine.started.rpartition(':')[0]}:{started}")
    assert not is_gone(member)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: is_gone(member))
    os.waitpid(child, 0)
    assert is_gone(member)


def test_a_process_with_the_same_number_that_began_later_is_another() -> None:
    member = this_process()
    assert is_gone(replace(member, started=f"{member.started.rpartition(':')[0]}:1"))


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"started": ""}, {"started": "boot/1:5"}])
def test_what_cannot_be_known_is_not_gone(changed: dict[str, str]) -> None:
    assert not is_gone(replace(this_process(), pid=2**22 + 1, **changed))


def test_a_directory_that_every_program_would_find_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYZMP_DIR", "here")
    with pytest.raises(RegistryUnavailable, match="'here', which every program would look for in another place"):
        Domain.named("default")


def test_a_tilde_means_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("PYZMP_DIR", "~/nodes")
    assert Domain.named("default").path == "/home/somebody/nodes/default"
