"""`MembershipView`: who is connected now, what each says of itself, and what this node says of
itself. No I/O, no decisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from exo.networking.peer_handle import PeerHandle
from exo.topology import NodeOffer, Topology

# A peer counts as slow after it was so for this long, and as quick again after as long without.
SLOW_SECONDS = 5.0
QUICK_SECONDS = 15.0
# A peer's streams break one after the other: the handle of a peer that was lost counts as gone this
# long, unless a new one takes its place.
GONE_SECONDS = 1.0
LOCAL = ("127.", "[::1]", "localhost:")


class MembershipView:
    """`own` is this node's offer without its peers; `offers` are the newest of the connected
    peers.
    """

    def __init__(self, own: NodeOffer) -> None:
        self._own = own
        self.handles: dict[str, PeerHandle] = {}
        self.offers: dict[str, NodeOffer] = {}
        self._slow: set[str] = set()
        self._lost: dict[str, tuple[PeerHandle, float]] = {}
        # Since when a peer's speed differs from what it counts as.
        self._changing: dict[str, float] = {}

    @property
    def own_id(self) -> str:
        return self._own.node_id

    def own_offer(self) -> NodeOffer:
        return self._own

    def is_local(self, node_id: str) -> bool:
        """Whether the node is on this machine, as far as its address tells."""
        handle = self.handles.get(node_id)
        return node_id == self.own_id or (handle is not None and handle.addr().startswith(LOCAL))

    def change(self, **fields: Any) -> bool:
        """Change the own offer; whether it differs now."""
        new = replace(self._own, **fields)
        changed, self._own = new != self._own, new
        return changed

    def all_offers(self) -> dict[str, NodeOffer]:
        return {**self.offers, self.own_id: self._own}

    def incarnations(self) -> dict[str, int]:
        return {node_id: offer.incarnation for node_id, offer in self.all_offers().items()}

    def connect(self, handles: Iterable[PeerHandle]) -> list[str]:
        """These are the peers now; the ids of those that are gone,
        or came back as another process.
        """
        current = {
            handle.id(): handle
            for handle in handles
            if handle.id() != self.own_id and not self._is_lost(handle)
        }
        gone = [node_id for node_id in self.handles if node_id not in current]
        for node_id, handle in current.items():
            offer = handle.offer()
            if offer is not None and self.hear(offer, known=True):
                gone.append(node_id)
        self.handles = current
        self.offers = {
            node_id: offer for node_id, offer in self.offers.items() if node_id in current
        }
        self._own = replace(self._own, peers=tuple(sorted(current)))
        return gone

    def hear(self, offer: NodeOffer, *, known: bool = False) -> bool:
        """A peer's newest offer; whether it is another process than before. Offers of the
        unconnected do not count.
        """
        if offer.node_id == self.own_id or not (known or offer.node_id in self.handles):
            return False
        before = self.offers.get(offer.node_id)
        if before is not None and offer.incarnation < before.incarnation:
            return False  # late news of a process that is no more
        self.offers[offer.node_id] = offer
        return before is not None and before.incarnation != offer.incarnation

    def unheard(self, node_id: str) -> None:
        """The peer's way to this node broke: until its next offer it does not count as hearing this
        node.
        """
        offer = self.offers.get(node_id)
        if offer is not None:
            self.offers[node_id] = replace(
                offer, peers=tuple(each for each in offer.peers if each != self.own_id)
            )

    def lose(self, node_id: str) -> bool:
        """The peer is lost; whether it was there."""
        handle = self.handles.pop(node_id, None)
        if handle is None:
            return False
        self._lost[node_id] = (handle, asyncio.get_running_loop().time())
        self.offers.pop(node_id, None)
        self._own = replace(self._own, peers=tuple(sorted(self.handles)))
        return True

    def _is_lost(self, handle: PeerHandle) -> bool:
        lost, at = self._lost.get(handle.id(), (None, 0.0))
        if lost is handle and asyncio.get_running_loop().time() - at < GONE_SECONDS:
            return True
        self._lost.pop(handle.id(), None)
        return False

    def watch_speed(self) -> bool:
        """Call about once a second; whether this node's opinion of who is slow has changed."""
        now = asyncio.get_running_loop().time()
        for node_id, handle in self.handles.items():
            if handle.is_slow() == (node_id in self._slow):
                self._changing.pop(node_id, None)
                continue
            since = self._changing.setdefault(node_id, now)
            if now - since >= (QUICK_SECONDS if node_id in self._slow else SLOW_SECONDS):
                del self._changing[node_id]
                self._slow ^= {node_id}
        self._slow &= set(self.handles)
        return self.change(slow=tuple(sorted(self._slow)))

    def topology(self) -> Topology:
        return Topology.of(self._own, self.offers.values())
