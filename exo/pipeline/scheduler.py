"""`Scheduler`: which sequences run in the next forward pass of one stage. Pure: no clock, no
awaits, no arithmetic on tensors.

Theory of operation. Each sequence has a queue of chunks (a slice of the prompt, or one token). A
pass takes either the single tokens of many sequences (decode: one batched matmul) or chunks of some
with more to read (prefill). Where both wait, the kinds alternate, so that a decode step waits for
at most one prefill pass. Within a kind the least recently served sequence comes first, so none
starves. A sequence is admitted while the tokens it may grow to fit the KV budget. The others wait:
entry nodes take turns, and within one entry first come is first served.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from exo.inference.engines.inference_engine import Step
from exo.inference.errors import Overloaded
from exo.pipeline.stage_sequence import StageSequence

# What a pass runs: a chunk of each of these sequences.
Batch = list[tuple[StageSequence, Step]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """capacity_tokens: the KV budget; max_sequences: how many fit in it at once.

    chunk_tokens: the longest chunk of one prompt in a pass; pass_tokens: of all prompts together.
    micro_batch: with fewer decoding sequences than twice this, a pass takes all of them. With more,
        the passes of a longer ring share them, so that every stage has work at the same time. (Two
        small batches cost more than one large batch: each reads all the weights.)
    max_waiting: sequences that wait for memory.
    max_per_entry: sequences of one entry node, so that no entry takes all the places.
    """

    capacity_tokens: int = 1 << 20
    max_batch: int = 64
    chunk_tokens: int = 256
    pass_tokens: int = 512
    micro_batch: int = 8
    max_waiting: int = 1024
    max_per_entry: int = 512
    max_sequences: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """A snapshot. ready: admitted sequences with a chunk to run; reserved_tokens: of KV."""

    sequences: int = 0
    waiting: int = 0
    running: int = 0
    ready: int = 0
    reserved_tokens: int = 0


class Scheduler:
    """Owns the table of the stage's sequences. Those of different epochs never share a pass."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._reserved = 0
        self._sequences: dict[str, StageSequence] = {}
        self._per_entry: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[StageSequence]] = OrderedDict()  # by entry
        self._running: set[str] = set()
        # Admitted sequences with a chunk to run, least recently served first.
        self._decoding: OrderedDict[str, StageSequence] = OrderedDict()
        self._prefilling: OrderedDict[str, StageSequence] = OrderedDict()
        self._decoded_last = False
        self._admitted: list[StageSequence] = []

    # -- what there is -----------------------------------------------------------------------------

    def __contains__(self, sequence: StageSequence) -> bool:
        return self._sequences.get(sequence.sequence_id) is sequence

    def __iter__(self) -> Iterator[StageSequence]:
        """Over a copy: sequences may be closed on the way."""
        return iter(list(self._sequences.values()))

    def get(self, sequence_id: str) -> StageSequence | None:
        return self._sequences.get(sequence_id)

    @property
    def waiting(self) -> int:
        """Sequences that wait for memory."""
        return sum(len(sequences) for sequences in self._waiting.values())

    @property
    def has_work(self) -> bool:
        return bool(self._decoding or self._prefilling)

    @property
    def is_partial(self) -> bool:
        """Whether the next pass would decode only some of the sequences that run."""
        return not self._prefilling and 0 < len(self._decoding) < min(
            len(self._running), self.limits.max_batch
        )

    def statistics(self) -> SchedulerStatistics:
        return SchedulerStatistics(
            sequences=len(self._sequences),
            waiting=self.waiting,
            running=len(self._running),
            ready=len(self._decoding) + len(self._prefilling),
            reserved_tokens=self._reserved,
        )

    # -- admission ---------------------------------------------------------------------------------

    def open(self, sequence: StageSequence, *, wait: bool = True) -> None:
        """A new sequence. `wait` False admits it at once (the first stage has admitted it already).

        Raises `Overloaded` when too many wait, `ValueError` for one that is open already.
        """
        sequence_id, entry = sequence.sequence_id, sequence.entry
        if sequence_id in self._sequences:
            raise ValueError(f"sequence {sequence_id!r} is open already")
        if self._per_entry[entry] >= self.limits.max_per_entry:
            raise Overloaded(f"{self._per_entry[entry]} sequences of {entry!r} are here already")
        # One that is larger than the whole budget runs alone; the engine says what does not fit.
        sequence.reserve = min(max(sequence.reserve, 1), self.limits.capacity_tokens)
        if not wait or (not self._waiting and self._fits(sequence)):
            self._enter(sequence)
            self._admit(sequence)
            return
        if self.waiting >= self.limits.max_waiting:
            raise Overloaded(f"{self.waiting} sequences wait for memory already")
        self._enter(sequence)
        self._waiting.setdefault(entry, deque()).append(sequence)

    def close(self, sequence_id: str) -> bool:
        """Forget a sequence and admit those that wait; False for one that is not here."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return False
        self._per_entry[sequence.entry] -= 1
        if not self._per_entry[sequence.entry]:
            del self._per_entry[sequence.entry]
        self._decoding.pop(sequence_id, None)
        self._prefilling.pop(sequence_id, None)
        if sequence_id in self._running:
            self._running.discard(sequence_id)
            self._reserved -= sequence.reserve
        else:
            self._forget_waiting(sequence)
        self._admit_waiting()
        return True

    def resize(self, capacity_tokens: int, max_sequences: int) -> None:
        """The engine holds other layers now, which leave it more or less memory for KV."""
        self.limits = replace(
            self.limits,
            capacity_tokens=max(1, capacity_tokens),
            max_sequences=max(1, max_sequences),
        )
        for sequence in (each for sequences in self._waiting.values() for each in sequences):
            # Otherwise it would never fit, and everything behind it would wait with it.
            sequence.reserve = min(sequence.reserve, self.limits.capacity_tokens)
        self._admit_waiting()

    def take_admitted(self) -> list[StageSequence]:
        """The sequences admitted since the last call that are still here."""
        admitted, self._admitted = self._admitted, []
        return [sequence for sequence in admitted if sequence in self]

    def _enter(self, sequence: StageSequence) -> None:
        self._sequences[sequence.sequence_id] = sequence
        self._per_entry[sequence.entry] += 1

    def _fits(self, sequence: StageSequence) -> bool:
        return (
            self._reserved + sequence.reserve <= self.limits.capacity_tokens
            and len(self._running) < self.limits.max_sequences
        )

    def _admit(self, sequence: StageSequence) -> None:
        self._running.add(sequence.sequence_id)
        self._admitted.append(sequence)
        self._reserved += sequence.reserve
        if sequence.steps:
            self._ready(sequence)

    def _admit_waiting(self) -> None:
        while self._waiting:
            entry, sequences = next(iter(self._waiting.items()))
            if not self._fits(sequences[0]):
                return  # none overtakes it: a large sequence would starve
            del self._waiting[entry]
            sequence = sequences.popleft()
            if sequences:
                self._waiting[entry] = sequences  # at the end: it is the other entries' turn
            self._admit(sequence)

    def _forget_waiting(self, sequence: StageSequence) -> None:
        sequences = self._waiting[sequence.entry]
        sequences.remove(sequence)
        if not sequences:
            del self._waiting[sequence.entry]

    # -- chunks ------------------------------------------------------------------------------------

    def push(self, sequence: StageSequence, step: Step) -> None:
        """One more chunk of a sequence that is open."""
        sequence.steps.append(step)
        if len(sequence.steps) == 1 and sequence.sequence_id in self._running:
            self._ready(sequence)

    def skip(self, sequence: StageSequence, tokens: int) -> None:
        """The engine has the KV of the first `tokens` already. The sequence has not run yet."""
        first = sequence.steps[0]
        sequence.steps[0] = replace(
            first, values=first.values[tokens:], position=first.position + tokens
        )
        self._decoding.pop(sequence.sequence_id, None)
        self._prefilling.pop(sequence.sequence_id, None)
        self._ready(sequence)

    def next_batch(self, stages: int = 1) -> Batch:
        """What the next pass runs; empty when nothing is ready. `stages`: passes that share the
        decoding sequences (see `Limits.micro_batch`).
        """
        if not self.has_work:
            return []
        decode = bool(self._decoding) and not (self._prefilling and self._decoded_last)
        self._decoded_last = decode
        return self._decode_batch(stages) if decode else self._prefill_batch()

    def _decode_batch(self, stages: int) -> Batch:
        chosen = self._of_one_epoch(self._decoding)[: self._batch_size(stages)]
        for sequence in chosen:
            del self._decoding[sequence.sequence_id]
        return [(sequence, self._take(sequence, 1)) for sequence in chosen]

    def _batch_size(self, stages: int) -> int:
        running = len(self._running)
        if stages <= 1 or running < 2 * self.limits.micro_batch:
            return self.limits.max_batch
        return min(self.limits.max_batch, max(self.limits.micro_batch, -(-running // stages)))

    def _prefill_batch(self) -> Batch:
        left = self.limits.pass_tokens
        batch: Batch = []
        for sequence in self._of_one_epoch(self._prefilling):
            if left <= 0 or len(batch) >= self.limits.max_batch:
                break
            del self._prefilling[sequence.sequence_id]
            step = self._take(sequence, min(left, self.limits.chunk_tokens))
            left -= len(step.values)
            batch.append((sequence, step))
        return batch

    def _of_one_epoch(self, kind: OrderedDict[str, StageSequence]) -> list[StageSequence]:
        """Those whose epoch is that of the first: a pass runs one shard."""
        epoch = next(iter(kind.values())).assignment.epoch
        return [sequence for sequence in kind.values() if sequence.assignment.epoch == epoch]

    def _take(self, sequence: StageSequence, tokens: int) -> Step:
        """The next chunk, cut to `tokens`.

        A remainder of one token goes along with it. Alone it would run as a decode step, and
        engines may round that differently.
        """
        step = sequence.steps.popleft()
        tokens = max(tokens, 2) if len(step.values) > 1 else tokens
        if len(step.values) > tokens + 1:
            rest = replace(step, values=step.values[tokens:], position=step.position + tokens)
            sequence.steps.appendleft(rest)
            step = replace(step, values=step.values[:tokens], rows="none")
        if sequence.steps:
            self._ready(sequence)
        return step

    def _ready(self, sequence: StageSequence) -> None:
        kind = self._decoding if len(sequence.steps[0].values) == 1 else self._prefilling
        kind[sequence.sequence_id] = sequence
