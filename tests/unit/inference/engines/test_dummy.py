"""The dummy engine: right nonsense, whatever the split; lost sequences are lost."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import DATA

from exo.inference.engines.dummy import CONFIG, MODEL, DummyEngine, byte_tokenizer
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.shard import Shard
from exo.lifecycle.testing.conformance import check_resource

N = CONFIG.n_layers
SHARD = Shard.whole(MODEL, N)
TOKENS = np.array(byte_tokenizer().encode("Why is the sky blue?"))


async def generate(
    stages: list[tuple[DummyEngine, Shard]], tokens: Any, count: int, chunk: int = 100
) -> list[int]:
    out: list[int] = []
    position, pieces = 0, [tokens[i : i + chunk] for i in range(0, len(tokens), chunk)]
    while len(out) < count:
        values: Any = pieces.pop(0) if pieces else np.array(out[-1:])
        size = len(values)
        for engine, shard in stages:
            (values,) = await engine.infer_batch(shard, [Step("a", values, position)])
        position += size
        if not pieces:
            out.append(int(values[-1].argmax()))
    return out


async def answer(*cuts: int, chunk: int = 100, tokens: Any = TOKENS) -> list[int]:
    stages = [(DummyEngine(), Shard(MODEL, a, b - 1, N)) for a, b in pairwise([0, *cuts, N])]
    for engine, shard in stages:
        await engine.initialize()
        await engine.load_checkpoint(shard, MODEL)
    result = await generate(stages, tokens, 20, chunk)
    for engine, _ in stages:
        await engine.cleanup()
    return result


async def test_it_passes_the_conformance_suite() -> None:
    await check_resource(DummyEngine)


async def test_every_split_and_every_chunking_gives_the_same_answer() -> None:
    want = await answer()
    assert len(set(want)) > 5
    for cuts in [c for size in (1, 2) for c in combinations(range(1, N), size)]:
        assert await answer(*cuts) == want
    for chunk in (1, 3, 19):
        assert await answer(chunk=chunk) == want


async def test_every_token_of_the_prompt_counts() -> None:
    want = await answer()
    for i in range(len(TOKENS)):
        changed = TOKENS.copy()
        changed[i] += 1 if changed[i] < CONFIG.vocab - 1 else -1
        assert await answer(tokens=changed) != want


async def test_an_answer_never_holds_a_control_token() -> None:
    assert not set(await answer()) & {0, 1, 2}


async def test_a_sequence_that_is_not_held_is_lost() -> None:
    async with DummyEngine() as engine:
        await engine.load_checkpoint(SHARD, MODEL)
        await engine.infer_batch(SHARD, [Step("a", TOKENS, 0)])
        await engine.release("a")
        with pytest.raises(SequenceLost):
            await engine.infer_batch(SHARD, [Step("a", TOKENS[:1], len(TOKENS))])
        assert engine.sequences == 0


async def test_with_room_for_few_tokens_the_oldest_sequence_goes() -> None:
    async with DummyEngine(kv_tokens=50) as engine:
        await engine.load_checkpoint(SHARD, MODEL)
        for name in "abc":
            await engine.infer_batch(SHARD, [Step(name, TOKENS, 0)])
        assert engine.kv_tokens_free == 10
        with pytest.raises(SequenceLost):
            await engine.infer_batch(SHARD, [Step("a", TOKENS[:1], len(TOKENS))])
        with pytest.raises(Overloaded):
            await engine.infer_batch(SHARD, [Step("d", np.ones(51, np.int64), 0)])


async def test_from_a_checkpoint_it_takes_the_tokenizer_and_the_sizes() -> None:
    path = Path(DATA / "tiny-gguf" / "tiny-llama.F32.gguf")
    shard = Shard.whole("tiny", 4)
    async with DummyEngine() as engine:
        await engine.load_checkpoint(shard, path)
        (logits,) = await engine.infer_batch(shard, [Step("a", np.array([5, 6]), 0, "all")])
        assert logits.shape == (2, 320)
        assert await engine.decode(shard, await engine.encode(shard, "the fox")) == "the fox"
