"""`RingPlan`: which node runs which layers, and the epoch that names this arrangement. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlanStage:
    """One node's layers, both ends included."""

    node_id: str
    start_layer: int
    end_layer: int


@dataclass(frozen=True, slots=True)
class RingPlan:
    """Ordered stages that cover each layer of `model_id` once. epoch: a hash of everything else."""

    model_id: str
    n_layers: int
    stages: tuple[PlanStage, ...]
    standby: tuple[str, ...]
    epoch: str
