"""The directory of a domain on this host: who may use it, what lies in it, which registry is current.

In it are the sockets of nodes and registries, and for each registry that ever was a lock file
``registry-<counter>.lock``, locked for as long as its process lives.  A counter is used once: the
file is created exclusively, above all that are there, and the highest one is never removed.  So a
lock, once free, stays free, and which registry is current needs no more than a look.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import threading

import msgspec

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.protocol.facts import Member, proof
from pyzmp.registry import remains
from pyzmp.transport.address import PATH

BEAT = 0.5  # seconds between two beats
LEASE = 4.5  # seconds for which facts outlive the connection of their owner
LINGER = 3.0  # seconds for which a registry outlives its last member
WAY_OUT = "set PYZMP_DIR to a short path of a directory that only you can write"
RESERVED = len("/node~~0123456789abcdef")  # bytes that a socket's path needs beyond the directory's
FRESH = 5.0  # seconds for which a socket that nobody listens to is left alone, as somebody may be about to
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_PLAIN = re.compile(r"[a-z0-9_.-]+")  # no capitals: some file systems take them for the same
_LOCK = re.compile(r"registry-([0-9]{1,18})\.lock")

# The root of the package stays out of the registry's process, with all that it imports; so do the current directory
# and its modules.  The fork gives the process to the system, which will collect it when it ends.
_BOOT = """\
import os, sys
if os.fork():
    os._exit(0)
sys.path[:] = [entry for entry in sys.path if entry] + [sys.argv.pop()]
root = sys.modules["pyzmp"] = type(sys)("pyzmp")
root.__path__ = [sys.argv.pop()]
from pyzmp.registry.process import main
main(sys.argv[1:])
"""


def check_node_name(name: object) -> str:
    """*name*, if a node can be called so; raises TypeError or ValueError, which say why not."""
    return _checked(name, "node")


def check_service_name(name: object) -> str:
    """*name*, if a service can be called so; raises TypeError or ValueError, which say why not."""
    checked = _checked(name, "service")
    if "/" in checked:
        raise ValueError(f"{name!r} is no name for a service: what stands before a / is the name of a node")
    return checked


def _checked(name: object, what: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a {what} is a str, got {type(name).__name__}")
    if not name.isprintable() or not 0 < len(name.encode("utf-8", "surrogatepass")) <= 255:
        raise ValueError(f"{name!r} is no name for a {what}: 1 to 255 bytes of printable characters are")
    return name


class Domain(msgspec.Struct, frozen=True):
    """A world of its own: the nodes that see each other.  ``path`` is its directory, which may not exist yet."""

    name: str
    path: str

    @classmethod
    def named(cls, name: str) -> Domain:
        """The domain *name* in ``$PYZMP_DIR``, the user's runtime directory, or the system's temporary one.

        Creates nothing.  Raises ValueError for a name that cannot be one, RegistryUnavailable for a
        directory whose path is too long for a Unix socket.
        """
        if not _DOMAIN.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a domain: up to 40 letters, digits and _ . - are")
        path = f"{_base()}/{name}"
        if len(os.fsencode(path)) + RESERVED > PATH:
            raise RegistryUnavailable(f"{path}: its {len(os.fsencode(path))} bytes are too many for a directory of "
                                      f"sockets, which may have {PATH - RESERVED}; {WAY_OUT}")
        return cls(name, path)

    def make(self) -> None:
        """Create the directory where it is missing, and check it; raises RegistryUnavailable, which says why not."""
        base = os.path.dirname(self.path)
        try:
            if _chosen():
                os.makedirs(base, mode=0o700, exist_ok=True)
            _check(base, make=True, others=0o022 if _chosen() else 0o077)
            _check(self.path, make=True, others=0o077)
        except RegistryUnavailable:  # an OSError too
            raise
        except OSError as error:
            raise RegistryUnavailable(f"{error.filename or self.path}: {error.strerror}; {WAY_OUT}") from error

    def exists(self) -> bool:
        """Whether the directory is there; raises RegistryUnavailable where it is not private to this user."""
        try:
            _check(self.path, make=False, others=0o077)
        except RegistryUnavailable:  # an OSError too
            raise
        except OSError:
            return False
        return True

    def address_for(self, node: str) -> str:
        """Where the node *node* listens: the same in each of its lives, and no name of another file of the domain."""
        room = PATH - len(os.fsencode(self.path)) - len("/node-")
        if _PLAIN.fullmatch(node) and len(node) <= room:
            return f"ipc://{self.path}/node-{node}"
        import hashlib  # seldom needed, and costs to import

        digest = hashlib.sha256(node.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        start = re.sub(r"[^a-z0-9_.-]", "", node.lower())[:min(16, room - len("~") - len(digest))]
        return f"ipc://{self.path}/node~{start}~{digest}"

    def registry(self, counter: int) -> str:
        """The address of the registry *counter*."""
        return f"ipc://{self.path}/registry-{counter}"

    def counters(self) -> list[int]:
        """The counters of all registries that left a lock file, the highest first."""
        with contextlib.suppress(FileNotFoundError):
            found = (_LOCK.fullmatch(name) for name in os.listdir(self.path))
            return sorted((int(match[1]) for match in found if match), reverse=True)
        return []

    def current(self, above: int = 0) -> int | None:
        """The counter of the registry that lives, if it is higher than *above*."""
        candidates = (counter for counter in self.counters() if counter > above)
        return next((counter for counter in candidates if _is_held(self.lock(counter))), None)

    def claim(self, above: int) -> tuple[int, Lock]:
        """Make this process the next registry, higher than *above* and all before; its counter and its lock.

        The lock files and sockets of dead registries are removed.  Their counters do not come back,
        so nobody can be misled by a file that is gone.  So are the sockets of dead nodes that no
        registry has removed, but not those that were made a moment ago: somebody may be about to listen.
        """
        while True:
            counter = max([above, *self.counters()]) + 1
            lock = Lock.take(self.lock(counter), os.O_EXCL)
            if lock is not None:
                break
        for dead in self.counters():
            if dead < counter and not _is_held(self.lock(dead)):
                for path in (f"{self.path}/registry-{dead}", self.lock(dead)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
        remains.sweep(self.path, os.fstat(lock.descriptor).st_mtime - FRESH)
        return counter, lock

    def start_lock(self) -> Lock | None:
        """The right to start a registry, which keeps a crowd from starting one each; None while another has it.

        It is no more than that: two that start at once get two counters, and the lower one steps down.
        """
        return Lock.take(f"{self.path}/start.lock")

    def start(self, above: int, linger: float, lease: float) -> Starting:
        """Begin to start a registry in a process of its own; it costs no waiting."""
        return Starting(self, above, linger, lease)

    def last_words(self) -> str:
        """The end of what the registry that was started last has written."""
        path = f"{self.path}/registry.log"
        with contextlib.suppress(OSError):
            words = _read(path).decode(errors="replace").strip()
            return f"{words.rpartition(chr(10))[2]} (all of it is in {path})" if words else "it ended without a word"
        return "it left no log"

    def lock(self, counter: int) -> str:
        """The path of the file that the registry *counter* holds a lock on."""
        return f"{self.path}/registry-{counter}.lock"


class Lock:
    """A lock on a file, held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: str, flags: int = 0) -> Lock | None:
        """The lock on the file at *path*, or None where somebody else has it (or, with O_EXCL, made the file)."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        except FileExistsError:
            return None
        except OSError as error:
            raise RegistryUnavailable(f"{path} cannot be made: {error.strerror}; {WAY_OUT}") from error
        lock = cls(descriptor)
        try:
            taken = _try_lock(descriptor, fcntl.LOCK_EX, path)
        except BaseException:
            lock.close_inherited()
            raise
        if not taken:
            lock.close_inherited()
        return lock if taken else None

    def release(self) -> None:
        """Let others have it, also where a forked child holds a copy of the descriptor."""
        if self.descriptor >= 0:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            self.close_inherited()

    def close_inherited(self) -> None:
        """In a forked child: close the copy, and leave the lock to the parent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Starting:
    """A registry's process on its way.  ``pipe`` becomes readable when it is ready or has failed."""

    # Held while the process is made, and by whoever forks: a child forked in between would keep the pipes open whose
    # ends tell that the process runs, or has failed.
    alone = threading.Lock()

    def __init__(self, domain: Domain, above: int, linger: float, lease: float) -> None:
        with self.alone:
            self._start(domain, above, linger, lease)

    def _start(self, domain: Domain, above: int, linger: float, lease: float) -> None:
        self.pipe, report = os.pipe()
        package = os.path.dirname(os.path.dirname(__file__))
        command = [sys.executable or "python3", "-c", _BOOT, domain.path, str(above), repr(linger), repr(lease),
                   str(report), package, os.path.dirname(os.path.dirname(msgspec.__file__))]
        try:
            with open(f"{domain.path}/registry.log", "wb", opener=_open_private) as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, pass_fds=(report,),
                    cwd="/", start_new_session=True)
        except OSError as error:
            self.abandon()
            raise RegistryUnavailable(f"the registry's process could not be started: {error}; {WAY_OUT}") from error
        finally:
            os.close(report)

    def outcome(self) -> int | None:
        """The counter of the registry, once ``pipe`` is readable; None where it was ended before it could tell.

        Raises RegistryUnavailable with what it told where it failed.
        """
        said = os.read(self.pipe, 4096).decode(errors="replace")
        self.abandon()
        if said and not said.isdigit():
            raise RegistryUnavailable(f"the registry's process failed to start: {said}")
        return int(said) if said else None

    def abandon(self) -> None:
        """Wait no longer.  A registry that starts all the same leaves by itself when nobody joins it."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
            if hasattr(self, "_process"):
                self._process.wait()  # it forks at once, and only the grandchild goes on


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=Starting.alone.acquire, after_in_parent=Starting.alone.release,
                        after_in_child=Starting.alone.release)


def temporary_directory(domain: str) -> str:
    """A new directory for a ``PYZMP_DIR`` that is removed again, with a path short enough for the sockets of *domain*.

    It is among the system's temporary files, or in ``/tmp`` where their path is too long.
    """
    import tempfile  # costs as much as the rest of this module, and is seldom needed

    base = os.fsencode(tempfile.gettempdir())
    fits = len(base) + len(f"/pyzmp-01234567/{domain}") + RESERVED <= PATH
    return tempfile.mkdtemp(prefix="pyzmp-", dir=None if fits else "/tmp")  # noqa: S108  made exclusively, and private


def this_process(program: str = "", key: str = "") -> Member:
    """The process that asks, as a member: a new one each time; no other *key* than its public one joins as that."""
    started = _started(os.getpid())
    return Member(os.urandom(8).hex() + proof(key), socket.gethostname(), os.getpid(), f"{_space()}:{started}", program)


def is_gone(member: Member) -> bool:
    """Whether the member's process is known to have ended.  False where it cannot be known, as on another host."""
    space, _, started = member.started.rpartition(":")
    if not started or space != _space() or member.host != socket.gethostname():
        return False
    return _started(member.pid) != started


def _space() -> str:
    """Where process numbers mean what they mean here; empty where the system does not tell."""
    try:
        boot = _read("/proc/sys/kernel/random/boot_id")[:13].decode("ascii")
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When the process began, in the system's ticks; empty where it has ended or the system does not tell."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _chosen() -> str:
    return os.environ.get("PYZMP_DIR", "")


def _base() -> str:
    if _chosen():
        if not os.path.isabs(path := os.path.expanduser(_chosen())):
            raise RegistryUnavailable(f"PYZMP_DIR is {path!r}, which every program would look for in another place; "
                                      "give it an absolute path")
        return os.path.normpath(path)
    user = os.geteuid()
    run = f"/run/user/{user}"
    with contextlib.suppress(OSError):
        if os.stat(run).st_uid == user and os.access(run, os.W_OK | os.X_OK):
            return f"{run}/pyzmp"
    import tempfile  # costs as much as the rest of this module, and is seldom needed

    return f"{tempfile.gettempdir()}/pyzmp-{user}"


def _check(path: str, *, make: bool, others: int) -> None:
    """Raise RegistryUnavailable unless *path* is a directory of this user that *others* have no rights to."""
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            kind = "a symbolic link" if os.path.islink(path) else "no directory"
            raise RegistryUnavailable(f"{path} is {kind}, and is not followed; remove it, or {WAY_OUT}") from error
        raise
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if found.st_uid != os.geteuid():
        raise RegistryUnavailable(f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}; {WAY_OUT}")
    if stat.S_IMODE(found.st_mode) & others:
        raise RegistryUnavailable(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, so others could reach into it; "
                                  f"chmod 700 it, or {WAY_OUT}")
    if make and not os.access(path, os.W_OK | os.X_OK):
        raise RegistryUnavailable(f"{path} is not writable; {WAY_OUT}")


def _is_held(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RegistryUnavailable(f"{path} cannot be read: {error.strerror}; {WAY_OUT}") from error
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH, path)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int, path: str) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RegistryUnavailable(f"{path} cannot be locked ({error.strerror}): the file system has no locks; "
                                  f"{WAY_OUT}, on a local file system") from error
    return True


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

