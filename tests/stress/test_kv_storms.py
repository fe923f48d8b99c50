"""Many sequences that begin alike, in little room: whatever is evicted, borrowed or cut up, every
logit is right.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import Case, folder_cases

from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.engine import Engine
from exo.inference.engines.factory import create_engine
from exo.inference.engines.inference_engine import Step
from exo.inference.engines.options import EngineOptions
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.models import read_config
from exo.inference.numpy.engine import NumpyEngine
from exo.inference.shard import Shard

CASES = [case for case in folder_cases() if case.name in {"llama-own-head-f16", "mistral-swa"}]
OPERATIONS = 300
ROOM = 130  # tokens; six sequences of up to 110 want several times as much


class Storm:
    """Drives `engine` at random and holds every answer against a fresh pass of the whole
    sequence.
    """

    def __init__(
        self, engine: Engine, oracle: NumpyEngine, shard: Shard, vocab: int, seed: int
    ) -> None:
        self.rnd, self.engine, self.oracle, self.shard, self.vocab = (
            random.Random(seed),
            engine,
            oracle,
            shard,
            vocab,
        )
        self.beginnings = [self.tokens(70) for _ in range(3)]
        self.live: dict[str, tuple[list[int], int]] = {}  # tokens, how many of them the engine has
        self.begun = self.lost = self.checked = 0

    def tokens(self, n: int) -> list[int]:
        return [self.rnd.randrange(3, self.vocab) for _ in range(n)]

    async def operate(self) -> None:
        chance = self.rnd.random()
        if not self.live or (chance < 0.15 and len(self.live) < 6):
            await self.begin()
        elif chance < 0.25:
            await self.end(self.rnd.choice(list(self.live)))
        else:
            await self.step(
                self.rnd.sample(list(self.live), self.rnd.randrange(1, len(self.live) + 1))
            )

    async def begin(self) -> None:
        self.begun += 1
        name = f"r{self.begun}"
        tokens = self.rnd.choice(self.beginnings)[: self.rnd.randrange(1, 70)] + self.tokens(
            self.rnd.randrange(1, 6)
        )
        held = 0
        if self.rnd.random() < 0.3:
            held = await self.engine.reuse_prefix(name, tokens, self.rnd.choice([None, 20]))
            assert held < len(tokens)
        self.live[name] = (tokens, held)

    async def end(self, name: str) -> None:
        await self.engine.release(name)
        del self.live[name]

    async def step(self, names: list[str]) -> None:
        steps = [self.next_of(name) for name in names]
        try:
            answers = await self.engine.infer_batch(self.shard, steps)
        except SequenceLost as error:
            self.lost += 1
            self.live[error.sequence_id] = (self.live[error.sequence_id][0], 0)
            return
        except Overloaded:
            await self.end(self.rnd.choice(list(self.live)))
            return
        for step, answer in zip(steps, answers, strict=True):
            await self.check(step, answer)

    def next_of(self, name: str) -> Step:
        tokens, held = self.live[name]
        if held == len(tokens):
            tokens.append(self.rnd.randrange(3, self.vocab))
        left = len(tokens) - held
        take = left if self.rnd.random() < 0.7 else self.rnd.randrange(1, left + 1)
        return Step(
            name, np.array(tokens[held : held + take]), held, self.rnd.choice(["last", "all"])
        )

    async def check(self, step: Step, answer: Any) -> None:
        tokens, _ = self.live[step.sequence_id]
        held = step.position + len(step.values)
        self.live[step.sequence_id] = (tokens, held)
        assert len(answer) == (len(step.values) if step.rows == "all" else 1)
        self.checked += 1
        (want,) = await self.oracle.infer_batch(
            self.shard, [Step("o", np.array(tokens[:held]), 0, "all")]
        )
        np.testing.assert_allclose(answer, want[-len(answer) :], atol=1e-4, rtol=0)
        if len(tokens) > 100:
            await self.end(step.sequence_id)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["numpy", "onnx"])
async def test_every_logit_is_right_in_a_storm_of_evictions(
    name: str, case: Case, tmp_path: Path
) -> None:
    with open_checkpoint(case.checkpoint) as checkpoint:
        config = read_config(checkpoint)
    shard = Shard.whole("m", config.n_layers)
    options: dict[str, Any] = {
        "kv_budget": ROOM * 4 * config.kv_values_per_token_and_layer * config.n_layers
    }
    if name == "onnx":
        # Its heads are padded, so a token takes more.
        options = {"kv_budget": 2 * options["kv_budget"], "cache_dir": tmp_path, "max_sequences": 4}
    async with (
        create_engine(name, EngineOptions(**options)) as engine,
        NumpyEngine(kv_budget=64 << 20) as oracle,
    ):
        for one in (engine, oracle):
            await one.load_checkpoint(shard, case.checkpoint)
        storm = Storm(engine, oracle, shard, config.vocab, seed=7)
        for _ in range(OPERATIONS):
            await storm.operate()
        assert storm.checked > 100
        assert storm.lost > 0
