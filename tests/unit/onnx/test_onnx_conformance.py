"""The onnx engine keeps the lifecycle contract, with nothing loaded and with a model."""

from __future__ import annotations

from pathlib import Path

from golden_data import DATA

from exo.inference.onnx.engine import OnnxEngine
from exo.inference.shard import Shard
from exo.lifecycle.testing.conformance import check_resource

MODEL = DATA / "llama-llama3rope"
SHARD = Shard("tiny", 0, 3, 4)


class Loading(OnnxEngine):
    """Loads its model as part of its start."""

    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        await self._load_checkpoint(SHARD, MODEL)


async def test_an_engine_without_a_model_conforms(tmp_path: Path) -> None:
    await check_resource(lambda: OnnxEngine(cache_dir=tmp_path))


async def test_an_engine_with_a_model_conforms(tmp_path: Path) -> None:
    await check_resource(lambda: Loading(cache_dir=tmp_path, threads=2, kv_budget=1 << 20))
