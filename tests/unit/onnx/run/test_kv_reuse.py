"""The onnx engine's KV cache: sequences that are lost, prefixes, evictions, cancelled passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_engines import BYTES_PER_TOKEN, MODEL, SHARD, alone, inner, loaded, token, tokens

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import Step
from exo.inference.engines.runner import PassCancelled
from exo.inference.errors import InvalidRequest, Overloaded, SequenceLost
from exo.inference.onnx.engine import OnnxEngine
from exo.inference.onnx.run import session
from exo.inference.shard import Shard


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[OnnxEngine]:
    async with loaded(tmp_path) as engine:
        yield engine


async def test_a_sequence_that_is_not_where_it_is_asked_for_is_lost_before_anything_is_computed(
    engine: OnnxEngine,
) -> None:
    await engine.infer_batch(SHARD, [Step("a", tokens(5), 0)])
    with pytest.raises(SequenceLost):
        await engine.infer_batch(SHARD, [Step("a", token(1), 5), Step("b", token(1), 3)])
    await engine.infer_batch(SHARD, [Step("a", token(1), 5)])
    await engine.release("a")
    with pytest.raises(SequenceLost):
        await engine.infer_batch(SHARD, [Step("a", token(1), 6)])


async def test_position_zero_starts_a_sequence_anew(engine: OnnxEngine) -> None:
    want = await alone(engine, tokens(12, seed=9))
    await engine.infer_batch(SHARD, [Step("a", tokens(30), 0)])
    (got,) = await engine.infer_batch(SHARD, [Step("a", tokens(12, seed=9), 0, "all")])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert engine.sequences == 1


async def test_two_steps_of_one_sequence_in_a_batch_are_refused(engine: OnnxEngine) -> None:
    with pytest.raises(InvalidRequest, match="two steps"):
        await engine.infer_batch(SHARD, [Step("a", token(1), 0), Step("a", token(2), 0)])


@pytest.mark.parametrize(
    "released", [True, False], ids=["of a finished request", "of a running one"]
)
async def test_a_reused_prefix_gives_what_a_fresh_prefill_gives(
    engine: OnnxEngine, released: bool
) -> None:
    system, question = tokens(40, seed=1), tokens(10, seed=2)
    want = await alone(engine, np.concatenate([system, question]))
    await engine.infer_batch(SHARD, [Step("first", np.concatenate([system, tokens(9, seed=3)]), 0)])
    if released:
        await engine.release("first")
    passes: list[int] = []
    original = session.ShardSession.run

    def counting(
        self: Any, buffers: Any, start: int, values: Array, *rest: Any, **options: Any
    ) -> Array:
        passes.append(values.shape[1])
        return original(self, buffers, start, values, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.ShardSession, "run", counting)
        (got,) = await engine.infer_batch(
            SHARD, [Step("second", np.concatenate([system, question]), 0)]
        )
    assert sum(passes) <= len(question)
    np.testing.assert_allclose(got[0], want[-1], atol=1e-4)


async def test_stages_of_a_ring_agree_on_a_prefix(tmp_path: Path) -> None:
    ids, halves = tokens(40), (Shard("tiny", 0, 1, 4), Shard("tiny", 2, 3, 4))
    async with loaded(tmp_path) as whole:
        want = await alone(whole, ids)
    engines = [
        OnnxEngine(weight_format="float32", cache_dir=tmp_path, kv_budget=1 << 20, threads=1)
        for _ in halves
    ]
    try:
        for engine, shard in zip(engines, halves, strict=True):
            await engine.initialize()
            await engine.load_checkpoint(shard, MODEL)
            assert await engine.reuse_prefix("a", ids.tolist()) == 0
        (hidden,) = await engines[0].infer_batch(halves[0], [Step("a", ids, 0)])
        await engines[1].infer_batch(halves[1], [Step("a", hidden, 0)])
        for engine in engines:
            await engine.release("a")
        held = [await engine.reuse_prefix("b", ids.tolist()) for engine in engines]
        assert held == [38, 38]  # two are read in any case: one alone would be a step
        held = [await engine.reuse_prefix("b", ids.tolist(), 30) for engine in engines]
        assert held == [30, 30]
        (hidden,) = await engines[0].infer_batch(halves[0], [Step("b", ids[30:], 30)])
        (got,) = await engines[1].infer_batch(halves[1], [Step("b", hidden, 30, "all")])
        np.testing.assert_allclose(got, want[30:], atol=1e-4)
    finally:
        for engine in engines:
            await engine.cleanup()


async def test_under_a_small_budget_idle_sequences_are_evicted_and_then_lost(
    tmp_path: Path,
) -> None:
    async with loaded(tmp_path, kv_budget=100 * BYTES_PER_TOKEN) as engine:
        assert engine.kv_tokens_total == 100
        await engine.infer_batch(SHARD, [Step("idle", tokens(60), 0)])
        await engine.infer_batch(SHARD, [Step("busy", tokens(60, seed=1), 0)])
        assert inner(engine).table.evictions == 1
        with pytest.raises(SequenceLost):
            await engine.infer_batch(SHARD, [Step("idle", token(1), 60)])
        with pytest.raises(Overloaded):
            await engine.infer_batch(
                SHARD, [Step("busy", token(1), 60), Step("other", tokens(60), 0)]
            )
        # A refused batch has cost nobody anything.
        await engine.infer_batch(SHARD, [Step("busy", token(1), 60)])


async def test_released_tokens_are_free_at_once(engine: OnnxEngine) -> None:
    before = engine.kv_tokens_free
    await engine.infer_batch(SHARD, [Step("a", tokens(40), 0)])
    assert engine.kv_tokens_free == before - 48
    assert engine.sequences == 1
    await engine.release("a")
    await engine.release("never seen")
    assert engine.kv_tokens_free == before
    assert engine.sequences == 0


async def test_more_sequences_than_slots_evict_the_oldest(tmp_path: Path) -> None:
    async with loaded(tmp_path, max_sequences=2) as engine:
        for seed, name in enumerate(("a", "b", "c")):
            await engine.infer_batch(SHARD, [Step(name, tokens(20, seed), 0)])
        with pytest.raises(SequenceLost):
            await engine.infer_batch(SHARD, [Step("a", token(1), 20)])
        await engine.infer_batch(SHARD, [Step("b", token(1), 20), Step("c", token(1), 20)])


async def test_a_cancelled_pass_leaves_every_sequence_as_it_was(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner(engine), "_chunk", 8)
    await engine.infer_batch(SHARD, [Step("old", tokens(20), 0)])
    asked = 0

    def cancel() -> None:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise PassCancelled

    with pytest.raises(PassCancelled):
        inner(engine).forward(
            [Step("old", tokens(30, seed=1), 20), Step("new", tokens(30, seed=2), 0)], cancel
        )
    assert asked == 3
    assert engine.sequences == 1
    want = await alone(engine, np.concatenate([tokens(20), token(3)]))
    (got,) = await engine.infer_batch(SHARD, [Step("old", token(3), 20)])
    np.testing.assert_allclose(got[0], want[-1], atol=1e-4)
