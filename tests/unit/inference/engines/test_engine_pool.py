"""Several shards at once: each works while another loads, and goes without a trace."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.engine_pool import EnginePool
from exo.inference.engines.factory import create_pool
from exo.inference.engines.inference_engine import Step
from exo.inference.shard import Shard
from exo.lifecycle import ResourceClosed, ResourceState, ResourceUnavailable
from exo.lifecycle.registry import live_resources
from exo.lifecycle.testing.conformance import check_resource
from exo.utils.error_handling import degrade

PATH = Path("dummy")
WHOLE, FIRST, SECOND = Shard.whole("dummy", 8), Shard("dummy", 0, 3, 8), Shard("dummy", 4, 7, 8)


def step(sequence_id: str, *tokens: int, position: int = 0) -> Step:
    return Step(sequence_id, np.array(tokens, np.int64), position)


async def held(pool: EnginePool) -> dict[Shard, int]:
    return {
        shard: (await pool.infer_batch(shard, [step("probe", 5)]))[0].shape[-1]
        for shard in pool.shards
    }


async def test_the_pool_conforms_empty_and_as_the_node_makes_it() -> None:
    await check_resource(lambda: EnginePool(DummyEngine))
    await check_resource(lambda: create_pool("numpy"))


async def test_both_halves_beside_the_whole_give_what_the_whole_gives() -> None:
    async with EnginePool(DummyEngine) as pool:
        for shard in (WHOLE, FIRST, SECOND):
            await pool.add_checkpoint(shard, PATH)
        (expected,) = await pool.infer_batch(WHOLE, [step("r", 7, 8, 9)])
        (hidden,) = await pool.infer_batch(FIRST, [step("r", 7, 8, 9)])
        (logits,) = await pool.infer_batch(SECOND, [Step("r", hidden, 0)])
        assert np.array_equal(logits, expected)
        assert pool.sequences == 3
        await pool.release("r")
        assert pool.sequences == 0


async def test_loading_in_place_drops_all_and_dropping_one_leaves_the_others() -> None:
    async with EnginePool(DummyEngine) as pool:
        for shard in (WHOLE, FIRST):
            await pool.add_checkpoint(shard, PATH)
        await pool.drop_shard(WHOLE)
        await pool.drop_shard(WHOLE)
        assert pool.shards == (FIRST,)
        with pytest.raises(ResourceUnavailable, match="was asked for"):
            await pool.infer_batch(WHOLE, [step("r", 7)])
        await pool.load_checkpoint(SECOND, PATH)
        assert pool.shards == (SECOND,)


class Slow(DummyEngine):
    """Blocks its worker thread in a load until it is let, as real engines do."""

    go = threading.Event()
    waits = threading.Event()

    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        assert self._worker is not None
        await self._worker.submit(self._wait)
        await super()._load_checkpoint(shard, path)

    def _wait(self) -> None:
        self.waits.set()
        while not self.go.wait(0.01):
            if self._closing.is_set():
                raise OSError("told to stop")


async def test_a_load_holds_up_no_pass_and_when_given_up_leaves_nothing() -> None:
    Slow.go.set()
    async with EnginePool(Slow) as pool:
        await pool.add_checkpoint(WHOLE, PATH)
        Slow.go.clear()
        loading = asyncio.create_task(pool.add_checkpoint(FIRST, PATH))
        await asyncio.sleep(0)
        assert list(await held(pool)) == [WHOLE]
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert list(await held(pool)) == [WHOLE]
        engines = [engine for engine in live_resources() if isinstance(engine, Slow)]
        assert [engine.shard for engine in engines if engine.is_usable] == [WHOLE]
        await pool.release("probe")
        assert pool.sequences == 0


async def test_closing_while_a_shard_loads_ends_the_load() -> None:
    Slow.go.clear()
    Slow.waits.clear()
    pool = EnginePool(Slow)
    await pool.initialize()
    loading = asyncio.create_task(pool.add_checkpoint(WHOLE, PATH))
    assert await asyncio.to_thread(Slow.waits.wait, 10)
    await pool.cleanup()
    with pytest.raises((OSError, ResourceClosed)):
        await loading
    assert pool.shards == ()


async def unwell() -> bool:
    return False


async def test_a_recovery_loads_every_shard_again_and_a_degraded_one_degrades_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[DummyEngine] = []

    def make() -> DummyEngine:
        made.append(DummyEngine())
        return made[-1]

    async with EnginePool(make) as pool:
        for shard in (WHOLE, FIRST):
            await pool.add_checkpoint(shard, PATH)
        monkeypatch.setattr(made[0], "_do_health_check", unwell)
        for _ in range(pool.failure_threshold):
            await pool.check_health()
        assert pool.state is ResourceState.ERROR
        await pool.recover()
        assert pool.shards == (WHOLE, FIRST)
        assert len(made) == 4
        assert [engine.state for engine in made[:2]] == [ResourceState.CLOSED] * 2
        degrade("engine", to="numpy", reason="no onnxruntime", resource=made[3])
        await pool.check_health()
        assert pool.state is ResourceState.DEGRADED
        assert "no onnxruntime" in pool.state_reason


async def test_room_is_that_of_the_shard_with_the_least() -> None:
    sizes = iter((100, 40))
    async with EnginePool(lambda: DummyEngine(kv_tokens=next(sizes))) as pool:
        assert pool.kv_tokens_total is None
        for shard in (WHOLE, FIRST):
            await pool.add_checkpoint(shard, PATH)
        assert pool.kv_tokens_total == pool.kv_tokens_free == 40
        await pool.drop_shard(FIRST)
        assert pool.kv_tokens_total == 100
