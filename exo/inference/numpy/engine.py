"""`NumpyEngine`: steps and sequences around `NumpyModel`. Everything here runs on the engine's
worker thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from exo.inference.engines.checkpoint_engine import Cancel, CheckpointEngine
from exo.inference.engines.inference_engine import Array, Step
from exo.inference.engines.memory import default_kv_budget
from exo.inference.engines.options import EngineOptions
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.models import Weights
from exo.inference.numpy import kv_cache
from exo.inference.numpy.model import NumpyModel, Rows
from exo.inference.numpy.threads import limit_threads
from exo.inference.shard import Shard
from exo.topology.device_capabilities import device_capabilities

# How many request ids to remember that outgrew the short rope factors.
REMEMBERED: Final = 1024
# What is kept for reuse: a quarter of the weights, or this much where they are small.
SMALLEST_PREFIXES: Final = 128 << 20


class NumpyEngine(CheckpointEngine):
    """`fields`: those of `EngineOptions`, and what every `AsyncResource` takes."""

    def __init__(self, **fields: Any) -> None:
        self.options, life = EngineOptions.split(fields)
        super().__init__(**life)
        self._model: NumpyModel | None = None
        self._store: kv_cache.KVStore | None = None
        self._long: OrderedDict[str, None] = OrderedDict()

    @property
    def kv_tokens_total(self) -> int:
        """Tokens of KV that the budget allows; 0 before a checkpoint is loaded."""
        return self._store.budget // self._store.bytes_per_token if self._store is not None else 0

    @property
    def kv_tokens_free(self) -> int:
        return self._store.free_tokens if self._store is not None else 0

    @property
    def sequences(self) -> int:
        """Live sequences."""
        return len(self._store) if self._store is not None else 0

    def _load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        if not self.options.keep_blas_threads:
            limit_threads(self.options.threads or device_capabilities().cores)
        model = NumpyModel(weights, shard, advance)
        config = weights.config
        wanted = self.options.kv_budget
        budget = default_kv_budget() if wanted is None else wanted
        self._store = kv_cache.KVStore(
            shard.get_layer_count(),
            config.kv_heads,
            config.head_dim,
            budget,
            config.context_length,
            prefix_budget=min(budget, max(SMALLEST_PREFIXES, model.n_bytes() // 4)),
        )
        self._model = model

    def _unload(self) -> None:
        self._model = self._store = None
        self._long.clear()

    def _drop(self, request_id: str) -> None:
        if self._store is not None:
            self._store.release(request_id)

    def _reuse(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        store = self._loaded()[1]
        ids = np.asarray(tokens, dtype=np.int64)
        sequence = store.at(request_id, 0)
        sequence.long = self._needs_long(request_id, len(ids))
        held = _borrow(store, sequence, ids, min(limit, len(ids) - 1), [request_id])
        # Known from now on, also where later steps bring hidden states only.
        sequence.tokens = ids
        return held

    def _forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        model, store = self._loaded()
        for step in steps:
            store.check(step.request_id, step.position)
            self._check_rope(store, step)
        plan = self._place(store, steps)
        values = np.concatenate(
            [s.values[len(s.values) - r.count :] for s, r in zip(steps, plan, strict=True)]
        )
        x = model.embed_tokens(values) if model.embed is not None else values.astype(np.float32)
        model.run_layers(x, plan, cancel)
        for step, rows in zip(steps, plan, strict=True):
            _advance(rows.sequence, step, rows)
        if not self._last():
            return [x[r.start : r.start + r.count].copy() for r in plan]
        return self._logits(model, x, steps, plan)

    def _place(self, store: kv_cache.KVStore, steps: Sequence[Step]) -> list[Rows]:
        """Find or begin each sequence, make room, take over what another request has computed; lay
        out the rows.
        """
        keep = [step.request_id for step in steps]
        plan: list[Rows] = []
        start = 0
        for step in steps:
            sequence = store.at(step.request_id, step.position)
            if step.position == 0:
                sequence.long = self._needs_long(step.request_id, len(step.values))
            total = step.position + len(step.values)
            position = step.position
            if self._may_borrow(step, sequence):
                tokens = np.concatenate([sequence.tokens, step.values.astype(np.int64)])
                position = _borrow(store, sequence, tokens, total - 1, keep)
            store.reserve(sequence, total, keep)
            plan.append(Rows(sequence, start, total - position, position))
            start += total - position
        return plan

    def _may_borrow(self, step: Step, sequence: kv_cache.Sequence) -> bool:
        """Only where nobody waits for the rows left out: the whole model is here, not all logits
        are asked for.
        """
        assert self.shard is not None
        whole = self.shard.is_first_layer() and self.shard.is_last_layer()
        return (
            whole
            and step.rows != "all"
            and len(step.values) > kv_cache.SHORTEST_PREFIX
            and len(sequence.tokens) == sequence.length == step.position
        )

    def _logits(
        self, model: NumpyModel, x: Array, steps: Sequence[Step], plan: Sequence[Rows]
    ) -> list[Array]:
        """The rows asked for go through the head together."""
        wanted = [_wanted_rows(s, r) for s, r in zip(steps, plan, strict=True)]
        picked = np.concatenate(wanted)
        if not len(picked):
            return [np.empty((0, model.config.vocab), np.float32) for _ in steps]
        logits = model.logits(x[picked])
        return np.split(logits, np.cumsum([len(w) for w in wanted])[:-1])

    def _last(self) -> bool:
        return self.shard is not None and self.shard.is_last_layer()

    def _loaded(self) -> tuple[NumpyModel, kv_cache.KVStore]:
        assert self._model is not None  # _check_shard has passed
        assert self._store is not None
        return self._model, self._store

    def _needs_long(self, request_id: str, length: int) -> bool:
        assert self._model is not None
        rope = self._model.config.rope
        return bool(rope.long_divisors) and (
            length > rope.original_context or request_id in self._long
        )

    def _check_rope(self, store: kv_cache.KVStore, step: Step) -> None:
        """A sequence that outgrows the short factors (longrope) must be computed anew with the long
        ones.
        """
        if step.position == 0 or not self._needs_long(
            step.request_id, step.position + len(step.values)
        ):
            return
        if not store.at(step.request_id, step.position).long:
            self._long[step.request_id] = None
            if len(self._long) > REMEMBERED:
                self._long.popitem(last=False)
            raise SequenceLost(step.request_id, expected=step.position, held=None)


def _borrow(
    store: kv_cache.KVStore, sequence: kv_cache.Sequence, tokens: Array, limit: int, keep: list[str]
) -> int:
    """What is not borrowed is computed, and then the lender may have to give way like any other."""
    try:
        return store.borrow(sequence, tokens, limit, keep)
    except Overloaded:
        return sequence.length


def _advance(sequence: kv_cache.Sequence, step: Step, rows: Rows) -> None:
    sequence.length = rows.position + rows.count
    if step.values.ndim == 1 and len(sequence.tokens) >= rows.position:
        sequence.tokens = np.concatenate(
            [sequence.tokens[: rows.position], step.values[-rows.count :].astype(np.int64)]
        )


def _wanted_rows(step: Step, rows: Rows) -> Array:
    stop = rows.start + rows.count
    first = {"last": stop - 1, "all": rows.start, "none": stop}[step.rows]
    return np.arange(first, stop)
