"""`PeerEvents`: what follows when a peer connects, changes its offer, gets stuck or is lost.

Theory of operation. Two nodes that are connected have two connections, one dialled by each, and
each side notices the loss of either. So one loss is reported up to twice, a moment apart, and in
between a message may still arrive through the connection that is left. Three rules keep this
simple:

- What runs through a peer is interrupted at *every* report. The second time this frees what came in
  through the other connection after the first; usually there is nothing to do.
- Only the loss of the connection that this node dialled removes the peer from the view, because
  that is the one it sends through. If only the peer's connection to this node broke, the peer stays
  but no longer counts as connected to this node. Nothing new is placed on it until its next offer
  says that it is connected again. By then it has noticed the loss as well, and has freed what this
  node had there.
- A peer whose incarnation changed is another process. It holds nothing of what the earlier one
  held, whatever its connections do, so it is treated as lost at once.
"""

from __future__ import annotations

import asyncio
import logging

from exo.networking.peer_handle import PeerHandle
from exo.pipeline.frontend import Frontend
from exo.pipeline.outboxes import Outboxes
from exo.pipeline.stage import Stage
from exo.ring.membership_view import MembershipView
from exo.ring.rollout import Rollout
from exo.topology import NodeOffer

log = logging.getLogger(__name__)


class PeerEvents:
    """changed: set whenever something has changed that the plan depends on."""

    def __init__(
        self,
        view: MembershipView,
        outboxes: Outboxes,
        stage: Stage,
        frontend: Frontend,
        rollout: Rollout,
        changed: asyncio.Event,
    ) -> None:
        self._view = view
        self._outboxes = outboxes
        self._stage = stage
        self._frontend = frontend
        self._rollout = rollout
        self._changed = changed

    def on_peers(self, handles: list[PeerHandle]) -> None:
        """Discovery's change listener: these peers are connected now."""
        for node_id in self._view.connect(handles):
            self._lose(node_id, "it is not connected any more")
        self._outboxes.update(handles)
        self._changed.set()

    def on_offer(self, offer: NodeOffer) -> None:
        before = self._view.offers.get(offer.node_id)
        if self._view.take_offer(offer):
            self._lose(offer.node_id, "it was restarted")
        elif before is not None and self._lost_this_node(before, offer):
            # The connection from here to there may be whole, so this is the only sign of it.
            self._interrupt(offer.node_id, "it has lost this node")
        if offer.stuck and before is not None and not before.stuck:
            self.set_aside(offer.node_id, offer.stuck)
        if self._view.offers.get(offer.node_id) != before:
            self._changed.set()
            self._rollout.check_plan_in_force()

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        handle = self._view.handles.get(peer_id)
        if handle is not None and handle.is_connected():
            self._view.remove_link_back(peer_id)
            self._interrupt(peer_id, reason)
        elif self._view.lose(peer_id):
            self._lose(peer_id, reason)
        else:  # the second report of the same loss
            self._interrupt(peer_id, reason)
        self._changed.set()

    def set_aside(self, node_id: str, reason: str) -> None:
        """The node's passes hang. As a stage it is lost; as an entry node it goes on."""
        log.warning("node %s is stuck: %s", node_id, reason)
        self._rollout.lose(node_id, reason, how="stuck")
        self._frontend.replay_on([node_id], f"node {node_id!r} is stuck: {reason}")

    def _lost_this_node(self, before: NodeOffer, now: NodeOffer) -> bool:
        return self._view.own_id in before.peers and self._view.own_id not in now.peers

    def _lose(self, node_id: str, reason: str) -> None:
        log.warning("node %s is lost: %s", node_id, reason)
        self._outboxes.drop(node_id, reason)
        self._interrupt(node_id, reason)

    def _interrupt(self, node_id: str, reason: str) -> None:
        """Whatever runs through this node is given up, and starts again on the next plan."""
        self._rollout.lose(node_id, reason)
        self._stage.forget_entry(node_id)
        self._stage.fail_through(
            node_id, f"node {self._view.own_id!r} lost node {node_id!r}: {reason}"
        )
        self._frontend.replay_on([node_id], f"node {node_id!r} is lost: {reason}")
