"""`Frontend`: the sequences that came in at this node. Owns admission, placement on a ring plan,
replay and the stream.

Theory of operation. A sequence runs as a series of attempts, each on one plan. An attempt never
moves: if its ring breaks, or a newer plan takes its nodes away, it is abandoned on every stage, and
the next attempt reads the prompt and the tokens produced so far as one prompt. The stream continues
after its last token, so the caller sees a pause and no more. That is safe because a token counts
only when it is exactly the next one (`OwnedSequence.accept`), because late messages carry the id of
an abandoned attempt, and because the same history gives the same next token on any node.

Knows stages only by node id, through `send`.
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
from exo.observability.request_ids import ids
from exo.pipeline import timeouts
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
    """max_requests: live and waiting.

    first_wait: seconds a new request waits for a ring; recovery: one that has run already.
    stall: seconds without a token after which an attempt is given up, on a ring of fast stages (see
        `exo.pipeline.timeouts`): a message was lost and no node noticed.
    first_stall: the most, and how long an attempt may wait for memory before its first token.
    """

    max_requests: int = 256
    first_wait: float = 10.0
    recovery: float = 60.0
    stall: float = 60.0
    first_stall: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendStatistics:
    """A snapshot. requests: live and waiting; running: of these, on a ring now; mean_seconds: that
    a request took recently.
    """

    requests: int
    running: int
    is_draining: bool
    mean_seconds: float


class Frontend:
    """prefix: makes the ids of this process's sequences unique among all nodes: `NODE.INCARNATION`.

    pace: of a plan's stages, now.
    """

    def __init__(
        self,
        node_id: str,
        prefix: str,
        send: Callable[[str, Message], None],
        plans: PlanSource,
        transcripts: TranscriptFactory,
        limits: FrontendLimits | None = None,
        pace: Callable[[RingPlan], Pace] = lambda _: Pace(),
    ) -> None:
        self.prefix = prefix
        self._node_id = node_id
        self._send = send
        self._plans = plans
        self._transcripts = transcripts
        self._limits = limits or FrontendLimits()
        self._pace = pace
        self._numbers = itertools.count(1)
        self._sequences: dict[str, OwnedSequence] = {}  # by base id
        self._running: dict[str, OwnedSequence] = {}  # by sequence id: that of the attempt
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._mean_seconds = 1.0  # of a request, sliding

    @property
    def live(self) -> int:
        return len(self._sequences)

    def statistics(self) -> FrontendStatistics:
        return FrontendStatistics(
            requests=len(self._sequences),
            running=len(self._running),
            is_draining=self._draining,
            mean_seconds=self._mean_seconds,
        )

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
                    # Before the caller sees the end: by then nothing of it is left on the ring.
                    self._finish(sequence)
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._finish(sequence)

    def _admit(self, request: GenerationRequest, transcript: Transcript) -> OwnedSequence:
        self.check_not_draining()
        if len(self._sequences) >= self._limits.max_requests:
            wait = min(30.0, max(1.0, self._mean_seconds))
            raise Overloaded(
                f"{len(self._sequences)} requests are running or waiting already", retry_after=wait
            )
        base_id = f"{self.prefix}/{next(self._numbers)}"
        sequence = OwnedSequence(base_id, request, transcript.is_end, _now())
        self._sequences[base_id] = sequence
        self._empty.clear()
        return sequence

    async def _next(self, sequence: OwnedSequence) -> Token:
        while not sequence.arrived:
            if sequence.error is not None:
                raise sequence.error
            if sequence.phase is Phase.COMPLETE:
                # Nothing more will come: an error is better than waiting without end.
                raise ExoError("the answer ended without a last token")
            if sequence.phase is Phase.WAITING:
                await self._place(sequence)
            else:
                sequence.wake.clear()
                await sequence.wake.wait()
        return sequence.arrived.popleft()

    async def _place(self, sequence: OwnedSequence) -> None:
        """Begin an attempt, as soon as there is a plan for it. Raises `RingUnavailable`."""
        allowed = self._limits.recovery
        if not sequence.attempt:
            allowed = min(self._limits.first_wait, allowed)
        left = sequence.waiting_since + allowed - _now()
        if left <= 0:
            raise RingUnavailable(
                f"no ring could go on with this request for {allowed:g} s: {sequence.reason}"
            )
        if sequence.failures > 1:  # the first replay starts at once
            await asyncio.sleep(min(1.0, left, 0.05 * 2.0 ** min(sequence.failures, 8)))
        plan = await self._plans.wait_plan(left)
        opened = sequence.place(plan, self._node_id, _now())
        self._running[sequence.sequence_id] = sequence
        log.debug("sequence placed on epoch %s", plan.epoch, extra=ids(sequence))
        self._send(plan.stages[0].node_id, opened)

    def _finish(self, sequence: OwnedSequence) -> None:
        if self._sequences.pop(sequence.base_id, None) is None:
            return
        self._release(sequence)
        self._mean_seconds += 0.1 * (_now() - sequence.opened_at - self._mean_seconds)
        if not self._sequences:
            self._empty.set()

    def _release(self, sequence: OwnedSequence) -> None:
        """Free the attempt's KV on every stage. Each is told directly: passed on from stage to
        stage, the message would end at the first one that is gone.
        """
        if self._running.pop(sequence.sequence_id, None) is None or sequence.plan is None:
            return
        message = Close(sequence_id=sequence.sequence_id, epoch=sequence.plan.epoch)
        for node_id in sequence.nodes:
            self._send(node_id, message)

    # -- what the ring says ------------------------------------------------------------------------

    def token(self, sender: str, message: Token) -> None:
        """Only the last stage says tokens."""
        sequence = self._running.get(message.sequence_id)
        if sequence is None or sequence.plan is None:
            return
        if sender != sequence.plan.stages[-1].node_id:
            return
        if message.position > sequence.length:
            reason = f"token {sequence.length} never came, token {message.position} did"
            self._replay(sequence, reason)
        elif sequence.accept(message, _now()) and sequence.phase is Phase.COMPLETE:
            self._release(sequence)

    def failed(self, sender: str, message: Failed) -> None:
        sequence = self._running.get(message.sequence_id)
        if sequence is None or sender not in (self._node_id, *sequence.nodes):
            return
        if message.retryable:
            self._replay(sequence, f"{message.node}: {message.reason}")
            return
        log.warning(
            "a sequence ends: node %s: %s", message.node, message.reason, extra=ids(sequence)
        )
        self._release(sequence)
        problem = f"node {message.node!r} could not go on with this request: {message.reason}"
        sequence.fail(ExoError(problem))

    def replay_on(self, nodes: Iterable[str], reason: str) -> None:
        """Every sequence that runs on one of these nodes goes on elsewhere."""
        gone = set(nodes)
        for sequence in list(self._running.values()):
            if not gone.isdisjoint(sequence.nodes):
                self._replay(sequence, reason)

    def leave(self, leaving: Collection[str], epoch: str) -> None:
        """A plan without these nodes is in force. What runs on them moves there now, not when they
        go.
        """
        for sequence in list(self._running.values()):
            is_older = sequence.plan is not None and sequence.plan.epoch != epoch
            if is_older and any(node_id in leaving for node_id in sequence.nodes):
                self._replay(sequence, "a node of its ring is leaving")

    def sweep(self) -> None:
        """Call about once a second: gives up attempts without progress for too long."""
        now = _now()
        # Of each plan, by epoch: worked out once, however many sequences run on it.
        paces: dict[str, Pace] = {}
        for sequence in list(self._running.values()):
            plan = sequence.plan
            if sequence.phase is not Phase.RUNNING or plan is None:
                continue
            if plan.epoch not in paces:
                paces[plan.epoch] = self._pace(plan)
            self._give_up_if_stalled(sequence, paces[plan.epoch], now)

    def _give_up_if_stalled(self, sequence: OwnedSequence, pace: Pace, now: float) -> None:
        if sequence.fresh and pace.queued and now - sequence.placed_at <= self._limits.first_stall:
            sequence.progress_at = now  # it may be one of those that wait for memory
        allowed = timeouts.allowed(
            pace,
            fresh=sequence.fresh,
            tokens=sequence.length,
            stall=self._limits.stall,
            first_stall=self._limits.first_stall,
        )
        if now - max(sequence.progress_at, sequence.placed_at) > allowed:
            self._replay(sequence, f"no token for {allowed:.3g} s")

    def _replay(self, sequence: OwnedSequence, reason: str) -> None:
        """End this attempt; the stream's own task begins the next one (see `_next`)."""
        produced = len(sequence.produced)
        log.info("sequence is replayed after %d tokens: %s", produced, reason, extra=ids(sequence))
        self._release(sequence)
        sequence.abandon(reason, _now())

    # -- drain -------------------------------------------------------------------------------------

    def stop_admission(self) -> None:
        self._draining = True

    def check_not_draining(self) -> None:
        """Raises `NodeDraining` between `stop_admission` and `admit_again`."""
        if self._draining:
            raise NodeDraining

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
        return [_described(sequence, now) for sequence in self._sequences.values()]


def _described(sequence: OwnedSequence, now: float) -> dict[str, Any]:
    age, produced = now - sequence.opened_at, len(sequence.produced)
    return {
        "request_id": sequence.request_id,
        "model_id": sequence.request.model_id,
        "state": sequence.phase.value,
        "prompt_tokens": len(sequence.request.prompt_tokens),
        "completion_tokens": produced,
        "age_seconds": round(age, 3),
        "tokens_per_second": round(produced / max(age, 1e-3), 2),
        "attempts": sequence.attempt,
    }


def _now() -> float:
    return asyncio.get_running_loop().time()
