"""The onnx engine's sequences: batches, chunks, prefixes, evictions, cancellation; and its
converted weights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import DATA

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import LoadProgress, Step
from exo.inference.engines.runner import PassCancelled
from exo.inference.errors import InvalidRequest, Overloaded, SequenceLost, UnsupportedModel
from exo.inference.models import ModelConfig, RopeConfig
from exo.inference.onnx.engine import OnnxEngine, OnnxRunner
from exo.inference.onnx.graph.shard_weights import decoder_spec
from exo.inference.onnx.run import session
from exo.inference.onnx.run.kv_buffers import MIN_CAPACITY, KvBuffers
from exo.inference.onnx.run.sequences import CHUNK, MIN_CHUNK, Sequences, chunk_size
from exo.inference.onnx.run.session import choose_providers
from exo.inference.shard import Shard

MODEL = DATA / "llama-llama3rope"
SHARD = Shard("tiny", 0, 3, 4)
VOCAB = 320
BYTES_PER_TOKEN = 4 * 2 * 2 * 16 * 4


def tokens(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCAB, n)


def token(value: int) -> Array:
    return np.array([value])


def entries(folder: Path) -> list[Path]:
    return list((folder / "onnx").iterdir())


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


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[OnnxEngine]:
    async with loaded(tmp_path) as engine:
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


async def test_each_kind_of_rows_is_as_asked_for(engine: OnnxEngine) -> None:
    ids = tokens(9)
    steps = [Step(rows, ids, 0, rows) for rows in ("last", "all", "none")]
    last, every, none = await engine.infer_batch(SHARD, steps)
    assert [x.shape for x in (last, every, none)] == [(1, VOCAB), (9, VOCAB), (0, VOCAB)]
    np.testing.assert_allclose(last[0], every[-1], atol=1e-5)
    (none,) = await engine.infer_batch(SHARD, [Step("none", token(1), 9, "none")])
    assert none.shape == (0, VOCAB)


async def test_a_batch_of_different_lengths_is_as_each_sequence_alone(engine: OnnxEngine) -> None:
    prompts = [tokens(n, seed=n) for n in (3, 40, 1, 17)]
    want = [await alone(engine, np.append(ids, [7, 8])) for ids in prompts]
    await engine.infer_batch(SHARD, [Step(f"s{i}", ids, 0) for i, ids in enumerate(prompts)])
    for step, value in enumerate((7, 8)):
        batch = [Step(f"s{i}", token(value), len(ids) + step) for i, ids in enumerate(prompts)]
        for got, whole, ids in zip(
            await engine.infer_batch(SHARD, batch), want, prompts, strict=True
        ):
            np.testing.assert_allclose(got[0], whole[len(ids) + step], atol=1e-4)


async def test_one_token_prompts_join_a_batch_of_running_sequences(engine: OnnxEngine) -> None:
    want = await alone(engine, token(5))
    await engine.infer_batch(SHARD, [Step("old", tokens(20), 0)])
    _, new = await engine.infer_batch(SHARD, [Step("old", token(5), 20), Step("new", token(5), 0)])
    np.testing.assert_allclose(new, want, atol=1e-5)


async def test_sequences_left_out_of_batches_keep_their_caches(engine: OnnxEngine) -> None:
    """Whatever subset runs, and however slots change places, nobody's keys are disturbed."""
    rng = np.random.default_rng(3)
    texts = {f"s{i}": tokens(60, seed=i) for i in range(6)}
    want = {name: await alone(engine, ids) for name, ids in texts.items()}
    at = dict.fromkeys(texts, 20)
    await engine.infer_batch(SHARD, [Step(name, ids[:20], 0) for name, ids in texts.items()])
    for _ in range(60):
        chosen = [n for n in texts if at[n] < 60 and rng.random() < 0.4]
        steps = [Step(n, texts[n][at[n] : at[n] + 1], at[n]) for n in chosen]
        for name, got in zip(chosen, await engine.infer_batch(SHARD, steps), strict=True):
            np.testing.assert_allclose(got[0], want[name][at[name]], atol=1e-4)
            at[name] += 1
    assert min(at.values()) > 25


async def test_chunks_give_what_one_pass_gives(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokens(50)
    want = await alone(engine, ids)
    monkeypatch.setattr(inner(engine), "_chunk", 16)
    (got,) = await engine.infer_batch(SHARD, [Step("a", ids, 0, "all")])
    np.testing.assert_allclose(got, want, atol=1e-4)
    (first,) = await engine.infer_batch(SHARD, [Step("b", ids[:30], 0, "none")])
    assert first.shape == (0, VOCAB)
    (rest,) = await engine.infer_batch(SHARD, [Step("b", ids[30:], 30, "all")])
    np.testing.assert_allclose(rest, want[30:], atol=1e-4)


def test_large_models_read_prompts_in_smaller_chunks() -> None:
    rope = RopeConfig(dims=16)
    sizes = {
        "head_dim": 16,
        "vocab": 320,
        "context_length": 512,
        "norm_eps": 1e-5,
        "rope": rope,
        "tied": True,
    }
    found = []
    for n_layers, hidden, ffn in ((4, 64, 160), (128, 1024, 4096), (64, 8192, 28672)):
        config = ModelConfig(
            family="llama",
            n_layers=n_layers,
            hidden=hidden,
            heads=hidden // 16,
            kv_heads=1,
            ffn=ffn,
            **sizes,
        )
        found.append(chunk_size(decoder_spec(config, Shard.whole("m", n_layers)), config))
    assert found[0] == CHUNK > found[1] > found[2] == MIN_CHUNK


async def test_a_sequence_may_outgrow_the_first_buffers(tmp_path: Path) -> None:
    """512 positions is where the buffers start; this model has 512 in all,
    and one more is refused.
    """
    ids = tokens(512)
    async with loaded(tmp_path) as engine:
        want = await alone(engine, ids)
        await engine.infer_batch(SHARD, [Step("other", ids[:30], 0), Step("a", ids[:-1], 0)])
        (got,) = await engine.infer_batch(SHARD, [Step("a", ids[-1:], 511)])
        np.testing.assert_allclose(got[0], want[-1], atol=1e-4)
        # The full sequence now runs along as a foreign slot.
        await engine.infer_batch(SHARD, [Step("third", ids[:30], 0)])
        both = await engine.infer_batch(
            SHARD, [Step(n, ids[30:31], 30) for n in ("other", "third")]
        )
        for got in both:
            np.testing.assert_allclose(got[0], want[30], atol=1e-4)
        with pytest.raises(InvalidRequest):
            await engine.infer_batch(SHARD, [Step("a", token(1), 512)])


def test_growing_buffers_keep_what_is_used() -> None:
    buffers = KvBuffers((0, 1), 3, 2, 16, 4096)
    assert buffers.capacity == MIN_CAPACITY
    for array in buffers.arrays.values():
        array[1, :, :5] = 7
    assert not buffers.grow(MIN_CAPACITY, [0, 5, 0])
    assert buffers.grow(MIN_CAPACITY + 1, [0, 5, 0])
    assert buffers.capacity == 2 * MIN_CAPACITY
    for array in buffers.arrays.values():
        assert (array[1, :, :5] == 7).all()
        assert not array[1, :, 5:].any()
    buffers.clear(1)
    assert not any(array.any() for array in buffers.arrays.values())


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


async def test_the_event_loop_runs_while_the_engine_computes(engine: OnnxEngine) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    most = 0
    # A short pass may be over before this thread has its turn; were it held up by passes, it would
    # never have one.
    for number in range(20):
        before = ticks
        await engine.infer_batch(SHARD, [Step(f"{number}", tokens(400), 0, "all")])
        await engine.release(f"{number}")
        most = max(most, ticks - before)
    ticker.cancel()
    assert most > 10


async def test_the_second_start_takes_the_converted_weights(tmp_path: Path) -> None:
    async with loaded(tmp_path) as engine:
        want = await alone(engine, tokens(9))
    (entry,) = entries(tmp_path)
    made = (entry / "weights.bin").stat().st_mtime_ns
    seen: list[LoadProgress] = []
    async with OnnxEngine(weight_format="float32", cache_dir=tmp_path, threads=1) as engine:
        engine.on_progress = seen.append
        await engine.load_checkpoint(SHARD, MODEL)
        np.testing.assert_array_equal(await alone(engine, tokens(9)), want)
    assert (entry / "weights.bin").stat().st_mtime_ns == made
    assert seen[-1].bytes_done == seen[-1].bytes_total > 0


async def test_broken_converted_weights_are_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with loaded(tmp_path) as engine:
        want = await alone(engine, tokens(9))
    (entry,) = entries(tmp_path)
    damaged = bytearray((entry / "weights.bin").read_bytes())
    damaged[1000] ^= 0xFF
    (entry / "weights.bin").write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        async with loaded(tmp_path) as engine:
            np.testing.assert_array_equal(await alone(engine, tokens(9)), want)
    assert "converting again" in caplog.text


async def test_a_graph_that_cannot_run_is_an_unsupported_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo.inference.onnx.graph.decoder.CONTRIB", "no.such.domain")
    async with OnnxEngine(cache_dir=tmp_path) as engine:
        with pytest.raises(UnsupportedModel, match="onnxruntime cannot run this model"):
            await engine.load_checkpoint(SHARD, MODEL)
    assert entries(tmp_path) == []


async def test_loading_again_replaces_what_was_loaded(engine: OnnxEngine) -> None:
    other = Shard("tiny", 0, 1, 4)
    await engine.infer_batch(SHARD, [Step("a", tokens(5), 0)])
    await engine.load_checkpoint(other, MODEL)
    assert engine.sequences == 0
    (hidden,) = await engine.infer_batch(other, [Step("a", tokens(5), 0)])
    assert hidden.shape == (5, 64)
    with pytest.raises(InvalidRequest):
        await engine.infer_batch(SHARD, [Step("a", tokens(5), 0)])


def test_cuda_is_preferred_where_there_is_one_and_the_cpu_is_always_there() -> None:
    assert choose_providers(["AzureExecutionProvider", "CPUExecutionProvider"]) == [
        "CPUExecutionProvider"
    ]
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert choose_providers(["CPUExecutionProvider", "CUDAExecutionProvider"]) == both
