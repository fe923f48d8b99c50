"""Each discovery of the contract can be chosen, and is a class of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exo.contract import DISCOVERIES
from exo.networking.discovery import Discovery
from exo.node.build import build_node
from exo.node.settings import NodeSettings

# What a discovery cannot do without.
NEEDS: dict[str, dict[str, Any]] = {
    "manual": {"discovery_config": Path("peers.json")},
    "dns": {"discovery_name": "peers"},
}


def test_every_discovery_of_the_contract_has_a_class() -> None:
    made = {}
    for name in DISCOVERIES:
        settings = NodeSettings(
            engine="dummy",
            model="dummy",
            discovery=name,  # type: ignore[arg-type]
            **NEEDS.get(name, {}),
        )
        made[name] = build_node(settings).discovery
    assert [name for name, discovery in made.items() if not isinstance(discovery, Discovery)] == []
    assert len({type(discovery) for discovery in made.values()}) == len(DISCOVERIES)
