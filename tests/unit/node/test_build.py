"""Each name of a closed set has something behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from exo.contract import DISCOVERIES, DiscoveryName
from exo.networking.dns.dns_discovery import DnsDiscovery
from exo.networking.manual.manual_discovery import ManualDiscovery
from exo.networking.pooled_discovery import NoDiscovery, PooledDiscovery
from exo.networking.udp.udp_discovery import UDPDiscovery
from exo.node import build
from exo.node.build import build_node
from exo.node.settings import NodeSettings

KINDS: dict[str, tuple[type[PooledDiscovery], dict[str, Any]]] = {
    "none": (NoDiscovery, {}),
    "udp": (UDPDiscovery, {}),
    "manual": (ManualDiscovery, {"discovery_config": Path("peers.json")}),
    "dns": (DnsDiscovery, {"discovery_name": "ring.default.svc"}),
}


def test_every_discovery_of_the_contract_can_be_built() -> None:
    assert set(build.DISCOVERIES) == set(DISCOVERIES) == set(get_args(DiscoveryName))


@pytest.mark.parametrize("name", DISCOVERIES)
def test_a_discovery_is_what_its_name_says(name: Any) -> None:
    kind, needed = KINDS[name]
    node = build_node(
        NodeSettings(node_id="n", engine="dummy", model="dummy", discovery=name, **needed)
    )
    assert type(node.discovery) is kind
