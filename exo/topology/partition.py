"""Contiguous layers onto an ordered row of nodes, in proportion to their memory. Pure arithmetic,
exact.

Bottleneck partition of a sequence by dynamic programming (the "linear partition problem"), in two
passes: first the least possible fullest share t, then, among the partitions whose shares are all at
most t, the most even one. Rather than by layer count it goes by bytes, so that embedding and head
weigh on the ends that hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from exo.topology.footprint import ModelFootprint


class Costs:
    """Bytes of any range of layers in constant time."""

    def __init__(self, model: ModelFootprint) -> None:
        self._model = model
        self._sums = [0, *accumulate(model.layer_bytes)]

    def of(self, start: int, end: int) -> int:
        """Layers `start` to `end`, both included."""
        total = self._sums[end + 1] - self._sums[start]
        last = end == self._model.n_layers - 1
        if start == 0:
            total += self._model.first_bytes - (self._model.shared_bytes if last else 0)
        return total + (self._model.last_bytes if last else 0)


def partition(
    costs: Costs, start: int, end: int, memory: Sequence[int]
) -> list[tuple[int, int]] | None:
    """One range of layers per node, in order, none empty, covering `start..end`; None where it
    cannot fit.

    memory: bytes of each node, in ring order; at most as many nodes as layers.
    """
    count = end - start + 1
    if not 1 <= len(memory) <= count or min(memory) <= 0:
        return None
    fullest = _solve(costs, start, count, memory, limit=math.inf, power=False)
    if fullest is None or fullest[0] > 1.0:
        return None
    even = _solve(costs, start, count, memory, limit=fullest[0], power=True)
    return None if even is None else even[1]


def _solve(
    costs: Costs, start: int, count: int, memory: Sequence[int], *, limit: float, power: bool
) -> tuple[float, list[tuple[int, int]]] | None:
    """Least maximum share (`power` False) or least sum of squared shares,
    no share above `limit`.
    """
    best = [math.inf] * (count + 1)
    best[0] = 0.0
    cuts: list[list[int]] = []
    for index, size in enumerate(memory):
        row = [math.inf] * (count + 1)
        cut = [-1] * (count + 1)
        for done in range(index + 1, count - (len(memory) - index - 1) + 1):
            for before in range(done - 1, index - 1, -1):
                share = costs.of(start + before, start + done - 1) / size
                if share > limit or (not power and share >= row[done]):
                    break  # taking more layers only makes it fuller
                value = best[before] + share * share if power else max(best[before], share)
                if value < row[done]:
                    row[done], cut[done] = value, before
        best = row
        cuts.append(cut)
    if math.isinf(best[count]):
        return None
    return best[count], _ranges(cuts, start, count)


def _ranges(cuts: list[list[int]], start: int, count: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    done = count
    for cut in reversed(cuts):
        ranges.append((start + cut[done], start + done - 1))
        done = cut[done]
    return ranges[::-1]
