"""The onnx engine's passes: batches, chunks, rows; and its converted weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from onnx_engines import MODEL, SHARD, VOCAB, alone, inner, loaded, token, tokens

from exo.inference.engines.inference_engine import LoadProgress, Step
from exo.inference.errors import InvalidRequest, UnsupportedModel
from exo.inference.models import ModelConfig, RopeConfig
from exo.inference.onnx.engine import OnnxEngine
from exo.inference.onnx.graph.shard_weights import decoder_spec
from exo.inference.onnx.run.kv_buffers import MIN_CAPACITY, KvBuffers
from exo.inference.onnx.run.sequences import CHUNK, MIN_CHUNK, chunk_size
from exo.inference.onnx.run.session import choose_providers
from exo.inference.shard import Shard


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[OnnxEngine]:
    async with loaded(tmp_path) as engine:
        yield engine


def entries(folder: Path) -> list[Path]:
    return list((folder / "onnx").iterdir())


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
