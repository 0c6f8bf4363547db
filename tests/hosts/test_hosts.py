"""A domain over several hosts: nodes that call each other, cables that are cut, keys that are refused."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pyzmp.registry import keys

NOTICED = 4.5 + 3  # seconds until a cut cable ends what is under way: the promise, and what a loaded machine needs
GONE = 4.5 + NOTICED  # and until what was behind it is out of the graph


def test_two_hosts_call_each_other_and_listen_nowhere_else(hosts: Any) -> None:
    a, b = hosts("a", "b")
    a.serve("--beacon")
    near, far = a.agent(), b.agent(a.where)  # on its own host nothing has to be said
    near.begin("start('lamp')")
    assert far("start('far')")
    assert near.answer()
    assert far("find('lamp')")[0][1].startswith(f"tcp://{a.address}:")
    assert (far("call('lamp')"), near("find('far') and call('far')")) == ("a", "b")
    assert (far("listen('lamp')"), near("listen('far')")) == (["lamp"], ["far"])
    near("Lamp.at('lamp').shine(0, 300)")
    far("Lamp.at('far').shine(300, 600)")
    assert far("take('lamp', 300)") == list(range(300))
    assert near("take('far', 300)") == list(range(300, 600))
    assert far("listen('')") == []
    near("alert('fire')")  # by a program that is a publisher from now on
    assert far("take('', 1)") == ["fire"]
    assert all(where.startswith(f"{b.address}:") for where in b.listeners())
    assert len(b.listeners()) == 1
    assert f"{a.address}:4242" in a.listeners()
    assert all(where.startswith(f"{a.address}:") for where in a.listeners())
    beacon = b.agent("beacon")
    assert beacon("find('lamp') and call('lamp')") == "a"
    assert beacon("len(pyzmp.services['where'])") == 2


def test_nothing_listens_on_one_host(hosts: Any) -> None:
    [a] = hosts("a")
    alone = a.agent()
    assert alone("start('lamp')")
    assert alone("call('lamp')") == "a"
    assert a.listeners() == []


@pytest.mark.slow
def test_three_hosts_see_the_same(hosts: Any) -> None:
    a, b, c = hosts("a", "b", "c")
    a.serve("--beacon")
    agents = [a.agent(), b.agent(a.where), c.agent("beacon")]
    for agent, host in zip(agents, (a, b, c), strict=True):
        assert agent(f"start('on-{host.name}')")
    for agent in agents:
        agent("until('len(known()) == 3')")
        assert agent("[call(f'on-{name}') for name in 'abc']") == ["a", "b", "c"]
    assert "RuntimeError" not in agents[2].fails("start('on-a')")
    assert "'on-a' is already run by" in agents[2].fails("start('on-a')")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_subscription_over_a_cut_cable_goes_on_and_counts_what_was_lost(hosts: Any) -> None:
    a, b = hosts("a", "b")
    a.serve()
    near, far = a.agent(), b.agent(a.where)
    assert near("start('lamp')")
    assert far("find('lamp') and listen('lamp')") == ["lamp"]
    near("Lamp.at('lamp').shine(0, 100)")
    assert far("take('lamp', 100)") == list(range(100))
    near("until('settled(\"lamp\", 100)')")
    b.cut()
    far.begin(f"until('not heard[\"lamp\"].publishers', {GONE})")
    near("Lamp.at('lamp').shine(100, 200)")
    print(f"\nthe cut was noticed after {far.answer():.2f} s")
    near(f"until('settled(\"lamp\", 100)', {GONE})")
    near("Lamp.at('lamp').shine(200, 300)")
    b.heal()
    assert far("until('heard[\"lamp\"].publishers') < 30")
    near("Lamp.at('lamp').shine(300, 400)")
    assert far("take('lamp', 105)") == list(range(295, 400))  # the last five are kept
    assert far("counts('lamp')") == [205, 0, 195]
    assert far("events") == ["Joined", "Left", "Joined", "Gap"]
    near("until('settled(\"lamp\", 205)')")
    accounts = near("[(each.offered, each.received, each.lost) for each in Lamp.at('lamp').light.accounts()]")
    assert sorted(map(tuple, accounts)) == [(105, 105, 0), (200, 100, 100)]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_cut_cable_is_noticed_and_healed_without_a_restart(hosts: Any) -> None:
    a, b = hosts("a", "b")
    a.serve()
    near, far = a.agent(), b.agent(a.where)
    assert near("start('lamp')")
    assert far("start('far')")
    assert near("find('far') and call('far')") == "b"
    assert far("find('lamp') and call('lamp')") == "a"
    near.begin("hold('far', 20)")
    far.begin("hold('lamp', 20)")
    far_pid = far.process.pid
    b.cut()
    for agent in (near, far):
        name, text, seconds = agent.answer()
        assert name == "NodeDied", text
        assert seconds < NOTICED, text
        print(f"\na call ended {seconds:.2f} s after it began, right before the cut")
    assert near(f"until(\"known() == ['lamp']\", {GONE})") < GONE
    assert far(f"until('stale()', {NOTICED})") < NOTICED
    assert far("known()") == ["far", "lamp"]  # the last view
    b.heal()
    assert near("until(\"known() == ['far', 'lamp']\") < 30")
    assert far("until('not stale()') < 30")
    assert near("call('far')") == "b"
    assert far("call('lamp')") == "a"
    assert far.process.pid == far_pid
    assert far.process.poll() is None


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_who_has_no_right_hears_so_at_once_each_in_its_own_words(hosts: Any) -> None:
    a, b, c = hosts("a", "b", "c")
    a.serve()
    assert b.agent(a.where)("start('lamp')")

    other = b.agent(f"tcp://{a.address}:4242#{c.key}").fails("start('other')")
    assert f"the key of tcp://{a.address}:4242 is not the one expected, {c.key}" in other

    none = b.agent(f"tcp://{a.address}:4242").fails("start('other')")
    assert f"not the one expected, {b.key}" in none
    assert "that is the domain's own key on this host, since none stands behind the address" in none

    plain = b.start(sys.executable, "-c", "import zmq; s = zmq.Context().socket(zmq.DEALER); "
                    "m = s.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED | "
                    "zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL); "
                    f"s.connect('tcp://{a.address}:4242'); print(m.poll(10000)); s.close(0)")
    assert plain.stdout is not None
    assert plain.stdout.readline().strip() == "1"  # who speaks no CURVE does not come in

    keys.revoke(a.domain, "c")
    text = c.agent(a.where)("refused('other')")
    assert f"the key {c.key} is not authorised by tcp://{a.address}:4242" in text
    assert "pyzmp keys authorise" in text

    member = b.agent(a.where)
    assert member("start('later')")
    keys.revoke(a.domain, "b")
    assert member("until('stale()') < 20")
    assert f"the key {b.key} is not authorised" in b.agent(a.where)("refused('other')")
    keys.authorise(a.domain, "b", b.key)
    assert member("until('not stale()') < 20")


@pytest.mark.slow
def test_a_registry_that_is_not_there_is_named(hosts: Any) -> None:
    a, b = hosts("a", "b")
    assert a.key
    text = b.agent(a.where).fails("start('lamp')")
    assert "no registry answered within 10 s" in text
    assert f"tcp://{a.address}:4242" in text
    assert "nobody listens there" in text
    text = b.agent("beacon").fails("start('lamp')")
    assert "the beacons of domain 'house' at UDP port 4243" in text


@pytest.mark.slow
def test_facts_of_others_are_refused(hosts: Any) -> None:
    a, b = hosts("a", "b")
    a.serve()
    near, far = a.agent(), b.agent(a.where)
    assert near("start('lamp')")
    assert far("find('lamp') and start('far')")
    before = near("repr(runtime.current().facts().node('lamp'))")
    asked = "runtime.current().run(runtime.current().replica.announce([changed('{}', {})]))"
    assert "node 'lamp' is not for pid" in far.fails(asked.format("lamp", "addresses=()"))
    assert "node 'lamp' is not for pid" in far.fails(
        "runtime.current().run(runtime.current().replica.withdraw([('node', 'lamp')]))")
    # What names another host's key, be it for a node of one's own, is the work of an impostor, who is sent away.
    text = far.fails(asked.format("far", f"addresses=('tcp://10.77.0.9:1#{a.key}',)"))
    assert "which is the key of somebody else" in text
    assert near("repr(runtime.current().facts().node('lamp'))") == before
    assert (near("call('lamp')"), far("call('lamp')"), near("call('far')")) == ("a", "a", "b")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_view_goes_back_when_the_registry_has_lost_its_directory(hosts: Any) -> None:
    a, b = hosts("a", "b")
    for _ in range(3):  # so that the counter is above that of a new one
        registry = a.serve()
        registry.send_signal(signal.SIGTERM)
        assert registry.wait(10) == 0
    registry = a.serve()
    far = b.agent(a.where)
    assert far("start('far')")
    assert far("epoch()") == 4
    registry.kill()
    registry.wait()
    for lock in Path(a.domain.path).glob("registry-*"):
        lock.unlink()
    a.serve()
    assert far("until('epoch() > 4') < 30")
    assert far("until('not stale()') < 30")
    assert far("known()") == ["far"]
    near = a.agent()
    assert near("find('far') and call('far')") == "b"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_registry_moves_to_another_host(hosts: Any) -> None:
    a, b, c = hosts("a", "b", "c")
    registry = a.serve("--beacon")
    for _ in range(2):
        registry.send_signal(signal.SIGTERM)
        assert registry.wait(10) == 0
        registry = a.serve("--beacon")
    far = b.agent("beacon")
    assert far("start('far')")
    assert far("epoch()") == 3
    registry.kill()
    c.serve("--beacon")
    assert far("until('epoch() > 3') < 30")
    assert far("until('not stale()') < 30")
    near = c.agent()
    assert near("find('far') and call('far')") == "b"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_registry_that_was_stopped_is_waited_for_by_all_and_no_view_goes_back(hosts: Any) -> None:
    a, b = hosts("a", "b")
    registry = a.serve()
    near, far = a.agent(), b.agent(a.where)
    assert near("start('lamp')")
    assert far("start('far')")
    registry.send_signal(signal.SIGSTOP)
    for agent in (near, far):  # those on its own host do not help themselves: the others would not find what they start
        assert agent("until('stale()') < 30")
    assert near("call('lamp')") == "a"
    registry.send_signal(signal.SIGCONT)
    for agent in (near, far):
        assert agent("until('epoch() == 1 and not stale()') < 30")
        assert agent("until('len(known()) == 2') < 30")
    assert (near("call('far')"), far("call('lamp')")) == ("b", "a")


@pytest.mark.slow
def test_nodes_that_ran_before_the_registry_of_several_hosts_are_reached_too(hosts: Any) -> None:
    a, b = hosts("a", "b")
    near = a.agent()
    assert near("start('lamp') and start('shared', kind='entity')")
    assert a.listeners() == []
    a.serve()
    far = b.agent(a.where)
    assert far("until('len(known()) == 2') < 30")
    for name in ("lamp", "shared"):
        assert far(f"until('find(\\'{name}\\')[0][1].startswith(\\'tcp:\\')') < 30")
        assert far(f"call('{name}')") == "a"
    assert near("call('lamp')") == "a"
    assert near("nodes['lamp'].shutdown()") == 0


@pytest.mark.slow
def test_the_interface_can_be_chosen(hosts: Any) -> None:
    a, b = hosts("a", "b")
    a.serve()
    for interface in ("eth0", b.address):
        far = b.agent(a.where, PYZMP_INTERFACE=interface)
        assert far(f"start('{interface}')")
        assert far(f"find('{interface}')")[0][1].startswith(f"tcp://{b.address}:")
    assert "there is no interface 'eth9'" in b.agent(a.where, PYZMP_INTERFACE="eth9").fails("start('lamp')")
    everywhere = b.agent(a.where)
    assert everywhere("start('own', 'tcp://*:5001')")
    assert everywhere("find('own')")[0][1] == f"tcp://{b.address}:5001#{b.key}"
    assert a.agent()("find('own') and call('own')") == "b"


@pytest.mark.slow
def test_children_have_the_keys_without_being_told(hosts: Any) -> None:
    a, b = hosts("a", "b")
    a.serve()
    far = b.agent(a.where)
    assert far("start('child', kind='process')")
    assert a.agent()("find('child') and call('child')") == "b"
