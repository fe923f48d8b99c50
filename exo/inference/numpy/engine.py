"""`NumpyRunner`: steps and sequences around `NumpyModel`; `NumpyEngine` gives it a life."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.engines.engine import Engine
from exo.inference.engines.inference_engine import EngineFigures, Step
from exo.inference.engines.long_rope import LongRope
from exo.inference.engines.memory import default_kv_budget
from exo.inference.engines.options import EngineOptions
from exo.inference.engines.prefixes import SHORTEST_PREFIX
from exo.inference.engines.runner import Cancel, ModelRunner
from exo.inference.errors import Overloaded
from exo.inference.models import Weights
from exo.inference.numpy import kv_cache
from exo.inference.numpy.model import NumpyModel, Rows
from exo.inference.numpy.threads import limit_threads
from exo.inference.shard import Shard
from exo.topology.device_capabilities import device_capabilities

# What is kept for reuse: a quarter of the weights, or this much where they are small.
SMALLEST_PREFIXES: Final = 128 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    shard: Shard
    model: NumpyModel
    store: kv_cache.KVStore
    long_rope: LongRope


class NumpyRunner(ModelRunner):
    NAME: ClassVar[str] = "numpy"
    WEIGHT_BYTES: ClassVar[float] = 4.0
    KV_ITEM_BYTES: ClassVar[int] = kv_cache.DTYPE().itemsize

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self.loaded: Loaded | None = None

    @property
    def figures(self) -> EngineFigures:
        loaded = self.loaded  # asked once: the worker thread may change it meanwhile
        if loaded is None:
            return EngineFigures(kv_tokens_total=0, kv_tokens_free=0)
        store = loaded.store
        return EngineFigures(
            kv_tokens_total=store.budget // store.bytes_per_token,
            kv_tokens_free=store.free_tokens,
            sequences=len(store),
        )

    def load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        if not self.options.keep_blas_threads:
            limit_threads(self.options.threads or device_capabilities().cores)
        model = NumpyModel(weights, shard, advance)
        config, wanted = weights.config, self.options.kv_budget
        budget = default_kv_budget() if wanted is None else wanted
        store = kv_cache.KVStore(
            shard.get_layer_count(),
            config.kv_heads,
            config.head_dim,
            budget,
            config.context_length,
            prefix_budget=min(budget, max(SMALLEST_PREFIXES, model.n_bytes() // 4)),
        )
        self.loaded = Loaded(shard, model, store, LongRope(config.rope))

    def unload(self) -> None:
        self.loaded = None

    def release(self, sequence_id: str) -> None:
        if self.loaded is not None:
            self.loaded.store.release(sequence_id)

    def reuse_prefix(self, sequence_id: str, tokens: Sequence[int], limit: int) -> int:
        loaded = self._require()
        store = loaded.store
        ids = np.asarray(tokens, dtype=np.int64)
        sequence = store.at(sequence_id, 0)
        sequence.long = loaded.long_rope.is_needed(sequence_id, len(ids))
        held = _borrow(store, sequence, ids, min(limit, len(ids) - 1), [sequence_id])
        # Known from now on, also where later steps bring hidden states only.
        sequence.tokens = ids
        return held

    def forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        loaded = self._require()
        model, store = loaded.model, loaded.store
        for step in steps:
            store.check(step.sequence_id, step.position)
            loaded.long_rope.check(step, is_long=store.is_long(step.sequence_id))
        plan = _place(loaded, steps)
        values = np.concatenate(
            [s.values[len(s.values) - r.count :] for s, r in zip(steps, plan, strict=True)]
        )
        x = model.embed_tokens(values) if model.embed is not None else values.astype(np.float32)
        model.run_layers(x, plan, cancel)
        for step, rows in zip(steps, plan, strict=True):
            _advance(rows.sequence, step, rows)
        if not loaded.shard.is_last_layer():
            return [x[r.start : r.start + r.count].copy() for r in plan]
        return _logits(model, x, steps, plan)

    def _require(self) -> Loaded:
        assert self.loaded is not None  # the engine has checked that the shard is loaded
        return self.loaded


class NumpyEngine(Engine):
    """`fields`: those of `EngineOptions`, and what every `AsyncResource` takes."""

    RUNNER: ClassVar[type[ModelRunner]] = NumpyRunner

    def __init__(self, **fields: Any) -> None:
        options, life = EngineOptions.split(fields)
        super().__init__(NumpyRunner(options), **life)


def _place(loaded: Loaded, steps: Sequence[Step]) -> list[Rows]:
    """Find or begin each sequence, make room, take over what another sequence has computed, and
    lay out the rows.
    """
    store = loaded.store
    keep = [step.sequence_id for step in steps]
    plan: list[Rows] = []
    start = 0
    for step in steps:
        sequence = store.at(step.sequence_id, step.position)
        if step.position == 0:
            sequence.long = loaded.long_rope.is_needed(step.sequence_id, len(step.values))
        total = step.position + len(step.values)
        position = step.position
        if _may_borrow(loaded.shard, step, sequence):
            tokens = np.concatenate([sequence.tokens, step.values.astype(np.int64)])
            position = _borrow(store, sequence, tokens, total - 1, keep)
        store.reserve(sequence, total, keep)
        plan.append(Rows(sequence, start, total - position, position))
        start += total - position
    return plan


def _may_borrow(shard: Shard, step: Step, sequence: kv_cache.Sequence) -> bool:
    """Only where the rows left out are not needed: the whole model is here, and not all logits
    are asked for.
    """
    whole = shard.is_first_layer() and shard.is_last_layer()
    return (
        whole
        and step.rows != "all"
        and len(step.values) > SHORTEST_PREFIX
        and len(sequence.tokens) == sequence.length == step.position
    )


def _logits(
    model: NumpyModel, x: Array, steps: Sequence[Step], plan: Sequence[Rows]
) -> list[Array]:
    """The rows asked for go through the head together."""
    wanted = [_wanted_rows(s, r) for s, r in zip(steps, plan, strict=True)]
    picked = np.concatenate(wanted)
    if not len(picked):
        return [np.empty((0, model.config.vocab), np.float32) for _ in steps]
    logits = model.logits(x[picked])
    return np.split(logits, np.cumsum([len(w) for w in wanted])[:-1])


def _borrow(
    store: kv_cache.KVStore, sequence: kv_cache.Sequence, tokens: Array, limit: int, keep: list[str]
) -> int:
    """Without room for a copy nothing is borrowed: all is computed, and the lender may be evicted
    like any other sequence.
    """
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
