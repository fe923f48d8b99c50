"""`Stage`: this node's layers at work, in every epoch it serves. Owns its sequences and their KV.

Messages come in through plain methods, which never wait; `PassLoop` runs pass after pass. The stage
knows peers only as ids in an `Assignment` and reaches them through `send`. Each message is checked
against the epoch, the sender's place in it and the position expected: a hostile peer loses its own
sequences and no others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Final

from exo.inference.engines.inference_engine import InferenceEngine, Step
from exo.inference.errors import InvalidRequest, Overloaded, SequenceLost
from exo.lifecycle import (
    AsyncResource,
    ResourceDegraded,
    ResourceError,
    ResourceStatistics,
    TaskPriority,
)
from exo.networking.errors import WrongEpoch
from exo.networking.messages import Forward, Message, Open, Token
from exo.observability.request_ids import ids
from exo.pipeline.assignment import Assignment
from exo.pipeline.passes import PassFailed, PassLoop
from exo.pipeline.samplers import TokenSampler
from exo.pipeline.scheduler import Limits, Scheduler, SchedulerStatistics
from exo.pipeline.stage_sequence import StageSequence, Tombstones
from exo.pipeline.watchdog import PassWatchdog

Send = Callable[[str, Message], None]
SamplerFactory = Callable[[Open], TokenSampler]
log = logging.getLogger(__name__)
# Errors after which another attempt at the sequence may go well.
RETRYABLE: Final = (SequenceLost, Overloaded, ResourceError, PassFailed)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatistics(ResourceStatistics):
    """A snapshot. passes: begun so far. unreleased: closed sequences whose KV is still held."""

    epochs: int
    scheduler: SchedulerStatistics
    passes: int
    is_in_pass: bool
    unreleased: int


class Stage(AsyncResource):
    """samplers: makes the sampler of a sequence where this stage is the last; may raise
    `InvalidRequest`.
    """

    RESOURCE_TYPE: ClassVar[str] = "stage"

    def __init__(
        self,
        node_id: str,
        engine: InferenceEngine,
        send: Send,
        samplers: SamplerFactory,
        limits: Limits | None = None,
        watchdog: PassWatchdog | None = None,
    ) -> None:
        super().__init__(resource_id=f"stage-{node_id}", display_name=f"Stage of node {node_id}")
        self._node_id = node_id
        self._engine = engine
        self._send = send
        self._samplers = samplers
        self.watchdog = watchdog or PassWatchdog()
        self._epochs: dict[str, Assignment] = {}
        self._scheduler = Scheduler(limits)
        self._closed = Tombstones()
        self._passes = PassLoop(
            f"sampling-{node_id}", engine, self._scheduler, self.watchdog, send, self._answer
        )

    # -- life --------------------------------------------------------------------------------------

    async def _do_initialize(self) -> None:
        self.watchdog.forget()
        self._task_manager.start_task(
            "forward_passes", self._passes.run, priority=TaskPriority.HIGH
        )

    async def _do_cleanup(self) -> None:
        for epoch in list(self._epochs):
            self.retire(epoch, "the node closes")
        if not self.watchdog.is_stuck:  # otherwise this would wait for the pass that hangs
            await self._passes.release_closed()

    async def _do_health_check(self) -> bool:
        """A pass that hangs only degrades: nothing here could end it, and it may still end."""
        if self.watchdog.reason:
            raise ResourceDegraded(
                self.watchdog.reason, resource_id=self.resource_id, state=self.state
            )
        return bool(self._task_manager.tasks)

    def tick(self, now: float) -> None:
        """Call about once a second, with monotonic seconds: checks that work goes on."""
        self._passes.tick(now)

    # -- what there is -----------------------------------------------------------------------------

    @property
    def epochs(self) -> dict[str, Assignment]:
        return dict(self._epochs)

    @property
    def queued(self) -> bool:
        """Whether sequences wait here for memory."""
        return self._scheduler.waiting > 0

    @property
    def reserved(self) -> int:
        """Tokens that the sequences which run here may grow to."""
        return self._scheduler.statistics().reserved_tokens

    def live(self, epoch: str | None = None) -> int:
        """Sequences of that epoch, or all, that hold or wait for KV here."""
        return sum(epoch in (None, sequence.assignment.epoch) for sequence in self._scheduler)

    def statistics(self) -> StageStatistics:
        return StageStatistics(
            **asdict(super().statistics()),
            epochs=len(self._epochs),
            scheduler=self._scheduler.statistics(),
            passes=self._passes.passes,
            is_in_pass=self._passes.is_in_pass,
            unreleased=self._passes.unreleased,
        )

    # -- epochs ------------------------------------------------------------------------------------

    def serve(self, assignment: Assignment, *, together: bool = False) -> None:
        """Accept messages of this epoch from now on. The engine must hold its layers.

        together: all stages are on this machine and share its cores.
        """
        # The assignment of an epoch that is served already stays: its sequences refer to it.
        self._epochs.setdefault(assignment.epoch, assignment)
        self._passes.together = together and assignment.is_first and not assignment.is_last
        self._passes.stages = self._longest()
        self.fit()

    def fit(self) -> None:
        """The engine holds other layers than before, and so has more or less memory for KV."""
        limits = self._scheduler.limits
        self._scheduler.resize(
            self._engine.kv_tokens_total or limits.capacity_tokens,
            self._engine.max_sequences or limits.max_sequences,
        )

    def retire(self, epoch: str, reason: str) -> None:
        """Accept nothing of this epoch any more. Its sequences are freed here, and their entries
        asked to go on elsewhere.
        """
        if self._epochs.pop(epoch, None) is None:
            return
        self._passes.stages = self._longest()
        for sequence in self._scheduler:
            if sequence.assignment.epoch == epoch:
                self._fail(sequence, reason, retryable=True)

    def _longest(self) -> int:
        return max((len(assignment.nodes) for assignment in self._epochs.values()), default=1)

    def _assignment(self, epoch: str) -> Assignment:
        assignment = self._epochs.get(epoch)
        if assignment is None:
            raise WrongEpoch(next(reversed(self._epochs), ""))
        return assignment

    # -- messages ----------------------------------------------------------------------------------

    def open(self, sender: str, message: Open) -> None:
        """Raises `WrongEpoch`."""
        assignment = self._assignment(message.epoch)
        before = (message.entry, self._node_id) if assignment.is_first else (assignment.previous,)
        if sender not in before:
            log.warning("node %s may not open a sequence here", sender, extra=ids(message))
            return
        if message.sequence_id in self._closed or self._scheduler.get(message.sequence_id):
            return
        sequence = StageSequence.of(message, assignment)
        try:
            if assignment.is_last:
                sequence.sampler = self._samplers(message)
            self._scheduler.open(sequence, wait=assignment.is_first)
        except (Overloaded, InvalidRequest, ValueError) as error:
            self._answer(sequence, error)
            return
        log.debug("sequence opened", extra=ids(sequence))
        if assignment.next is not None:
            self._send(assignment.next, message)
        # Where the next stage is not connected, the sequence has ended within `send`.
        if assignment.is_first and sequence in self._scheduler:
            self._begin(sequence, message)

    def _begin(self, sequence: StageSequence, message: Open) -> None:
        sequence.expected = len(message.tokens)
        for step in sequence.opening_steps(message, by_step=self._engine.replays_by_step):
            self._push(sequence, step)

    def forward(self, sender: str, message: Forward) -> None:
        """Hidden states from the stage before. Raises `WrongEpoch`."""
        assignment = self._assignment(message.epoch)
        sequence = self._scheduler.get(message.sequence_id)
        if (
            sequence is None
            or sender != assignment.previous
            or sequence.assignment is not assignment
        ):
            if message.sequence_id not in self._closed:
                log.warning(
                    "node %s sent a forward of a sequence that is unknown here",
                    sender,
                    extra={"sequence_id": message.sequence_id},
                )
            return
        if message.position != sequence.expected:
            error = SequenceLost(
                sequence.sequence_id, expected=message.position, held=sequence.expected
            )
            self._answer(sequence, error)
            return
        sequence.expected += len(message.values)
        step = sequence.step(message.values, message.position, sample=message.sample)
        self._push(sequence, step)

    def token(self, sender: str, message: Token) -> None:
        """The last stage chose a token: the first stage's next chunk."""
        sequence = self._scheduler.get(message.sequence_id)
        if (
            sequence is None
            or not sequence.assignment.is_first
            or sender != sequence.assignment.last
            or message.position != sequence.expected
        ):
            return
        sequence.expected += 1
        if sequence.expected < sequence.limit:  # else it was the last: the entry closes it
            self._push(sequence, sequence.token_step(message))

    def close(self, sender: str, sequence_id: str) -> None:
        """The entry is done with a sequence, which may be known here or still be on its way."""
        sequence = self._scheduler.get(sequence_id)
        if sequence is None:
            self._closed.add(sequence_id)
        elif sender in (sequence.entry, self._node_id, *sequence.assignment.nodes):
            self._forget(sequence)

    def close_behind(self, sender: str, sequence_id: str) -> None:
        """The stage before has lost the entry of a sequence, and passes on that it is over."""
        sequence = self._scheduler.get(sequence_id)
        if sequence is not None and sender == sequence.assignment.previous:
            self._forget_and_pass_on(sequence)

    # -- losses ------------------------------------------------------------------------------------

    def forget_entry(self, node_id: str) -> None:
        """An entry node is lost: no one reads its sequences any more."""
        for sequence in self._scheduler:
            if sequence.entry == node_id:
                self._forget_and_pass_on(sequence)

    def fail_through(self, node_id: str, reason: str) -> None:
        """A stream between this node and that one broke. What was under way on it is lost, and
        this node may be the only one that knows.
        """
        for sequence in self._scheduler:
            if node_id in sequence.assignment.nodes:
                self._fail(sequence, reason, retryable=True)

    def fail(self, sequence_id: str, reason: str, *, retryable: bool) -> None:
        """Something this stage sent did not arrive, or was refused."""
        sequence = self._scheduler.get(sequence_id)
        if sequence is not None:
            self._fail(sequence, reason, retryable=retryable)

    # -- one sequence ------------------------------------------------------------------------------

    def _push(self, sequence: StageSequence, step: Step) -> None:
        if step.position + len(step.values) > sequence.limit:
            # That much memory was set aside for it: more would be taken from the others.
            reason = f"longer than the {sequence.limit} tokens it was opened for"
            self._fail(sequence, reason, retryable=False)
            return
        self._scheduler.push(sequence, step)
        self._passes.wake()

    def _answer(self, sequence: StageSequence, error: Exception) -> None:
        """Tell the entry that the sequence cannot go on here."""
        retryable = isinstance(error, RETRYABLE)
        if not retryable:
            log.warning("a sequence fails here: %s", error, exc_info=error, extra=ids(sequence))
        self._fail(sequence, str(error) or type(error).__name__, retryable=retryable)

    def _fail(self, sequence: StageSequence, reason: str, *, retryable: bool) -> None:
        if sequence.sequence_id in self._closed:
            return
        log.debug("sequence failed: %s", reason, extra=ids(sequence))
        self._forget(sequence)
        self._send(sequence.entry, sequence.failed(self._node_id, reason, retryable=retryable))

    def _forget_and_pass_on(self, sequence: StageSequence) -> None:
        """The next stages are told as well: they may have noticed the loss of the entry before the
        sequence reached them, and would keep it.
        """
        self._forget(sequence)
        if sequence.assignment.next is not None:
            self._send(sequence.assignment.next, sequence.close())

    def _forget(self, sequence: StageSequence) -> None:
        log.debug("sequence closed", extra=ids(sequence))
        self._closed.add(sequence.sequence_id)
        self._scheduler.close(sequence.sequence_id)
        self._passes.release_later(sequence)
