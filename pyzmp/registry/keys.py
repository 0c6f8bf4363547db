"""The keys of a domain, which let its members be reached from other hosts, and reach them.

In the directory of the domain, readable by its user only: ``keys.own`` is the key pair that all members on this host
share, made on first use; ``keys.authorised`` has a line for each public key that is let in beside it: the
key's name, the key, and a comment.  Files are replaced whole, by one process at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pyzmp.exceptions import RegistryUnavailable
from pyzmp.registry.domain import Domain, Lock
from pyzmp.transport.address import check_key
from pyzmp.transport.security import Access, Keys, Security

PATIENCE = 5.0  # seconds that another process may take to change a file
MOST = 1 << 20  # bytes that a file of keys may have
_PAUSE = 0.01  # seconds between two looks whether the other process is done
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class Authorised(NamedTuple):
    """A public key that is let in: what it is called here, the key, and why it is there."""

    name: str
    key: str
    comment: str = ""


def own(domain: Domain) -> Keys | None:
    """The key pair of *domain* on this host, or None where none was made yet.

    Raises RegistryUnavailable where others could have read it or put it there, and where it is none.
    """
    path = _own(domain)
    words = (_read(path) if domain.exists() else "").split()
    if not words:
        return None
    try:
        public, secret = words
        return Keys(public, secret)
    except ValueError:  # which might show what was meant to be the secret
        raise RegistryUnavailable(f"{path} holds no key pair; remove it, and another is made, which every other host "
                                  "has to authorise again") from None


def load_or_make(domain: Domain) -> Keys:
    """The key pair of *domain* on this host, made now where there is none; raises RegistryUnavailable as `own` does."""
    found = own(domain)
    if found is None:
        domain.make()
        with _alone(domain):
            found = own(domain)
            if found is None:
                found = Keys.make()
                _write(_own(domain), f"{found.public}\n{found.secret}\n")
    return found


def export(domain: Domain) -> str:
    """The public key of *domain* on this host, for other hosts to authorise."""
    return load_or_make(domain).public


def authorised(domain: Domain) -> list[Authorised]:
    """The keys that are let in beside the domain's own, by name.

    Raises RegistryUnavailable where others could have changed the file, and for a line that is none.
    """
    return sorted(_entries(domain)) if domain.exists() else []


def authorise(domain: Domain, name: str, key: str, comment: str = "") -> Authorised:
    """Let *key* in, called *name*; processes that run see it within seconds.

    A name that is there gets the new key, and the old one is revoked.  Raises ValueError for what is no name, key or
    comment, or a key that has another name.
    """
    new = Authorised(_checked(name), check_key(key), comment)
    if not comment.isprintable():
        raise ValueError(f"{comment!r} is no comment: it holds characters that cannot be printed")
    domain.make()
    with _alone(domain):
        entries = [entry for entry in _entries(domain) if entry.name != name]
        for entry in entries:
            if entry.key == key:
                raise ValueError(f"this key is authorised already, as {entry.name!r}")
        _write_entries(domain, [*entries, new])
    return new


def revoke(domain: Domain, name: str) -> Authorised:
    """Let the key called *name*, or the key *name* itself, in no more.

    Processes that run see it within seconds, and cut what it has open.  Raises LookupError where there is none.
    """
    domain.make()
    with _alone(domain):
        entries = _entries(domain)
        gone = next((entry for entry in entries if name in (entry.name, entry.key)), None)
        if gone is None:
            known = ", ".join(sorted(entry.name for entry in entries)) or "none"
            raise LookupError(f"no key called {name!r} is authorised in {domain.path}; those that are: {known}")
        _write_entries(domain, [entry for entry in entries if entry is not gone])
    return gone


def security(domain: Domain) -> Security:
    """What a process of *domain* needs between hosts: its keys, made where there are none, and whom it lets in.

    Those are the members with the same keys, and whoever is authorised, also later.
    """
    keys = load_or_make(domain)
    return Security(keys, Access(source=_Source(domain, keys.public)))


class _Source:
    """Gives the keys that are let in whenever they have changed."""

    def __init__(self, domain: Domain, public: str) -> None:
        self._domain, self._public = domain, public
        self._seen: object = None

    def __call__(self) -> Iterable[str] | None:
        seen = self._stamp()
        if seen == self._seen:
            return None
        keys = [self._public, *(entry.key for entry in _entries(self._domain))]
        self._seen = seen  # now that it could be read; what is newer is read the next time
        return keys

    def _stamp(self) -> object:
        try:
            found = os.lstat(_authorised(self._domain))
        except FileNotFoundError:
            return "missing"
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _own(domain: Domain) -> str:
    return f"{domain.path}/keys.own"


def _authorised(domain: Domain) -> str:
    return f"{domain.path}/keys.authorised"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a key: up to 64 letters, digits and _ . @ - are")
    return name


def _entries(domain: Domain) -> list[Authorised]:
    path = _authorised(domain)
    found = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        name, _, rest = line.partition(" ")
        key, _, comment = rest.partition(" ")
        try:
            found.append(Authorised(_checked(name), check_key(key), comment))
        except ValueError as error:
            raise RegistryUnavailable(f"line {number} of {path}: {error}; expected NAME KEY COMMENT") from error
    return found


def _write_entries(domain: Domain, entries: list[Authorised]) -> None:
    _write(_authorised(domain), "".join(f"{' '.join(entry).rstrip()}\n" for entry in sorted(entries)))


@contextlib.contextmanager
def _alone(domain: Domain) -> Iterator[None]:
    """Keep other processes from changing the files of *domain*."""
    path = f"{domain.path}/keys.lock"
    over = time.monotonic() + PATIENCE
    while (lock := Lock.take(path)) is None:
        if time.monotonic() > over:
            raise RegistryUnavailable(f"{path} is held by another process for more than {PATIENCE:g} s; is it stopped?")
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        lock.release()


def _read(path: str) -> str:
    """The text of the file at *path*, empty where there is none.

    Raises RegistryUnavailable unless it is a file of this user that nobody else can read or change.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        kind = "it is a symbolic link" if os.path.islink(path) else error.strerror
        raise RegistryUnavailable(f"{path} cannot be read: {kind}") from error
    try:
        _check(path, os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read().decode(errors="replace")
    finally:
        os.close(descriptor)


def _check(path: str, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST:
        raise RegistryUnavailable(f"{path} is no file of keys")
    if found.st_uid != os.geteuid():
        raise RegistryUnavailable(f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}")
    if mode & 0o077:
        raise RegistryUnavailable(f"{path} has mode {mode:04o}, so others can read or change it; chmod 600 it, and "
                                  "take the keys in it for known to them")


def _write(path: str, text: str) -> None:
    """Put *text* at *path*, whole or not at all; used under the lock."""
    new = f"{path}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # of a process that was killed here
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.rename(new, path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RegistryUnavailable(f"{path} cannot be written: {error.strerror}") from error
