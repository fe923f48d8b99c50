"""`Stage`: this node's layers at work, in every epoch it serves. Owns the lanes, their KV and the
forward passes.

Messages come in through plain methods (they never wait); one task runs pass after pass. Knows peers
only as ids in an `Assignment` and reaches them through `post`. A message is checked against the
epoch, the sender's place in it and
the position expected: a hostile peer loses its own sequences, nobody else's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from exo.inference.engines.inference_engine import InferenceEngine
from exo.inference.engines.worker import Worker
from exo.inference.errors import InvalidRequest, Overloaded, SequenceLost
from exo.lifecycle import AsyncResource, ResourceDegraded, ResourceError, TaskHandle, TaskPriority
from exo.networking.errors import WrongEpoch
from exo.networking.messages import Forward, Message, Open, Token
from exo.pipeline.assignment import Assignment
from exo.pipeline.forward_pass import Choice, Draw, TokenSampler, run_pass, sample, step_of
from exo.pipeline.prefix_cache import PrefixCache
from exo.pipeline.scheduler import Limits, Piece, Scheduler, Work, opening_pieces
from exo.pipeline.stage_sequence import StageSequence, Tombstones
from exo.pipeline.watchdog import PassWatchdog

Array = np.ndarray[Any, Any]
Post = Callable[[str, Message], None]
SamplerFactory = Callable[[Open], TokenSampler]
log = logging.getLogger(__name__)
# Of a sequence that did not say how long it may become.
MAX_LENGTH = 1 << 20
# Engines give out memory in blocks: a sequence may take up to one more than it has tokens for.
GRAIN = 64
TOGETHER_SECONDS = 0.02


class Stage(AsyncResource):
    RESOURCE_TYPE: ClassVar[str] = "stage"

    def __init__(
        self,
        node_id: str,
        engine: InferenceEngine,
        post: Post,
        samplers: SamplerFactory,
        limits: Limits | None = None,
        watch: PassWatchdog | None = None,
    ) -> None:
        super().__init__(resource_id=f"stage-{node_id}", display_name=f"Stage of node {node_id}")
        self._node_id = node_id
        self._engine = engine
        self._post = post
        self._samplers = samplers
        self._scheduler = Scheduler(limits)
        self._epochs: dict[str, Assignment] = {}
        self._lanes: dict[str, StageSequence] = {}
        self._prefixes = PrefixCache(engine, self._scheduler, self._lanes)
        self._closed = Tombstones()
        self._to_release: list[str] = []
        self._wake = asyncio.Event()
        self._passes = 0
        self._together = False
        self._pass_seconds = 0.0  # sliding mean
        self._in_hand = False
        self.watch = watch or PassWatchdog()
        self._task: TaskHandle | None = None
        self._sampling: Worker | None = None

    # -- life --------------------------------------------------------------------------------------

    async def _do_initialize(self) -> None:
        self.watch.forget()
        self._sampling = Worker(f"sampling-{self._node_id}")
        self._task = self._task_manager.start_task(
            "forward_passes", self._run, priority=TaskPriority.HIGH
        )

    async def _do_cleanup(self) -> None:
        for epoch in list(self._epochs):
            self.retire(epoch, "the node closes")
        if not self.watch.is_stuck:  # else this would wait for what hangs
            await self._release_closed()
        if self._sampling is not None:
            self._sampling.stop()
        self._sampling = self._task = None

    async def _do_health_check(self) -> bool:
        """A pass that hangs only degrades: nothing here could bring it back,
        and it may still end.
        """
        if self.watch.reason:
            raise ResourceDegraded(
                self.watch.reason, resource_id=self.resource_id, state=self.state
            )
        return self._task is not None and not self._task.done()

    def look(self, now: float) -> None:
        """Call about once a second: whether what there is to do goes on. `now`:
        monotonic seconds.
        """
        busy = self._in_hand or self._scheduler.has_work
        self.watch.tick(now, busy=busy, mark=self._passes + self._engine.marks)

    @property
    def queued(self) -> bool:
        """Whether sequences wait here for memory."""
        return self._scheduler.waiting > 0

    # -- epochs ------------------------------------------------------------------------------------

    @property
    def epochs(self) -> dict[str, Assignment]:
        return dict(self._epochs)

    def serve(self, assignment: Assignment, *, together: bool = False) -> None:
        """Accept messages of this epoch from now on. The engine must hold its layers.

        together: all stages are on this machine and share its cores.
        """
        self._together = together and assignment.is_first and not assignment.is_last
        # One that is served already stays the very same: its sequences go on.
        self._epochs.setdefault(assignment.epoch, assignment)
        self.fit()

    def fit(self) -> None:
        """The engine holds other layers than before: its room is another."""
        limits = self._scheduler.limits
        self._scheduler.resize(
            self._engine.kv_tokens_total or limits.capacity_tokens,
            self._engine.max_sequences or limits.max_lanes,
        )

    def retire(self, epoch: str, reason: str) -> None:
        """Accept nothing of this epoch any more; its sequences are freed and their entries told to
        go on elsewhere.
        """
        if self._epochs.pop(epoch, None) is None:
            return
        for lane in [lane for lane in self._lanes.values() if lane.assignment.epoch == epoch]:
            self._fail(lane, reason, retryable=True)

    def live(self, epoch: str | None = None) -> int:
        """Sequences of that epoch, or all, that hold or wait for KV here."""
        return sum(epoch is None or lane.assignment.epoch == epoch for lane in self._lanes.values())

    @property
    def reserved(self) -> int:
        """Tokens that the sequences which run here may grow to."""
        return self._scheduler.reserved

    @property
    def passes(self) -> int:
        return self._passes

    # -- messages ----------------------------------------------------------------------------------

    def open(self, sender: str, message: Open) -> None:
        """Raises `WrongEpoch`."""
        assignment = self._assignment(message.epoch)
        if sender not in (
            (message.entry, self._node_id) if assignment.is_first else (assignment.previous,)
        ):
            return log.warning("%s may not open %s here", sender, message.sequence_id)
        if message.sequence_id in self._closed or message.sequence_id in self._lanes:
            return None
        reserve = max(message.max_length, len(message.tokens))
        limit = reserve if message.max_length else MAX_LENGTH
        pieces = opening_pieces(
            message.tokens, message.prompt_length, by_step=self._engine.replays_by_step
        )
        lane = StageSequence(
            message.sequence_id, message.entry, assignment, 0, limit, pieces[0].values, None
        )
        try:
            if assignment.is_last:
                lane.sampler = self._samplers(message)
            self._scheduler.open(
                lane.sequence_id,
                owner=lane.entry,
                group=lane.assignment.epoch,
                reserve=reserve + GRAIN,
                wait=assignment.is_first,
            )
        except (Overloaded, InvalidRequest, ValueError) as error:
            return self._answer(lane, error)
        self._lanes[lane.sequence_id] = lane
        if assignment.next is not None:
            self._post(assignment.next, message)
        # Else the next stage is not connected.
        if assignment.is_first and lane.sequence_id in self._lanes:
            lane.expected = len(message.tokens)
            for piece in pieces:
                self._push(lane, piece)

    def forward(self, sender: str, message: Forward) -> None:
        """Hidden states of the stage before. Raises `WrongEpoch`."""
        assignment = self._assignment(message.epoch)
        lane = self._lanes.get(message.sequence_id)
        if lane is None or sender != assignment.previous or lane.assignment is not assignment:
            if message.sequence_id not in self._closed:
                log.warning(
                    "%s sent a forward of %s, which is unknown here", sender, message.sequence_id
                )
            return
        if message.position != lane.expected:
            error = SequenceLost(lane.sequence_id, expected=message.position, held=lane.expected)
            return self._answer(lane, error)
        lane.expected += len(message.values)
        self._push(lane, Piece(message.position, message.values, message.sample))

    def token(self, sender: str, message: Token) -> None:
        """The last stage chose a token: the first stage's next step."""
        lane = self._lanes.get(message.sequence_id)
        if lane is None or not lane.assignment.is_first or sender != lane.assignment.last:
            return
        if message.position != lane.expected:
            return
        lane.expected += 1
        if lane.expected < lane.limit:  # else it was the last one: the entry closes the sequence
            self._push(lane, Piece(message.position, (message.token,), sample=True))

    def close(self, sender: str, sequence_id: str) -> None:
        """The entry is done with a sequence, known here or still on its way."""
        lane = self._lanes.get(sequence_id)
        if lane is not None and sender in (lane.entry, self._node_id, *lane.assignment.nodes):
            self._forget(lane)
        elif lane is None:
            self._closed.add(sequence_id)

    def close_behind(self, sender: str, sequence_id: str) -> None:
        """The stage before has lost the entry of a sequence, and passes on that it is over."""
        lane = self._lanes.get(sequence_id)
        if lane is not None and sender == lane.assignment.previous:
            self._forget_and_pass_on(lane)

    def forget_entry(self, node_id: str) -> None:
        """An entry node is lost: nobody reads its sequences any more."""
        for lane in [lane for lane in self._lanes.values() if lane.entry == node_id]:
            self._forget_and_pass_on(lane)

    def _forget_and_pass_on(self, lane: StageSequence) -> None:
        """The next stages may have noticed the entry's loss before the sequence reached them."""
        self._forget(lane)
        if lane.assignment.next is not None:
            self._post(lane.assignment.next, lane.close())

    def fail_through(self, node_id: str, reason: str) -> None:
        """A stream from or to this stage's node broke: what was under way on it is lost, and nobody
        else may notice.
        """
        for lane in [lane for lane in self._lanes.values() if node_id in lane.assignment.nodes]:
            self._fail(lane, reason, retryable=True)

    def fail(self, sequence_id: str, reason: str, *, retryable: bool) -> None:
        """Something this stage sent did not arrive, or was refused."""
        lane = self._lanes.get(sequence_id)
        if lane is not None:
            self._fail(lane, reason, retryable=retryable)

    # -- passes ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._release_closed()
            while self._scheduler.has_work:
                if self._together and self._scheduler.is_partial:
                    await self._wait_for_more()
                await self._prefixes.reuse()
                batch = self._scheduler.next_batch(1 if self._together else self._stages())
                if batch:  # while this waited, those that were ready may have been closed
                    await self._pass_or_fail(batch)
                await self._release_closed()
                # An engine that never waits must not keep the event loop to itself.
                await asyncio.sleep(0)

    async def _wait_for_more(self) -> None:
        """Stages that share their cores gain nothing from working at once: let their batches grow
        into one.

        What was one batch comes back as one, so this waits only until the groups have met; and
        never for longer than a round of passes takes, which is what a sequence that is still being
        prefilled would cost the others.
        """
        try:
            async with asyncio.timeout(min(TOGETHER_SECONDS, self._stages() * self._pass_seconds)):
                while self._scheduler.is_partial:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.set()

    def _stages(self) -> int:
        return max((len(assignment.nodes) for assignment in self._epochs.values()), default=1)

    async def _pass_or_fail(self, batch: list[Work]) -> None:
        """Whatever goes wrong costs these sequences an attempt, and nobody the stage."""
        self._in_hand = True
        try:
            await self._pass(batch)
        except Exception as error:
            log.exception("a pass failed in an unforeseen way")
            for work in batch:
                self.fail(work.lane_id, f"a pass failed: {error!r}", retryable=True)
        finally:
            self._in_hand = False

    async def _pass(self, batch: list[Work]) -> None:
        lanes = [self._lanes[work.lane_id] for work in batch]
        assignment = lanes[0].assignment
        self._passes += 1
        self.watch.begin(sum(len(work.piece.values) for work in batch))
        begun = time.perf_counter()
        results = await run_pass(
            self._engine, assignment.shard, [step_of(work, assignment) for work in batch]
        )
        took = time.perf_counter() - begun
        self.watch.end(took)
        self._pass_seconds += 0.2 * (took - self._pass_seconds)
        good: list[tuple[StageSequence, Piece, Array]] = []
        for lane, work, result in zip(lanes, batch, results, strict=True):
            if isinstance(result, Exception):
                self._answer(lane, result)
            else:
                good.append((lane, work.piece, result))
        if assignment.is_last:
            await self._sample([item for item in good if item[1].sample])
        else:
            for lane, piece, result in good:
                self._pass_on(lane, piece, result)

    def _pass_on(self, lane: StageSequence, piece: Piece, hidden: Array) -> None:
        target = lane.assignment.next
        if target is None:
            return
        for part in lane.forward(piece, hidden).parts():
            # Closed meanwhile, or ended because the part before could not be sent.
            if lane.sequence_id not in self._lanes:
                return
            self._post(target, part)

    async def _sample(self, rows: list[tuple[StageSequence, Piece, Array]]) -> None:
        draws = [
            Draw(lane.sampler, logits, piece.position + len(piece.values))
            for lane, piece, logits in rows
            if lane.sampler is not None
        ]
        assert self._sampling is not None
        choices = await sample(draws, self._sampling)
        for (lane, _, _), draw, choice in zip(rows, draws, choices, strict=True):
            if lane.sequence_id not in self._lanes:
                continue
            if isinstance(choice, Exception):
                self._answer(lane, choice)
            else:
                self._tell(lane, draw.position, choice)

    def _tell(self, lane: StageSequence, position: int, choice: Choice) -> None:
        token = lane.token(position, choice)
        for target in dict.fromkeys((lane.entry, lane.assignment.first)):
            self._post(target, token)

    # -- lanes -------------------------------------------------------------------------------------

    def _assignment(self, epoch: str) -> Assignment:
        assignment = self._epochs.get(epoch)
        if assignment is None:
            raise WrongEpoch(next(reversed(self._epochs), ""))
        return assignment

    def _push(self, lane: StageSequence, piece: Piece) -> None:
        if piece.position + len(piece.values) > lane.limit:
            # Memory was set aside for what it said: more would be taken from the others.
            return self._fail(
                lane, f"longer than the {lane.limit} tokens it was opened for", retryable=False
            )
        self._scheduler.push(lane.sequence_id, piece)
        self._wake.set()

    def _answer(self, lane: StageSequence, error: Exception) -> None:
        retryable = isinstance(error, SequenceLost | Overloaded | ResourceError)
        if not retryable:
            log.warning("sequence %s fails here: %s", lane.sequence_id, error, exc_info=error)
        self._fail(lane, str(error) or type(error).__name__, retryable=retryable)

    def _fail(self, lane: StageSequence, reason: str, *, retryable: bool) -> None:
        if lane.sequence_id in self._closed:
            return
        self._forget(lane)
        self._post(lane.entry, lane.failed(self._node_id, reason, retryable=retryable))

    def _forget(self, lane: StageSequence) -> None:
        self._closed.add(lane.sequence_id)
        self._lanes.pop(lane.sequence_id, None)
        self._scheduler.close(lane.sequence_id)
        self._to_release.append(lane.sequence_id)
        self._wake.set()

    async def _release_closed(self) -> None:
        """Between passes only: the engine is not asked to drop what it computes on."""
        while self._to_release:
            lane_id = self._to_release.pop()
            try:
                await self._engine.release(lane_id)
            except Exception:
                log.exception("the KV of %s could not be released", lane_id)
