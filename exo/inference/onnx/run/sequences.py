"""`Sequences`: batches of steps on a `ShardSession`: slots, room, prefixes, chunks. Knows no
weights.

Steps of one token run together, in adjacent slots of the KV cache. Longer ones run one after the
other, in chunks, so that attention's scratch memory is bounded and a cancelled pass ends soon.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import Step
from exo.inference.engines.long_rope import LongRope
from exo.inference.engines.prefixes import SHORTEST_PREFIX
from exo.inference.errors import InvalidRequest
from exo.inference.models import ModelConfig
from exo.inference.onnx.graph.decoder import DecoderSpec
from exo.inference.onnx.run.decode_fast_path import DecodeFastPath
from exo.inference.onnx.run.kv_buffers import KvBuffers
from exo.inference.onnx.run.session import ShardSession
from exo.inference.onnx.run.slots import SlotTable, grained, window_of

# Most and fewest tokens of one pass over one sequence. Small chunks compute less of attention's
# masked upper half and need less scratch memory; below the fewest, weights would be read too often.
CHUNK: Final = 40
MIN_CHUNK: Final = 16
# Tokens of a prompt that are computed even where all are held: one alone would be a step, which
# rounds differently.
REST: Final = 2
# Multiplications of a chunk, so that a cancelled prompt of a large model ends within about a second
# on a few cores.
CHUNK_WORK: Final = 50e9
# How many batches are remembered: the groups of a pipeline take turns.
MAX_FAST_PATHS: Final = 8


def chunk_size(spec: DecoderSpec, config: ModelConfig) -> int:
    """Tokens of one pass over one sequence."""
    attention = 2 * config.heads * config.head_dim + 2 * config.kv_heads * config.head_dim
    per_token = len(spec.layers) * config.hidden * (attention + 3 * config.ffn)
    return int(max(MIN_CHUNK, min(CHUNK, CHUNK_WORK // per_token)))


def chunks_of(length: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of each pass. A single token at the end joins the chunk before it: alone it
    would be a step, which rounds differently.
    """
    starts = list(range(0, max(1, length - 1), size))
    return list(zip(starts, [*starts[1:], length], strict=True))


@dataclass(slots=True, eq=False)
class _Place:
    """A step and how much of it is already held: `position` tokens of the sequence, `values` still
    to compute.
    """

    step: Step
    position: int
    values: Array
    is_new: bool

    @property
    def sequence_id(self) -> str:
        return self.step.sequence_id


class Sequences:
    """Not thread-safe: the engine's worker thread owns it."""

    def __init__(
        self,
        session: ShardSession,
        spec: DecoderSpec,
        config: ModelConfig,
        n_slots: int,
        kv_budget: int,
    ) -> None:
        self._session = session
        self._spec = spec
        self._chunk = chunk_size(spec, config)
        self._config = config
        self._buffers = KvBuffers(
            spec.layers, n_slots, spec.n_kv_heads, spec.head_dim, config.context_length
        )
        self.table = SlotTable(n_slots, kv_budget // self._buffers.bytes_per_token)
        self._long_rope = LongRope(config.rope)
        # By the ids of the sequences, in order.
        self._fast_paths: OrderedDict[tuple[str, ...], DecodeFastPath] = OrderedDict()

    def forward(self, steps: Sequence[Step], cancel: Callable[[], None]) -> list[Array]:
        """One pass. Raises `SequenceLost` or `Overloaded` before computing; when cancelled, lengths
        are as before.
        """
        path = self._fast_paths.get(tuple(step.sequence_id for step in steps))
        if path is not None and path.goes_on(steps, self.table, self._buffers.capacity):
            return self._go_on(path, steps, cancel)
        self._check(steps)
        places = self._place(steps)
        try:
            return self._compute(places, cancel)
        except BaseException:
            self._roll_back(places)
            raise

    def reuse(self, sequence_id: str, tokens: Array, limit: int) -> int:
        """Begin `sequence_id` with what is held of its beginning; returns how many positions that
        is.
        """
        self._forget(sequence_id)
        long = self._long_rope.is_needed(sequence_id, len(tokens))
        held = self._begin(sequence_id, tokens, min(limit, len(tokens) - REST), long, keep=set())
        # Known from now on, also where later steps bring hidden states only.
        slot = self.table.find(sequence_id)
        assert slot is not None
        self.table[slot].tokens = tokens
        return held

    def release(self, sequence_id: str) -> None:
        slot = self.table.find(sequence_id)
        if slot is not None:
            for free in self.table.release(slot):
                self._buffers.clear(free)

    def close(self) -> None:
        self._session.close()
        self._buffers.close()

    # Before a pass.

    def _check(self, steps: Sequence[Step]) -> None:
        if len({step.sequence_id for step in steps}) < len(steps):
            raise InvalidRequest("two steps of one sequence in a batch", field="sequence_id")
        for step in steps:
            self.table.check(step.sequence_id, step.position)
            self._long_rope.check(step, is_long=self.table.is_long(step.sequence_id))

    def _place(self, steps: Sequence[Step]) -> list[_Place]:
        """Give each step a slot and all of them room; take over what other sequences have already
        computed.
        """
        for step in steps:
            if step.position == 0 and not self._is_fresh(step.sequence_id):
                self._forget(step.sequence_id)
        keep = {slot for step in steps if (slot := self.table.find(step.sequence_id)) is not None}
        room = sum(
            grained(step.position + len(step.values)) - grained(step.position) for step in steps
        )
        for slot in self.table.make_room(room, keep):
            self._buffers.clear(slot)
        places: list[_Place] = []
        for step in steps:
            position = step.position
            if position == 0 and self.table.find(step.sequence_id) is None:
                long = self._long_rope.is_needed(step.sequence_id, len(step.values))
                limit = len(step.values) - REST if self._may_borrow(step) else 0
                ids = step.values.astype(np.int64) if self._spec.first else np.empty(0, np.int64)
                position = self._begin(step.sequence_id, ids, limit, long, keep)
            places.append(
                _Place(step, position, step.values[position - step.position :], step.position == 0)
            )
        # One more than the longest: the slot of another sequence that is run along with a batch
        # gets one position written after its end.
        lengths = self.table.lengths()
        longest = max(*lengths, *(p.step.position + len(p.step.values) for p in places))
        if self._buffers.grow(longest + 1, lengths):
            self._session.forget_buffers()
        return places

    def _may_borrow(self, step: Step) -> bool:
        """Only where no other stage waits for these rows, and not all logits are wanted."""
        return self._spec.first and self._spec.last and step.rows != "all"

    def _begin(
        self, sequence_id: str, tokens: Array, limit: int, long: bool, keep: set[int]
    ) -> int:
        """Put a new sequence into a slot, with the KV of its beginning where that is held. Adds the
        slot to `keep`.
        """
        prefix = (
            self.table.best_prefix(tokens, limit, long=long) if limit >= SHORTEST_PREFIX else None
        )
        if prefix is None:
            slot, dirty = self.table.take_slot(keep)
            if dirty:
                self._buffers.clear(slot)
            self.table.put(slot, sequence_id, length=0, tokens=tokens[:0], long=long)
            keep.add(slot)
            return 0
        source = self.table[prefix.slot]
        if not source.live and 2 * prefix.length >= source.length:
            slot = prefix.slot  # the next turn of a chat: no copy
        else:
            slot, dirty = self.table.take_slot({*keep, prefix.slot})
            if dirty:
                self._buffers.clear(slot)
            self._buffers.copy(prefix.slot, slot, prefix.length)
        self.table.put(
            slot,
            sequence_id,
            length=prefix.length,
            tokens=tokens[: prefix.length].copy(),
            long=long,
        )
        keep.add(slot)
        return prefix.length

    def _is_fresh(self, sequence_id: str) -> bool:
        """Whether `reuse` has begun it and found nothing."""
        slot = self.table.find(sequence_id)
        return slot is not None and self.table[slot].length == 0

    def _forget(self, sequence_id: str) -> None:
        """The sequence begins again; what it held may still serve as a prefix, even its own."""
        self.release(sequence_id)

    def _roll_back(self, places: Sequence[_Place]) -> None:
        for place in places:
            slot = self.table.find(place.sequence_id)
            if slot is None:
                continue
            if place.is_new:
                self.release(place.sequence_id)
            else:
                self.table.truncate(slot, place.step.position)

    # The pass.

    def _compute(self, places: Sequence[_Place], cancel: Callable[[], None]) -> list[Array]:
        results: dict[str, Array] = {}
        single: dict[bool, list[_Place]] = {False: [], True: []}
        for place in places:
            if len(place.values) == 1:
                single[self._slot(place)[1]].append(place)
        for long, group in single.items():
            if group:
                cancel()
                self._decode(group, long, results)
        for place in places:
            if len(place.values) > 1:
                results[place.sequence_id] = self._prefill(place, cancel)
        return [results[place.sequence_id] for place in places]

    def _slot(self, place: _Place) -> tuple[int, bool]:
        slot = self.table.find(place.sequence_id)
        assert slot is not None  # _place has put it there
        return slot, self.table[slot].long

    def _decode(self, places: Sequence[_Place], long: bool, results: dict[str, Array]) -> None:
        """One token of each of the sequences, in one pass."""
        slots = [self._slot(place)[0] for place in places]
        start, stop, swaps = window_of(slots, len(self.table.slots))
        for a, b in swaps:
            lengths = self.table.lengths()
            self._buffers.swap(a, lengths[a], b, lengths[b])
            self.table.swap(a, b)
        if swaps:
            slots = [self._slot(place)[0] for place in places]
        lengths_after = np.array(self.table.lengths()[start:stop], np.int64) + 1
        shape = (stop - start, 1) if self._spec.first else (stop - start, 1, self._spec.hidden)
        values = np.zeros(shape, np.int64 if self._spec.first else np.float32)
        at = np.array(slots) - start
        values[at] = np.stack([place.values for place in places])
        rows = at if self._spec.last else None
        out = self._session.run(self._buffers, start, values, lengths_after, rows, long_rope=long)
        for i, (place, slot) in enumerate(zip(places, slots, strict=True)):
            self._extend(slot, place.values)
            row = out[i : i + 1] if self._spec.last else out[at[i] : at[i] + 1]
            results[place.sequence_id] = (
                row[:0] if self._spec.last and place.step.rows == "none" else row
            )
        self._remember(places, slots, start, stop)

    def _remember(
        self, places: Sequence[_Place], slots: Sequence[int], start: int, stop: int
    ) -> None:
        """The next pass may be the same again. Not where ropes change with length, or where the
        slots of other sequences are in between.
        """
        if self._config.rope.long_divisors or stop - start > len(slots):
            return
        self._fast_paths[tuple(place.sequence_id for place in places)] = DecodeFastPath.of(
            self.table, slots, start
        )
        if len(self._fast_paths) > MAX_FAST_PATHS:
            self._fast_paths.popitem(last=False)

    def _go_on(
        self, path: DecodeFastPath, steps: Sequence[Step], cancel: Callable[[], None]
    ) -> list[Array]:
        """One more token of a batch whose sequences have not moved: nothing to check, place or roll
        back.
        """
        cancel()
        rows = path.at if self._spec.last else None
        out = self._session.run(
            self._buffers, path.start, path.values(steps), path.lengths(steps), rows
        )
        for slot, step in zip(path.slots, steps, strict=True):
            self._extend(slot, step.values)
        if not self._spec.last:
            return [out[row : row + 1] for row in path.at]
        return [out[i : i + 1] if step.rows != "none" else out[:0] for i, step in enumerate(steps)]

    def _prefill(self, place: _Place, cancel: Callable[[], None]) -> Array:
        wanted = place.step.rows
        kept: list[Array] = []
        for start, stop in chunks_of(len(place.values), self._chunk):
            cancel()
            chunk = place.values[start:stop]
            is_end = stop == len(place.values)
            slot, long = self._slot(place)
            rows: Array | None = None
            if self._spec.last:
                # One row even where none is wanted: the graph cannot skip the head.
                rows = np.arange(len(chunk)) if wanted == "all" else np.array([len(chunk) - 1])
            after = np.array([self.table[slot].length + len(chunk)])
            out = self._session.run(self._buffers, slot, chunk[None], after, rows, long_rope=long)
            self._extend(slot, chunk)
            if not self._spec.last or wanted == "all" or (wanted == "last" and is_end):
                kept.append(out)
        if not kept:
            return np.empty((0, self._spec.vocab), np.float32)
        return kept[0] if len(kept) == 1 else np.concatenate(kept)

    def _extend(self, slot: int, values: Array) -> None:
        self.table.extend(slot, len(values), values.astype(np.int64) if self._spec.first else None)
