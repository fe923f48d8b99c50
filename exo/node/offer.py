"""What a node offers: what is known when it is built, and how much memory it has for a model."""

from __future__ import annotations

import time

from exo.node.settings import NodeSettings
from exo.topology import DeviceCapabilities, NodeOffer

# Interpreter, libraries and buffers of a node that holds no model.
PROCESS_MIB = 200


def first_offer(settings: NodeSettings, model_id: str, engine: str) -> NodeOffer:
    """What the node says of itself before it knows its memory and ports. The incarnation is the
    time of the start.
    """
    return NodeOffer(
        node_id=settings.node_id,
        incarnation=time.time_ns(),
        address=settings.advertise_host,
        api_port=settings.api_port,
        model_id=model_id,
        engine=engine,
        pinned=settings.pinned,
    )


def offered_mib(capabilities: DeviceCapabilities) -> int:
    """What is left for the model once the process itself has its share. A cap that the user set
    counts as it is.
    """
    most = capabilities.host_memory_mib
    if capabilities.cgroup_limit_mib is not None:
        most = min(most, capabilities.cgroup_limit_mib)
    return max(0, min(capabilities.memory_mib, most - PROCESS_MIB))
