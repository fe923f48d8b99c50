"""Same seed, same text: alone, among others, after a replay in other chunks, split over stages."""

from __future__ import annotations

import numpy as np
import pytest
from golden_data import DATA

from exo.inference.engines.inference_engine import Step
from exo.inference.evaluate import Stages, loaded
from exo.inference.sampling.params import SamplingParams
from exo.inference.sampling.sampling import sample

MODEL = str(DATA / "tiny-gguf" / "tiny-llama.Q4_0.gguf")
PROMPT = np.random.default_rng(5).integers(3, 320, 40).tolist()
STEPS = 60
PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1),
    SamplingParams(
        seed=3, temperature=1.5, min_p=0.02, presence_penalty=0.3, frequency_penalty=0.1
    ),
]


async def generate(
    stages: Stages, params: SamplingParams, *, others: int = 0, replay_at: int = -1
) -> list[int]:
    rng = np.random.default_rng(others)
    tokens, held = list(PROMPT), {"main": 0} | {f"o{i}": 0 for i in range(others)}
    while len(tokens) < len(PROMPT) + STEPS:
        if len(tokens) - len(PROMPT) == replay_at:
            replay_at, held["main"] = -1, 0
            # All but the last token, in chunks of another size.
            for at in range(0, len(tokens) - 1, 7):
                chunk = np.array(tokens[at : min(at + 7, len(tokens) - 1)])
                await stages.infer([Step("main", chunk, at, "none")])
                held["main"] += len(chunk)
        # The others are of all lengths, prefilling and decoding at once.
        lengths = {f"o{i}": 1 if held[f"o{i}"] else 1 + 3 * i for i in range(others)}
        steps = [Step("main", np.array(tokens[held["main"] :]), held["main"])]
        steps += [Step(name, rng.integers(3, 320, n), held[name]) for name, n in lengths.items()]
        logits = (await stages.infer(steps))[0][-1]
        for step in steps:
            held[step.sequence_id] += len(step.values)
        tokens.append(sample(logits, params, tokens, len(PROMPT), len(tokens))[0])
    for name in held:
        await stages.release(name)
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("params", PARAMS, ids=lambda p: f"seed{p.seed}")
async def test_what_else_is_in_the_batch_replays_and_splits_change_no_token(
    params: SamplingParams,
) -> None:
    async with loaded(MODEL, "numpy") as whole, loaded(MODEL, "numpy", 3) as split:
        want = await generate(whole, params)
        assert len(set(want)) > 3
        assert await generate(whole, params, others=1) == want
        assert await generate(whole, params, others=6) == want
        assert await generate(whole, params, replay_at=25) == want
        assert await generate(split, params) == want
        assert await generate(split, params, others=3, replay_at=40) == want
