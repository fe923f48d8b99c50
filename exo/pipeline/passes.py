"""`PassLoop`: the forward passes of one stage, one after the other, and where their results go.

Theory of operation. Messages are handled by plain methods of the stage that never wait; they only
put chunks into the scheduler and wake this loop. The loop is the one task that awaits the engine.
So between two awaits here nothing changes, and across an await anything may: a sequence that was in
the batch may be closed while the engine computes on it. Therefore a result is used only if its
sequence is still in the scheduler, and KV is released only between passes, never under one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Final

from exo.inference.engines.inference_engine import InferenceEngine, Step
from exo.inference.engines.worker import Worker
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.shard import Shard
from exo.lifecycle import ResourceError
from exo.networking.messages import Message, Token
from exo.observability.request_ids import ids
from exo.pipeline.samplers import Array, Draw, sample
from exo.pipeline.scheduler import Batch, Scheduler
from exo.pipeline.stage_sequence import StageSequence
from exo.pipeline.watchdog import PassWatchdog

log = logging.getLogger(__name__)
# The longest that stages on one machine wait for their batches to grow into one.
TOGETHER_SECONDS: Final = 0.02
# The results of a pass that went well for their sequences.
Rows = list[tuple[StageSequence, Step, Array]]


class PassFailed(Exception):
    """A pass failed outside the engine; another attempt may go well."""


class PassLoop:
    """fail(sequence, error): the sequence cannot go on here.

    stages: of the longest ring that is served. together: all of its stages are on this machine and
    this one is the first.
    """

    def __init__(
        self,
        name: str,
        engine: InferenceEngine,
        scheduler: Scheduler,
        watchdog: PassWatchdog,
        send: Callable[[str, Message], None],
        fail: Callable[[StageSequence, Exception], None],
    ) -> None:
        self._name = name
        self._engine = engine
        self._scheduler = scheduler
        self._watchdog = watchdog
        self._send = send
        self._fail = fail
        self._wake = asyncio.Event()
        self._closed: list[StageSequence] = []  # their KV is still held
        self._mean_seconds = 0.0  # of a pass, sliding
        self.stages = 1
        self.together = False
        self.passes = 0
        self.is_in_pass = False

    @property
    def unreleased(self) -> int:
        """Closed sequences whose KV the engine has yet to release."""
        return len(self._closed)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def release_later(self, sequence: StageSequence) -> None:
        """Free its KV after the pass that runs: the engine may be computing on it."""
        self._closed.append(sequence)
        self._wake.set()

    def tick(self, now: float) -> None:
        """Call about once a second, with monotonic seconds: tells the watchdog how work goes on."""
        busy = self.is_in_pass or self._scheduler.has_work
        self._watchdog.tick(now, busy=busy, mark=self.passes + self._engine.marks)

    async def run(self) -> None:
        """Pass after pass until cancelled."""
        worker = Worker(self._name)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self.release_closed()
                while self._scheduler.has_work:
                    await self._step(worker)
        finally:
            worker.stop()

    async def _step(self, worker: Worker) -> None:
        if self.together and self._scheduler.is_partial:
            await self._wait_for_more()
        await self._reuse_prefixes()
        batch = self._scheduler.next_batch(1 if self.together else self.stages)
        if batch:  # what was ready may have been closed while this waited
            await self._pass_or_fail(batch, worker)
        await self.release_closed()
        # An engine that never waits must not keep the event loop to itself.
        await asyncio.sleep(0)

    async def _wait_for_more(self) -> None:
        """Let the batches of stages on one machine grow into one.

        On several machines the sequences of a ring are split into micro-batches, one per stage, so
        that all stages compute at the same time. On one machine the stages share the cores, so
        computing at the same time gains nothing, and each further batch costs another read of all
        the weights. There the first stage waits until every running sequence has its next token
        here, and sends them round the ring as one batch.

        Sequences that began at different times come back at different times. One wait merges them.
        What left as one batch comes back as one, so later waits find everything here and cost
        nothing. A wait ends after one round of passes at most: a sequence whose prompt is still
        being read will not be back soon, and would hold up the others all that time.
        """
        try:
            async with asyncio.timeout(min(TOGETHER_SECONDS, self.stages * self._mean_seconds)):
                while self._scheduler.is_partial:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            pass
        # It may have been set for something else, which this has just cleared.
        self._wake.set()

    async def release_closed(self) -> None:
        while self._closed:
            sequence = self._closed.pop()
            try:
                await self._engine.release(sequence.sequence_id)
            except Exception:
                log.exception("the KV of a sequence could not be released", extra=ids(sequence))

    # -- prefixes ----------------------------------------------------------------------------------

    async def _reuse_prefixes(self) -> None:
        """Let newly admitted sequences skip the part of their prompt whose KV the engine still has
        (from the same system prompt, or from earlier turns of the conversation).

        This must happen before a sequence's first pass, because the engine starts the sequence over
        when it is asked. Asking awaits the engine, and more sequences may be admitted meanwhile.
        The outer loop asks for those too: the next batch may contain them.
        """
        while admitted := self._scheduler.take_admitted():
            for sequence in admitted:
                await self._reuse_prefix(sequence)

    async def _reuse_prefix(self, sequence: StageSequence) -> None:
        """Only if this node has all the layers: the stages of a longer ring would have to agree on
        how much KV each of them still has.
        """
        assignment = sequence.assignment
        if not (assignment.is_first and assignment.is_last and sequence in self._scheduler):
            return
        prompt = sequence.steps[0].values.tolist()
        try:
            known = await self._engine.reuse_prefix(sequence.sequence_id, prompt)
        except (Overloaded, ResourceError):
            return  # the pass itself will fail, and is handled there
        if known and sequence in self._scheduler:
            self._scheduler.skip(sequence, known)

    # -- one pass ----------------------------------------------------------------------------------

    async def _pass_or_fail(self, batch: Batch, worker: Worker) -> None:
        """An unexpected error costs these sequences an attempt, and leaves the stage running."""
        self.is_in_pass = True
        try:
            await self._pass(batch, worker)
        except Exception as error:
            of = [ids(sequence) for sequence, _ in batch]
            log.exception("a forward pass failed unexpectedly", extra={"sequences": of})
            for sequence, _ in batch:
                self._fail(sequence, PassFailed(f"a pass failed: {error!r}"))
        finally:
            self.is_in_pass = False

    async def _pass(self, batch: Batch, worker: Worker) -> None:
        assignment = batch[0][0].assignment
        self.passes += 1
        self._watchdog.begin(sum(len(step.values) for _, step in batch))
        begun = perf_counter()
        results = await run_pass(self._engine, assignment.shard, batch)
        self._end(perf_counter() - begun)
        rows: Rows = []
        for (sequence, step), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                self._fail(sequence, result)
            else:
                rows.append((sequence, step, result))
        if assignment.next is not None:
            self._pass_on(rows, assignment.next)
        else:
            await self._sample([row for row in rows if row[1].rows == "last"], worker)

    def _end(self, seconds: float) -> None:
        self._watchdog.end(seconds)
        self._mean_seconds += 0.2 * (seconds - self._mean_seconds)

    def _pass_on(self, rows: Rows, target: str) -> None:
        for sequence, step, hidden in rows:
            for part in sequence.forwards(step, hidden):
                # Closed meanwhile, or failed because the part before could not be sent.
                if sequence in self._scheduler:
                    self._send(target, part)

    async def _sample(self, rows: Rows, worker: Worker) -> None:
        draws: list[Draw] = [
            (sequence.sampler, logits, step.position + len(step.values))
            for sequence, step, logits in rows
            if sequence.sampler is not None
        ]
        choices = await sample(draws, worker)
        for (sequence, _, _), choice in zip(rows, choices, strict=True):
            if sequence not in self._scheduler:
                continue
            if isinstance(choice, Exception):
                self._fail(sequence, choice)
            else:
                self._tell(sequence, choice)

    def _tell(self, sequence: StageSequence, token: Token) -> None:
        for target in dict.fromkeys((sequence.entry, sequence.assignment.first)):
            self._send(target, token)


async def run_pass(engine: InferenceEngine, shard: Shard, batch: Batch) -> list[Array | Exception]:
    """One result per chunk, in order: its array, or why this chunk alone failed.

    A lost sequence leaves the batch and the others run. After any other failure each chunk runs
    alone, so that a sequence which breaks the engine takes no other with it.
    """
    try:
        return list(await engine.infer_batch(shard, [step for _, step in batch]))
    except Exception as error:  # noqa: BLE001 - an engine may raise anything
        failure = error
    if len(batch) == 1:
        return [failure]
    if not isinstance(failure, SequenceLost):
        return [(await run_pass(engine, shard, [item]))[0] for item in batch]
    lost = failure.sequence_id
    others = [item for item in batch if item[0].sequence_id != lost]
    if len(others) == len(batch):
        return [failure for _ in batch]
    results = iter(await run_pass(engine, shard, others))
    return [failure if sequence.sequence_id == lost else next(results) for sequence, _ in batch]
