from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from pyzmp.exceptions import MalformedMessage
from pyzmp.protocol import etcd
from pyzmp.protocol.etcd import Book, Json, Layout, Peer, from64, text64
from pyzmp.protocol.facts import Change, Epoch, Key, Member, NodeFact, Position, ServiceFact, Snapshot
from pyzmp.protocol.graph import Outcome, View

LAYOUT = Layout("home")
NAMES = st.text(min_size=1, max_size=20)


def member(number: int) -> Member:
    return Member(f"id{number}", "host", number, "")


def node(name: str, owner: str) -> NodeFact:
    return NodeFact(name, owner, "", (), "process", "host", 1, "m.Thermometer")


class Store:
    """What etcd does, as far as it is asked to here: revisions, transactions, leases, and what a watch tells."""

    def __init__(self) -> None:
        self.revision = 1
        self.entries: dict[bytes, Json] = {}
        self.events: list[Json] = []
        self.asked: list[Json] = []  # by those who own something
        self.ended: set[str] = set()  # leases

    def transact(self, transaction: Json) -> Json:
        succeeded = all(self._holds(compare) for compare in transaction.get("compare", []))
        asked = transaction["success"] if succeeded else transaction.get("failure", [])
        assert len(asked) <= 128
        assert len(transaction.get("compare", [])) <= 128
        before, self.revision = self.revision, self.revision + 1
        count, touched = len(self.events), set[bytes]()
        responses = [self._do(one, touched) for one in asked]
        if len(self.events) == count:
            self.revision = before
        return {"header": {"revision": str(self.revision)}, "succeeded": succeeded, "responses": responses}

    def revoke(self, lease: int) -> None:
        self.ended.add(str(lease))
        gone = [key for key, entry in self.entries.items() if entry.get("lease") == str(lease)]
        if gone:
            self.revision += 1
            for key in gone:
                self._delete(key)

    def repeat(self) -> None:
        """Make all that was asked for once more, the last first; what is put on a lease that has ended is refused."""
        for transaction in reversed(self.asked):
            if not {one["request_put"]["lease"] for one in transaction["success"] if "request_put" in one} & self.ended:
                self.transact(transaction)

    def all(self) -> list[Json]:
        return list(self.entries.values())

    def _holds(self, compare: Json) -> bool:
        entry = self.entries.get(from64(compare["key"]))
        if compare["target"] == "VALUE":
            return entry is not None and entry["value"] == compare["value"]
        field = {"MOD": "mod_revision", "CREATE": "create_revision"}[compare["target"]]
        return (entry[field] if entry is not None else "0") == compare[field]

    def _do(self, asked: Json, touched: set[bytes]) -> Json:
        ((kind, request),) = asked.items()
        key = from64(request["key"])
        if kind == "request_range":
            return {"response_range": {"kvs": [self.entries[key]] if key in self.entries else []}}
        end = from64(request["range_end"]) if "range_end" in request else key + b"\0"
        assert not any(key <= one < end for one in touched)  # etcd refuses a key that is changed twice
        if kind == "request_put":
            touched.add(key)
            old = self.entries.get(key, {"create_revision": str(self.revision)})
            self.entries[key] = {"key": request["key"], "value": request["value"], "lease": request.get("lease", "0"),
                                 "create_revision": old["create_revision"], "mod_revision": str(self.revision)}
            self.events.append({"kv": self.entries[key]})
        else:
            for known in [known for known in self.entries if key <= known < end]:
                self._delete(known)
        return {}

    def _delete(self, key: bytes) -> None:
        entry = self.entries.pop(key)
        self.events.append({"type": "DELETE", "kv": {"key": entry["key"], "mod_revision": str(self.revision)}})


def make(store: Store, book: Book, changes: list[Change]) -> list[object]:
    """Have *book* make changes, as a session does; the refusals."""
    seen: dict[Key, etcd.Stored] = {}
    for tried in range(5):
        assert tried < 4, "it goes on and on"
        judged = [(change, book.judge(index, change, seen)) for index, change in enumerate(changes)]
        taken = [change for change, refusal in judged if refusal is None]
        transaction = book.transaction(taken)
        if transaction is None:
            book.made(taken, 0)
            break
        answer = store.transact(transaction)
        store.asked.append(transaction)
        if answer["succeeded"]:
            book.made(taken, int(answer["header"]["revision"]))
            break
        for said in answer["responses"][1:]:
            for kv in said["response_range"]["kvs"]:
                known = etcd.stored(LAYOUT, kv)
                (book.own if known.fact.owner == book.member.id else seen)[known.fact.key] = known
    return [refusal for _, refusal in judged if refusal is not None]


class Histories(RuleBasedStateMachine):
    """Members that change what they own, and views that follow at their own pace."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.epoch = Epoch(1, "c-1")
        self.store.transact(etcd.epoch_change(LAYOUT, None, self.epoch))
        self.leases = itertools.count(1)
        self.books = [self.joined(number) for number in range(3)]
        self.views = [View() for _ in range(3)]
        for view in self.views:
            self.snapshot(view)

    def joined(self, number: int) -> Book:
        book = Book(LAYOUT, self.epoch, member(number), next(self.leases))
        make(self.store, book, [Change((member(number),))])
        return book

    def snapshot(self, view: View) -> None:
        known, _, faults = etcd.sorted_out(LAYOUT, self.store.all())
        assert not faults
        position = Position(self.epoch, self.store.revision)
        view.load(Snapshot(position, 0, True, tuple(one.fact for one in known)))

    @rule(who=st.integers(0, 2), names=st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True),
          services=st.lists(st.sampled_from("xyz"), max_size=3, unique=True))
    def announce(self, who: int, names: list[str], services: list[str]) -> None:
        book = self.books[who]
        owner = book.member.id
        changes = [Change((node(name, owner), *(ServiceFact(name, service, owner) for service in services)))
                   for name in names]
        refused = make(self.store, book, changes)
        others = [other for other in self.books if other is not book]
        assert len(refused) == sum(any(("node", name) in other.own for other in others) for name in names)

    @rule(who=st.integers(0, 2), names=st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    def withdraw(self, who: int, names: list[str]) -> None:
        others = [other for number, other in enumerate(self.books) if number != who]
        refused = make(self.store, self.books[who], [Change(deletes=(("node", name),)) for name in names])
        assert len(refused) == sum(any(("node", name) in other.own for other in others) for name in names)

    @rule(who=st.integers(0, 2), service=st.sampled_from("xyz"), there=st.booleans(), text=st.sampled_from("12"))
    def change_a_service(self, who: int, service: str, there: bool, text: str) -> None:
        book = self.books[who]
        for key in [key for key in book.own if key[0] == "node"]:
            fact = ServiceFact(key[1], service, book.member.id, text=text)
            assert not make(self.store, book, [Change((fact,)) if there else Change(deletes=(fact.key,))])

    @rule(who=st.integers(0, 2))
    def die(self, who: int) -> None:
        self.store.revoke(self.books[who]._lease)
        self.books[who] = self.joined(who)

    @rule(who=st.integers(0, 2))
    def come_back_without_having_ended(self, who: int) -> None:
        old = self.books[who]
        known = [one for one in etcd.sorted_out(LAYOUT, self.store.all())[0] if one.fact.owner == old.member.id]
        new = self.books[who] = Book(LAYOUT, self.epoch, old.member, old._lease, known)
        assert {key: one.fact for key, one in new.own.items()} == {key: one.fact for key, one in old.own.items()}
        revision = self.store.revision
        nodes = [key for key in new.own if key[0] == "node"]
        for key in nodes[:1]:  # confirms one of them, as it is; what it does not confirm ends
            parts = tuple(new.own[one].fact for one in new.own if one == key or one[1:2] == key[1:])
            assert not make(self.store, new, [Change((new.member,)), Change(parts)])
        assert {event["kv"]["key"] for event in self.store.events if int(event["kv"]["mod_revision"]) > revision} <= {
            text64(LAYOUT.fact(new.member.key))}
        make(self.store, new, [Change(deletes=tuple(new.unconfirmed))])
        assert {key for key in new.own if key[0] == "node"} == set(nodes[:1])

    @rule()
    def get_every_request_once_more(self) -> None:
        """Which were lost on their way, made again at another member of the cluster, and found."""
        self.store.repeat()

    @rule(who=st.integers(0, 2), share=st.integers(1, 5))
    def follow(self, who: int, share: int) -> None:
        """A watch tells some of what is new; a revision comes whole."""
        view = self.views[who]
        assert view.position is not None
        version = view.position.version
        new = [event for event in self.store.events if int(event["kv"]["mod_revision"]) > version]
        upto = sorted({int(event["kv"]["mod_revision"]) for event in new})[:share][-1:]
        events = [event for event in self.store.events if upto and int(event["kv"]["mod_revision"]) <= upto[0]]
        told = etcd.fold(LAYOUT, view.position, events)  # what was told before is told again
        assert not told.faults
        for commit in told.commits:
            assert view.apply(commit) is Outcome.APPLIED
        assert not told.commits or view.position.version == upto[0]

    @precondition(lambda self: self.store.revision > 5)
    @rule(who=st.integers(0, 2))
    def begin_from_a_snapshot(self, who: int) -> None:
        self.views[who] = View()
        self.snapshot(self.views[who])

    @invariant()
    def views_that_are_level_are_equal_and_hold_what_is_owned(self) -> None:
        owned = {key: one.fact for book in self.books for key, one in book.own.items()}
        stored = {one.fact.key: one.fact for one in etcd.sorted_out(LAYOUT, self.store.all())[0]}
        assert stored == owned
        last = max((int(event["kv"]["mod_revision"]) for event in self.store.events), default=0)
        for view in self.views:
            if view.position is not None and view.position.version >= last:
                assert {fact.key: fact for fact in view.facts.all()} == owned


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestHistories = Histories.TestCase


@given(st.one_of(st.tuples(st.sampled_from(["member", "node"]), NAMES),
                 st.tuples(st.sampled_from(["service", "parameter", "publisher", "subscriber"]), NAMES, NAMES)))
def test_a_key_is_read_as_it_was_written(key: Key) -> None:
    name = LAYOUT.fact(key)
    assert LAYOUT.read(name) == key
    assert name.decode().isascii()
    for path in ("", "part/", "node/", "member/"):
        asked = LAYOUT.prefix(path)
        inside = name.decode().startswith(LAYOUT.root + path)
        assert (from64(asked["key"]) <= name < from64(asked["range_end"])) == inside


@given(st.binary(max_size=60))
def test_a_foreign_key_is_no_key_of_ours(name: bytes) -> None:
    for foreign in (name, LAYOUT.root.encode() + name):
        try:
            key = LAYOUT.read(foreign)
        except MalformedMessage:
            continue
        assert len(key) <= 3


@given(st.binary(max_size=60))
def test_what_is_no_fact_is_found_out(value: bytes) -> None:
    kv = {"key": text64(LAYOUT.fact(("node", "a"))), "value": text64(value), "mod_revision": "1",
          "create_revision": "1"}
    known, peers, faults = etcd.sorted_out(LAYOUT, [kv, {**kv, "key": text64(LAYOUT.peer("a"))}])
    assert (known, peers, len(faults)) == ([], {}, 2)
    told = etcd.fold(LAYOUT, Position(Epoch(1, "a"), 0), [{"kv": kv}])
    assert len(told.faults) == 1
    with pytest.raises(MalformedMessage):
        etcd.read_epoch(value)


def test_a_fact_under_the_key_of_another_is_none() -> None:
    kv = {"key": text64(LAYOUT.fact(("node", "a"))), "value": text64(etcd.written(node("b", "id"))),
          "mod_revision": "1", "create_revision": "1"}
    with pytest.raises(MalformedMessage, match="holds a fact about"):
        etcd.stored(LAYOUT, kv)


def test_a_peer_is_read_as_it_was_written() -> None:
    store = Store()
    store.transact(etcd.epoch_change(LAYOUT, None, Epoch(1, "c-1")))
    book = Book(LAYOUT, Epoch(1, "c-1"), member(1), 7)
    peer = Peer(member(1), ("ipc:///x",))
    assert store.transact(book.entrance(peer))["succeeded"]
    assert etcd.sorted_out(LAYOUT, store.all())[1] == {"id1": Peer(member(1), ("ipc:///x",), 7)}
    told = etcd.fold(LAYOUT, Position(Epoch(1, "c-1"), 0), store.events)
    assert told.epoch
    assert list(told.peers) == ["id1"]
    assert [(commit.puts, commit.after) for commit in told.commits] == [((), 0), ((), 2)]


@pytest.mark.parametrize(("found", "above", "expected"), [
    (None, 0, Epoch(1, "c-r")),
    (None, 7, Epoch(8, "c-r")),
    (Epoch(3, "c-x"), 0, None),
    (Epoch(3, "c-x"), 3, Epoch(4, "c-r")),
    (Epoch(3, "c-x"), 9, Epoch(10, "c-r")),
    (Epoch(3, "other-x"), 0, Epoch(4, "c-r")),
])
def test_a_new_epoch_is_above_all_that_was(found: Epoch | None, above: int, expected: Epoch | None) -> None:
    assert etcd.next_epoch(found, "c", above, "r") == expected


def test_an_older_copy_is_noticed() -> None:
    epoch = Epoch(1, "c-x")
    assert etcd.is_older(Position(epoch, 10), epoch, 9)
    assert not etcd.is_older(Position(epoch, 10), epoch, 10)
    assert not etcd.is_older(Position(Epoch(1, "c-y"), 10), epoch, 9)


def test_a_transaction_of_another_epoch_does_nothing() -> None:
    store = Store()
    store.transact(etcd.epoch_change(LAYOUT, None, Epoch(1, "c-1")))
    store.transact(etcd.epoch_change(LAYOUT, etcd.epoch_value(Epoch(1, "c-1")), Epoch(2, "c-1")))
    transaction = Book(LAYOUT, Epoch(1, "c-1"), member(1), 7).transaction([Change((member(1),))])
    assert transaction is not None
    answer = store.transact(transaction)
    assert not answer["succeeded"]
    (kv,) = answer["responses"][0]["response_range"]["kvs"]
    assert etcd.read_epoch(from64(kv["value"])) == Epoch(2, "c-1")
    assert not etcd.sorted_out(LAYOUT, store.all())[0]



def change(name: str, services: int, gone: int) -> Change:
    return Change((node(name, "id"), *(ServiceFact(name, f"s{number}", "id") for number in range(services))),
                  tuple(("node", f"gone{number}") for number in range(gone)))


CHANGES = st.lists(st.builds(change, st.sampled_from("abcdefgh"), st.integers(0, 250),
                             st.sampled_from([0, 0, 0, 1, 120])), max_size=8)


@given(CHANGES)
@settings(max_examples=40, deadline=None)
def test_changes_are_cut_into_what_a_transaction_takes(changes: list[Change]) -> None:
    parts = [step for change in changes for step in etcd.steps(change)]
    assert [fact for part in parts for fact in part.puts] == [fact for change in changes for fact in change.puts]
    assert [key for part in parts for key in part.deletes] == [key for change in changes for key in change.deletes]
    spans = list(etcd.batches(parts))
    assert [at for span in spans for at in span] == list(range(len(parts)))
    for span in spans:
        taken = [parts[at] for at in span]
        assert sum(len(part.puts) + 2 * len(part.deletes) for part in taken) <= etcd.OPERATIONS
        keys = [fact.key for part in taken for fact in part.puts]
        assert len(keys) == len(set(keys))


def test_much_does_not_go_into_one_request() -> None:
    large = [Change((node(f"n{number}", "id"), ServiceFact(f"n{number}", "s", "id", (), "", "x" * 16000)))
             for number in range(90)]
    spans = list(etcd.batches(large))
    assert len(spans) > 1
    assert max(sum(len(etcd.written(fact)) for at in span for fact in large[at].puts) for span in spans) <= etcd.ROOM


def test_what_follows_from_another_change_is_in_a_later_transaction() -> None:
    put, service, again = change("a", 1, 0), Change((ServiceFact("a", "x", "id"),)), change("a", 2, 0)
    assert list(etcd.batches([put, change("b", 1, 0), service])) == [range(2), range(2, 3)]
    assert list(etcd.batches([put, again])) == [range(1), range(1, 2)]
    assert list(etcd.batches([service, Change(deletes=(("node", "a"),))])) == [range(1), range(1, 2)]
    assert list(etcd.batches([service, Change((ServiceFact("a", "y", "id"),))])) == [range(2)]


def test_a_request_that_is_made_again_much_later_undoes_nothing() -> None:
    store = Store()
    store.transact(etcd.epoch_change(LAYOUT, None, Epoch(1, "c-1")))
    one, other = (Book(LAYOUT, Epoch(1, "c-1"), member(number), number) for number in (1, 2))

    def facts() -> dict[Key, str]:
        store.repeat()
        return {known.fact.key: getattr(known.fact, "text", "") for known in etcd.sorted_out(LAYOUT, store.all())[0]}

    make(store, other, [Change((other.member,)), Change((node("b", "id2"),))])
    make(store, one, [Change((one.member,))])
    make(store, one, [Change((node("a", "id1"),))])
    make(store, one, [Change(deletes=(("node", "a"),))])
    assert ("node", "a") not in facts()
    make(store, one, [Change((node("a", "id1"),))])
    make(store, one, [Change((ServiceFact("a", "x", "id1", text="one"),))])
    make(store, one, [Change((ServiceFact("a", "x", "id1", text="two"),))])
    assert facts()["service", "a", "x"] == "two"
    assert make(store, one, [Change((node("b", "id1"),))])  # refused
    make(store, other, [Change(deletes=(("node", "b"),))])
    assert ("node", "b") not in facts()
    make(store, one, [Change(deletes=(("node", "a"),))])
    lost = one.transaction([Change((node("c", "id1"),))])
    assert lost is not None
    one = Book(LAYOUT, Epoch(1, "c-1"), member(1), 1, [one.own[one.member.key]])  # of a new session
    make(store, one, [Change((one.member,))])
    store.asked.append(lost)
    assert facts().keys() == {one.member.key, other.member.key}


def test_what_is_changed_is_put_again_and_what_is_not_is_left_alone() -> None:
    store = Store()
    store.transact(etcd.epoch_change(LAYOUT, None, Epoch(1, "c-1")))
    book = Book(LAYOUT, Epoch(1, "c-1"), member(1), 7)
    first = Change((node("a", "id1"), ServiceFact("a", "x", "id1", text="one")))
    assert not make(store, book, [first])
    registered, revision = book.own["node", "a"].fact, store.revision
    assert isinstance(registered, NodeFact)
    assert registered.incarnation == (1, revision)
    assert not make(store, book, [first])
    assert store.revision == revision
    assert not make(store, book, [Change((ServiceFact("a", "x", "id1", text="two"),))])
    assert not make(store, book, [Change((replace(registered, labels=(("k", "v"),)),))])
    known = {one.fact.key: one.fact for one in etcd.sorted_out(LAYOUT, store.all())[0]}
    assert known["service", "a", "x"] == ServiceFact("a", "x", "id1", text="two")
    assert known["node", "a"] == replace(registered, labels=(("k", "v"),))  # in the same life
    later = Book(LAYOUT, Epoch(1, "c-1"), member(1), 8, etcd.sorted_out(LAYOUT, store.all())[0])
    assert not make(store, later, [Change((known["node", "a"],))])  # hangs on the new lease now
    assert {one.fact.key: one.lease for one in etcd.sorted_out(LAYOUT, store.all())[0]} == {
        ("member", "id1"): 8, ("node", "a"): 8, ("service", "a", "x"): 7}
