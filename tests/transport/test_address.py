"""What is an address, and where a listener may stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyzmp.exceptions import InvalidAddress
from pyzmp.transport.address import PATH, check_bind, parse


@pytest.mark.parametrize("text", [
    "memory://x", "inproc://any thing", "ipc:///tmp/x", "ipc:///tmp/" + "x" * (PATH - 5), "tcp://127.0.0.1:*", "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:65535", "tcp://[::1]:80", "tcp://host.example:80", "tcp://*:80"])
def test_an_address_is_spelled_as_it_was_given(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(("text", "reason"), [
    ("", "no address"), ("x", "no address"), ("tcp:127.0.0.1:80", "no address"), ("udp://127.0.0.1:80", "no address"),
    ("TCP://127.0.0.1:80", "no address"), ("memory://", "no address"), ("ipc://", "no address"),
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
