"""`OwnedSequence`: one sequence at its entry node: what it has produced, where it runs now, and how
it goes on. No I/O.
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
    COMPLETE = "complete"  # all tokens are here; the caller has not taken all of them


class OwnedSequence:
    """base_id: unique among all nodes. `sequence_id` adds the number of the attempt: a late message
    of an abandoned attempt then belongs to no sequence, instead of to the wrong one.

    Times are those of the event loop's clock, in seconds.
    """

    def __init__(
        self,
        base_id: str,
        request: GenerationRequest,
        is_end: Callable[[int, int], bool],
        now: float,
    ) -> None:
        self.base_id = base_id
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
    def sequence_id(self) -> str:
        return f"{self.base_id}/{self.attempt}"

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def length(self) -> int:
        return len(self.request.prompt_tokens) + len(self.produced)

    @property
    def nodes(self) -> list[str]:
        """Of the plan it runs on, in the order of the ring; none while it waits."""
        return [] if self.plan is None else [stage.node_id for stage in self.plan.stages]

    def place(self, plan: RingPlan, entry: str, now: float) -> Open:
        """A new attempt on `plan`; the message that begins it.

        What was produced so far follows the prompt, so the ring continues where the last attempt
        ended. `prompt_length` keeps the two apart, for penalties, constraints and engines
        that replay by step.
        """
        request = self.request
        self.attempt += 1
        self.fresh = True
        self.placed_at = now
        self.plan = plan
        self.phase = Phase.RUNNING
        return Open(
            sequence_id=self.sequence_id,
            epoch=plan.epoch,
            entry=entry,
            tokens=(*request.prompt_tokens, *self.produced),
            prompt_length=len(request.prompt_tokens),
            params=request.params,
            max_length=len(request.prompt_tokens) + request.max_tokens,
            request_id=request.request_id,
        )

    def accept(self, token: Token, now: float) -> bool:
        """Take the token if it is the next one; False for a duplicate or a late one."""
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
        """The attempt is over; the next one continues after what was produced."""
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


def is_entry_of(node_id: str, sequence_id: str) -> bool:
    """Whether that node gave out the id: `NODE.INCARNATION/NUMBER/ATTEMPT` (see `Frontend`).

    Ids can be guessed. Without this check a peer could open or close the sequences of another.
    """
    base = sequence_id.rsplit("/", 2)[0]
    return base.rpartition(".")[0] == node_id[:64]
