"""The numpy engine against Hugging Face transformers on every small golden model, and against
itself in every split.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import combinations, pairwise

import numpy as np
import pytest
from golden_data import Case, all_cases, folder_cases

from exo.inference.arrays import Array
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import SequenceLost
from exo.inference.models import read_config
from exo.inference.numpy.engine import NumpyEngine
from exo.inference.shard import Shard

ATOL = 1e-4
BUDGET = 64 << 20


def ids(cases: Sequence[Case]) -> list[str]:
    return [case.name for case in cases]


every_case = pytest.mark.parametrize("case", all_cases(), ids=ids(all_cases()))
every_folder = pytest.mark.parametrize("case", folder_cases(), ids=ids(folder_cases()))


def layers_of(case: Case) -> int:
    with open_checkpoint(case.checkpoint) as checkpoint:
        return read_config(checkpoint).n_layers


@asynccontextmanager
async def engines(case: Case, *cuts: int) -> AsyncIterator[list[tuple[NumpyEngine, Shard]]]:
    """One engine per stage; a cut is the first layer of the next stage."""
    n = layers_of(case)
    bounds = [0, *cuts, n]
    stages = [
        (NumpyEngine(kv_budget=BUDGET), Shard(case.name, a, b - 1, n)) for a, b in pairwise(bounds)
    ]
    try:
        for engine, shard in stages:
            await engine.initialize()
            await engine.load_checkpoint(shard, case.checkpoint)
        yield stages
    finally:
        for engine, _ in stages:
            await engine.cleanup()


async def through(stages: list[tuple[NumpyEngine, Shard]], steps: list[Step]) -> list[Array]:
    for engine, shard in stages[:-1]:
        out = await engine.infer_batch(shard, steps)
        steps = [
            Step(s.sequence_id, x, s.position, s.rows) for s, x in zip(steps, out, strict=True)
        ]
    engine, shard = stages[-1]
    return await engine.infer_batch(shard, steps)


async def in_chunks(
    stages: list[tuple[NumpyEngine, Shard]], name: str, tokens: Array, chunk: int
) -> Array:
    parts = []
    for at in range(0, len(tokens), chunk):
        parts += await through(stages, [Step(name, tokens[at : at + chunk], at, "all")])
    return np.concatenate(parts)


@every_case
async def test_logits_at_every_position_are_those_of_transformers(case: Case) -> None:
    want = case.load()
    async with engines(case) as stages:
        for i, tokens in enumerate(case.sequences()):
            (got,) = await through(stages, [Step(f"s{i}", tokens, 0, "all")])
            np.testing.assert_allclose(got, want[f"logits_{i}"], atol=ATOL, rtol=0)


@every_case
async def test_sixteen_greedy_tokens_with_the_cache_are_those_of_transformers(case: Case) -> None:
    want = case.load()
    async with engines(case) as stages:
        for i, tokens in enumerate(case.sequences()):
            (logits,) = await through(stages, [Step(f"s{i}", tokens, 0)])
            for k, token in enumerate(want[f"greedy_{i}"]):
                np.testing.assert_allclose(
                    logits[-1], want[f"greedy_logits_{i}"][k], atol=ATOL, rtol=0
                )
                assert int(logits[-1].argmax()) == token
                (logits,) = await through(
                    stages, [Step(f"s{i}", np.array([token]), len(tokens) + k)]
                )


@every_case
async def test_a_batch_of_all_sequences_equals_each_alone(case: Case) -> None:
    want = case.load()
    sequences = case.sequences()
    async with engines(case) as stages:
        got = await through(stages, [Step(f"s{i}", t, 0, "all") for i, t in enumerate(sequences)])
        for i, logits in enumerate(got):
            np.testing.assert_allclose(logits, want[f"logits_{i}"], atol=ATOL, rtol=0)
        for k in range(15):  # a step of all at once, each at its own length
            steps = [
                Step(f"s{i}", want[f"greedy_{i}"][k : k + 1], len(t) + k)
                for i, t in enumerate(sequences)
            ]
            for i, logits in enumerate(await through(stages, steps)):
                np.testing.assert_allclose(
                    logits[0], want[f"greedy_logits_{i}"][k + 1], atol=ATOL, rtol=0
                )


@every_case
async def test_a_prompt_in_chunks_equals_the_prompt_at_once(case: Case) -> None:
    want = case.load()
    i = int(want["n_seqs"]) - 1
    tokens = case.sequences()[i]
    async with engines(case) as stages:
        for chunk in (1, 5, 16):
            try:
                got = await in_chunks(stages, f"s{chunk}", tokens, chunk)
            except (
                SequenceLost
                # longrope: grown past the short factors, so it is prefilled again, as the contract
                # says.
            ):
                got = await in_chunks(stages, f"s{chunk}", tokens, chunk)
            np.testing.assert_allclose(got, want[f"logits_{i}"], atol=ATOL, rtol=0)


@every_case
async def test_every_split_in_two_and_three_equals_the_whole_bit_for_bit(case: Case) -> None:
    n = layers_of(case)
    sequences = case.sequences()
    next_token = case.load()["greedy_0"][:1]
    prompt = [Step(f"s{i}", t, 0, "all") for i, t in enumerate(sequences)]
    decode = [Step(f"s{i}", next_token, len(t)) for i, t in enumerate(sequences)]
    async with engines(case) as stages:
        want = [await through(stages, prompt), await through(stages, decode)]
    for cuts in [c for size in (1, 2) for c in combinations(range(1, n), size)]:
        async with engines(case, *cuts) as stages:
            got = [await through(stages, prompt), await through(stages, decode)]
        for a, b in zip(want, got, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), cuts


@every_folder
async def test_each_layer_puts_out_what_it_does_in_transformers(case: Case) -> None:
    want = case.load()
    n = layers_of(case)
    tokens = case.sequences()[int(want["hidden_seq"])]
    inputs = [want["hidden_embed"], *want["hidden_layers"]]
    for layer in range(n - 1):  # the last one's output goes on through norm and head
        engine, shard = NumpyEngine(kv_budget=BUDGET), Shard(case.name, layer, layer, n)
        async with engine:
            await engine.load_checkpoint(shard, case.checkpoint)
            values = tokens if layer == 0 else inputs[layer]
            (got,) = await engine.infer_batch(shard, [Step("s", values, 0)])
        np.testing.assert_allclose(got, want["hidden_layers"][layer], atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    "case", [c for c in folder_cases() if "greedy_stop_0" in c.load()], ids=lambda c: c.name
)
def test_every_eos_id_of_the_generation_config_stops(case: Case) -> None:
    want = case.load()
    with open_checkpoint(case.checkpoint) as checkpoint:
        eos = read_config(checkpoint).eos_ids
    for i in range(int(want["n_seqs"])):
        hits = [k for k, token in enumerate(want[f"greedy_{i}"]) if int(token) in eos]
        assert (hits[0] + 1 if hits else 16) == int(want[f"greedy_stop_{i}"])
