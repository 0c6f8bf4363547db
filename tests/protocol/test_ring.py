from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyzmp.protocol.ring import Evidence, Verdict, watched

HOSTS = st.dictionaries(st.text("abcdef0123", min_size=1, max_size=4), st.sampled_from("ABC"), max_size=12)


@given(HOSTS)
def test_each_is_looked_after_on_its_host_and_from_another_where_there_are_any(hosts: dict[str, str]) -> None:
    wards = {member: watched(member, hosts) for member in hosts}
    for member, host in hosts.items():
        guards = {other for other in hosts if member in wards[other]}
        assert member not in guards
        near = [other for other in hosts if hosts[other] == host and other != member]
        assert len({other for other in guards if hosts[other] == host}) == min(2, len(near))
        assert sum(hosts[other] != host for other in guards) == (len(set(hosts.values())) > 1)


@given(HOSTS)
def test_who_is_no_member_looks_after_nobody(hosts: dict[str, str]) -> None:
    assert watched("nobody", hosts) == set()


def test_who_is_connected_is_left_alone_however_long_it_is_silent() -> None:
    evidence = Evidence(4.5)
    assert {evidence.look(connected=True, gone=False, passed=10) for _ in range(10)} == {Verdict.NOTHING}


def test_whose_process_has_ended_is_gone_at_once() -> None:
    assert Evidence(4.5).look(connected=True, gone=True, passed=0) is Verdict.END


def looks(evidence: Evidence, count: int) -> list[Verdict]:
    return [evidence.look(connected=False, gone=False, passed=0.5) for _ in range(count)]


def test_who_is_cut_off_is_doubted_once_and_gone_after_the_lease() -> None:
    found = looks(Evidence(4.5, met=True), 9)
    assert found.count(Verdict.DOUBT) == 1
    assert found.index(Verdict.DOUBT) < 4
    assert found.index(Verdict.END) == 8


def test_a_connection_that_is_back_begins_anew() -> None:
    evidence = Evidence(4.5, met=True)
    assert Verdict.END not in looks(evidence, 8)
    evidence.look(connected=True, gone=False, passed=0.5)
    assert looks(evidence, 9) == looks(Evidence(4.5, met=True), 9)


def test_who_was_never_connected_is_left_to_its_lease() -> None:
    evidence = Evidence(4.5)
    assert set(looks(evidence, 100)) == {Verdict.NOTHING}
    evidence.look(connected=True, gone=False, passed=0.5)
    assert looks(evidence, 9)[-1] is Verdict.END


def test_who_contradicts_lives_and_is_doubted_again_once_it_was_connected() -> None:
    evidence = Evidence(4.5, met=True)
    for _ in range(5):
        found = looks(evidence, 7)
        assert found.count(Verdict.DOUBT) == 1
        assert Verdict.END not in found
        evidence.contradicted()
        assert set(looks(evidence, 100)) == {Verdict.NOTHING}
        evidence.look(connected=True, gone=False, passed=0.5)


def test_a_word_of_one_that_is_connected_changes_nothing() -> None:
    evidence = Evidence(4.5, met=True)
    evidence.look(connected=True, gone=False, passed=0.5)
    evidence.contradicted()
    assert looks(evidence, 9)[-1] is Verdict.END
