"""`PartitioningStrategy`: the policy that turns a membership view into a ring plan. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from exo.topology.footprint import ModelFootprint
from exo.topology.offer import NodeOffer
from exo.topology.plan import RingPlan
from exo.topology.ring_plan import plan_ring


class PartitioningStrategy(ABC):
    @abstractmethod
    def partition(self, view: Iterable[NodeOffer], model: ModelFootprint) -> RingPlan:
        """Deterministic in its arguments. Raises `NoPlan` with the reason."""


class RingMemoryWeightedPartitioningStrategy(PartitioningStrategy):
    """Layers in proportion to usable memory; see `plan_ring`."""

    def partition(self, view: Iterable[NodeOffer], model: ModelFootprint) -> RingPlan:
        return plan_ring(view, model)
