"""SmolLM2 itself through the numpy engine: last-position logits and greedy continuations of the
reference prompts.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from golden_data import DATA

from exo.inference.checkpoints.catalog import resolve_model
from exo.inference.engines.inference_engine import Step
from exo.inference.numpy.engine import NumpyEngine
from exo.inference.shard import Shard

SHARD = Shard.whole("smollm2-135m", 30)
PROMPTS: list[dict[str, Any]] = json.loads(
    (DATA / "smollm2" / "reference_smollm2.json").read_text()
)["prompts"]
STEPS = 48


@pytest.fixture
async def engine() -> AsyncIterator[NumpyEngine]:
    async with NumpyEngine(kv_budget=256 << 20) as engine:
        await engine.load_checkpoint(SHARD, resolve_model("smollm2-135m"))
        yield engine


async def test_six_prompts_in_one_batch_give_the_reference_logits_and_texts(
    engine: NumpyEngine,
) -> None:
    want = np.load(DATA / "smollm2" / "reference_smollm2.npz")["logits_last"]
    steps = [Step(f"p{i}", np.array(p["ids"]), 0) for i, p in enumerate(PROMPTS)]
    logits = [x[-1] for x in await engine.infer_batch(SHARD, steps)]
    np.testing.assert_allclose(np.stack(logits), want, atol=1e-3, rtol=0)
    texts: list[list[int]] = [[] for _ in PROMPTS]
    for k in range(STEPS):
        for text, row in zip(texts, logits, strict=True):
            text.append(int(row.argmax()))
        steps = [
            Step(f"p{i}", np.array(t[-1:]), len(PROMPTS[i]["ids"]) + k) for i, t in enumerate(texts)
        ]
        logits = [x[-1] for x in await engine.infer_batch(SHARD, steps)]
    assert texts == [p["greedy"] for p in PROMPTS]
    tokenizer = engine.require_tokenizer()
    stops = [p["greedy_stop"] for p in PROMPTS]
    assert [tokenizer.decode(t[:n]) for t, n in zip(texts, stops, strict=True)] == [
        p["greedy_text"] for p in PROMPTS
    ]


async def test_a_prompt_that_begins_alike_reuses_what_is_there_and_answers_the_same(
    engine: NumpyEngine,
) -> None:
    prompt = PROMPTS[1]["ids"]
    (fresh,) = await engine.infer_batch(SHARD, [Step("a", np.array(prompt), 0)])
    await engine.release("a")
    assert await engine.reuse_prefix("b", prompt) == len(prompt) - 1
    (again,) = await engine.infer_batch(SHARD, [Step("b", np.array(prompt[-1:]), len(prompt) - 1)])
    np.testing.assert_allclose(again, fresh, atol=1e-3, rtol=0)
