"""A program that takes part in a domain and notes what it sees: what the campaigns against the registry run.

``member.py NUMBER SEED OPTIONS`` appends to ``notes-NUMBER`` in the current directory one JSON array an event, so
that what a process has seen until it is killed is there, too; `tests/campaigns/test_registry.py` judges them
afterwards.  All moments are of the monotonic clock, which the processes of one host share.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

import pyzmp
from pyzmp import runtime
from pyzmp.exceptions import AddressInUse, NodeExists
from pyzmp.protocol.facts import Fact, Key, Member, NodeFact
from pyzmp.protocol.graph import View

AGREED = 30.0  # seconds in which all views are equal once all is at rest, whatever goes wrong
SHARED = 6  # names that everybody wants
Life = tuple[str, str, tuple[int, int]]  # of a node: its name, its owner, its incarnation


class Options(msgspec.Struct):
    """What a member does; by default it only is there, and looks up."""

    homes: int = 1  # nodes that it has all the time
    most: int = 0  # and those that come and go, at most
    pause: float = 0.1  # seconds between two of them
    processes: bool = False  # some are processes
    look: float = 0.01  # seconds between two lookups


class Home(pyzmp.Node):
    """A node that comes, is asked, and goes."""

    @pyzmp.service
    def who(self) -> str:
        return self.name

    @pyzmp.service
    def hold(self, seconds: int) -> None:
        """Keep all of this process's Python from running, as C code does that does not let go of the GIL."""
        ctypes.PyDLL(None).sleep(seconds)


class Notes:
    """A file of events; nothing of it is lost with a kill."""

    def __init__(self, number: int) -> None:
        self._file = os.open(f"notes-{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *event: Any) -> None:
        os.write(self._file, json.dumps([time.monotonic(), *event]).encode() + b"\n")


class Watch:
    """Looks at the view after each change, in the thread that changes it."""

    def __init__(self, view: View, notes: Notes) -> None:
        self._view, self._notes = view, notes
        self._position: tuple[int, int] = (0, 0)
        self._nonces: dict[int, str] = {}
        self._known: dict[Key, Fact] = {}
        self._gone: set[Any] = set()

    def look(self) -> None:
        """Note what has gone from the view, what has come back, and a position that is none."""
        if self._view.position is not None:
            (counter, nonce), version = self._view.position
            if (counter, version) < self._position or self._nonces.setdefault(counter, nonce) != nonce:
                self._notes.note("back", self._position, (counter, version))
            if counter != self._position[0]:
                self._notes.note("epoch", counter)
            self._position = counter, version
        elif self._known:
            self._notes.note("forgotten")
        known, now = self._known, self._view.facts._facts.copy()
        changed = [key for key, fact in known.items() if now.get(key) is not fact]
        for key in changed:
            if (before := life_at(known, key)) != life_at(now, key):
                self._notes.note("lost", key, before)
                self._gone.add(before)
        for key in (*changed, *(now.keys() - known.keys())):
            if key[0] == "node" and (life := life_at(now, key)) in self._gone:
                self._notes.note("again", key, life)
                self._gone.discard(life)
        self._known = now


def life_at(facts: dict[Key, Fact], key: Key) -> Any:
    """Whose the fact at *key* is: the life of its node, or the id of a member; None where it is not there."""
    fact = facts.get(key)
    node = facts.get(("node", key[1]))
    return fact.id if isinstance(fact, Member) else life_of(node) if fact and isinstance(node, NodeFact) else None


def life_of(node: NodeFact) -> Life:
    return node.name, node.owner, node.incarnation


class Program:
    """One member: its nodes, and its lookups beside."""

    def __init__(self, number: int, seed: int, options: Options) -> None:
        self.number, self.options = number, options
        self.chance = random.Random(f"{seed} {number}")
        self.notes = Notes(number)
        self.here = runtime.current()
        self.view = self.here.replica.view
        self.here.replica.on_change(Watch(self.view, self.notes).look)
        self.nodes: list[tuple[Home, Life]] = []
        self.made = 0
        self.ended = threading.Event()

    def run(self) -> None:
        self.notes.note("member", self.here.member.id)
        for number in range(self.options.homes):
            self.start(f"home-{self.number}-{number}", "thread")
        looker = threading.Thread(target=self.look)
        looker.start()
        while not Path("rest").exists():
            self.turn()
        self.notes.note("rest", self.here.member.id, [life for _, life in self.nodes])
        wait_for("expected")
        self.agree(json.loads(Path("expected").read_text()))
        self.ended.set()
        looker.join()
        wait_for("over")
        self.notes.note("exit")
        for node, _ in self.nodes:
            node.shutdown()

    def turn(self) -> None:
        """Start or shut down a node."""
        guests = len(self.nodes) - self.options.homes
        time.sleep(self.chance.uniform(0, 2 * self.options.pause))
        if guests and (guests >= self.options.most or self.chance.random() < 0.4):
            self.shutdown(self.nodes.pop(self.chance.randrange(self.options.homes, len(self.nodes))))
        elif guests < self.options.most:
            self.made += 1
            own = self.chance.random() < 0.7
            kinds = ["thread", "entity"] * 6 + ["process"] * self.options.processes
            self.start(f"guest-{self.number}-{self.made}" if own else f"shared-{self.chance.randrange(SHARED)}",
                       self.chance.choice(kinds))

    def start(self, name: str, kind: Any) -> None:
        node, began = Home(name, kind=kind), time.monotonic()
        try:
            node.start()
        except NodeExists:
            self.notes.note("taken", name)
        except AddressInUse:  # the one that had the name is out of the graph, and about to listen no more
            self.notes.note("in use" if name.startswith("shared") else "fault", name)
        except Exception as error:
            self.notes.note("fault", f"the start of the {kind} {name!r} failed: {error!r}")
        else:
            fact = self.view.facts.node(name)
            if fact is None:
                self.notes.note("fault", f"{name!r} was not in its starter's view")
            else:
                self.nodes.append((node, life_of(fact)))
                self.notes.note("+", life_of(fact), time.monotonic() - began)

    def shutdown(self, one: tuple[Home, Life]) -> None:
        node, life = one
        self.notes.note("-", life)
        node.shutdown()
        fact = self.view.facts.node(node.name)
        if fact is not None and life_of(fact) == life:
            self.notes.note("fault", f"{life} was in its starter's view after its shutdown")

    def look(self) -> None:
        """Look up, again and again; note how many and the longest."""
        count, longest = 0, 0.0
        while not self.ended.is_set():
            began = time.perf_counter()
            found = pyzmp.discover("who")
            longest = max(longest, time.perf_counter() - began)
            count += 1
            if found is None:
                self.notes.note("fault", "a lookup was not answered")
            for node, life in self.nodes[:self.options.homes]:
                fact = self.view.facts.node(node.name)
                if fact is None or life_of(fact) != life:
                    self.notes.note("own", f"its own node {life} is {fact}")
            time.sleep(self.options.look)
        self.notes.note("looked", count, longest)

    def agree(self, expected: dict[str, Any]) -> None:
        """Wait until the view holds exactly what is expected; note its digest, or what differs."""
        nodes = {(name, owner, tuple(incarnation)) for name, owner, incarnation in expected["nodes"]}
        members, began = set(expected["members"]), time.monotonic()

        def differs() -> Any:
            facts = self.view.facts.all()
            mine = {life_of(fact) for fact in facts if isinstance(fact, NodeFact)}
            known = {fact.id for fact in facts if isinstance(fact, Member)}
            doubted = sum(isinstance(fact, Member) and fact.doubted for fact in facts)
            parts = {fact.key for fact in facts if fact.key[0] == "service"}
            wrong = parts ^ {("service", name, service) for name, _, _ in mine for service in ("who", "hold")}
            return [*nodes ^ mine, *members ^ known, *wrong, *(["doubts"] * doubted)]
        self.here.replica.wait_until(lambda _: not differs(), AGREED)
        if differs():
            self.notes.note("fault", f"at the end its view differs by {differs()}")
        facts = sorted(self.view.facts.all(), key=lambda fact: fact.key)
        digest = hashlib.sha256(msgspec.msgpack.encode(facts)).hexdigest()
        self.notes.note("view", self.view.position, digest, time.monotonic() - began)


def wait_for(name: str) -> None:
    while not Path(name).exists():
        time.sleep(0.01)


if __name__ == "__main__":
    Program(int(sys.argv[1]), int(sys.argv[2]), msgspec.json.decode(sys.argv[3], type=Options)).run()
