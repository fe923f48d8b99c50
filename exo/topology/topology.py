"""`Topology`: the nodes this node knows of and who is connected to whom. A value: every change
makes a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from exo.topology.offer import NodeOffer


@dataclass(frozen=True, slots=True)
class Topology:
    """offers: newest offer by node id. An edge a -> b stands for a stream that a opened to b."""

    own_id: str
    offers: dict[str, NodeOffer] = field(default_factory=dict)

    @classmethod
    def of(cls, own: NodeOffer, peers: Iterable[NodeOffer] = ()) -> Topology:
        return cls(own.node_id, {offer.node_id: offer for offer in (*peers, own)})

    def with_offer(self, offer: NodeOffer) -> Topology:
        return replace(self, offers={**self.offers, offer.node_id: offer})

    def without(self, node_id: str) -> Topology:
        return replace(
            self, offers={key: offer for key, offer in self.offers.items() if key != node_id}
        )

    def nodes(self) -> list[NodeOffer]:
        return [self.offers[key] for key in sorted(self.offers)]

    def edges(self) -> list[tuple[str, str]]:
        """Known connections between known nodes, as the nodes themselves report them."""
        return sorted(
            (offer.node_id, peer)
            for offer in self.offers.values()
            for peer in offer.peers
            if peer in self.offers
        )

    def is_complete(self) -> bool:
        """Whether every node reports to be connected to every other: then all of them see the same
        view.
        """
        return len(self.edges()) == len(self.offers) * (len(self.offers) - 1)

    def to_dict(self) -> dict[str, object]:
        """For `/api/v1/topology`."""
        return {
            "own_id": self.own_id,
            "nodes": {
                offer.node_id: {
                    "address": offer.address,
                    "state": offer.state.value,
                    "memory_mib": offer.memory_mib,
                    "cores": offer.cores,
                    "model": offer.model_id,
                    "engine": offer.engine,
                    "epoch": offer.epoch,
                }
                for offer in self.nodes()
            },
            "edges": [{"from": one, "to": two} for one, two in self.edges()],
        }
