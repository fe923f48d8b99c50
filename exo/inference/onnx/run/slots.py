"""Which slot of the KV cache holds which sequence. Pure decisions: `Sequences` moves the bytes.

A slot holds one sequence. A released one whose tokens are known stays as a *prefix* for later
sequences with the same beginning, until its room is needed. Room is counted in tokens. When it runs
out, prefixes go first, then live sequences outside the batch, least recently used first: their next
step raises `SequenceLost`, and the caller prefills again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.engines.prefixes import SHORTEST_PREFIX, common_length
from exo.inference.errors import Overloaded, SequenceLost

# Room is counted in steps of this many tokens, about a page of one head.
GRAIN: Final = 16


class Held:
    """A sequence in a slot: `length` positions are filled.

    tokens: the ids of the first positions as far as they are known. A stage in the middle of a ring
        may know none or, after `reuse_prefix`, more than are filled yet.
    long: its keys were rotated with the factors for long sequences.
    """

    __slots__ = ("_ids", "_n_ids", "length", "live", "long", "sequence_id", "used")

    def __init__(self, sequence_id: str, length: int, tokens: Array, *, long: bool = False) -> None:
        self.sequence_id = sequence_id
        self.length = length
        self.live = True
        self.long = long
        self.used = 0
        self.tokens = tokens

    @property
    def tokens(self) -> Array:
        return self._ids[: self._n_ids]

    @tokens.setter
    def tokens(self, tokens: Array) -> None:
        self._ids = np.array(tokens, np.int64)  # a copy: it grows in place
        self._n_ids = len(tokens)

    @property
    def known(self) -> Array:
        """The tokens whose positions are filled."""
        return self._ids[: min(self._n_ids, self.length)]

    def extend(self, n: int, tokens: Array | None) -> None:
        """`n` more positions are filled. `tokens`: their ids; None where this stage does not see
        them.
        """
        if tokens is not None and self._n_ids >= self.length:
            end = self.length + n
            if end > len(self._ids):
                self._ids = np.concatenate([self.known, np.empty(end, np.int64)])  # twice the room
            self._ids[self.length : end] = tokens
            self._n_ids = end
        self.length += n

    def truncate(self, length: int) -> None:
        self._n_ids = min(self._n_ids, length)
        self.length = length


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where the beginning of a new sequence was found: `length` tokens in `slot`."""

    slot: int
    length: int


def grained(length: int) -> int:
    return -(-length // GRAIN) * GRAIN


class SlotTable:
    """`n_slots` slots and `budget` tokens in all. Not thread-safe: one thread owns it."""

    def __init__(self, n_slots: int, budget: int) -> None:
        self.slots: list[Held | None] = [None] * n_slots
        self.budget = budget
        self.evictions = 0
        # Changes whenever a sequence comes, goes or moves to another slot.
        self.moves = 0
        self._clock = 0
        self._live: dict[str, int] = {}

    def find(self, sequence_id: str) -> int | None:
        """The slot of a live sequence."""
        return self._live.get(sequence_id)

    def __getitem__(self, slot: int) -> Held:
        held = self.slots[slot]
        if held is None:
            raise LookupError(f"slot {slot} is empty")
        return held

    def lengths(self) -> list[int]:
        return [0 if held is None else held.length for held in self.slots]

    @property
    def n_live(self) -> int:
        return len(self._live)

    def tokens_used(self, *, live_only: bool = False) -> int:
        return sum(
            grained(h.length) for h in self.slots if h is not None and (h.live or not live_only)
        )

    def check(self, sequence_id: str, position: int) -> None:
        """Raises `SequenceLost` unless `position` tokens of the sequence are held (0: it begins
        again).
        """
        if position == 0:
            return
        slot = self.find(sequence_id)
        held = None if slot is None else self[slot].length
        if held != position:
            raise SequenceLost(sequence_id, expected=position, held=held)

    def is_long(self, sequence_id: str) -> bool:
        """Whether the keys of a live sequence were rotated with the factors for long ones."""
        slot = self.find(sequence_id)
        return slot is not None and self[slot].long

    def best_prefix(self, tokens: Array, limit: int, *, long: bool) -> Prefix | None:
        """The longest beginning of `tokens`, at most `limit`, that is held anywhere."""
        best: Prefix | None = None
        for slot, held in enumerate(self.slots):
            if held is not None and held.long == long:
                n = min(common_length(held.known, tokens), limit)
                if n >= SHORTEST_PREFIX and (best is None or n > best.length):
                    best = Prefix(slot, n)
        return best

    def has_room(self, new_tokens: int) -> bool:
        """Whether so many more fit without evicting anything."""
        return self.tokens_used() + new_tokens <= self.budget

    def make_room(self, new_tokens: int, keep: Collection[int]) -> list[int]:
        """Slots to clear so that `new_tokens` more fit; in the table they are empty at once.

        Raises `Overloaded` when even emptying all but `keep` is not enough; then nothing is
        emptied.
        """
        victims: list[int] = []
        if self.has_room(new_tokens):  # the usual case: no need to sort them
            return victims
        missing = self.tokens_used() + new_tokens - self.budget
        for slot in self._by_worth(keep):
            if missing <= 0:
                break
            missing -= grained(self[slot].length)
            victims.append(slot)
        if missing > 0:
            raise Overloaded(
                f"the KV cache has room for {self.budget} tokens, {missing} fewer than are"
                " needed now"
            )
        for slot in victims:
            self.drop(slot)
        return victims

    def take_slot(self, keep: Collection[int]) -> tuple[int, bool]:
        """A slot for a new sequence, and whether it must be cleared first. Raises `Overloaded` when
        all are in `keep`.
        """
        for slot, held in enumerate(self.slots):
            if held is None:
                return slot, False
        for slot in self._by_worth(keep):
            self.drop(slot)
            return slot, True
        raise Overloaded(f"all {len(self.slots)} slots of the KV cache are in use")

    def _by_worth(self, keep: Collection[int]) -> list[int]:
        """Occupied slots, in the order in which they are given up."""
        occupied = [
            (h.live, h.used, slot)
            for slot, h in enumerate(self.slots)
            if h is not None and slot not in keep
        ]
        return [slot for _, _, slot in sorted(occupied)]

    def drop(self, slot: int) -> None:
        self.moves += 1
        held = self.slots[slot]
        if held is not None and held.live:
            self.evictions += 1
            del self._live[held.sequence_id]
        self.slots[slot] = None

    def put(self, slot: int, sequence_id: str, *, length: int, tokens: Array, long: bool) -> None:
        self.moves += 1
        self.slots[slot] = Held(sequence_id, length, tokens, long=long)
        self._live[sequence_id] = slot
        self.touch(slot)

    def extend(self, slot: int, n: int, tokens: Array | None) -> None:
        """`n` more positions are filled. `tokens`: their ids; None where this stage does not see
        them.
        """
        self[slot].extend(n, tokens)
        self.touch(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Take back what a cancelled pass has added."""
        self[slot].truncate(length)

    def touch(self, slot: int) -> None:
        self._clock += 1
        self[slot].used = self._clock

    def release(self, slot: int) -> list[int]:
        """The sequence in `slot` is over; it stays as a prefix if it may serve another one. Returns
        slots to clear.
        """
        self.moves += 1
        held = self[slot]
        held.truncate(len(held.known))
        held.live = False
        del self._live[held.sequence_id]
        if held.length < SHORTEST_PREFIX:
            self.slots[slot] = None
            return [slot]
        return self._drop_redundant(slot)

    def _drop_redundant(self, fresh: int) -> list[int]:
        """Prefixes that are beginnings of the one in `fresh`; or `fresh` itself, where another one
        has all of it.
        """
        held = self[fresh]
        redundant: list[int] = []
        for slot, other in enumerate(self.slots):
            if other is None or other.live or slot == fresh or other.long != held.long:
                continue
            n = common_length(other.tokens, held.tokens)
            if n == held.length:
                self.touch(slot)
                redundant = [fresh]
                break
            if n == other.length:
                redundant.append(slot)
        for slot in redundant:
            self.slots[slot] = None
        return redundant

    def swap(self, a: int, b: int) -> None:
        self.moves += 1
        self.slots[a], self.slots[b] = self.slots[b], self.slots[a]
        for slot in (a, b):
            held = self.slots[slot]
            if held is not None and held.live:
                self._live[held.sequence_id] = slot


def window_of(members: Sequence[int], n_slots: int) -> tuple[int, int, list[tuple[int, int]]]:
    """Adjacent slots for a batch: (start, stop, swaps to make first).

    A few slots of other sequences in between are run along with the batch. Where they would be more
    than a quarter, members outside the best window change places with others inside it.
    """
    n, low, high = len(members), min(members), max(members) + 1
    if high - low <= n + n // 4:
        return low, high, []
    inside = set(members)
    start = max(range(n_slots - n + 1), key=lambda s: sum(m in inside for m in range(s, s + n)))
    foreign = [slot for slot in range(start, start + n) if slot not in inside]
    outside = [slot for slot in sorted(members) if not start <= slot < start + n]
    return start, start + n, list(zip(outside, foreign, strict=True))
