"""`Assignment`: the part of one node in one epoch. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from exo.inference.shard import Shard
from exo.topology import RingPlan


@dataclass(frozen=True, slots=True)
class Assignment:
    """nodes: of the stages, in ring order; index: this node's place among them."""

    epoch: str
    shard: Shard
    nodes: tuple[str, ...]
    index: int

    @classmethod
    def of(cls, plan: RingPlan, node_id: str) -> Assignment | None:
        """None where the node has no stage in the plan."""
        nodes = tuple(stage.node_id for stage in plan.stages)
        if node_id not in nodes:
            return None
        index = nodes.index(node_id)
        stage = plan.stages[index]
        shard = Shard(plan.model_id, stage.start_layer, stage.end_layer, plan.n_layers)
        return cls(plan.epoch, shard, nodes, index)

    @property
    def first(self) -> str:
        return self.nodes[0]

    @property
    def last(self) -> str:
        return self.nodes[-1]

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == len(self.nodes) - 1

    @property
    def previous(self) -> str | None:
        return None if self.is_first else self.nodes[self.index - 1]

    @property
    def next(self) -> str | None:
        return None if self.is_last else self.nodes[self.index + 1]
