"""The onnx engine against Hugging Face transformers: exact with float weights, close with quantised
ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from golden_data import Case, all_cases, folder_cases, gguf_cases

from exo.inference.arrays import Array
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.inference_engine import Step
from exo.inference.models import read_config
from exo.inference.onnx.engine import OnnxEngine
from exo.inference.onnx.graph.shard_weights import WeightFormat
from exo.inference.shard import Shard

ATOL = 1e-3
MAX_KL = 0.05
# Where the best token leads by less, an engine that quantises activations may choose another.
CLEAR_MARGIN = 0.25

every_case = pytest.mark.parametrize("case", all_cases(), ids=[c.name for c in all_cases()])
every_folder = pytest.mark.parametrize("case", folder_cases(), ids=[c.name for c in folder_cases()])
every_gguf = pytest.mark.parametrize("case", gguf_cases(), ids=[c.name for c in gguf_cases()])


@asynccontextmanager
async def stages(
    case: Case, tmp_path: Path, weight_format: WeightFormat, *cuts: int
) -> AsyncIterator[list[tuple[OnnxEngine, Shard]]]:
    """One engine per stage; a cut is the first layer of the next stage."""
    with open_checkpoint(case.checkpoint) as checkpoint:
        n = read_config(checkpoint).n_layers
    bounds = [0, *cuts, n]
    shards = [Shard(case.name, a, b - 1, n) for a, b in pairwise(bounds)]
    engines = [
        OnnxEngine(weight_format=weight_format, cache_dir=tmp_path, kv_budget=64 << 20, threads=1)
        for _ in shards
    ]
    try:
        for engine, shard in zip(engines, shards, strict=True):
            await engine.initialize()
            await engine.load_checkpoint(shard, case.checkpoint)
        yield list(zip(engines, shards, strict=True))
    finally:
        for engine in engines:
            await engine.cleanup()


async def through(ring: list[tuple[OnnxEngine, Shard]], steps: list[Step]) -> list[Array]:
    for engine, shard in ring[:-1]:
        out = await engine.infer_batch(shard, steps)
        steps = [
            Step(s.sequence_id, x, s.position, s.rows) for s, x in zip(steps, out, strict=True)
        ]
    engine, shard = ring[-1]
    return await engine.infer_batch(shard, steps)


def log_softmax(x: Array) -> Array:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    result: Array = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def divergence(reference: Array, other: Array) -> float:
    """The largest KL divergence of any position."""
    return float(divergences(reference, other).max())


def divergences(reference: Array, other: Array) -> Array:
    p, q = log_softmax(reference), log_softmax(other)
    result: Array = (np.exp(p) * (p - q)).sum(-1)
    return result


@every_case
async def test_float_weights_give_the_logits_and_tokens_of_transformers(
    case: Case, tmp_path: Path
) -> None:
    want = case.load()
    async with stages(case, tmp_path, "float32") as ring:
        for i, tokens in enumerate(case.sequences()):
            (got,) = await through(ring, [Step(f"s{i}", tokens, 0, "all")])
            np.testing.assert_allclose(got, want[f"logits_{i}"], atol=ATOL, rtol=0)
            for k, token in enumerate(want[f"greedy_{i}"]):
                np.testing.assert_allclose(
                    got[-1], want[f"greedy_logits_{i}"][k], atol=ATOL, rtol=0
                )
                assert int(got[-1].argmax()) == token
                (got,) = await through(ring, [Step(f"s{i}", np.array([token]), len(tokens) + k)])


@every_gguf
async def test_quantised_files_stay_close_to_transformers(case: Case, tmp_path: Path) -> None:
    want = case.load()
    async with stages(case, tmp_path, "stored") as ring:
        for i, tokens in enumerate(case.sequences()):
            (got,) = await through(ring, [Step(f"s{i}", tokens, 0, "all")])
            assert divergence(want[f"logits_{i}"], got) < MAX_KL
            clear = True
            for k, token in enumerate(want[f"greedy_{i}"]):
                assert divergence(want[f"greedy_logits_{i}"][k], got[-1]) < MAX_KL
                clear &= bool(want[f"greedy_margin_{i}"][k] >= CLEAR_MARGIN)
                assert not clear or int(got[-1].argmax()) == token
                (got,) = await through(ring, [Step(f"s{i}", np.array([token]), len(tokens) + k)])


@every_folder
async def test_eight_bits_are_close_on_average_even_where_weights_are_random(
    case: Case, tmp_path: Path
) -> None:
    """Random weights leave nothing to average rounding out; single positions may be further off."""
    want = case.load()
    async with stages(case, tmp_path, "8bit") as ring:
        got = await through(
            ring, [Step(f"s{i}", tokens, 0, "all") for i, tokens in enumerate(case.sequences())]
        )
        off = np.concatenate([divergences(want[f"logits_{i}"], x) for i, x in enumerate(got)])
        assert off.mean() < MAX_KL / 2


@every_case
async def test_small_models_are_exact_unless_told_otherwise(case: Case, tmp_path: Path) -> None:
    want = case.load()
    async with stages(case, tmp_path, "auto") as ring:
        (got,) = await through(ring, [Step("s", case.sequences()[0], 0, "all")])
        np.testing.assert_allclose(got, want["logits_0"], atol=ATOL, rtol=0)


@every_folder
async def test_hidden_states_between_stages_are_those_of_transformers(
    case: Case, tmp_path: Path
) -> None:
    want = case.load()
    index = int(want["hidden_seq"])
    layers = want["hidden_layers"]
    for cut in range(1, len(layers)):
        async with stages(case, tmp_path, "float32", cut) as ring:
            engine, shard = ring[0]
            (hidden,) = await engine.infer_batch(shard, [Step("s", case.sequences()[index], 0)])
            np.testing.assert_allclose(hidden, layers[cut - 1], atol=ATOL, rtol=0)
            engine, shard = ring[1]
            (got,) = await engine.infer_batch(shard, [Step("s", layers[cut - 1], 0, "all")])
            np.testing.assert_allclose(got, want[f"logits_{index}"], atol=ATOL, rtol=0)


@every_folder
async def test_three_stages_decode_what_one_does_bit_for_bit(case: Case, tmp_path: Path) -> None:
    tokens = case.sequences()[-1]
    with open_checkpoint(case.checkpoint) as checkpoint:
        n = read_config(checkpoint).n_layers
    cuts = list(combinations(range(1, n), 2))[:: max(1, n - 3)]
    async with stages(case, tmp_path, "float32") as whole:
        (want,) = await through(whole, [Step("s", tokens, 0, "all")])
        (next_want,) = await through(whole, [Step("s", tokens[:1], len(tokens))])
    for cut in cuts:
        async with stages(case, tmp_path, "float32", *cut) as ring:
            (got,) = await through(ring, [Step("s", tokens, 0, "all")])
            np.testing.assert_array_equal(got, want)
            (got,) = await through(ring, [Step("s", tokens[:1], len(tokens))])
            np.testing.assert_array_equal(got, next_want)
