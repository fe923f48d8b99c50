"""`Router`: delivers each message to this node's stage and frontend, or to a peer's outbox.

Why it exists. The parts of a node need each other in a circle: the server and the peer handles
hand messages to the stage and the frontend, which send messages through the outboxes, which send
through peer handles. The router is made first and cuts that circle. All other parts are made whole
and are given the router; it is given the parts once, with `bind`, before the node starts. It is the
only object of a node that is completed later than it is made.

It is also the `RingHandler` that the server and the peer handles call: messages it routes itself,
news about peers it passes on to the ring's `PeerEvents`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from exo.networking.errors import WrongEpoch
from exo.networking.hello import Hello, HelloReply
from exo.networking.messages import Close, Failed, Forward, Message, Open, Token
from exo.pipeline.frontend import Frontend
from exo.pipeline.outboxes import Outboxes
from exo.pipeline.sequence import is_entry_of
from exo.pipeline.stage import Stage
from exo.ring.membership_view import MembershipView
from exo.topology import NodeOffer


class PeerListener(Protocol):
    """What hears about peers; `exo.ring.peer_events.PeerEvents` is one."""

    def on_offer(self, offer: NodeOffer) -> None: ...

    def on_peer_lost(self, peer_id: str, reason: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """What a node's messages and news about its peers go to."""

    stage: Stage
    frontend: Frontend
    outboxes: Outboxes
    peers: PeerListener


class Router:
    def __init__(self, view: MembershipView) -> None:
        self.view = view
        self._receivers: Receivers | None = None

    def bind(self, receivers: Receivers) -> None:
        """Say where messages go. Raises `RuntimeError` the second time."""
        if self._receivers is not None:
            raise RuntimeError(f"the router of node {self.view.own_id!r} is bound already")
        self._receivers = receivers

    @property
    def _to(self) -> Receivers:
        if self._receivers is None:
            raise RuntimeError(f"the router of node {self.view.own_id!r} is not bound yet")
        return self._receivers

    # -- out ---------------------------------------------------------------------------------------

    def send(self, node_id: str, message: Message) -> None:
        """Never waits and never raises: what cannot be delivered comes back to `undelivered`."""
        if node_id != self.view.own_id:
            self._to.outboxes.send(node_id, message)
            return
        try:
            self.deliver(node_id, message)
        except WrongEpoch as error:
            self.undelivered(node_id, message, str(error), retryable=True)

    def undelivered(
        self, node_id: str, message: Message, reason: str, *, retryable: bool = True
    ) -> None:
        """A message of this node was lost on its way to `node_id`. Its sequence ends here and,
        where that may help, begins again on the plan in force.

        A lost `Close` or `Failed` needs no answer: the node it was for has lost this one as well,
        and frees what it holds.
        """
        del node_id
        if isinstance(message, Close | Failed):
            return
        to = self._to
        to.stage.fail(message.sequence_id, reason, retryable=retryable)
        # The frontend may have sent it to a first stage elsewhere. Then no stage here knows it.
        failed = Failed(
            sequence_id=message.sequence_id,
            epoch=message.epoch,
            node=self.view.own_id,
            reason=reason,
            retryable=retryable,
        )
        to.frontend.failed(self.view.own_id, failed)

    # -- in ----------------------------------------------------------------------------------------

    def deliver(self, sender: str, message: Message) -> None:
        """To the parts of this node that the message is for. Raises `WrongEpoch`."""
        to = self._to
        match message:
            case Token():
                to.frontend.token(sender, message)
                to.stage.token(sender, message)
            case Forward():
                to.stage.forward(sender, message)
            case Open():
                if is_entry_of(message.entry, message.sequence_id):
                    to.stage.open(sender, message)
            case Close():
                if is_entry_of(sender, message.sequence_id):
                    to.stage.close(sender, message.sequence_id)
                else:
                    to.stage.close_behind(sender, message.sequence_id)
            case Failed():
                to.frontend.failed(sender, message)
                if self._may_fail(sender, message.epoch):
                    reason = f"{message.node}: {message.reason}"
                    to.stage.fail(message.sequence_id, reason, retryable=message.retryable)

    def _may_fail(self, sender: str, epoch: str) -> bool:
        """Whether the sender has a stage in that epoch: others must not end its sequences here."""
        assignment = self._to.stage.epochs.get(epoch)
        return assignment is not None and sender in (self.view.own_id, *assignment.nodes)

    # -- RingHandler -------------------------------------------------------------------------------

    def own_offer(self) -> NodeOffer:
        return self.view.own_offer()

    def on_hello(self, hello: Hello) -> HelloReply:
        return HelloReply(offer=self.own_offer())

    def on_offer(self, offer: NodeOffer) -> None:
        self._to.peers.on_offer(offer)

    async def on_message(self, peer_id: str, message: Message) -> None:
        self.deliver(peer_id, message)

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        self._to.peers.on_peer_lost(peer_id, reason)
