"""What the settings say about engine, models and cache reaches the parts of the node."""

from __future__ import annotations

from pathlib import Path

from golden_data import DATA
from tiny_checkpoint import write_folder

from exo.inference.engines.options import EngineOptions
from exo.inference.shard import Shard
from exo.node.build import build_node, engine_options
from exo.node.settings import NodeSettings

MODEL = DATA / "llama-llama3rope"


async def test_converted_weights_land_in_the_nodes_cache_folder(tmp_path: Path) -> None:
    settings = NodeSettings(
        node_id="n", model=str(MODEL), engine="onnx", cache_dir=tmp_path / "cache"
    )
    engine = build_node(settings).inference_engine
    async with engine:
        await engine.load_checkpoint(Shard.whole("tiny", 4), MODEL)
    (entry,) = (tmp_path / "cache" / "onnx").iterdir()
    assert (entry / "manifest.json").is_file()


def test_a_folder_named_for_the_engine_alone_wins() -> None:
    own, node = Path("own"), Path("node")
    chosen = NodeSettings(cache_dir=node, engine_options=EngineOptions(cache_dir=own, threads=2))
    assert engine_options(chosen) == EngineOptions(cache_dir=own, threads=2)
    given = NodeSettings(cache_dir=node, engine_options=EngineOptions(threads=2))
    assert engine_options(given) == EngineOptions(cache_dir=node, threads=2)
    assert engine_options(NodeSettings()) == EngineOptions()


async def test_models_are_found_in_the_nodes_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    node = build_node(NodeSettings(node_id="n", model="mine", models_dir=tmp_path, engine="numpy"))
    async with node.shard_downloader as downloader:
        assert (await downloader.describe("mine")).path == tmp_path / "mine"
