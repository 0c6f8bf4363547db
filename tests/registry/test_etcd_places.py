from __future__ import annotations

import pytest

from pyzmp.registry.etcd_places import endpoints
from pyzmp.registry.finder import check_registry


@pytest.mark.parametrize(("registry", "expected"), [
    ("etcd://a", ["a:2379"]),
    ("etcd://a:1,b.c:22,10.0.0.1", ["a:1", "b.c:22", "10.0.0.1:2379"]),
    ("etcd://[::1]:5,[fe80::1]", ["[::1]:5", "[fe80::1]:2379"]),
])
def test_endpoints_are_hosts_with_ports(registry: str, expected: list[str]) -> None:
    assert endpoints(registry) == (expected, "", "")


def test_a_user_may_have_any_signs() -> None:
    assert endpoints("etcd://me:a%40b:c@h:1") == (["h:1"], "me", "a@b:c")


@pytest.mark.parametrize("registry", ["etcd://", "etcd://a:b", "etcd://a:0", "etcd://a:70000", "etcd://a,,b",
                                      "etcd://a/b", "etcd://me@a"])
def test_what_is_no_endpoint_is_refused(registry: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        endpoints(registry)
    with pytest.raises(ValueError, match="registry: "):
        check_registry(registry)  # before anything is asked for


def test_what_is_wrong_is_said_without_the_password() -> None:
    with pytest.raises(ValueError, match="user:password") as caught:
        endpoints("etcd://:secret@a")
    assert "secret" not in str(caught.value)
