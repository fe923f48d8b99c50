"""`Sessions`: which peers have which streams open to this node. Knows tasks, no transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Ended:
    """Why a stream ended; its server may say more than that. by_us: this node cancelled it, in
    favour of another stream.
    """

    reason: str = "its stream ended"
    by_us: bool = False


@dataclass(slots=True)
class _Session:
    incarnation: int
    streams: dict[str, tuple[asyncio.Task[object], Ended]] = field(default_factory=dict)


class Sessions:
    """on_lost(peer_id, reason): called once for each session that ends, whichever stream was
    first.
    """

    def __init__(self, on_lost: Callable[[str, str], None]) -> None:
        self._on_lost = on_lost
        self._sessions: dict[str, _Session] = {}
        self._closed = False

    def ids(self) -> list[str]:
        return sorted(self._sessions)

    def has_room(self, peer: str, limit: int) -> bool:
        return peer in self._sessions or len(self._sessions) < limit

    @contextmanager
    def stream(self, peer: str, incarnation: int, kind: str) -> Iterator[Ended]:
        """Enter it for as long as the current task serves this stream. A newer stream of the same
        kind cancels that task.
        """
        task = asyncio.current_task()
        assert task is not None
        ended = Ended()
        session = self._join(peer, incarnation, kind, (task, ended))
        try:
            yield ended
        finally:
            del session.streams[kind]
            if self._sessions.get(peer) is session:
                self._end(peer, session, ended.reason)

    def close(self) -> None:
        """Forget all of them without reporting a loss: it is this node that ends."""
        self._closed = True
        self._sessions.clear()

    def _join(
        self, peer: str, incarnation: int, kind: str, stream: tuple[asyncio.Task[object], Ended]
    ) -> _Session:
        session = self._sessions.get(peer)
        if session is not None and (session.incarnation != incarnation or kind in session.streams):
            self._end(peer, session, "it connected again")
            session = None
        if session is None:
            session = self._sessions[peer] = _Session(incarnation)
        session.streams[kind] = stream
        return session

    def _end(self, peer: str, session: _Session, reason: str) -> None:
        self._sessions.pop(peer, None)
        for task, ended in session.streams.values():
            ended.reason, ended.by_us = reason, True
            task.cancel()
        if not self._closed:
            self._on_lost(peer, reason)
