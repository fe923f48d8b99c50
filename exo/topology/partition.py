"""Contiguous layers on an ordered row of nodes, in proportion to their memory. Pure and exact.

This is the linear partition problem, solved by dynamic programming in two passes. A node's share is
how full it gets. The first pass finds the least t for which no share needs to be more than t; the
second, among the partitions that keep to t, finds the most even one. Shares are of bytes, not of
layers, so that the embedding and the head count for the ends that hold them.
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
    """One range of layers per node, in order, none empty, together `start..end`; None where they
    do not fit.

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
    """The partition with the least maximum share (`power` False) or the least sum of squared shares
    (True), with no share above `limit`.
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
