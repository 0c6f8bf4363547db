"""Who is let in between hosts, who is refused and hears so, and what becomes of a key that is revoked."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from msgspec.structs import replace
from zmq.utils import z85

from pyzmp.protocol import codec
from pyzmp.protocol.envelope import Hello
from pyzmp.transport import security as security_module
from pyzmp.transport import server as servers
from pyzmp.transport.address import Address, check_bind, parse
from pyzmp.transport.context import Context
from pyzmp.transport.link import Connection, Frames, Listener
from pyzmp.transport.loop import Session, session_id
from pyzmp.transport.security import ZAP, Access, Handler, Keys, Security, secure_listener

AT_ONCE = 1.0  # seconds in which a caller hears that it is refused


class Host:
    """A process of its own, as far as keys are concerned: its key pair, whom it lets in, and its links."""

    def __init__(self, *allowed: Host, source: Any = None) -> None:
        self.keys = Keys.make()
        self.access = Access([host.keys.public for host in allowed], source)
        self.context = Context(lambda: Security(self.keys, self.access))
        self.ends: list[Connection | Listener] = []
        self.got: list[Frames] = []
        self.left = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()
        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(5)

    def listen(self, text: str = "tcp://127.0.0.1:*", *, secure: bool = True) -> Listener:
        """A listener that answers each message with itself."""
        where = check_bind(text, secure=secure, insecure=not secure, key=self.context.public_key)

        def start() -> Listener:
            listener = Listener(self.context, where)
            listener.attach(self.loop, lambda: self.drain(listener))
            return listener
        self.ends.append(self.run(start))
        return self.ends[-1]  # type: ignore[return-value]

    def drain(self, listener: Listener) -> None:
        self.left += len(list(listener.left()))
        while (received := listener.receive()) is not None:
            key, frames = received
            listener.knows(key, frames.source)
            self.got.append(frames)
            listener.send(key, frames)
        if listener.pending():
            self.loop.call_soon(self.drain, listener)

    def connect(self, address: Address) -> Connection:
        self.ends.append(Connection(self.context, address))
        return self.ends[-1]  # type: ignore[return-value]

    def close(self) -> None:
        for end in self.ends:
            self.run(end.close) if isinstance(end, Listener) else end.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.context.close()


@pytest.fixture
def host() -> Iterator[Callable[..., Host]]:
    """``host(*allowed)`` is a host that lets in the hosts *allowed*."""
    made: list[Host] = []

    def make(*allowed: Host, source: Any = None) -> Host:
        made.append(Host(*allowed, source=source))
        return made[-1]
    yield make
    for each in reversed(made):
        each.close()


def settled(connection: Connection, timeout: float = AT_ONCE) -> str:
    """``"opened"``, or why it has ended."""
    over = time.monotonic() + timeout
    while not connection.opened and connection.ended is None and time.monotonic() < over:
        connection.wait(0.05)
        connection.update()
    return connection.ended or ("opened" if connection.opened else "nothing")


def ended(connection: Connection, timeout: float = AT_ONCE) -> str:
    over = time.monotonic() + timeout
    while connection.ended is None and time.monotonic() < over:
        connection.wait(0.05)
        connection.update()
    return str(connection.ended)


def echoed(connection: Connection, frames: list[bytes], timeout: float = AT_ONCE) -> bool:
    """Whether *frames* come back."""
    assert connection.send(frames)
    over = time.monotonic() + timeout
    while time.monotonic() < over and connection.ended is None:
        connection.wait(0.05)
        if (received := connection.receive()) is not None:
            return [bytes(frame) for frame in received] == frames
        connection.update()
    return False


# -- who comes in --------------------------------------------------------------------------------------------------


def test_who_is_authorised_comes_in_and_is_known(host: Any) -> None:
    caller = host()
    server = host(caller)
    listener = server.listen()
    assert str(listener.address).endswith(f"#{server.keys.public}")
    connection = caller.connect(parse(str(listener.address)))
    assert settled(connection) == "opened"
    assert echoed(connection, [b"one", bytes(100_000)])
    assert echoed(connection, [b"two"])
    assert server.got[0].user == caller.keys.public


def test_a_listener_beyond_loopback_comes_with_its_key(host: Any) -> None:
    caller = host()
    listener = host(caller).listen("tcp://0.0.0.0:*", secure=False)
    assert listener.guests is None  # insecure=True was said
    server = host(caller)
    where = check_bind("tcp://0.0.0.0:*", key=server.context.public_key)
    assert where.key == server.keys.public
    bound = server.listen("tcp://0.0.0.0:*").address
    assert settled(caller.connect(replace(bound, rest=bound.rest.replace("0.0.0.0", "127.0.0.1")))) == "opened"


def test_who_is_not_authorised_hears_so_at_once(host: Any, caplog: Any) -> None:
    caller, server = host(), host(host())
    listener = server.listen()
    said = settled(caller.connect(listener.address))
    assert said.startswith(f"refused: the key {caller.keys.public} is not authorised by {listener.address.endpoint}")
    assert "pyzmp keys authorise" in said
    assert server.got == []
    assert sum(f"the key {caller.keys.public}: not authorised" in line for line in caplog.messages) == 1


def test_who_is_authorised_later_comes_in_with_the_next_connection(host: Any) -> None:
    caller, server = host(), host()
    listener = server.listen()
    assert settled(caller.connect(listener.address)).startswith("refused")
    server.access.authorise(caller.keys.public)
    assert settled(caller.connect(listener.address)) == "opened"


def test_a_listener_with_another_key_than_expected_is_refused(host: Any) -> None:
    caller, other = host(), host()
    server = host(caller)
    listener = server.listen()
    said = settled(caller.connect(replace(listener.address, key=other.keys.public)))
    assert said.startswith(f"refused: the key of {listener.address.endpoint} is not the one expected, "
                           f"{other.keys.public}")
    assert server.got == []


def test_a_caller_without_curve_is_told_that_it_is_wanted(host: Any, eventually: Any) -> None:
    caller = host()
    server = host(caller)
    listener = server.listen()
    connection = caller.connect(replace(listener.address, key=""))
    connection.send([b"secret"])
    assert settled(connection).startswith(f"refused: {listener.address.endpoint} wants CURVE")
    eventually(lambda: listener.guests.refused == 1)
    assert server.got == []


def test_a_caller_with_curve_is_told_that_nobody_speaks_it(host: Any) -> None:
    caller, server = host(), host()
    address = server.listen(secure=False).address
    connection = caller.connect(replace(address, key=server.keys.public))
    connection.send([b"secret"])
    assert settled(connection).startswith(f"refused: no CURVE is spoken at {address.endpoint}")
    assert server.got == []


def test_a_process_without_keys_cannot_connect_and_says_so(context: Context, new_caller: Any) -> None:
    caller = new_caller(context, f"tcp://127.0.0.1:4242#{Keys.make().public}")
    assert caller.until(lambda: caller.ends)
    assert caller.ends == ["tcp://127.0.0.1:4242 speaks CURVE, and this process has no keys"]


def test_a_peer_that_is_mute_is_given_up_with_the_handshake_interval(host: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        where = Address("tcp", f"127.0.0.1:{mute.getsockname()[1]}", Keys.make().public)
        connection = host().connect(where)
        began = time.monotonic()
        assert settled(connection, 5.0) .startswith(f"no answer from {where.endpoint} in the handshake")
        assert 2.5 < time.monotonic() - began < 4.0


@pytest.mark.parametrize("case", ["unauthorised", "other key", "no curve"])
def test_a_refused_caller_does_not_try_again_by_itself(host: Any, case: str, eventually: Any) -> None:
    caller, server = host(), host()
    address = server.listen().address
    keys = {"unauthorised": address.key, "other key": caller.keys.public, "no curve": ""}
    connection = caller.connect(replace(address, key=keys[case]))
    assert settled(connection).startswith("refused")
    listener = server.ends[0]
    eventually(lambda: listener.guests.refused == 1)
    for _ in range(10):  # ZeroMQ itself would have come again after a tenth of a second
        connection.wait(0.05)
        connection.update()
    assert listener.guests.refused == 1


@pytest.mark.parametrize("kind", ["inproc", "ipc"])
def test_inside_a_host_no_curve_is_spoken(host: Any, place: Any, kind: str) -> None:
    server = host()
    listener = server.listen(f"{place(kind)}#x")
    assert listener.guests is None
    connection = server.connect(listener.address)
    assert settled(connection) == "opened"
    assert echoed(connection, [b"x"])
    assert server.got[0].user == ""


def test_an_inproc_caller_finds_no_way_round_the_keys(host: Any) -> None:
    """A listener has one address, so that none with keys has a second one without."""
    server = host()
    server.listen()
    with server.context.socket(zmq.DEALER) as dealer:
        for name in ("tcp", "server", server.access.domain):
            dealer.connect(f"inproc://{name}")
        dealer.set(zmq.SNDTIMEO, 50)
        dealer.set(zmq.LINGER, 0)
        dealer.send(b"x")
        assert not dealer.poll(50)
    assert server.got == []


# -- revoked keys --------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_cut_where_it_is_and_stays_out(host: Any, eventually: Any) -> None:
    caller, other = host(), host()
    server = host(caller, other)
    listener = server.listen()
    connections = [caller.connect(listener.address), caller.connect(listener.address)]
    stays = other.connect(listener.address)
    for connection in (*connections, stays):
        assert echoed(connection, [b"x"], 2.0)
    began = time.monotonic()
    server.access.revoke(caller.keys.public)
    for connection in connections:
        assert ended(connection) == "the connection ended"
    assert time.monotonic() - began < AT_ONCE
    assert echoed(stays, [b"y"])
    eventually(lambda: server.left == 2)
    assert settled(caller.connect(listener.address)).startswith(f"refused: the key {caller.keys.public}")
    assert len(listener.guests._inside) == 1


def test_a_revoked_key_is_cut_also_while_the_listeners_loop_is_busy(host: Any) -> None:
    caller = host()
    server = host(caller)
    connection = caller.connect(server.listen().address)
    assert echoed(connection, [b"x"], 2.0)
    free = threading.Event()
    server.loop.call_soon_threadsafe(free.wait, 10)
    try:
        server.access.revoke(caller.keys.public)
        assert ended(connection) == "the connection ended"
    finally:
        free.set()


def test_what_a_revoked_key_has_sent_already_is_not_handed_over(host: Any, eventually: Any) -> None:
    caller = host()
    server = host(caller)
    connection = caller.connect(server.listen().address)
    assert echoed(connection, [b"x"], 2.0)
    free, busy = threading.Event(), threading.Event()
    found: list[object] = []
    server.loop.call_soon_threadsafe(lambda: (busy.set(), free.wait(10), found.append(listener.receive())))
    assert busy.wait(5)
    for _ in range(100):
        assert connection.send([b"late"])
    listener = server.ends[0]
    watch = zmq.Poller()
    watch.register(listener._socket, zmq.POLLIN)
    assert watch.poll(5000)
    server.access.revoke(caller.keys.public)
    free.set()
    eventually(lambda: server.left == 1)
    assert found == [None]  # though nobody had looked yet who left
    assert len(server.got) == 1


def test_who_comes_in_and_is_revoked_before_a_word_is_not_heard(host: Any) -> None:
    caller = host()
    server = host(caller)
    connection = caller.connect(server.listen().address)
    assert settled(connection) == "opened"
    server.access.revoke(caller.keys.public)
    connection.send([b"first"])
    assert ended(connection) == "the connection ended"
    assert server.got == []


def test_what_is_revoked_where_the_keys_come_from_is_cut_within_seconds(host: Any) -> None:
    caller, other = host(), host()
    given = [[caller.keys.public, other.keys.public]]
    server = host(source=lambda: given[0])
    connection = caller.connect(server.listen().address)
    assert echoed(connection, [b"x"], 2.0)
    given[0] = [other.keys.public]
    assert ended(connection, 3.0) == "the connection ended"


def test_a_descriptor_that_is_anothers_by_now_is_not_cut() -> None:
    one, two = socket.socketpair()
    with one, two:
        security_module.Guest(b"", "", 1).cut(one.fileno())
        one.send(b"x")
        assert two.recv(1) == b"x"
    security_module.Guest(b"", "", 1).cut(one.fileno())


# -- the handler ---------------------------------------------------------------------------------------------------


def request(server: Host, **changes: bytes) -> list[bytes]:
    frames = {"version": b"1.0", "request": b"7", "domain": server.access.domain.encode(), "address": b"192.0.2.1",
              "identity": b"", "mechanism": b"CURVE", "key": z85.decode(server.keys.public)}
    return list({**frames, **changes}.values())


def test_the_handler_lets_in_what_is_authorised_and_nothing_else(host: Any) -> None:
    server = host()
    server.access.authorise(server.keys.public)
    server.listen()
    handler = server.context._handler
    assert handler.answer(request(server)) == [b"1.0", b"7", b"200", b"", server.keys.public.encode(), b""]
    for changes in ({"mechanism": b"NULL"}, {"mechanism": b"PLAIN"}, {"domain": b""}, {"domain": b"*"},
                    {"domain": b"\xff"}, {"key": bytes(32)}, {"key": b"*"}, {"key": b""}, {"version": b"2.0"}):
        status = handler.answer(request(server, **changes))[2:5:2]
        assert status == [b"400", b""], changes
    assert handler.answer([])[2] == b"400"
    assert handler.answer([*request(server), b""])[2] == b"400"


def test_no_text_stands_for_all_keys() -> None:
    for text in ("*", "", "~" * 40, "ANY", None):
        with pytest.raises(ValueError, match="Z85"):
            Access([text])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="Z85"):
            Access().authorise(text)  # type: ignore[arg-type]
    assert not Access().allows(Keys.make().public)


def test_what_one_access_lets_in_is_nothing_to_another(host: Any) -> None:
    caller, server = host(), host()
    server.listen()
    server.context._handler.serve(open_one := Access([caller.keys.public]))
    assert open_one.domain != server.access.domain
    assert server.context._handler.answer(request(server, key=z85.decode(caller.keys.public)))[2] == b"400"


def test_bad_requests_are_answered_and_do_no_harm(host: Any, caplog: Any) -> None:
    caller = host()
    server = host(caller)
    listener = server.listen()
    bad = [[b""], [b"1.0"], [b"1.0", b"1"], [b""] * 7, [b"\xff" * 1000] * 20, request(server, address=b"\xff")]
    with server.context.socket(zmq.REQ) as asker:
        asker.connect(ZAP)
        asker.set(zmq.RCVTIMEO, 2000)
        for frames in bad:
            asker.send_multipart(frames)
            reply = asker.recv_multipart()
            assert (reply[0], reply[2], len(reply)) == (b"1.0", b"400", 6)
    with server.context.socket(zmq.DEALER) as asker:
        asker.connect(ZAP)
        for frames in bad:
            asker.send_multipart(frames)  # with no envelope
    assert settled(caller.connect(listener.address)) == "opened"


class Raising(Access):
    """One that cannot judge."""

    def judge(self, key: str) -> tuple[bytes, str]:
        raise RuntimeError(f"no judgement of {key}")


def test_a_handler_that_raises_lets_nobody_in_and_goes_on(host: Any, caplog: Any) -> None:
    caller = host()
    server = host(caller)
    listener = server.listen()
    broken = host()
    broken.access = Raising([caller.keys.public])
    where = broken.listen().address
    for _ in range(3):
        said = settled(caller.connect(where))
        assert said == f"refused: {where.endpoint} cannot look at the key {caller.keys.public} now (status 500)"
    assert settled(caller.connect(listener.address)) == "opened"
    assert any(record.exc_info for record in caplog.records)


def test_keys_that_cannot_be_read_let_nobody_new_in_until_they_can(host: Any, caplog: Any, eventually: Any) -> None:
    caller = host()
    given: list[Any] = [[caller.keys.public]]

    def source() -> Any:
        if isinstance(given[0], Exception):
            raise given[0]
        return given[0]
    server = host(source=source)
    listener = server.listen()
    stays = caller.connect(listener.address)
    assert echoed(stays, [b"x"], 2.0)
    given[0] = OSError("no disk")
    eventually(lambda: server.access.judge(caller.keys.public)[0] == b"500")
    assert "cannot look at the key" in settled(caller.connect(listener.address))
    assert echoed(stays, [b"y"])
    assert sum("cannot be read, so" in line for line in caplog.messages) == 1
    given[0] = [caller.keys.public]
    eventually(lambda: server.access.judge(caller.keys.public)[0] == b"200")
    assert settled(caller.connect(listener.address)) == "opened"


def test_keys_that_cannot_be_read_at_first_are_told(host: Any) -> None:
    def source() -> list[str]:
        raise OSError("no disk")
    with pytest.raises(OSError, match="no disk"):
        Access(source=source)


def test_without_a_handler_nobody_comes_in(host: Any) -> None:
    caller = host()
    server = host(caller)
    listener = server.listen()
    assert settled(caller.connect(listener.address)) == "opened"
    server.context._handler.close()
    server.context._handler = None
    connection = caller.connect(listener.address)
    connection.send([b"x"])
    assert settled(connection, 4.0).startswith(f"no answer from {listener.address.endpoint} in the handshake")
    assert server.got == []


def test_without_a_handler_that_ever_was_nobody_comes_in(host: Any, context: Context) -> None:
    caller, server = host(), host()
    with context.socket(zmq.ROUTER) as router:
        secure_listener(router, Security(server.keys, Access([caller.keys.public])))
        router.bind("tcp://127.0.0.1:*")
        connection = caller.connect(parse(f"{router.last_endpoint.decode()}#{server.keys.public}"))
        connection.send([b"x"])
        assert settled(connection, 4.0).startswith(("no answer from", "refused: "))
        assert not connection.opened
        assert not router.poll(0)


def test_the_handler_ends_with_its_context_and_comes_again(host: Any) -> None:
    caller = host()
    server = host(caller)
    for _ in range(3):
        listener = server.listen()
        connection = caller.connect(listener.address)
        assert settled(connection) == "opened"
        connection.close()
        server.run(listener.close)
        server.context.close()
        assert not any(thread.name == "pyzmp-security" for thread in threading.enumerate())


def test_a_handler_without_room_leaves_nothing_behind() -> None:
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 3)
        with context.socket(zmq.PAIR), pytest.raises(zmq.ZMQError):
            Handler(context)


def test_hostile_handshakes_do_not_keep_others_out(host: Any, eventually: Any) -> None:
    caller, stranger = host(), host()
    server = host(caller)
    address = server.listen().address
    port = int(address.rest.rpartition(":")[2])
    hostile = []
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(47)
    words = [b"", b"\xff", b"GET / HTTP/1.0\r\n\r\n" * 9, greeting, greeting + bytes(300)]
    try:
        for number in range(50):
            hostile.append(socket.create_connection(("127.0.0.1", port)))
            hostile[-1].sendall(words[number % len(words)])
            stranger.connect(address if number % 2 else replace(address, key=stranger.keys.public))
        began = time.monotonic()
        connection = caller.connect(address)
        assert settled(connection) == "opened"
        assert echoed(connection, [b"x"])
        assert time.monotonic() - began < AT_ONCE
        for refused in stranger.ends:
            assert settled(refused).startswith("refused: the key")
        assert len(server.got) == 1
        eventually(lambda: server.ends[0].guests.refused >= 50)
    finally:
        for each in hostile:
            each.close()


# -- forks ---------------------------------------------------------------------------------------------------------

FORKING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_security import Host, echoed, settled
caller = Host(); server = Host(caller)
address = server.listen().address
assert echoed(caller.connect(address), [b"x"], 5.0)
pid = os.fork()
if pid == 0:
    server.context.close_inherited()
    caller.context.close_inherited()
    mine = Host(); other = Host(mine)
    done = settled(mine.connect(other.listen().address), 5.0) == "opened"
    done = done and settled(mine.connect(address), 5.0).startswith("refused: the key")
    os._exit(0 if done else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert echoed(caller.ends[0], [b"y"], 5.0)
assert settled(caller.connect(address), 5.0) == "opened"
caller.close(); server.close()
print("done")
"""


def test_a_forked_child_has_a_handler_of_its_own_and_leaves_the_parents_alone(script: Any, request: Any) -> None:
    (script.folder / "forking.py").write_text(FORKING)
    result = script.python("-W", "ignore", "forking.py", str(request.path.parent))
    assert (result.code, result.out) == (0, "done\n"), result.err


# -- key pairs -----------------------------------------------------------------------------------------------------


def test_a_secret_key_is_not_shown_or_sent(host: Any) -> None:
    keys = Keys.make()
    security = Security(keys, Access([keys.public]))
    for text in (repr(keys), str(keys), f"{security}", repr([keys]), repr(security)):
        assert keys.secret not in text
    assert keys.public in repr(keys)
    for send in (pickle.dumps, copy.copy, copy.deepcopy, codec.encode):
        with pytest.raises(TypeError) as caught:
            send(keys)
        assert keys.secret not in str(caught.value)


def test_a_key_pair_does_not_change_and_is_known_by_its_public_key() -> None:
    keys = Keys.make()
    with pytest.raises(AttributeError, match="does not change"):
        keys.public = Keys.make().public
    assert keys == Keys(keys.public, keys.secret)
    assert keys != Keys.make()
    assert len({keys, Keys(keys.public, keys.secret)}) == 1


def test_what_is_no_key_pair_is_refused_without_showing_it() -> None:
    keys, other = Keys.make(), Keys.make()
    for public, secret in [(keys.public, other.secret), (keys.public, keys.secret + "x"),
                           (keys.public, keys.secret[:-1]), (keys.public[:-1] + " ", keys.secret),
                           ("#" * 40, keys.secret), (keys.public, "")]:
        with pytest.raises(ValueError, match="key") as caught:
            Keys(public, secret)
        assert keys.secret[:-1] not in str(caught.value)
        assert other.secret not in str(caught.value)


def test_a_refusal_is_logged_once_for_each_key_and_not_without_end(caplog: Any, monkeypatch: Any, host: Any) -> None:
    monkeypatch.setattr(security_module, "TOLD", 3)
    server = host()
    server.listen()
    with caplog.at_level(logging.WARNING, "pyzmp.security"):
        for number in range(10):
            for _ in range(2):
                server.context._handler.answer(request(server, key=bytes([number]) * 32))
    assert len(caplog.messages) == 3


def test_one_key_has_so_many_sessions_with_a_listener_and_no_more(host: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(servers, "SESSIONS", 2)
    caller, friend = host(), host()
    server = host(caller, friend)

    def serve() -> tuple[servers.Server, str]:
        made = servers.Server(server.context, server.loop, "loop", on_parcel=lambda peer, parcel: None)
        return made, made.bind("tcp://127.0.0.1:*", secure=True)
    listening, address = server.run(serve)

    def greeted(who: Any) -> Session:
        ends: list[str] = []
        session = Session(who.context, address, Hello(session_id(), "test"), on_parcel=ends.append,  # type: ignore[arg-type]
                          on_end=ends.append)
        over = time.monotonic() + AT_ONCE
        while session.welcome is None and session.ended is None and time.monotonic() < over:
            session.wait(0.05)
            session.pump()
        return session
    sessions = [greeted(caller) for _ in range(3)]
    assert [session.ended for session in sessions[:2]] == [None, None]
    assert sessions[2].ended == f"refused: the key {caller.keys.public} has 2 sessions with {address} already"
    other = greeted(friend)
    assert other.ended is None
    sessions[0].close()
    over = time.monotonic() + AT_ONCE
    while (again := greeted(caller)).ended is not None and time.monotonic() < over:
        pass
    assert again.ended is None
    for session in (*sessions, other, again):
        session.close()
    server.run(listening.close)
