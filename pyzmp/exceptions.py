"""Every error that pyzmp raises, in one tree with one root.

::

    PyzmpError
    ├── CallError               a call did not end with a result; ``executed`` says whether it ran
    │   ├── CallTimeout         (also TimeoutError)      no answer within the deadline
    │   ├── UnknownService      (also LookupError)       nobody provides it
    │   ├── InvalidCall         (also TypeError)         the arguments do not fit the service
    │   ├── NodeDied            (also ConnectionError)   the node, or the way to it, is gone
    │   ├── RemoteError                                  the service raised
    │   ├── Overloaded                                   the node has no room for the call
    │   ├── Refused                                      the node does not take the call
    │   ├── DeadlockError       (also RuntimeError)      the call would wait for a loop that waits for it
    │   └── Cancelled                                    the caller gave the call up
    ├── CannotTravel            (also TypeError)         a value has no form on the wire
    ├── InvalidAnnotation       (also TypeError)         an annotation cannot be checked
    ├── MalformedMessage        (also ValueError)        bytes that are no message of ours
    ├── InvalidAddress          (also ValueError)        not an address, or one not allowed
    ├── AddressInUse            (also OSError)           somebody else listens there
    ├── NodeExists                                       the name of a node is taken
    ├── AnnouncementRefused                              the registry does not take what is announced
    ├── StartError              (also RuntimeError)      a node could not be started
    ├── PublishTimeout          (also TimeoutError)      a subscription that is waited for has no room
    ├── TopicEnded              (also RuntimeError)      the node or program that published it has stopped
    ├── TopicMismatch           (also TypeError)         what is published is not what the subscriber expects
    ├── RecordingError          (also ValueError)        a file is no recording, or a damaged one
    └── RegistryUnavailable     (also ConnectionError)   no registry could be reached or started
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any


def _restore(cls: type[PyzmpError], args: tuple[Any, ...], state: dict[str, Any]) -> PyzmpError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class PyzmpError(Exception):
    """The root of every error that pyzmp raises."""

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.args, self.__dict__)


class CallError(PyzmpError):
    """A call ended without a result.

    ``executed`` is True where the service ran, False where it certainly did not start, and None
    where nobody can know.  ``service`` and ``node`` name what was called, where that is known.
    """

    default_executed: bool | None = None

    def __init__(self, message: str, *, service: str | None = None, node: str | None = None,
                 executed: bool | EllipsisType | None = ...) -> None:
        super().__init__(message)
        self.service = service
        self.node = node
        self.executed: bool | None = self.default_executed if isinstance(executed, EllipsisType) else executed

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CallTimeout(CallError, TimeoutError):
    """No answer came within the deadline of this call; whether the service ran is in ``executed``."""


class UnknownService(CallError, LookupError):
    """Nobody provides the service; it did not run."""

    default_executed = False


class InvalidCall(CallError, TypeError):
    """The arguments do not fit the service; it did not run.  ``argument`` names the first that does not.

    For an item of a stream that the service takes, ``executed`` is None: it may have begun.
    """

    default_executed = False
    argument: str | None = None


class NodeDied(CallError, ConnectionError):
    """The node, or the connection to it, ended before the answer came."""


class RemoteError(CallError):
    """A service raised.

    It is raised itself where the caller's process does not have the original type, and is the
    ``__cause__`` of the original otherwise.  ``type_name`` is the qualified name of the original
    type, ``message`` its text, ``traceback_text`` the traceback where it was raised, and ``nodes``
    the nodes that it crossed, the one that raised it first.
    """

    default_executed = True

    def __init__(self, type_name: str, message: str, *, traceback_text: str = "", nodes: Sequence[str] = (),
                 service: str | None = None) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name, service=service,
                         node=nodes[0] if nodes else None)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text
        self.nodes = tuple(nodes)

    def __str__(self) -> str:
        where = f" (raised in {self.service or 'a hook'} of node {self.nodes[0]!r})" if self.nodes else ""
        trace = f"\n\n{self.traceback_text.rstrip()}" if self.traceback_text else ""
        return f"{self.args[0]}{where}{trace}"


class Overloaded(CallError):
    """The node, or the way to it, has no room for the call; it did not run.

    ``retry_after`` is when there may be room again, in seconds.
    """

    default_executed = False
    retry_after: float | None = None


class Refused(CallError):
    """The node does not take the call: it shuts down, is another incarnation, or the call is too late."""

    default_executed = False


class DeadlockError(CallError, RuntimeError):
    """A call of a service on a loop that is held up until this very call has ended, and could never answer.

    ``circle`` says in words what holds up whom, the loop that is called first.  Only circles within one
    chain of calls are detected: where two chains wait for each other, both calls end at their deadlines.
    """

    default_executed = False
    circle: tuple[str, ...] = ()


class Cancelled(CallError):
    """The caller gave the call up; ``executed`` says whether the service had begun."""


class CannotTravel(PyzmpError, TypeError):
    """A value has no form on the wire.

    ``type_name`` is its type and ``path`` where it stands, such as ``arguments[0]['key']``.
    """

    def __init__(self, type_name: str, path: str, reason: str = "") -> None:
        super().__init__(type_name, path, reason)
        self.type_name, self.path, self.reason = type_name, path, reason

    def __str__(self) -> str:
        return f"{self.path}: a value of type {self.type_name} cannot travel between nodes" + (
            f": {self.reason}" if self.reason else "; send plain data, a dataclass or a numpy array instead")


class InvalidAnnotation(PyzmpError, TypeError):
    """An annotation of a service, topic or parameter cannot be checked on the wire."""


class MalformedMessage(PyzmpError, ValueError):
    """Bytes from a peer that are no message of this version of pyzmp, or go beyond a limit."""


class InvalidAddress(PyzmpError, ValueError):
    """A text that is no address, or an address that may not be used as asked."""


class AddressInUse(PyzmpError, OSError):
    """Somebody else listens at the address, or it cannot be bound for another reason of the system's."""


class NodeExists(PyzmpError):
    """The name is taken by another node of the domain.  ``name`` is that name; the text names both owners."""

    def __init__(self, name: str, owner: str, asker: str) -> None:
        super().__init__(name, owner, asker)
        self.name, self.owner, self.asker = name, owner, asker

    def __str__(self) -> str:
        return (f"{self.name!r} is already run by {self.owner}; {self.asker} asked for it; use another name, or set "
                "PYZMP_DOMAIN to keep two copies of a program apart")


class AnnouncementRefused(PyzmpError):
    """The registry does not take what a node announces or withdraws: another process's, or what it cannot read."""


class StartError(PyzmpError, RuntimeError):
    """A node could not be started, or ended before it was ready."""


class RegistryUnavailable(PyzmpError, ConnectionError):
    """No registry could be reached or started; the text says where it was looked for."""


class PublishTimeout(PyzmpError, TimeoutError):
    """A subscription that publishers wait for, with ``full="block"``, has had no room in time.

    The message was published to nobody.
    """


class TopicEnded(PyzmpError, RuntimeError):
    """What was to be published cannot be any more: the node, or the program, whose topic it is has stopped."""


class TopicMismatch(PyzmpError, TypeError):
    """What is published is not what the subscriber expects; the text names both types, and where they differ."""


class RecordingError(PyzmpError, ValueError):
    """A file is no recording, is damaged so that nothing can be appended to it, or is being written by another.

    ``path`` is the file, and ``offset`` where in it the damage begins.
    """

    def __init__(self, message: str, path: str, offset: int | None = None) -> None:
        super().__init__(message, path, offset)
        self.path, self.offset = path, offset

    def __str__(self) -> str:
        return str(self.args[0])


# The names of pyzmp 0.0.17.
ServiceCallTimeout = CallTimeout
UnknownServiceException = UnknownService
UnknownRequestTypeException = MalformedMessage
UnknownResponseTypeException = MalformedMessage
