"""Each option of an engine reaches the engine that uses it, from `create_engine` and through a
pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from golden_data import DATA

from exo.inference.engines.engine import Engine
from exo.inference.engines.factory import create_engine, create_pool
from exo.inference.engines.options import EngineOptions, default_cache_dir
from exo.inference.shard import Shard

MODEL, SHARD = DATA / "llama-llama3rope", Shard.whole("tiny", 4)
BYTES_PER_TOKEN = 4 * 2 * 2 * 16 * 4


class Seen:
    """What the parts of an engine were given while it loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from exo.inference.onnx import engine
        from exo.inference.onnx.run.session import ShardSession

        self.threads = self.cache_bytes = 0
        self.format = ""
        self.limited = False
        session, cache = ShardSession.__init__, engine.ConversionCache.__init__
        key = engine.conversion_key

        def start_session(that: Any, *arguments: Any, **options: Any) -> None:
            self.threads = options["threads"]
            session(that, *arguments, **options)

        def open_cache(that: Any, folder: Path, max_bytes: int) -> None:
            self.cache_bytes = max_bytes
            cache(that, folder, max_bytes)

        def note_format(shard: Shard, weight_format: Any) -> str:
            self.format = weight_format
            return key(shard, weight_format)

        def limit(threads: int) -> None:
            self.limited = True

        monkeypatch.setattr(ShardSession, "__init__", start_session)
        monkeypatch.setattr(engine.ConversionCache, "__init__", open_cache)
        monkeypatch.setattr(engine, "conversion_key", note_format)
        monkeypatch.setattr("exo.inference.numpy.engine.limit_threads", limit)


Look = Callable[[Engine, Seen, Path], object]
# Option -> the engine that uses it, a value, and whether the value arrived.
USED: dict[str, tuple[str, Any, Look]] = {
    "cache_dir": ("onnx", None, lambda e, seen, folder: any((folder / "onnx").iterdir())),
    "cache_bytes": ("onnx", 1 << 21, lambda e, seen, folder: seen.cache_bytes == 1 << 21),
    "weight_format": ("onnx", "8bit", lambda e, seen, folder: seen.format == "8bit"),
    "kv_budget": ("onnx", 100 * BYTES_PER_TOKEN, lambda e, seen, folder: e.kv_tokens_total == 100),
    "max_sequences": ("onnx", 3, lambda e, seen, folder: e.max_sequences == 3),
    "threads": ("onnx", 1, lambda e, seen, folder: seen.threads == 1),
    "keep_blas_threads": ("numpy", True, lambda e, seen, folder: not seen.limited),
}


def test_no_option_is_forgotten_here() -> None:
    assert set(USED) == {each.name for each in fields(EngineOptions)}


@pytest.mark.parametrize("name", USED)
async def test_each_option_reaches_its_engine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_name, value, arrived = USED[name]
    options = EngineOptions(**{"cache_dir": tmp_path, name: tmp_path if value is None else value})
    seen = Seen(monkeypatch)
    async with create_engine(engine_name, options) as engine:
        await engine.load_checkpoint(SHARD, MODEL)
        assert arrived(engine, seen, tmp_path)


async def test_a_pool_hands_them_to_each_of_its_engines(tmp_path: Path) -> None:
    options = EngineOptions(cache_dir=tmp_path, kv_budget=50 * BYTES_PER_TOKEN)
    async with create_pool("auto", options) as pool:
        await pool.load_checkpoint(SHARD, MODEL)
        assert pool.kv_tokens_total == 50
    assert any((tmp_path / "onnx").iterdir())


def test_without_a_folder_the_cache_is_in_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_cache_dir() == tmp_path / ".cache" / "exo"
    assert EngineOptions().conversions == tmp_path / ".cache" / "exo" / "onnx"
    assert EngineOptions(cache_dir=tmp_path).conversions == tmp_path / "onnx"
