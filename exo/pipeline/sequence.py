"""`OwnedSequence`: one request at its entry node: what was produced, where it runs now, and how it
goes on. No I/O.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from exo.inference.generation import GenerationRequest
from exo.networking.messages import Open, Token
from exo.topology import RingPlan


class Phase(StrEnum):
    WAITING = "waiting"  # for a ring that can run it
    RUNNING = "running"
    COMPLETE = "complete"  # all tokens are here; the caller has not taken them all


class OwnedSequence:
    """`key` is unique in the cluster; `lane_id` besides differs for each attempt, so that no stage
    mixes them up.

    Times are those of the event loop's clock, in seconds.
    """

    def __init__(
        self, key: str, request: GenerationRequest, is_end: Callable[[int, int], bool], now: float
    ) -> None:
        self.key = key
        self.request = request
        self.opened_at = self.progress_at = self.waiting_since = self.placed_at = now
        self.phase = Phase.WAITING
        self.plan: RingPlan | None = None
        self.attempt = 0
        self.fresh = True  # no token of this attempt yet
        self.failures = 0  # since the last token
        self.reason = ""  # why the last attempt ended
        self.produced: list[int] = []
        self.arrived: deque[Token] = deque()
        self.error: Exception | None = None
        self.wake = asyncio.Event()
        self._is_end = is_end

    @property
    def lane_id(self) -> str:
        return f"{self.key}/{self.attempt}"

    @property
    def length(self) -> int:
        return len(self.request.prompt_tokens) + len(self.produced)

    def place(self, plan: RingPlan, entry: str, max_length: int, now: float) -> Open:
        """A new attempt on `plan`; the message that begins it."""
        self.attempt += 1
        self.fresh = True
        self.placed_at = now
        self.plan = plan
        self.phase = Phase.RUNNING
        return Open(
            sequence_id=self.lane_id,
            epoch=plan.epoch,
            entry=entry,
            tokens=(*self.request.prompt_tokens, *self.produced),
            prompt_length=len(self.request.prompt_tokens),
            params=self.request.params,
            max_length=max_length,
        )

    def accept(self, token: Token, now: float) -> bool:
        """Take the token if it is the next one; False for one that is not (a late one of an
        abandoned attempt).
        """
        if self.phase is not Phase.RUNNING or token.position != self.length:
            return False
        self.produced.append(token.token)
        self.arrived.append(token)
        self.progress_at = now
        self.fresh = False
        self.failures = 0
        if self._is_end(token.token, len(self.produced)):
            self.phase = Phase.COMPLETE
        self.wake.set()
        return True

    def abandon(self, reason: str, now: float) -> None:
        """The attempt is over; the next one goes on behind what was produced."""
        if self.phase is Phase.RUNNING:
            if self.failures == 0:
                self.waiting_since = now
            self.phase = Phase.WAITING
            self.plan = None
            self.failures += 1
            self.reason = reason
            self.wake.set()

    def fail(self, error: Exception) -> None:
        if self.phase is not Phase.COMPLETE:
            self.error = error
            self.wake.set()


def is_entry_of(node_id: str, lane_id: str) -> bool:
    """Whether the lane's id was given out by that node: `NODE.INCARNATION/NUMBER/ATTEMPT` (see
    `Frontend`'s prefix).

    Ids can be guessed. Without this check a peer could open or close what is another's.
    """
    key = lane_id.rsplit("/", 2)[0]
    return key.rpartition(".")[0] == node_id[:64]
