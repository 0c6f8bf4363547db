"""Numbers in the messages of calls.  They are the protocol: never reuse one."""

from __future__ import annotations


class Flag:
    """Bits of `Request.flags`."""

    ONE_WAY = 1  # no reply is wanted
    STREAM = 2  # the result is a stream; a `Credit` follows
    UPSTREAM = 4  # one argument is a stream: it is nil in the body, and its items follow


class Code:
    """What a `Failure` says."""

    RAISED = 1  # the service raised; the body is the exception
    UNKNOWN_SERVICE = 2
    INVALID_CALL = 3
    OVERLOADED = 4
    REFUSED = 5
    DEADLOCK = 6
    CANCELLED = 7
    DIED = 8  # the node has ended, though the service had not
    EXPIRED = 9  # its deadline came before its turn
