"""What is an address, and where a listener may stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.exceptions import InvalidAddress
from pyzmp.transport.address import PATH, check_bind, check_key, parse

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
OTHER = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"


@pytest.mark.parametrize("text", [
    "memory://x", "inproc://any thing", "ipc:///tmp/x", "ipc:///tmp/" + "x" * (PATH - 5), "tcp://127.0.0.1:*", "tcp://127.0.0.1:0",
    f"tcp://127.0.0.1:80#{KEY}", "ipc:///tmp/x#y", "tcp://127.0.0.1:65535", "tcp://[::1]:80", "tcp://host.example:80", "tcp://*:80"])
def test_an_address_is_spelled_as_it_was_given(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(("text", "reason"), [
    ("", "no address"), ("x", "no address"), ("tcp:127.0.0.1:80", "no address"), ("udp://127.0.0.1:80", "no address"),
    ("TCP://127.0.0.1:80", "no address"), ("memory://", "no address"), ("ipc://", "no address"),
    ("tcp://127.0.0.1:80#", "behind the # stands no public key"), ("tcp://127.0.0.1:80#*", "no public key of 40"),
    (f"tcp://127.0.0.1:80#{KEY}x", "no public key"), ("tcp://127.0.0.1:80#" + "#" * 40, "no public key"),
    (f"tcp://#{KEY}", "no TCP address"),
    ("tcp://127.0.0.1", "no TCP address"), ("tcp://:80", "no TCP address"), ("tcp://127.0.0.1:", "no TCP address"),
    ("tcp://127.0.0.1:65536", "no TCP address"), ("tcp://127.0.0.1:-1", "no TCP address"), ("tcp://127.0.0.1:x",
        "no TCP address"),
    ("tcp://127.0.0.1:٣", "no TCP address"), ("ipc://relative", "must be absolute"), ("ipc://@abstract", "abstract"),
    ("ipc:///" + "x" * PATH, "a path of 108 bytes, and a Unix socket's holds 107"), ("ipc:///" + "é" * 54,
        "a path of 109 bytes"),
    ("ipc:///tmp/a\0b", "cannot be printed"), ("ipc:///tmp/\ud800", "cannot be printed"), ("memory://a\nb",
        "cannot be printed")])
def test_what_is_wrong_with_an_address_is_said(text: str, reason: str) -> None:
    with pytest.raises(InvalidAddress, match=reason):
        parse(text)


@pytest.mark.parametrize("thing", [None, 5, b"tcp://127.0.0.1:80"])
def test_what_is_no_text_is_no_address(thing: object) -> None:
    with pytest.raises(InvalidAddress):
        parse(thing)  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.builds("{}://{}".format, st.sampled_from(["tcp", "ipc", "memory", "inproc"]),
    st.text())))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        assert str(parse(text)) == text
    except InvalidAddress:
        pass


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "192.0.2.1", "[::]", "eth0", "host.example", "127.0.0.1.example",
    "2130706433",
                                  "[::ffff:192.0.2.1]", "localhost.example"])
def test_beyond_loopback_nobody_listens_unless_told_that_it_is_insecure(host: str) -> None:
    text = f"tcp://{host}:4242"
    with pytest.raises(InvalidAddress, match="insecure=True"):
        check_bind(text)
    assert str(check_bind(text, insecure=True)) == text


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:*", "tcp://127.9.9.9:1", "tcp://[::1]:1", "tcp://localhost:1", "ipc:///x",
                                  "memory://x", "inproc://x"])
def test_inside_a_host_everything_may_listen(text: str) -> None:
    assert check_bind(text).loopback


def test_an_address_with_a_key_is_not_the_same_without() -> None:
    address = parse(f"tcp://127.0.0.1:80#{KEY}")
    assert (address.key, address.rest, address.endpoint) == (KEY, "127.0.0.1:80", "tcp://127.0.0.1:80")
    assert address != parse(address.endpoint)


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "192.0.2.1", "[::]", "eth0"])
def test_with_a_key_anybody_may_listen_beyond_loopback(host: str) -> None:
    assert str(check_bind(f"tcp://{host}:4242", key=lambda: KEY)) == f"tcp://{host}:4242#{KEY}"
    assert not check_bind(f"tcp://{host}:4242", key=lambda: KEY, insecure=True).key


def test_on_loopback_a_key_is_used_where_it_is_asked_for() -> None:
    def never() -> str:
        raise AssertionError
    assert not check_bind("tcp://127.0.0.1:*", key=never).key
    assert check_bind("tcp://127.0.0.1:*", key=lambda: KEY, secure=True).key == KEY
    assert check_bind(f"tcp://127.0.0.1:*#{KEY}", key=lambda: KEY).key == KEY
    for text in ("ipc:///x", "memory://x", "inproc://x"):
        assert not check_bind(text, key=never, secure=True).key


def test_nobody_listens_with_anothers_key_or_none() -> None:
    with pytest.raises(InvalidAddress, match="the key of this process, which listens there, is another"):
        check_bind(f"tcp://127.0.0.1:*#{KEY}", key=lambda: OTHER)
    with pytest.raises(InvalidAddress, match="this process has no keys"):
        check_bind(f"tcp://127.0.0.1:*#{KEY}")
    with pytest.raises(InvalidAddress, match="insecure=True"):
        check_bind("tcp://0.0.0.0:*", secure=True)


def test_a_secret_that_is_none_is_not_shown() -> None:
    with pytest.raises(ValueError, match="'almost' is not"):
        check_key("almost")
    with pytest.raises(ValueError, match="what came is not") as caught:
        check_key("almost", secret=True)
    assert "almost" not in str(caught.value)
