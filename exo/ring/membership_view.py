"""`MembershipView`: who is connected, what each peer offers, and what this node offers.

It does no I/O and makes no plan. It reads the event loop's clock for two things: how long a peer
has been slow, and how long ago a connection was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from exo.networking.peer_handle import PeerHandle
from exo.pipeline.timeouts import Pace
from exo.topology import NodeOffer, RingPlan, Topology

# A peer counts as slow once it has been slow for this long, and as quick again after as many
# seconds as QUICK_SECONDS without a late answer. Both differ so that a peer does not flap.
SLOW_SECONDS = 5.0
QUICK_SECONDS = 15.0
# The two streams of a connection break one after the other. For this long after the first loss the
# old handle counts as gone, even while discovery still lists it as connected.
GONE_SECONDS = 1.0
LOCAL = ("127.", "[::1]", "localhost:")


class MembershipView:
    """`own` is this node's offer, without its peers. `offers` are the newest offers of the
    connected peers.
    """

    def __init__(self, own: NodeOffer) -> None:
        self._own = own
        self.handles: dict[str, PeerHandle] = {}
        self.offers: dict[str, NodeOffer] = {}
        self._slow: set[str] = set()
        self._lost: dict[str, tuple[PeerHandle, float]] = {}
        # Since when a peer's speed has differed from what the peer counts as.
        self._differs_since: dict[str, float] = {}

    # -- this node ---------------------------------------------------------------------------------

    @property
    def own_id(self) -> str:
        return self._own.node_id

    def own_offer(self) -> NodeOffer:
        return self._own

    def change(self, **fields: Any) -> bool:
        """Change fields of this node's offer. Returns whether anything is different now."""
        new = replace(self._own, **fields)
        changed, self._own = new != self._own, new
        return changed

    # -- everyone ----------------------------------------------------------------------------------

    def all_offers(self) -> dict[str, NodeOffer]:
        return {**self.offers, self.own_id: self._own}

    def topology(self) -> Topology:
        return Topology.of(self._own, self.offers.values())

    def pace(self, plan: RingPlan) -> Pace:
        """How fast the stages of a plan say that they are, and whether sequences wait there."""
        return Pace.of(plan, self.all_offers())

    def is_local(self, node_id: str) -> bool:
        """Whether the node is on this machine, as far as its address tells."""
        handle = self.handles.get(node_id)
        return node_id == self.own_id or (handle is not None and handle.addr().startswith(LOCAL))

    # -- peers -------------------------------------------------------------------------------------

    def connect(self, handles: Iterable[PeerHandle]) -> list[str]:
        """These are the connected peers now. Returns the ids of the peers that are gone or that
        came back as another process.
        """
        current = {
            handle.id(): handle
            for handle in handles
            if handle.id() != self.own_id and not self._was_just_lost(handle)
        }
        gone = [node_id for node_id in self.handles if node_id not in current]
        for node_id, handle in current.items():
            offer = handle.offer()
            if offer is not None and self.take_offer(offer, is_connected=True):
                gone.append(node_id)
        self.handles = current
        self.offers = {
            node_id: offer for node_id, offer in self.offers.items() if node_id in current
        }
        self._own = replace(self._own, peers=tuple(sorted(current)))
        return gone

    def take_offer(self, offer: NodeOffer, *, is_connected: bool = False) -> bool:
        """Take a peer's newest offer. Returns whether the peer is another process than before.

        Offers of nodes that are not connected are ignored. So are offers of an earlier
        incarnation: a process that has ended can still have an offer on its way here, because its
        two streams end at different times. Without this check a restarted peer would seem to
        restart a second time when the late offer arrives.
        """
        if offer.node_id == self.own_id or not (is_connected or offer.node_id in self.handles):
            return False
        before = self.offers.get(offer.node_id)
        if before is not None and offer.incarnation < before.incarnation:
            return False
        self.offers[offer.node_id] = offer
        return before is not None and before.incarnation != offer.incarnation

    def remove_link_back(self, node_id: str) -> None:
        """The peer's stream to this node broke. Until its next offer, the peer does not count as
        connected to this node.
        """
        offer = self.offers.get(node_id)
        if offer is not None:
            self.offers[node_id] = replace(
                offer, peers=tuple(each for each in offer.peers if each != self.own_id)
            )

    def lose(self, node_id: str) -> bool:
        """The peer is lost. Returns whether it was connected."""
        handle = self.handles.pop(node_id, None)
        if handle is None:
            return False
        self._lost[node_id] = (handle, asyncio.get_running_loop().time())
        self.offers.pop(node_id, None)
        self._own = replace(self._own, peers=tuple(sorted(self.handles)))
        return True

    def _was_just_lost(self, handle: PeerHandle) -> bool:
        """Whether this very handle was lost a moment ago. A new handle to the same peer is not."""
        lost, at = self._lost.get(handle.id(), (None, 0.0))
        if lost is handle and asyncio.get_running_loop().time() - at < GONE_SECONDS:
            return True
        self._lost.pop(handle.id(), None)
        return False

    def update_slow_peers(self) -> bool:
        """Call about once a second. Returns whether the list of slow peers in this node's offer has
        changed.
        """
        now = asyncio.get_running_loop().time()
        for node_id, handle in self.handles.items():
            counts_as_slow = node_id in self._slow
            if handle.is_slow() == counts_as_slow:
                self._differs_since.pop(node_id, None)
                continue
            since = self._differs_since.setdefault(node_id, now)
            if now - since >= (QUICK_SECONDS if counts_as_slow else SLOW_SECONDS):
                del self._differs_since[node_id]
                if counts_as_slow:
                    self._slow.remove(node_id)
                else:
                    self._slow.add(node_id)
        self._slow &= set(self.handles)
        return self.change(slow=tuple(sorted(self._slow)))
