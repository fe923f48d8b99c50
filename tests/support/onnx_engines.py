"""Small onnx engines for the tests of their sequences, and of their converted weights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from golden_data import DATA

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import Step
from exo.inference.onnx.engine import OnnxEngine, OnnxRunner
from exo.inference.onnx.run.sequences import Sequences
from exo.inference.shard import Shard

MODEL = DATA / "llama-llama3rope"
SHARD = Shard("tiny", 0, 3, 4)
VOCAB = 320
BYTES_PER_TOKEN = 4 * 2 * 2 * 16 * 4


def tokens(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCAB, n)


def token(value: int) -> Array:
    return np.array([value])


@asynccontextmanager
async def loaded(cache: Path, **options: Any) -> AsyncIterator[OnnxEngine]:
    options = {
        "weight_format": "float32",
        "kv_budget": 1 << 20,
        "threads": 1,
        "max_sequences": 8,
    } | options
    async with OnnxEngine(cache_dir=cache, **options) as engine:
        await engine.load_checkpoint(SHARD, MODEL)
        yield engine


def inner(engine: OnnxEngine) -> Sequences:
    assert isinstance(engine.runner, OnnxRunner)
    assert engine.runner.sequences is not None
    return engine.runner.sequences


async def alone(engine: OnnxEngine, ids: Array) -> Array:
    """Logits of every position, in a sequence of its own that leaves nothing behind."""
    (out,) = await engine.infer_batch(SHARD, [Step("alone", ids, 0, "all")])
    await engine.release("alone")
    return out
