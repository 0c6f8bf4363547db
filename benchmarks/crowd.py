"""Many connections with one node, as many callers have them; all of one process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from pyzmp import runtime
from pyzmp.loopthread import LoopThread
from pyzmp.protocol.envelope import Hello
from pyzmp.transport.loop import Session, session_id


@contextlib.contextmanager
def connected(address: str, number: int) -> Iterator[None]:
    """So many sessions with the node at *address*, open as long as the context stands."""
    thread, sessions = LoopThread("crowd"), list[Session]()

    async def begin() -> None:
        for each in range(number):
            session = Session(runtime.current().context, address, Hello(session_id(), f"caller {each}"),
                              on_parcel=lambda parcel: None, on_end=lambda reason: None)
            session.attach(asyncio.get_running_loop())
            sessions.append(session)
            if each % 50 == 49:  # as many as a listener takes at once
                await asyncio.sleep(0.02)

    async def end() -> None:
        for session in sessions:
            session.abandon()
    thread.run(begin())
    try:
        over = time.monotonic() + 20
        while any(session.welcome is None for session in sessions):
            if time.monotonic() > over or any(session.ended for session in sessions):
                raise RuntimeError(f"no {number} sessions: {next((s.ended for s in sessions if s.ended), 'too slow')}")
            time.sleep(0.01)
        yield
    finally:
        thread.run(end())
        thread.close()
