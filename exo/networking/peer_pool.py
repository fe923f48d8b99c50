"""`PeerPool`: keeps one connected handle for every candidate that a discovery names. Knows no
transport.

Each candidate has one task: connect, wait until the peer is lost, close the handle, wait a little,
connect anew. A handle is made and closed here and nowhere else. This node itself, met under
whatever address, is left out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from exo.lifecycle import ResourceError, TaskHandle, TaskManager
from exo.networking.discovery import ChangeListener, PeerFactory
from exo.networking.errors import PeerLost, PeerRefused, PeerStuck
from exo.networking.peer_handle import PeerHandle
from exo.utils.circuit_breaker import CircuitBreaker, CircuitOpen

log = logging.getLogger(__name__)

# Between attempts, in seconds: a connection that broke is back before anybody plans anew, a dead
# peer costs little.
FIRST_DELAY = 0.01
LAST_DELAY = 0.7
# A connection that lived for less counts as a failed attempt.
STEADY = 5.0
# A refusal will not change by itself within a moment.
REFUSED_DELAY = 2.0
MAX_CANDIDATES = 256
# A peer that got stuck twice in a row is left alone for this long: each time it comes and goes
# costs a new plan.
STUCK_PAUSE = 10.0

Lost = TypeVar("Lost", bound=PeerLost)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address where a peer may be; `node_id` None where only the hello will tell."""

    node_id: str | None
    address: str
    port: int


class PeerPool:
    def __init__(self, own_id: str, create_peer_handle: PeerFactory, tasks: TaskManager) -> None:
        self._own_id = own_id
        self._create = create_peer_handle
        self._tasks = tasks
        self._keepers: dict[Candidate, TaskHandle] = {}
        self._connected: dict[str, PeerHandle] = {}
        # Connected or about to be: no second connection to the same node.
        self._owner: dict[str, Candidate] = {}
        self._learned: dict[Candidate, str] = {}  # whose address it was the last time
        self._listeners: list[ChangeListener] = []
        self._changed = asyncio.Event()
        self._problems: dict[Candidate, str] = {}
        self._closed = False

    def peers(self) -> list[PeerHandle]:
        return [self._connected[node_id] for node_id in sorted(self._connected)]

    def problems(self) -> dict[str, str]:
        """Why candidates are not connected: address -> reason of the last attempt."""
        return {f"{each.address}:{each.port}": problem for each, problem in self._problems.items()}

    def on_change(self, callback: ChangeListener) -> Callable[[], None]:
        self._listeners.append(callback)

        def undo() -> None:
            with suppress(ValueError):
                self._listeners.remove(callback)

        return undo

    async def wait_for(self, count: int) -> list[PeerHandle]:
        while len(self._connected) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.peers()

    async def update(self, candidates: Iterable[Candidate], *, keep_connected: bool) -> None:
        """Make these the candidates. keep_connected: one that is connected stays until it is lost,
        listed or not.
        """
        wanted = {each for each in candidates if each.node_id != self._own_id}
        if len(wanted) > MAX_CANDIDATES:
            log.warning("%d candidates, only %d are tried", len(wanted), MAX_CANDIDATES)
            wanted = set(sorted(wanted, key=repr)[:MAX_CANDIDATES])
        gone = [each for each in self._keepers if each not in wanted]
        if keep_connected:
            connected = {self._owner[node_id] for node_id in self._connected}
            gone = [each for each in gone if each not in connected]
        for candidate in gone:
            await self._dismiss(candidate)
        for candidate in sorted(wanted - set(self._keepers), key=repr):
            self._start(candidate)

    async def close(self) -> None:
        self._closed = True
        for candidate in list(self._keepers):
            await self._dismiss(candidate)
        self._changed.set()

    def _start(self, candidate: Candidate) -> None:
        async def keep() -> None:
            await self._keep(candidate)

        self._keepers[candidate] = self._tasks.start_task(
            f"peer {candidate.address}:{candidate.port}", keep
        )

    async def _dismiss(self, candidate: Candidate) -> None:
        keeper = self._keepers.pop(candidate, None)
        self._problems.pop(candidate, None)
        self._learned.pop(candidate, None)
        if keeper is not None:
            await self._tasks.cancel_task(keeper)

    async def _keep(self, candidate: Candidate) -> None:
        breaker = CircuitBreaker(
            f"peer {candidate.address}:{candidate.port}",
            failures=2,
            reset_after=STUCK_PAUSE,
            counts=(PeerStuck,),
        )
        delay = FIRST_DELAY
        while True:
            if self._is_taken(candidate):
                await asyncio.sleep(LAST_DELAY)
                continue
            try:
                lived = await breaker.call(lambda: self._one_life(candidate))
                delay = FIRST_DELAY if lived > STEADY else min(2 * delay, LAST_DELAY)
            except CircuitOpen as error:
                delay = error.retry_after
            except PeerStuck as error:
                self._note(candidate, str(error))
            except ResourceError as error:
                refusal = _in_chain(error, PeerRefused)
                if refusal is not None and refusal.reason == "self":
                    return
                self._note(candidate, str(refusal or error.__cause__ or error))
                delay = REFUSED_DELAY if refusal is not None else min(2 * delay, LAST_DELAY)
            await asyncio.sleep(delay * random.uniform(0.7, 1.3))

    async def _one_life(self, candidate: Candidate) -> float:
        """Connect, stay until the peer is lost, close; seconds it lived. Raises `PeerStuck` where
        that was the end.
        """
        handle = self._create(candidate.node_id, candidate.address, candidate.port)
        # Asked first: a handle that starts and fails every second fills the log.
        if not await handle.answers():
            raise PeerLost(handle.id(), f"nothing answers at {handle.addr()}")
        handle.refuse_when(lambda node_id: self._claim(candidate, node_id))
        try:
            await handle.initialize()
            self._problems.pop(candidate, None)
            since = time.monotonic()
            await self._while_connected(candidate, handle)
        except ResourceError as error:
            stuck = _in_chain(error, PeerStuck)
            if stuck is not None:
                raise stuck from None
            raise
        finally:
            self._release(candidate)
            await _close(handle)
        lost = handle.lost()
        if isinstance(lost, PeerStuck):
            raise lost
        return time.monotonic() - since

    def _is_taken(self, candidate: Candidate) -> bool:
        node_id = candidate.node_id or self._learned.get(candidate, "")
        return self._owner.get(node_id, candidate) != candidate

    def _claim(self, candidate: Candidate, node_id: str) -> str:
        """Asked in mid-hello, when the peer's id is known: why not to go on, "" to go on."""
        owner = self._owner.setdefault(node_id, candidate)
        self._learned[candidate] = node_id
        return "" if owner == candidate else f"already connected at {owner.address}:{owner.port}"

    def _release(self, candidate: Candidate) -> None:
        for node_id in [each for each, owner in self._owner.items() if owner == candidate]:
            del self._owner[node_id]

    async def _while_connected(self, candidate: Candidate, handle: PeerHandle) -> None:
        """Until the peer is lost."""
        node_id = handle.id()
        if self._claim(candidate, node_id):
            return
        lost = asyncio.Event()
        undo = handle.on_lost(lambda *_: lost.set())
        if handle.lost() is not None:
            undo()
            return
        self._connected[node_id] = handle
        self._tell()
        try:
            await lost.wait()
        finally:
            undo()
            del self._connected[node_id]
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        if self._closed:
            return
        for listener in list(self._listeners):
            try:
                listener(self.peers())
            except Exception:
                log.exception("a listener for peers failed")

    def _note(self, candidate: Candidate, problem: str) -> None:
        """Log a problem once, not with every attempt."""
        if self._problems.get(candidate) != problem:
            log.info("peer at %s:%d not connected: %s", candidate.address, candidate.port, problem)
        self._problems[candidate] = problem


def _in_chain(error: BaseException | None, kind: type[Lost]) -> Lost | None:
    """The first of this kind among the error and its causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


async def _close(handle: PeerHandle) -> None:
    try:
        await handle.cleanup()
    except ResourceError as error:
        log.warning("closing %s: %s", handle.resource_id, error)
