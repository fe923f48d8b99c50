"""The bundled model as its file has it (4-bit affine blocks, 8-bit head) against transformers in
float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from golden_data import DATA

from exo.inference.arrays import Array
from exo.inference.checkpoints.catalog import resolve_model
from exo.inference.engines.inference_engine import Step
from exo.inference.onnx.engine import OnnxEngine
from exo.inference.shard import Shard

SHARD = Shard.whole("smollm2-135m", 30)
MAX_KL = 0.05
# Where the best token leads by less, an engine that quantises activations may choose another.
CLEAR_MARGIN = 0.25


def log_softmax(x: Array) -> Array:
    x = x.astype(np.float64) - x.max()
    result: Array = x - np.log(np.exp(x).sum())
    return result


async def test_smollm2_says_what_the_reference_says_until_it_hesitates(tmp_path: Path) -> None:
    with np.load(DATA / "smollm2" / "reference_smollm2.npz") as file:
        want = dict(file)
    n = len(want["greedy"])
    async with OnnxEngine(cache_dir=tmp_path, kv_budget=256 << 20) as engine:
        await engine.load_checkpoint(SHARD, resolve_model("smollm2-135m"))
        at = [len(want[f"ids_{i}"]) for i in range(n)]
        out = await engine.infer_batch(
            SHARD, [Step(f"s{i}", want[f"ids_{i}"], 0) for i in range(n)]
        )
        for i in range(n):
            p, q = log_softmax(want["logits_last"][i]), log_softmax(out[i][-1])
            assert float((np.exp(p) * (p - q)).sum()) < MAX_KL
        clear = np.minimum.accumulate(want["greedy_margin"], axis=1) >= CLEAR_MARGIN
        assert clear.sum() > 20
        for k in range(int(clear.sum(axis=1).max())):
            for i in range(n):
                assert not clear[i, k] or int(out[i][-1].argmax()) == want["greedy"][i, k]
            steps = [Step(f"s{i}", want["greedy"][i, k : k + 1], at[i] + k) for i in range(n)]
            out = await engine.infer_batch(SHARD, steps)


async def test_two_shards_say_bit_for_bit_what_one_says_whatever_else_is_in_the_batch(
    tmp_path: Path,
) -> None:
    """Prompt and steps; int8 rounding would turn any other last bit into another logit."""
    with np.load(DATA / "smollm2" / "reference_smollm2.npz") as file:
        prompt, others = file["ids_0"], [file[f"ids_{i}"] for i in range(1, 4)]
        greedy = file["greedy"][0, :6]
    path, n_layers = resolve_model("smollm2-135m"), SHARD.n_layers
    halves = [Shard("smollm2-135m", 0, 12, n_layers), Shard("smollm2-135m", 13, 29, n_layers)]
    async with (
        OnnxEngine(cache_dir=tmp_path, kv_budget=64 << 20) as whole,
        OnnxEngine(cache_dir=tmp_path, kv_budget=64 << 20) as first,
        OnnxEngine(cache_dir=tmp_path, kv_budget=64 << 20) as second,
    ):
        await whole.load_checkpoint(SHARD, path)
        await first.load_checkpoint(halves[0], path)
        await second.load_checkpoint(halves[1], path)
        for i, ids in enumerate(others):
            await whole.infer_batch(SHARD, [Step(f"other{i}", ids, 0)])
        fed, at = [prompt, *(greedy[k : k + 1] for k in range(len(greedy)))], 0
        for k, values in enumerate(fed):
            beside = [
                Step(f"other{i}", greedy[:1], len(ids) + k - 1) for i, ids in enumerate(others) if k
            ]
            want = (await whole.infer_batch(SHARD, [*beside, Step("s", values, at)]))[-1]
            (hidden,) = await first.infer_batch(halves[0], [Step("s", values, at)])
            (got,) = await second.infer_batch(halves[1], [Step("s", hidden, at)])
            np.testing.assert_array_equal(got[-1], want[-1])
            at += len(values)


async def test_a_question_asked_again_gets_the_same_bits_from_what_is_known_of_it(
    tmp_path: Path,
) -> None:
    with np.load(DATA / "smollm2" / "reference_smollm2.npz") as file:
        prompt = file["ids_0"]
    async with OnnxEngine(cache_dir=tmp_path, kv_budget=64 << 20) as engine:
        await engine.load_checkpoint(SHARD, resolve_model("smollm2-135m"))
        (fresh,) = await engine.infer_batch(SHARD, [Step("a", prompt, 0)])
        await engine.release("a")
        (borrowed,) = await engine.infer_batch(SHARD, [Step("b", prompt, 0)])
        await engine.release("b")
        held = await engine.reuse_prefix("c", prompt.tolist())
        assert held == len(prompt) - 2
        (reused,) = await engine.infer_batch(SHARD, [Step("c", prompt[held:], held)])
        np.testing.assert_array_equal(borrowed, fresh)
        np.testing.assert_array_equal(reused, fresh)
