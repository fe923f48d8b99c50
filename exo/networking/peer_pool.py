"""`PeerPool`: keeps one connected handle for every candidate that a discovery names. Knows no
transport.

Each candidate has one task: connect, wait until the peer is lost, close the handle, pause a little,
connect again. Handles are made and closed here and nowhere else. This node itself is left out,
whatever address it is met under.

A node can be met under two addresses (IPv4 and IPv6, or two DNS records), and its id is known only
in the middle of the hello. So a candidate claims the id at that moment, and the hello ends where
another candidate has it already: there is never a second connection to the same node.
"""

from __future__ import annotations

import asyncio
import functools
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
from exo.utils.error_handling import CircuitBreaker, CircuitOpen, FailedTry, retrying

log = logging.getLogger(__name__)

# Seconds between attempts. A connection that broke is back before the others have planned without
# this node, and a dead peer costs little.
FIRST_DELAY = 0.01
LAST_DELAY = 0.7
# A connection that lasted for less counts as a failed attempt.
STEADY = 5.0
# A refusal will not change by itself within a moment.
REFUSED_DELAY = 2.0
MAX_CANDIDATES = 256
# A peer that was unresponsive twice in a row is left alone for this long: each time it comes and
# goes, the ring needs a new plan.
STUCK_PAUSE = 10.0
# How much of a pause is random, so that nodes that start together do not dial in step.
JITTER = 0.3

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
        """Why candidates are not connected, by address: the reason of the last attempt."""
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
        whether it is listed or not.
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

        self._keepers[candidate] = self._tasks.start_task(f"peer {_name(candidate)}", keep)

    async def _dismiss(self, candidate: Candidate) -> None:
        keeper = self._keepers.pop(candidate, None)
        self._problems.pop(candidate, None)
        self._learned.pop(candidate, None)
        if keeper is not None:
            await self._tasks.cancel_task(keeper)

    async def _keep(self, candidate: Candidate) -> None:
        breaker = CircuitBreaker(
            f"peer {_name(candidate)}", failures=2, reset_after=STUCK_PAUSE, counts=(PeerStuck,)
        )

        # Returns after each connection that lasted, so that the pauses begin small again.
        @retrying(
            on=(ResourceError, CircuitOpen),
            idempotent=True,
            attempts=None,
            base=2 * FIRST_DELAY,
            most=LAST_DELAY,
            jitter=JITTER,
            when=lambda error: not _is_this_node(error),
            delay_for=_own_pause,
            on_retry=functools.partial(self._note, candidate),
            # Looked up at the time, so that a test can give it another clock.
            sleep=lambda seconds: asyncio.sleep(seconds),
        )
        async def connect() -> None:
            # Another candidate leads to the same node. It may lose that node at any time.
            while self._is_taken(candidate):  # noqa: ASYNC110
                await asyncio.sleep(_jittered(LAST_DELAY))
            lasted = await breaker.call(lambda: self._one_life(candidate))
            if lasted <= STEADY:
                raise PeerLost(_name(candidate), f"the connection did not last for {STEADY:g} s")

        while True:
            try:
                await connect()
            except ResourceError:  # the candidate is this node
                return
            await asyncio.sleep(_jittered(FIRST_DELAY))

    async def _one_life(self, candidate: Candidate) -> float:
        """Connect, stay until the peer is lost, close. Returns the seconds that the connection
        lasted. Raises `PeerStuck` where the peer was unresponsive in the end.
        """
        handle = self._create(candidate.node_id, candidate.address, candidate.port)
        # Asked first, because a handle that starts and fails every second fills the log.
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
        """Called in the middle of the hello, as soon as the peer's id is known. Returns why the
        hello must end, or "".
        """
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

    def _note(self, candidate: Candidate, failed: FailedTry) -> None:
        """Log a problem once, not with every attempt."""
        error = failed.error
        if isinstance(error, CircuitOpen):
            return
        problem = str(_in_chain(error, PeerRefused) or error.__cause__ or error)
        if self._problems.get(candidate) != problem:
            log.info("peer at %s not connected: %s", _name(candidate), problem)
        self._problems[candidate] = problem


def _name(candidate: Candidate) -> str:
    return f"{candidate.address}:{candidate.port}"


def _is_this_node(error: Exception) -> bool:
    refusal = _in_chain(error, PeerRefused)
    return refusal is not None and refusal.reason == "self"


def _own_pause(error: Exception) -> float | None:
    """The pause after an error that says itself how long to wait; None: the usual, growing one."""
    if isinstance(error, CircuitOpen):
        return _jittered(error.retry_after)
    return None if _in_chain(error, PeerRefused) is None else _jittered(REFUSED_DELAY)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1.0 - JITTER, 1.0 + JITTER)


def _in_chain(error: BaseException | None, kind: type[Lost]) -> Lost | None:
    """The first error of this kind among the error and its causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


async def _close(handle: PeerHandle) -> None:
    try:
        await handle.cleanup()
    except ResourceError as error:
        log.warning("closing %s: %s", handle.resource_id, error)
