"""Why a handshake failed, for the caller: a peer that wants another mechanism may just hang up, so it is asked."""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

from pyzmp.transport.address import Address
from pyzmp.transport.security import FAULT, MISMATCH, NO_DETAIL, NOT_AUTHORISED

ASKING = 0.5  # seconds that a peer has to say what it speaks, at most
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03"  # as far as the version: who is not told our mechanism does not hang up
_BEGIN, _END = 12, 32  # of the mechanism in the peer's greeting, filled up with zeros


class Inquiry:
    """Asks who listens at *address* over TCP what mechanism it speaks, on the socket *made*, a STREAM."""

    def __init__(self, made: zmq.Socket[bytes], address: Address) -> None:
        self.socket = made
        self._over = time.monotonic() + ASKING
        self._said = b""
        self._asked = False
        made.set(zmq.LINGER, 0)
        made.connect(address.endpoint)

    def answer(self) -> str | None:
        """The mechanism, empty where the peer does not say in time; None as long as that is open."""
        while int(self.socket.get(zmq.EVENTS)) & zmq.POLLIN:
            peer, said = self.socket.recv_multipart()
            self._said += said
            if not said and self._asked:  # it hung up
                return self._mechanism()
            if not said:  # connected
                self._asked = True
                self.socket.send_multipart([peer, _GREETING])
        if len(self._said) >= _END or time.monotonic() > self._over:
            return self._mechanism()
        return None

    def _mechanism(self) -> str:
        said = self._said[_BEGIN:_END] if self._said.startswith(b"\xff") else b""
        return said.rstrip(b"\0").decode(errors="replace")


class Refusal:
    """Finds out why the caller with the public key *own* could not connect to *address*.

    *socket* makes a socket of ZeroMQ's.  A handshake may take *patience* seconds.
    """

    def __init__(self, address: Address, own: str, patience: float, socket: Callable[[int], zmq.Socket[bytes]]) -> None:
        self._address, self._own, self._make = address, own, socket
        self._late = time.monotonic() + 0.9 * patience
        self._otherwise = ""
        self.inquiry: Inquiry | None = None

    def begin(self, event: int, value: int, otherwise: str) -> str | None:
        """Why it failed, by what ZeroMQ told; None where that is not enough and the peer is being asked."""
        self._otherwise = otherwise
        timed_out = value == zmq.EAGAIN or time.monotonic() > self._late
        if event == NO_DETAIL and self._address.scheme == "tcp" and not timed_out:
            try:
                self.inquiry = Inquiry(self._make(zmq.STREAM), self._address)
            except zmq.ZMQError:  # no room for its socket: it stays open
                return otherwise
            return None
        return self._why(event, value)

    def end(self) -> str | None:
        """As `begin`, once the peer was asked."""
        answer = self.inquiry.answer() if self.inquiry is not None else ""
        if answer is None:
            return None
        where, key = self._address.endpoint, self._address.key
        if (answer == "CURVE") != bool(key) and answer:
            return self._why(FAULT, MISMATCH)
        if key:
            return (f"refused: the key of {where} is not the one expected, {key} (or it ended at that moment, or "
                    "has nobody to look at keys)")
        return self._otherwise

    def close(self) -> None:
        """Ask no more."""
        if self.inquiry is not None:
            self.inquiry.socket.close(0)

    def _why(self, event: int, value: int) -> str:
        where, key = self._address.endpoint, self._address.key
        if event == NOT_AUTHORISED and value == 400:
            return (f"refused: the key {self._own} is not authorised by {where}; there it would be by: "
                    "pyzmp keys authorise NAME KEY")
        if event == NOT_AUTHORISED:
            return f"refused: {where} cannot look at the key {self._own} now (status {value})"
        if event == FAULT and value == MISMATCH and key:
            return f"refused: no CURVE is spoken at {where}, which should have proved the key {key}"
        if event == FAULT and value == MISMATCH:
            return f"refused: {where} wants CURVE; give its address with its public key behind it, as {where}#KEY"
        if event == NO_DETAIL and key:
            return f"no answer from {where} in the handshake: it is held up, or cannot look at keys now"
        return self._otherwise
