"""Who may connect between hosts: key pairs, the keys that are let in, and the handler that ZeroMQ asks.

A TCP listener with keys speaks CURVE: callers know its public key beforehand, prove that they have a key pair
of their own, and are let in where their public key is among those of an `Access`.  ZeroMQ asks
for each handshake (ZAP 1.0, RFC 27); where nobody answers, nobody gets in.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, NoReturn

import zmq
from zmq.utils import z85

from pyzmp.transport.address import check_key

ZAP = "inproc://zeromq.zap.01"
REFRESH = 1.0  # seconds between two looks at where the authorised keys come from
PAUSE = 0.1  # seconds after an error of ZeroMQ's own, so that one that stays does not take a core
TOLD = 1024  # keys whose refusal was logged, at most

MISMATCH = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
_CRYPTOGRAPHIC = zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
NO_DETAIL, FAULT, NOT_AUTHORISED = (int(event) for event in (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH))
REFUSED = NO_DETAIL | FAULT | NOT_AUTHORISED

log = logging.getLogger("pyzmp.security")


class Keys:
    """A key pair for CURVE, as Z85 text of 40 characters each.

    The secret is in no repr, and cannot be pickled, copied or sent.  Raises ValueError for what is no key pair.
    """

    __slots__ = ("_secret", "public")
    _secret: str
    public: str

    def __init__(self, public: str, secret: str) -> None:
        check_key(public)
        check_key(secret, secret=True)
        if zmq.curve_public(secret.encode()).decode() != public:
            raise ValueError(f"{public} is not the public key of the secret key beside it")
        object.__setattr__(self, "public", public)
        object.__setattr__(self, "_secret", secret)

    @classmethod
    def make(cls) -> Keys:
        """A new key pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @property
    def secret(self) -> str:
        """The secret key, for ZeroMQ and for a file that only its user can read."""
        return self._secret

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a key pair does not change; make another one")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and self.public == other.public

    def __hash__(self) -> int:
        return hash(self.public)

    def __repr__(self) -> str:
        return f"Keys(public={self.public!r}, secret=...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key stays in its process; others read it from the file it is kept in")


class Access:
    """The public keys that are let in, and nobody else's; they change at run time, from any thread.

    *source* gives all that are authorised, or None for those that it gave before.  It is called here, where what it
    raises is raised, and then once a second by the handler; while it raises there, nobody new is let in.
    There is no key that stands for all.
    """

    def __init__(self, keys: Iterable[str] = (), source: Callable[[], Iterable[str] | None] | None = None) -> None:
        self.domain = os.urandom(8).hex()  # ZAP's: each its own, so that what one lets in is nothing to another
        self._source = source
        self._lock = threading.Lock()
        self._fault = False
        self._watchers: tuple[Callable[[Collection[str]], object], ...] = ()
        self._allowed = frozenset(check_key(key) for key in keys)
        if source is not None:
            self.replace(source() or ())

    def allows(self, key: str) -> bool:
        """Whether who has proved to have *key* is let in."""
        return key in self._allowed

    def authorise(self, key: str) -> None:
        """Let *key* in from now on; raises ValueError for what is no key."""
        check_key(key)
        with self._lock:
            self._allowed |= {key}

    def revoke(self, key: str) -> None:
        """Let *key* in no more, and cut what it has open, at once."""
        with self._lock:
            self._allowed -= {key}
        self._cut({key})

    def replace(self, keys: Iterable[str]) -> None:
        """Let *keys* in and no others, and cut what the others have open; raises ValueError for what is no key."""
        allowed = frozenset(check_key(key) for key in keys)
        with self._lock:
            gone, self._allowed = self._allowed - allowed, allowed
        self._cut(gone)

    def refresh(self) -> None:
        """Ask the source again.  It is logged where that raises."""
        try:
            keys = self._source() if self._source is not None else None
            if keys is not None:
                self.replace(keys)
        except Exception:
            if not self._fault:
                log.exception("the authorised keys cannot be read, so nobody new is let in")
            self._fault = True
        else:
            self._fault = False

    def judge(self, key: str) -> tuple[bytes, str]:
        """ZAP's answer to who has proved to have *key*: a status, and why."""
        if self._fault:
            return b"500", "the authorised keys cannot be read"
        return (b"200", "") if self.allows(key) else (b"400", "not authorised")

    def watch(self, watcher: Callable[[Collection[str]], object]) -> None:
        """Have *watcher* called with keys that are let in no more, in the thread that revokes them."""
        with self._lock:
            self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Callable[[Collection[str]], object]) -> None:
        """Take a `watch` back."""
        with self._lock:
            self._watchers = tuple(known for known in self._watchers if known != watcher)

    def _cut(self, keys: Collection[str]) -> None:
        for watcher in self._watchers if keys else ():
            watcher(keys)


class Security(NamedTuple):
    """What a process needs between hosts: its own key pair, and whom it lets in."""

    keys: Keys
    access: Access


class Handler:
    """Answers ZeroMQ whether a caller may come in, for all listeners of one of its contexts.

    It has a thread of its own, which runs no user code: a loop that is busy keeps nobody waiting, a held GIL does.
    It survives whatever it is asked, and answers it.  Once closed nobody gets in.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._accesses: dict[str, Access] = {}
        self._told: set[tuple[str, str]] = set()
        self._due = 0.0  # when to refresh
        with contextlib.ExitStack() as made:  # closes those that were made where there is no room for all
            self._socket, self._stop, self._stopped = (
                made.enter_context(context.socket(kind)) for kind in (zmq.ROUTER, zmq.PAIR, zmq.PAIR))
            self._socket.set(zmq.LINGER, 0)
            self._socket.bind(ZAP)
            self._stopped.bind(f"{ZAP}-stop")
            self._stop.connect(f"{ZAP}-stop")
            made.pop_all()
        self._thread = threading.Thread(target=self._run, name="pyzmp-security", daemon=True)
        self._thread.start()

    def serve(self, access: Access) -> None:
        """Answer for the listeners of *access* too."""
        self._accesses[access.domain] = access

    def close(self) -> None:
        """Answer no more."""
        self._stop.send(b"")
        self._thread.join()
        self._stop.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._stopped, zmq.POLLIN)
        while not self._stopped.poll(0):
            try:
                self._turn(poller)
            except Exception:
                log.exception("the handler of keys goes on after an error")
                self._stopped.poll(int(PAUSE * 1000))
        self._socket.close()
        self._stopped.close()

    def _turn(self, poller: zmq.Poller) -> None:
        poller.poll(int(REFRESH * 1000))
        if time.monotonic() >= self._due:  # also while callers come all the time
            self._due = time.monotonic() + REFRESH
            for access in list(self._accesses.values()):
                access.refresh()
        with contextlib.suppress(zmq.Again):
            asker, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            self._socket.send_multipart([asker, b"", *self.answer(frames[1:])], zmq.NOBLOCK)

    def answer(self, request: list[bytes]) -> list[bytes]:
        """The reply to *request*, whatever it is."""
        status, reason, user = b"500", "internal error", ""
        try:
            status, reason, user = self._judge(request)
        except Exception:
            log.exception("a request for the keys of a caller could not be answered")
        return [b"1.0", request[1] if len(request) > 1 else b"", status, reason.encode(), user.encode(), b""]

    def _judge(self, request: list[bytes]) -> tuple[bytes, str, str]:
        if len(request) != 7 or request[0] != b"1.0" or request[5] != b"CURVE" or len(request[6]) != 32:
            return b"400", "no request about a CURVE key", ""
        access = self._accesses.get(request[2].decode(errors="replace"))
        if access is None:
            return b"400", "no listener of ours", ""
        key = z85.encode(request[6]).decode()
        status, reason = access.judge(key)
        if status == b"200":
            return status, reason, key
        self._tell(access.domain, key, request[3].decode(errors="replace"), reason)
        return status, reason, ""

    def _tell(self, domain: str, key: str, host: str, reason: str) -> None:
        """Log a refusal, once for each key."""
        if (domain, key) not in self._told and len(self._told) < TOLD:
            self._told.add((domain, key))
            log.warning("a caller from %s was refused: the key %s: %s", host, key, reason)


class Guest(NamedTuple):
    """A connection that came in with a key: its routing id, that key, and the system's number of its socket."""

    connection: bytes
    user: str
    inode: int

    def cut(self, source: int) -> None:
        """End the connection, unless its descriptor *source* is another's by now; from any thread."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(source)) as copy:
            if os.fstat(copy.fileno()).st_ino == self.inode:
                copy.shutdown(socket.SHUT_RDWR)


class Guests:
    """Who has come in at one listener with CURVE, by descriptor; whoever *access* lets in no more is cut.

    Used by the listener's thread; cuts are made by whatever thread revokes a key.  They take the routing id of a
    connection out of *known*, so that what it has sent already is looked at once more.  Somebody who has come in and
    not spoken is met at the first word.  ``refused`` counts who could not finish a handshake, whatever the key.
    """

    def __init__(self, access: Access, known: set[bytes], where: str) -> None:
        self.refused = 0
        self._access, self._known, self._where = access, known, where
        self._inside: dict[int, Guest] = {}
        access.watch(self._cut)

    def admits(self, connection: bytes, first: zmq.Frame, source: int) -> bool:
        """Whether who sent *first* through *source* is still let in; who is not is cut."""
        inode, user = 0, ""
        with contextlib.suppress(OSError):  # closed meanwhile
            inode = os.fstat(source).st_ino
        with contextlib.suppress(zmq.ZMQError):  # nobody vouches for it
            user = str(first.get("User-Id"))
        guest = self._inside[source] = Guest(connection, user, inode)  # before the look: it may be revoked just now
        allowed = self._access.allows(user)
        if not allowed:
            guest.cut(source)
        return allowed

    def user(self, source: int) -> str:
        """The key of who speaks through *source*."""
        return self._inside[source].user

    def allows(self, source: int) -> bool:
        """Whether who speaks through *source* is still let in."""
        guest = self._inside.get(source)
        return guest is not None and self._access.allows(guest.user)

    def note(self, event: int, value: int) -> None:
        """Take note of what happened to a connection of the listener's."""
        if event == zmq.EVENT_DISCONNECTED:
            self._inside.pop(value, None)
        elif event & REFUSED:
            self.refused += 1
            if self.refused == 1:
                log.warning("%s: a caller could not come in: %s; later ones are counted", self._where,
                            why_failed(event, value))

    def close(self) -> None:
        """Watch no more."""
        self._access.unwatch(self._cut)

    def _cut(self, users: Collection[str]) -> None:
        for source, guest in list(self._inside.items()):
            if guest.user in users:
                self._known.discard(guest.connection)
                guest.cut(source)


def secure_caller(made: zmq.Socket[bytes], keys: Keys, expected: str) -> None:
    """Have the socket *made* prove *keys*, and speak only with who proves the key *expected*."""
    for option, value in ((zmq.CURVE_SERVERKEY, expected), (zmq.CURVE_PUBLICKEY, keys.public),
                          (zmq.CURVE_SECRETKEY, keys.secret)):
        made.set(option, value.encode())


def secure_listener(made: zmq.Socket[bytes], security: Security) -> None:
    """Have the socket *made* prove its key, and let in whom the handler knows."""
    made.set(zmq.CURVE_SERVER, 1)
    made.set(zmq.CURVE_SECRETKEY, security.keys.secret.encode())
    made.set(zmq.ZAP_DOMAIN, security.access.domain.encode())
    made.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a handler nobody gets in; else everybody would


def why_failed(event: int, value: int) -> str:
    """What a caller did wrong, which a listener with keys could not let in."""
    if event == NOT_AUTHORISED:
        return "its key is not authorised"
    if event != FAULT:
        return "it did not finish its handshake"
    if value == MISMATCH:
        return "it speaks no CURVE"
    return "it expects another key here" if value == _CRYPTOGRAPHIC else f"its handshake is malformed ({value:#x})"
