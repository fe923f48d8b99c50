"""A batch that goes on takes the short way, and computes bit for bit what the long way computes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import DATA

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.onnx.engine import OnnxEngine
from exo.inference.onnx.run.decode_fast_path import DecodeFastPath
from exo.inference.onnx.run.sequences import Sequences
from exo.inference.onnx.run.slots import GRAIN, SlotTable
from exo.inference.shard import Shard

MODEL = DATA / "llama-llama3rope"
CAPACITY = 64


def table_of(*lengths: int, budget: int = 1000) -> SlotTable:
    table = SlotTable(len(lengths) + 1, budget)
    for slot, length in enumerate(lengths):
        table.put(slot, f"s{slot}", length=0, tokens=np.arange(0), long=False)
        table.extend(slot, length, np.arange(length))
    return table


def step(slot: int, position: int, n: int = 1) -> Step:
    return Step(f"s{slot}", np.zeros(n, np.int64), position)


@pytest.mark.parametrize(
    ("lengths", "steps", "goes_on"),
    [
        pytest.param((20, 7), [step(1, 7), step(0, 20)], True, id="one token more of each"),
        pytest.param((20, 7), [step(1, 8), step(0, 20)], False, id="one is elsewhere"),
        pytest.param((20, 7), [step(1, 7, 2), step(0, 20)], False, id="two tokens"),
        pytest.param((20, 7), [step(1, 0), step(0, 20)], False, id="one begins anew"),
        pytest.param(
            (CAPACITY - 2, 7),
            [step(1, 7), step(0, CAPACITY - 2)],
            True,
            id="the last place of the buffers",
        ),
        pytest.param(
            (CAPACITY - 1, 7),
            [step(1, 7), step(0, CAPACITY - 1)],
            False,
            id="the buffers must grow",
        ),
    ],
)
def test_a_batch_goes_on_where_each_sequence_takes_one_token_and_there_is_room(
    lengths: tuple[int, ...], steps: list[Step], goes_on: bool
) -> None:
    table = table_of(*lengths)
    steady = DecodeFastPath.of(table, [1, 0], 0)
    assert steady.goes_on(steps, table, CAPACITY) is goes_on


@pytest.mark.parametrize("budget", [2 * GRAIN, 2 * GRAIN + GRAIN - 1, 3 * GRAIN])
def test_the_first_token_of_a_grain_goes_on_only_within_the_budget(budget: int) -> None:
    table = table_of(GRAIN, 5, budget=budget)
    assert DecodeFastPath.of(table, [0, 1], 0).goes_on(
        [step(0, GRAIN), step(1, 5)], table, CAPACITY
    ) is (budget == 3 * GRAIN)


@pytest.mark.parametrize(
    "happens",
    [
        lambda table: table.put(2, "new", length=0, tokens=np.arange(0), long=False),
        lambda table: table.swap(1, 2),
        lambda table: table.release(1),
        lambda table: table.drop(1),
    ],
    ids=["one comes", "one moves", "one ends", "one is evicted"],
)
def test_a_batch_does_not_go_on_after_the_table_has_changed(
    happens: Callable[[SlotTable], object],
) -> None:
    table = table_of(20, 7)
    steady = DecodeFastPath.of(table, [0], 0)
    assert steady.goes_on([step(0, 20)], table, CAPACITY)
    happens(table)
    assert not steady.goes_on([step(0, 20)], table, CAPACITY)


async def history(cache: Path, shard: Shard, seed: int) -> list[Array | str]:
    """Everything that a stage answers while sequences come, step together in changing batches, and
    go.
    """
    rnd, rng = random.Random(seed), np.random.default_rng(seed)
    answers: list[Array | str] = []
    lengths: dict[str, int] = {}
    names = iter(f"q{number}" for number in range(10**6))

    def values(n: int) -> Array:
        return (
            rng.integers(0, 320, n)
            if shard.is_first_layer()
            else rng.normal(size=(n, 64)).astype(np.float32)
        )

    engine = OnnxEngine(
        cache_dir=cache, weight_format="float32", kv_budget=400 * 2048, threads=1, max_sequences=5
    )
    async with engine:
        await engine.load_checkpoint(shard, MODEL)
        for _ in range(60):
            event = rnd.random()
            if event < 0.25 and len(lengths) < 5:
                lengths[next(names)] = 0
            elif event < 0.35 and lengths:
                gone = rnd.choice(sorted(lengths))
                del lengths[gone]
                await engine.release(gone)
            together = rnd.sample(sorted(lengths), rnd.randint(0, len(lengths)))
            for _ in range(rnd.choice((1, 1, 3, 18))):
                steps = [
                    Step(name, values(1 if lengths[name] else 9), lengths[name])
                    for name in together
                ]
                try:
                    answers += await engine.infer_batch(shard, steps)
                except (SequenceLost, Overloaded) as error:
                    answers.append(str(error))
                    break
                lengths |= {each.sequence_id: each.position + len(each.values) for each in steps}
    return answers


@pytest.mark.parametrize(
    "layers", [(0, 3), (0, 1), (2, 3)], ids=["whole", "first stage", "last stage"]
)
async def test_the_short_way_answers_bit_for_bit_as_the_long_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: tuple[int, int]
) -> None:
    shard = Shard("tiny", *layers, 4)
    short_ways = 0
    go_on = Sequences._go_on

    def counting(self: Sequences, *arguments: Any) -> list[Array]:
        nonlocal short_ways
        short_ways += 1
        return go_on(self, *arguments)

    monkeypatch.setattr(Sequences, "_go_on", counting)
    for seed in range(4):
        short = await history(tmp_path, shard, seed)
        with monkeypatch.context() as patch:
            patch.setattr(DecodeFastPath, "goes_on", lambda *_: False)
            long = await history(tmp_path, shard, seed)
        assert len(short) == len(long) > 40
        for got, want in zip(short, long, strict=True):
            np.testing.assert_array_equal(got, want)
    assert short_ways > 200
