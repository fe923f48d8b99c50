"""`Topology`: the nodes that this node knows of, and which are connected to which. A value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from exo.topology.offer import NodeOffer


@dataclass(frozen=True, slots=True)
class Topology:
    """offers: the newest offer of each node, by id. An edge a -> b stands for a connection that a
    opened to b.
    """

    own_id: str
    offers: dict[str, NodeOffer] = field(default_factory=dict)

    @classmethod
    def of(cls, own: NodeOffer, peers: Iterable[NodeOffer] = ()) -> Topology:
        return cls(own.node_id, {offer.node_id: offer for offer in (*peers, own)})

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
