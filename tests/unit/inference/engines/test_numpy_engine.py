"""The numpy engine as others see it: steps, lost sequences, reuse, cancellation, limits,
progress.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import DATA
from tiny_checkpoint import write_folder

from exo.inference.engines.inference_engine import LoadProgress, Step
from exo.inference.errors import CheckpointError, InvalidRequest, Overloaded, SequenceLost
from exo.inference.numpy import model as model_module
from exo.inference.numpy.engine import NumpyEngine, NumpyRunner
from exo.inference.numpy.kv_cache import KVStore
from exo.inference.shard import Shard
from exo.lifecycle import ResourceClosed
from exo.lifecycle.testing.conformance import check_resource

PATH = DATA / "tiny-gguf" / "tiny-llama.F32.gguf"
SHARD = Shard.whole("tiny", 4)
TOKENS = np.random.default_rng(0).integers(3, 320, 100)


@pytest.fixture
async def engine() -> AsyncIterator[NumpyEngine]:
    async with NumpyEngine(kv_budget=8 << 20) as engine:
        await engine.load_checkpoint(SHARD, PATH)
        yield engine


def store(engine: NumpyEngine) -> KVStore:
    assert isinstance(engine.runner, NumpyRunner)
    assert engine.runner.loaded is not None
    return engine.runner.loaded.store


async def test_it_passes_the_conformance_suite() -> None:
    await check_resource(lambda: NumpyEngine(kv_budget=1 << 20))


async def test_a_step_at_a_position_that_is_not_held_is_lost_and_changes_nothing(
    engine: NumpyEngine,
) -> None:
    await engine.infer_batch(SHARD, [Step("a", TOKENS[:10], 0)])
    with pytest.raises(SequenceLost) as error:
        await engine.infer_batch(SHARD, [Step("a", TOKENS[10:11], 10), Step("b", TOKENS[:1], 5)])
    assert (error.value.sequence_id, error.value.expected, error.value.held) == ("b", 5, None)
    await engine.infer_batch(SHARD, [Step("a", TOKENS[10:11], 10)])


async def test_an_evicted_sequence_prefilled_again_goes_on_as_if_nothing_had_been(
    engine: NumpyEngine,
) -> None:
    (want,) = await engine.infer_batch(SHARD, [Step("whole", TOKENS[:41], 0)])
    await engine.release("whole")
    # Room for two sequences of 64 positions.
    async with NumpyEngine(kv_budget=2 * 64 * 1024) as small:
        await small.load_checkpoint(SHARD, PATH)
        for name in "abc":
            await small.infer_batch(
                SHARD, [Step(name, TOKENS[::-1][:40].copy() + ord(name) % 3, 0)]
            )
        with pytest.raises(SequenceLost):
            await small.infer_batch(SHARD, [Step("a", TOKENS[40:41], 40)])
        await small.infer_batch(SHARD, [Step("a", TOKENS[:40], 0)])
        (got,) = await small.infer_batch(SHARD, [Step("a", TOKENS[40:41], 40)])
        assert small.kv_tokens_total == 128
        np.testing.assert_allclose(got, want, atol=1e-4)


async def test_a_budget_too_small_for_one_request_is_overload(engine: NumpyEngine) -> None:
    async with NumpyEngine(kv_budget=64 * 1024) as small:
        await small.load_checkpoint(SHARD, PATH)
        with pytest.raises(Overloaded, match="no room for 100 tokens"):
            await small.infer_batch(SHARD, [Step("a", TOKENS, 0)])


@pytest.mark.parametrize("chunk", [100, 30])
async def test_a_request_that_begins_alike_computes_only_what_is_new(
    engine: NumpyEngine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    embed = model_module.NumpyModel.embed_tokens
    monkeypatch.setattr(
        model_module.NumpyModel,
        "embed_tokens",
        lambda self, t: computed.append(len(t)) or embed(self, t),
    )
    other = np.concatenate([TOKENS[:80], TOKENS[:20]])
    (want,) = await engine.infer_batch(SHARD, [Step("fresh", other, 0, "all")])
    await engine.release("fresh")
    await engine.load_checkpoint(SHARD, PATH)  # nothing is left to be reused
    await engine.infer_batch(SHARD, [Step("first", TOKENS, 0)])
    await engine.release("first")
    computed.clear()
    for at in range(0, 100, chunk):
        (got,) = await engine.infer_batch(SHARD, [Step("second", other[at : at + chunk], at)])
    np.testing.assert_allclose(got[-1], want[-1], atol=1e-4)
    assert sum(computed) < 30


async def test_stages_of_a_ring_reuse_a_prefix_when_asked(engine: NumpyEngine) -> None:
    (want,) = await engine.infer_batch(SHARD, [Step("fresh", TOKENS, 0)])
    stages = [(NumpyEngine(kv_budget=4 << 20), Shard("tiny", a, b, 4)) for a, b in ((0, 1), (2, 3))]

    async def run(name: str, tokens: Any, position: int) -> Any:
        values = tokens
        for one, shard in stages:
            (values,) = await one.infer_batch(shard, [Step(name, values, position)])
        return values

    for one, shard in stages:
        await one.initialize()
        await one.load_checkpoint(shard, PATH)
        assert await one.reuse_prefix("a", TOKENS.tolist()) == 0
    await run("a", TOKENS[:60], 0)
    for one, _ in stages:
        await one.release("a")
        assert await one.reuse_prefix("b", TOKENS.tolist(), limit=50) == 50
    np.testing.assert_allclose(await run("b", TOKENS[50:], 50), want, atol=1e-4)
    for one, _ in stages:
        await one.cleanup()


async def test_releasing_frees_the_room_and_can_be_done_in_any_state() -> None:
    engine = NumpyEngine(kv_budget=8 << 20)
    await engine.release("nobody")
    async with engine:
        await engine.load_checkpoint(SHARD, PATH)
        free = engine.kv_tokens_free
        await engine.infer_batch(SHARD, [Step("a", TOKENS, 0)])
        assert engine.sequences == 1
        assert engine.kv_tokens_free < free
        await engine.release("a")
        assert engine.sequences == 0
        assert engine.kv_tokens_free == free
    await engine.release("a")
    with pytest.raises(ResourceClosed):
        await engine.infer_batch(SHARD, [Step("a", TOKENS, 0)])


@pytest.mark.parametrize(
    ("values", "position", "message"),
    [
        (np.array([320]), 0, "outside 0..319"),
        (np.array([-1]), 0, "outside 0..319"),
        (np.array([], dtype=np.int64), 0, "at least one token"),
        (np.array([1]), -1, "position from 0"),
        (np.zeros(513, np.int64), 0, "513 tokens do not fit the window of 512"),
        (np.zeros((1, 64), np.float32), 0, "not token ids"),
        (np.zeros(3, np.float32), 0, "not token ids"),
    ],
)
async def test_a_step_that_cannot_work_is_refused(
    engine: NumpyEngine, values: Any, position: int, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await engine.infer_batch(SHARD, [Step("a", values, position)])


async def test_hidden_states_of_another_width_are_refused() -> None:
    async with NumpyEngine(kv_budget=1 << 20) as engine:
        shard = Shard("tiny", 1, 3, 4)
        await engine.load_checkpoint(shard, PATH)
        with pytest.raises(InvalidRequest, match=r"not \(T, 64\)"):
            await engine.infer_batch(shard, [Step("a", np.zeros((2, 63), np.float32), 0)])


async def test_a_shard_that_is_not_loaded_is_refused(engine: NumpyEngine) -> None:
    with pytest.raises(InvalidRequest, match="is loaded"):
        await engine.infer_batch(Shard("tiny", 0, 2, 4), [Step("a", TOKENS, 0)])


async def test_which_rows_of_logits_come_back_is_the_callers_choice(engine: NumpyEngine) -> None:
    steps = [
        Step("a", TOKENS[:5], 0, "all"),
        Step("b", TOKENS[:5], 0, "last"),
        Step("c", TOKENS[:5], 0, "none"),
    ]
    every, last, none = await engine.infer_batch(SHARD, steps)
    assert (every.shape, last.shape, none.shape) == ((5, 320), (1, 320), (0, 320))
    np.testing.assert_allclose(every[-1:], last, atol=1e-5)
    assert await engine.infer_batch(SHARD, []) == []


async def test_the_legacy_calls_go_from_text_to_text(engine: NumpyEngine) -> None:
    ids = await engine.encode(SHARD, "hello world")
    assert await engine.decode(SHARD, ids) == "hello world"
    logits, state = await engine.infer_prompt("a", SHARD, "hello world")
    assert logits.shape == (1, len(ids), 320)
    more, _ = await engine.infer_tensor("a", SHARD, np.array([[5]]), state)
    assert more.shape == (1, 1, 320)


class Gate:
    """Holds each layer's attention until it is opened; `entered` counts how many have come."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.entered = 0
        self._reached = asyncio.Event()
        loop = asyncio.get_running_loop()
        attention = model_module.NumpyModel._attention

        def held(model: Any, *arguments: Any) -> Any:
            self.entered += 1
            loop.call_soon_threadsafe(self._reached.set)
            assert self.open.wait(60)
            return attention(model, *arguments)

        patch.setattr(model_module.NumpyModel, "_attention", held)

    async def reached(self) -> None:
        """Until a pass is in its first layer; needs an event loop that goes on meanwhile."""
        await self._reached.wait()


async def test_a_cancelled_pass_stops_at_the_next_layer_and_the_sequence_can_go_on(
    engine: NumpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (want,) = await engine.infer_batch(SHARD, [Step("x", TOKENS[:11], 0)])
    await engine.infer_batch(SHARD, [Step("a", TOKENS[:10], 0)])
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        task = asyncio.create_task(engine.infer_batch(SHARD, [Step("a", TOKENS[10:11], 10)]))
        await gate.reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        await engine.release("nobody")  # comes behind the pass on the worker
        assert gate.entered == 1
    (got,) = await engine.infer_batch(SHARD, [Step("a", TOKENS[10:11], 10)])
    np.testing.assert_allclose(got, want, atol=1e-4)


async def test_the_event_loop_is_free_while_it_computes(
    engine: NumpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    task = asyncio.create_task(engine.infer_batch(SHARD, [Step("a", TOKENS, 0)]))
    await gate.reached()
    assert not task.done()
    gate.open.set()
    await task


async def test_closing_stops_a_pass_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = NumpyEngine(kv_budget=1 << 20)
    await engine.initialize()
    await engine.load_checkpoint(SHARD, PATH)
    gate = Gate(monkeypatch)
    task = asyncio.create_task(engine.infer_batch(SHARD, [Step("a", TOKENS, 0)]))
    await gate.reached()
    closing = asyncio.create_task(engine.cleanup())
    assert await asyncio.to_thread(engine._closing.wait, 60)
    gate.open.set()
    await closing
    with pytest.raises(ResourceClosed):
        await task
    assert gate.entered == 1


async def test_loading_reports_bytes_and_tensors_to_the_end(
    engine: NumpyEngine, tmp_path: Path
) -> None:
    seen: list[LoadProgress] = []
    async with NumpyEngine(kv_budget=1 << 20) as other:
        other.on_progress = seen.append
        await other.load_checkpoint(Shard("m", 0, 1, 3), write_folder(tmp_path))
        await asyncio.sleep(0)
    last = seen[-1]
    assert last.bytes_done == last.bytes_total > 0
    assert last.tensors_done == last.tensors_total == 1 + 2 * 9
    assert last.seconds_left == 0


async def test_a_checkpoint_that_cannot_be_read_leaves_an_engine_that_can_load_another(
    engine: NumpyEngine,
) -> None:
    with pytest.raises(CheckpointError):
        await engine.load_checkpoint(SHARD, PATH.with_name("none.gguf"))
    with pytest.raises(InvalidRequest):
        await engine.infer_batch(SHARD, [Step("a", TOKENS, 0)])
    await engine.load_checkpoint(SHARD, PATH)
    await engine.infer_batch(SHARD, [Step("a", TOKENS, 0)])


async def test_a_shard_of_another_model_is_refused(engine: NumpyEngine) -> None:
    with pytest.raises(CheckpointError, match="has 4 layers, the shard is of one with 5"):
        await engine.load_checkpoint(Shard.whole("tiny", 5), PATH)


async def test_a_model_without_a_tokenizer_answers_token_ids_only(tmp_path: Path) -> None:
    shard = Shard.whole("m", 3)
    async with NumpyEngine(kv_budget=1 << 20) as engine:
        await engine.load_checkpoint(shard, write_folder(tmp_path))
        (logits,) = await engine.infer_batch(shard, [Step("a", np.array([1, 2, 3]), 0)])
        assert logits.shape == (1, 40)
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
            await engine.encode(shard, "hello")


async def test_a_thousand_requests_later_the_memory_is_the_same(engine: NumpyEngine) -> None:
    rng = np.random.default_rng(1)
    used = []
    for i in range(300):
        await engine.infer_batch(SHARD, [Step(f"r{i}", rng.integers(3, 320, 40), 0)])
        await engine.release(f"r{i}")
        used.append(store(engine).used)
    assert engine.sequences == 0
    assert max(used) <= 8 << 20
    assert used[-1] == used[-100]


async def test_each_layer_of_a_pass_is_a_sign_of_progress(engine: NumpyEngine) -> None:
    before = engine.marks
    await engine.infer_batch(SHARD, [Step("a", TOKENS[:10], 0)])
    assert engine.marks - before == 4
