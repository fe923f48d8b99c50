"""The memory of the KV cache: per layer, keys and values of (slots, heads, capacity, head size).

Plain anonymous mappings: memory is taken when a token is written, and given back when a slot is
cleared. All slots have the same capacity, so that any run of adjacent slots is one tensor; it grows
by doubling, which copies what is used.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.onnx.graph.layout import KV_DTYPE

KINDS: Final = ("key", "value")
MIN_CAPACITY: Final = 512
ITEM: Final = KV_DTYPE().itemsize
_NO_RESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0)


class KvBuffers:
    """Buffers by graph name (`key.3`). Not thread-safe: one thread owns it."""

    def __init__(
        self, layers: Sequence[int], n_slots: int, n_heads: int, head_dim: int, max_length: int
    ) -> None:
        self._names = [f"{kind}.{layer}" for layer in layers for kind in KINDS]
        self._shape = (n_slots, n_heads, head_dim)
        # Whole pages per head, and one position more than the longest sequence: see
        # `Sequences._place`.
        self.max_capacity = (max_length // 64 + 1) * 64
        self.capacity = min(MIN_CAPACITY, self.max_capacity)
        self._maps: dict[str, mmap.mmap] = {}
        self.arrays: dict[str, Array] = {}
        for name in self._names:
            self._allocate(name, self.capacity)

    @property
    def bytes_per_token(self) -> int:
        _, n_heads, head_dim = self._shape
        return len(self._names) * n_heads * head_dim * ITEM

    def _allocate(self, name: str, capacity: int) -> None:
        n_slots, n_heads, head_dim = self._shape
        size = n_slots * n_heads * capacity * head_dim * ITEM
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A huge page would make the unused end of a slot resident.
            try:
                area.madvise(mmap.MADV_NOHUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages
        self._maps[name] = area
        self.arrays[name] = np.frombuffer(area, KV_DTYPE).reshape(
            n_slots, n_heads, capacity, head_dim
        )

    def grow(self, length: int, used: Sequence[int]) -> bool:
        """Make room for sequences of `length` tokens; `used` are the lengths held. Returns whether
        buffers moved.
        """
        if length <= self.capacity:
            return False
        capacity = self.capacity
        while capacity < length:
            capacity *= 2
        capacity = min(capacity, self.max_capacity)
        for name in self._names:
            old = self.arrays[name]
            self._allocate(name, capacity)
            for slot, n in enumerate(used):
                if n:
                    self.arrays[name][slot, :, :n] = old[slot, :, :n]
            del old  # the old mapping is freed with its last view
        self.capacity = capacity
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        for array in self.arrays.values():
            array[target, :, :length] = array[source, :, :length]

    def swap(self, a: int, a_length: int, b: int, b_length: int) -> None:
        for array in self.arrays.values():
            kept = array[a, :, :a_length].copy()
            array[a, :, :b_length] = array[b, :, :b_length]
            array[b, :, :a_length] = kept

    def clear(self, slot: int) -> None:
        """Give the memory of a slot back to the system."""
        _, n_heads, head_dim = self._shape
        size = n_heads * self.capacity * head_dim * ITEM
        first, last = slot * size, (slot + 1) * size
        first += -first % mmap.PAGESIZE
        last -= last % mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            for area in self._maps.values():
                area.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        self.arrays.clear()
        self._maps.clear()
