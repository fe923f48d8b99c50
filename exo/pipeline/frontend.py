"""`Frontend`: the sequences that came in at this node. Owns admission, placement on a ring plan,
replay and the stream.

A sequence whose ring breaks is abandoned everywhere and replayed: prompt and produced tokens go to
the next plan as one prompt, and the stream goes on behind the last token. Knows stages only by node
id, through `post`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from exo.inference.errors import ExoError, NodeDraining, Overloaded, RingUnavailable
from exo.inference.generation import GenerationChunk, GenerationRequest
from exo.networking.messages import Close, Failed, Message, Token
from exo.pipeline import timeouts as stall
from exo.pipeline.sequence import OwnedSequence, Phase
from exo.pipeline.timeouts import Pace
from exo.pipeline.transcript import Transcript
from exo.topology import RingPlan

log = logging.getLogger(__name__)
TranscriptFactory = Callable[[GenerationRequest], Transcript]


class PlanSource(Protocol):
    async def wait_plan(self, timeout: float) -> RingPlan:
        """The plan in force, as soon as there is one. Raises `RingUnavailable` with what is
        missing.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendLimits:
    """max_requests: live and waiting. first_wait: seconds a new request waits for a ring, recovery:
    one that runs.

    stall: seconds without a token after which an attempt is given up (a message was lost without
    anybody noticing), where the stages are quick (see `exo.pipeline.timeouts`); first_stall: the
    most, and for how long it may wait for memory before its first token.
    """

    max_requests: int = 256
    first_wait: float = 10.0
    recovery: float = 60.0
    stall: float = 60.0
    first_stall: float = 600.0


class Frontend:
    """`prefix` makes the keys of this process's sequences unique in the cluster. pace: of a plan's
    stages, now.
    """

    def __init__(
        self,
        node_id: str,
        prefix: str,
        post: Callable[[str, Message], None],
        plans: PlanSource,
        transcripts: TranscriptFactory,
        limits: FrontendLimits | None = None,
        pace: Callable[[RingPlan], Pace] = lambda _: Pace(),
    ) -> None:
        self._node_id = node_id
        self._prefix = prefix
        self._post = post
        self._plans = plans
        self._transcripts = transcripts
        self._limits = limits or FrontendLimits()
        self._pace = pace
        self._numbers = itertools.count(1)
        self._sequences: dict[str, OwnedSequence] = {}  # by key
        self._lanes: dict[str, OwnedSequence] = {}  # by the lane id of the attempt that runs
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._mean_seconds = 1.0  # of a request, sliding

    @property
    def live(self) -> int:
        return len(self._sequences)

    # -- requests ----------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """See `Backend.process_tokens`; the request has been checked."""
        transcript = self._transcripts(request)
        if request.max_tokens < 1:
            yield transcript.empty()
            return
        sequence = self._admit(request, transcript)
        try:
            while True:
                chunk = transcript.push(await self._next(sequence))
                if chunk.finish_reason is not None:
                    # Before the caller sees the end: nothing of it is left by then.
                    self._finish(sequence)
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._finish(sequence)

    def _admit(self, request: GenerationRequest, transcript: Transcript) -> OwnedSequence:
        if self._draining:
            raise NodeDraining(f"node {self._node_id!r} is leaving: ask another one")
        if len(self._sequences) >= self._limits.max_requests:
            wait = min(30.0, max(1.0, self._mean_seconds))
            raise Overloaded(
                f"{len(self._sequences)} requests are running or waiting already", retry_after=wait
            )
        sequence = OwnedSequence(
            f"{self._prefix}/{next(self._numbers)}", request, transcript.is_end, _now()
        )
        self._sequences[sequence.key] = sequence
        self._empty.clear()
        return sequence

    async def _next(self, sequence: OwnedSequence) -> Token:
        while not sequence.arrived:
            if sequence.error is not None:
                raise sequence.error
            if sequence.phase is Phase.COMPLETE:
                # Nothing more comes: better this than silence.
                raise ExoError("the answer ended without a last token")
            if sequence.phase is Phase.WAITING:
                await self._place(sequence)
            else:
                sequence.wake.clear()
                await sequence.wake.wait()
        return sequence.arrived.popleft()

    async def _place(self, sequence: OwnedSequence) -> None:
        allowed = (
            self._limits.recovery
            if sequence.attempt
            else min(self._limits.first_wait, self._limits.recovery)
        )
        left = sequence.waiting_since + allowed - _now()
        if left <= 0:
            raise RingUnavailable(
                f"no ring could go on with this request for {allowed:g} s: {sequence.reason}"
            )
        if sequence.failures > 1:  # the first replay starts at once
            await asyncio.sleep(min(1.0, left, 0.05 * 2.0 ** min(sequence.failures, 8)))
        plan = await self._plans.wait_plan(left)
        max_length = len(sequence.request.prompt_tokens) + sequence.request.max_tokens
        opened = sequence.place(plan, self._node_id, max_length, _now())
        self._lanes[sequence.lane_id] = sequence
        self._post(plan.stages[0].node_id, opened)

    def _finish(self, sequence: OwnedSequence) -> None:
        if self._sequences.pop(sequence.key, None) is None:
            return
        self._release(sequence)
        self._mean_seconds += 0.1 * (_now() - sequence.opened_at - self._mean_seconds)
        if not self._sequences:
            self._empty.set()

    def _release(self, sequence: OwnedSequence) -> None:
        """Free the attempt's KV on every stage: each is told directly, so that a broken one hides
        no other.
        """
        if self._lanes.pop(sequence.lane_id, None) is None or sequence.plan is None:
            return
        message = Close(sequence_id=sequence.lane_id, epoch=sequence.plan.epoch)
        for stage in sequence.plan.stages:
            self._post(stage.node_id, message)

    # -- what the ring says ------------------------------------------------------------------------

    def token(self, sender: str, message: Token) -> None:
        sequence = self._lanes.get(message.sequence_id)
        if sequence is None or sequence.plan is None or sender != sequence.plan.stages[-1].node_id:
            return
        if message.position > sequence.length:
            self._replay(
                sequence, f"token {sequence.length} never came, token {message.position} did"
            )
        elif sequence.accept(message, _now()) and sequence.phase is Phase.COMPLETE:
            self._release(sequence)

    def failed(self, sender: str, message: Failed) -> None:
        sequence = self._lanes.get(message.sequence_id)
        if sequence is None or sequence.plan is None:
            return
        if sender not in (self._node_id, *(stage.node_id for stage in sequence.plan.stages)):
            return
        if message.retryable:
            self._replay(sequence, f"{message.node}: {message.reason}")
        else:
            self._release(sequence)
            sequence.fail(
                ExoError(
                    f"node {message.node!r} could not go on with this request: {message.reason}"
                )
            )

    def replay_on(self, nodes: Iterable[str], reason: str) -> None:
        """Every sequence that runs on one of these nodes goes on elsewhere."""
        gone = set(nodes)
        for sequence in list(self._lanes.values()):
            if sequence.plan is not None and any(
                stage.node_id in gone for stage in sequence.plan.stages
            ):
                self._replay(sequence, reason)

    def leave(self, leaving: Collection[str], epoch: str) -> None:
        """A plan without these nodes is in force: what runs on them moves there now, not when they
        go.
        """
        for sequence in list(self._lanes.values()):
            plan = sequence.plan
            if (
                plan is not None
                and plan.epoch != epoch
                and any(each.node_id in leaving for each in plan.stages)
            ):
                self._replay(sequence, "a node of its ring is leaving")

    def sweep(self) -> None:
        """Call about once a second: an attempt without progress for too long is given up."""
        now = _now()
        # Of each plan, by epoch: worked out once, however many run by it.
        paces: dict[str, Pace] = {}
        for sequence in list(self._lanes.values()):
            plan = sequence.plan
            if sequence.phase is not Phase.RUNNING or plan is None:
                continue
            if plan.epoch not in paces:
                paces[plan.epoch] = self._pace(plan)
            self._give_up_if_stalled(sequence, paces[plan.epoch], now)

    def _give_up_if_stalled(self, sequence: OwnedSequence, pace: Pace, now: float) -> None:
        if sequence.fresh and pace.queued and now - sequence.placed_at <= self._limits.first_stall:
            sequence.progress_at = now  # it may be one of those that wait for memory
        allowed = stall.allowed(
            pace,
            fresh=sequence.fresh,
            tokens=sequence.length,
            stall=self._limits.stall,
            first_stall=self._limits.first_stall,
        )
        if now - max(sequence.progress_at, sequence.placed_at) > allowed:
            self._replay(sequence, f"no token for {allowed:.3g} s")

    def _replay(self, sequence: OwnedSequence, reason: str) -> None:
        log.info(
            "sequence %s is replayed after %d tokens: %s",
            sequence.key,
            len(sequence.produced),
            reason,
        )
        self._release(sequence)
        sequence.abandon(reason, _now())

    # -- drain -------------------------------------------------------------------------------------

    def stop_admission(self) -> None:
        self._draining = True

    def admit_again(self) -> None:
        self._draining = False

    async def wait_empty(self, timeout: float) -> bool:
        """Whether all requests were over within the time."""
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def abort_all(self, error: Exception) -> None:
        """The callers get `error` at their next step."""
        for sequence in list(self._sequences.values()):
            self._release(sequence)
            sequence.fail(error)

    def describe(self) -> list[dict[str, Any]]:
        """For `NodeView.describe_requests`."""
        now = _now()
        return [
            {
                "request_id": sequence.request.request_id,
                "model_id": sequence.request.model_id,
                "state": sequence.phase.value,
                "prompt_tokens": len(sequence.request.prompt_tokens),
                "completion_tokens": len(sequence.produced),
                "age_seconds": round(now - sequence.opened_at, 3),
                "tokens_per_second": round(
                    len(sequence.produced) / max(now - sequence.opened_at, 1e-3), 2
                ),
                "attempts": sequence.attempt,
            }
            for sequence in self._sequences.values()
        ]


def _now() -> float:
    return asyncio.get_running_loop().time()
