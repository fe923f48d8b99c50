"""What a node knows of its model before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import CONFIG

from exo.inference.engines.factory import CLASSES
from exo.inference.errors import InvalidRequest
from exo.inference.models import ModelConfig, RopeConfig
from exo.node.served_model import RESERVED_TOKENS, footprint, read_model
from exo.topology import NodeOffer, plan_ring


@pytest.mark.parametrize("engine", CLASSES)
def test_equal_nodes_get_equal_shares_of_a_real_model_with_every_engine(
    tmp_path: Path, engine: str
) -> None:
    # Layers that are heavy compared with the vocabulary, whose table would tip the scales.
    config = {**CONFIG, "num_hidden_layers": 30, "intermediate_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = read_model("m", tmp_path, engine, weights_here=False)
    nodes = [NodeOffer(node_id=name, incarnation=1, memory_mib=1000) for name in ("a", "b")]
    plan = plan_ring(nodes, model.footprint)
    assert [(stage.start_layer, stage.end_layer) for stage in plan.stages] == [(0, 14), (15, 29)]


def test_memory_is_planned_by_what_the_engine_says_it_takes() -> None:
    config = ModelConfig(
        family="llama",
        n_layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=128,
        vocab=1000,
        context_length=8192,
        norm_eps=1e-5,
        rope=RopeConfig(dims=16),
        tied=True,
    )
    weights = 64 * ((2 * 4 + 2 * 2) * 16 + 3 * 128 + 2)
    token = 2 * 2 * 16 * 4
    for engine, per_weight in (("numpy", 4.0), ("onnx", 1.2)):
        made = footprint("m", config, engine, "")
        assert made.token_bytes == token
        assert made.layer_bytes[0] == int(weights * per_weight) + token * RESERVED_TOKENS
    assert footprint("m", config, "dummy", "").token_bytes == 0
    with pytest.raises(InvalidRequest, match="'cuda' is unknown"):
        footprint("m", config, "cuda", "")
