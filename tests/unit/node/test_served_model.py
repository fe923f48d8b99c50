"""What a node knows of its model before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import CONFIG

from exo.node.served_model import read_model
from exo.topology import NodeOffer, plan_ring


@pytest.mark.parametrize("engine", ["dummy", "numpy", "onnx"])
def test_equal_nodes_get_equal_shares_of_a_real_model_with_every_engine(
    tmp_path: Path, engine: str
) -> None:
    # Layers heavy beside the vocabulary, whose table would tip the scales.
    config = {**CONFIG, "num_hidden_layers": 30, "intermediate_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = read_model("m", tmp_path, engine, weights_here=False)
    nodes = [NodeOffer(node_id=name, incarnation=1, memory_mib=1000) for name in ("a", "b")]
    plan = plan_ring(nodes, model.footprint)
    assert [(stage.start_layer, stage.end_layer) for stage in plan.stages] == [(0, 14), (15, 29)]
