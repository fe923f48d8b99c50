"""Keys and values of sequences under a byte budget. Pure bookkeeping and arrays: knows no model
arithmetic.

A released sequence whose tokens are known stays as a *prefix* until its room is needed, so that a
request with the same beginning (the same system prompt, the next turn of a chat) starts with those
positions. When room is short, prefixes go first, then live sequences, the least recently used
first. A sequence that was evicted raises `SequenceLost` when it is used next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.engines.prefixes import SHORTEST_PREFIX, common_length
from exo.inference.errors import Overloaded, SequenceLost

# Room is given in whole blocks and grows by half, so that a long answer copies its cache only a few
# times.
BLOCK: Final = 64
# The type of keys and values.
DTYPE: Final = np.float32


class Sequence:
    """keys, values: per layer (kv_heads, capacity, head_dim), of which `length` positions are
    filled.
    tokens: the ids of the first positions, as far as they are known; a stage in the middle of a
        ring sees none.
    long: its keys were rotated with the factors for long sequences.
    """

    def __init__(self, n_layers: int, kv_heads: int, head_dim: int) -> None:
        self.length = 0
        self.capacity = 0
        self.tokens = np.empty(0, dtype=np.int64)
        self.long = False
        self.keys = [np.empty((kv_heads, 0, head_dim), DTYPE) for _ in range(n_layers)]
        self.values = [np.empty((kv_heads, 0, head_dim), DTYPE) for _ in range(n_layers)]

    def grow(self, capacity: int) -> None:
        for arrays in (self.keys, self.values):
            for i, old in enumerate(arrays):
                new = np.empty((old.shape[0], capacity, old.shape[2]), DTYPE)
                new[:, : self.length] = old[:, : self.length]
                arrays[i] = new
        self.capacity = capacity

    def copy_from(self, other: Sequence, start: int, stop: int) -> None:
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for a, b in zip(mine, theirs, strict=True):
                a[:, start:stop] = b[:, start:stop]


class KVStore:
    """All sequences of one engine. `budget` and `used` count bytes of allocated room, prefixes
    included.

    prefix_budget: how many bytes to keep for reuse at most, so that a node with much memory does
        not fill it all; None: the whole budget.
    """

    def __init__(
        self,
        n_layers: int,
        kv_heads: int,
        head_dim: int,
        budget: int,
        context_length: int,
        prefix_budget: int | None = None,
    ) -> None:
        self._shape = (n_layers, kv_heads, head_dim)
        self.prefix_budget = budget if prefix_budget is None else prefix_budget
        self.bytes_per_token = n_layers * 2 * kv_heads * head_dim * DTYPE().itemsize
        self.budget = budget
        self.context_length = context_length
        self.used = 0
        self.evictions = 0
        self._live: OrderedDict[str, Sequence] = OrderedDict()  # least recently used first
        self._prefixes: OrderedDict[int, Sequence] = OrderedDict()
        self._next_prefix = 0

    @property
    def live_tokens(self) -> int:
        """Tokens that live sequences have room for. Another thread may ask: the tuple is made in
        one step.
        """
        return sum(s.capacity for s in tuple(self._live.values()))

    @property
    def free_tokens(self) -> int:
        """Tokens that still fit; prefixes give way."""
        return max(0, self.budget // self.bytes_per_token - self.live_tokens)

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._live

    def at(self, sequence_id: str, position: int) -> Sequence:
        """The sequence to be continued at `position`; 0 starts it again. Raises `SequenceLost`."""
        sequence = self._live.get(sequence_id)
        # A sequence that holds nothing yet is kept: its tokens may be known already.
        if position == 0 and (sequence is None or sequence.length):
            self._forget(sequence_id)
            sequence = self._live[sequence_id] = Sequence(*self._shape)
        if sequence is None or sequence.length != position:
            held = None if sequence is None else sequence.length
            raise SequenceLost(sequence_id, expected=position, held=held)
        self._live.move_to_end(sequence_id)
        return sequence

    def is_long(self, sequence_id: str) -> bool:
        """Whether the keys of a live sequence were rotated with the factors for long ones."""
        sequence = self._live.get(sequence_id)
        return sequence is not None and sequence.long

    def check(self, sequence_id: str, position: int) -> None:
        """Raises `SequenceLost` as `at` would, and changes nothing."""
        sequence = self._live.get(sequence_id)
        if position and (sequence is None or sequence.length != position):
            raise SequenceLost(
                sequence_id, expected=position, held=None if sequence is None else sequence.length
            )

    def reserve(self, sequence: Sequence, length: int, keep: Collection[str]) -> None:
        """Make room for `length` positions, evicting others, but none of `keep`. Raises
        `Overloaded` if that is not enough.
        """
        if length <= sequence.capacity:
            return
        least = -(-length // BLOCK) * BLOCK
        wanted = min(
            max(least, sequence.capacity * 3 // 2 // BLOCK * BLOCK),
            -(-self.context_length // BLOCK) * BLOCK,
        )
        for capacity in (max(wanted, least), least):
            extra = (capacity - sequence.capacity) * self.bytes_per_token
            if self._make_room(extra, sequence, keep, evict_live=capacity == least):
                sequence.grow(capacity)
                self.used += extra
                return
        message = (
            f"the KV cache ({self.budget >> 20} MiB) has no room for {length} tokens of one more"
            " sequence"
        )
        raise Overloaded(message)

    def release(self, sequence_id: str) -> None:
        """The sequence is over; it stays as a prefix if it may serve another one."""
        sequence = self._live.pop(sequence_id, None)
        if sequence is None:
            return
        sequence.tokens = sequence.tokens[: sequence.length]
        if len(sequence.tokens) < SHORTEST_PREFIX or self._is_known(sequence):
            self.used -= sequence.capacity * self.bytes_per_token
            return
        sequence.length = len(sequence.tokens)
        self._prefixes[self._next_prefix] = sequence
        self._next_prefix += 1
        while (
            sum(s.capacity for s in self._prefixes.values()) * self.bytes_per_token
            > self.prefix_budget
        ):
            self._discard(self._prefixes.popitem(last=False)[1])

    def borrow(self, sequence: Sequence, tokens: Array, limit: int, keep: Collection[str]) -> int:
        """Fill `sequence`, which holds the KV of the first `length` of `tokens`, from one with the
        same beginning.

        At most `limit` positions are filled in all. Returns how many positions it holds then.
        """
        best, common = None, 0
        for key, other in [*self._prefixes.items(), *((None, s) for s in self._live.values())]:
            if other is sequence or other.long != sequence.long:
                continue
            shared = min(common_length(other.tokens[: other.length], tokens), limit)
            if shared > common:
                best, common = (key, other), shared
        if best is None or common - sequence.length < SHORTEST_PREFIX:
            return sequence.length
        key, other = best
        if key is not None:
            self._prefixes.move_to_end(key)
        self.reserve(sequence, common, [*keep, *(i for i, s in self._live.items() if s is other)])
        if other.capacity:  # not evicted to make the room
            sequence.copy_from(other, sequence.length, common)
            sequence.length = common
            sequence.tokens = np.array(tokens[:common], dtype=np.int64)
        return sequence.length

    def _is_known(self, sequence: Sequence) -> bool:
        """Whether another prefix has all of it (the same request again); that one counts as just
        used.
        """
        for key, other in self._prefixes.items():
            if (
                common_length(other.tokens, sequence.tokens) == len(sequence.tokens)
                and other.long == sequence.long
            ):
                self._prefixes.move_to_end(key)
                return True
        return False

    def _make_room(
        self, extra: int, sequence: Sequence, keep: Collection[str], *, evict_live: bool
    ) -> bool:
        while self.used + extra > self.budget and self._prefixes:
            self._discard(self._prefixes.popitem(last=False)[1])
        if not evict_live:
            return self.used + extra <= self.budget
        for sequence_id in [
            i for i, s in self._live.items() if i not in keep and s is not sequence and s.capacity
        ]:
            if self.used + extra <= self.budget:
                break
            self.evictions += 1
            self._discard(self._live.pop(sequence_id))
        return self.used + extra <= self.budget

    def _forget(self, sequence_id: str) -> None:
        sequence = self._live.pop(sequence_id, None)
        if sequence is not None:
            self._discard(sequence)

    def _discard(self, sequence: Sequence) -> None:
        self.used -= sequence.capacity * self.bytes_per_token
        sequence.capacity = sequence.length = 0
        sequence.keys.clear()
        sequence.values.clear()
