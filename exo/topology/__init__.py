"""Which nodes there are, and which layers each of them runs. Pure: no sockets, no numpy."""

from exo.topology.device_capabilities import DeviceCapabilities, device_capabilities
from exo.topology.footprint import ModelFootprint
from exo.topology.offer import NodeOffer, NodeState
from exo.topology.partitioning_strategy import (
    PartitioningStrategy,
    RingMemoryWeightedPartitioningStrategy,
)
from exo.topology.plan import PlanStage, RingPlan
from exo.topology.ring_plan import NoPlan, plan_ring
from exo.topology.topology import Topology

__all__ = [
    "DeviceCapabilities",
    "ModelFootprint",
    "NoPlan",
    "NodeOffer",
    "NodeState",
    "PartitioningStrategy",
    "PlanStage",
    "RingMemoryWeightedPartitioningStrategy",
    "RingPlan",
    "Topology",
    "device_capabilities",
    "plan_ring",
]
