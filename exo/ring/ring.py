"""`Ring`: who is there, what that changes, and what messages mean here. It is what peers talk to
(`RingHandler`).

Theory of operation. Each change of the view is followed by one step of the `Rollout`: members that
see each other -> plan -> layers -> adopted -> in force. Until a plan is in force nobody opens a
sequence on it, and a stage refuses messages of epochs that it does not serve. So two halves of a
split ring never serve one sequence. Earlier epochs stay served while they have sequences and this
node still holds their layers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import ClassVar

from exo.inference.errors import RingUnavailable
from exo.lifecycle import AsyncResource, ResourceError, TaskPriority
from exo.networking.hello import Hello, HelloReply
from exo.networking.messages import Close, Failed, Forward, Message, Open, Token
from exo.networking.peer_handle import PeerHandle
from exo.pipeline.frontend import Frontend
from exo.pipeline.outboxes import Outboxes
from exo.pipeline.sequence import is_entry_of
from exo.pipeline.stage import Stage
from exo.pipeline.timeouts import Pace
from exo.ring.membership_view import MembershipView
from exo.ring.rollout import SETTLE, CannotHold, Rollout
from exo.ring.shard_manager import ShardManager
from exo.topology import (
    ModelFootprint,
    NodeOffer,
    NodeState,
    PartitioningStrategy,
    RingMemoryWeightedPartitioningStrategy,
    RingPlan,
)

log = logging.getLogger(__name__)
SWEEP = 1.0
# How long a node that could not load its layers stays out of the plans. Seconds.
TRY_AGAIN = 30.0


class Ring(AsyncResource):
    """Build it first (server and discovery need it as their handler), then `attach` the rest and
    `serve` a model.
    """

    RESOURCE_TYPE: ClassVar[str] = "ring"

    def __init__(self, offer: NodeOffer, strategy: PartitioningStrategy | None = None) -> None:
        super().__init__(
            resource_id=f"ring-{offer.node_id}",
            display_name=f"Ring as seen by node {offer.node_id}",
        )
        self.view = MembershipView(offer)
        self._strategy = strategy or RingMemoryWeightedPartitioningStrategy()
        self._adoption: Rollout | None = None
        self._links: Outboxes | None = None
        self._stage: Stage | None = None
        self._entry: Frontend | None = None
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()  # the outcome of a reconcile step; replaced each time
        self._steps = 0
        self._left_planned = False  # the view without this node has been planned

    def attach(self, links: Outboxes, stage: Stage, entry: Frontend) -> None:
        self._links, self._stage, self._entry = links, stage, entry

    def begin(self) -> None:
        """Before each life of the node, while no peer can see it: to them a second life is another
        process.
        """
        self.view.change(
            state=NodeState.JOINING, epoch="", incarnation=self.view.own_offer().incarnation + 1
        )

    def serve(self, model: ModelFootprint, holder: ShardManager) -> None:
        """What is to be planned, and what holds this node's part of it. Raises `RuntimeError`
        before `attach`.
        """
        if self._stage is None or self._entry is None:
            raise RuntimeError("attach the parts first")
        self._adoption = Rollout(
            self.view,
            self._stage,
            self._entry,
            model,
            holder,
            partition=self._strategy.partition,
            changed=self._changed,
            change_offer=self._change_offer,
        )
        self.view.change(model_id=model.model_id, model_hash=model.model_hash)
        self._changed.set()

    # -- life --------------------------------------------------------------------------------------

    async def _do_initialize(self) -> None:
        if self._links is None or self._adoption is None:
            raise RuntimeError("attach the parts and serve a model first")
        self._steps = 0
        self._changed.set()
        self._task_manager.start_task(
            "reconcile", self._reconcile_forever, priority=TaskPriority.HIGH
        )
        self._task_manager.start_task("sweep", self._sweep_forever)

    async def _do_cleanup(self) -> None:
        if self._adoption is not None:
            self._adoption.close()
        self.view.change(epoch="")

    @property
    def plan(self) -> RingPlan | None:
        """The plan in force."""
        return None if self._adoption is None else self._adoption.plan

    @property
    def reason(self) -> str:
        """Why there is no plan in force; "" while there is one."""
        return "the node has not started" if self._adoption is None else self._adoption.reason

    @property
    def load_error(self) -> Exception | None:
        """Why this node could not load what was planned for it."""
        return None if self._adoption is None else self._adoption.holder.error

    @property
    def footprint(self) -> ModelFootprint | None:
        """Of the model served; None before there is one."""
        return None if self._adoption is None else self._adoption.model

    async def wait_plan(self, timeout: float) -> RingPlan:
        """Raises `RingUnavailable` with the reason when none came into force in time."""
        try:
            async with asyncio.timeout(timeout):
                while (plan := self.plan) is None:
                    await self._moved.wait()
                return plan
        except TimeoutError:
            raise RingUnavailable(self.reason or "the ring changes too often") from None

    def pace(self, plan: RingPlan) -> Pace:
        """What its stages say of their passes."""
        return Pace.of(plan, self.view.all_offers())

    async def wait_settled(self) -> None:
        """Until the first reconcile step is over: layers loaded, or known why not."""
        while self._steps == 0:
            await self._moved.wait()

    # -- RingHandler -------------------------------------------------------------------------------

    def own_offer(self) -> NodeOffer:
        return self.view.own_offer()

    def on_hello(self, hello: Hello) -> HelloReply:
        return HelloReply(offer=self.own_offer())

    def on_offer(self, offer: NodeOffer) -> None:
        before = self.view.offers.get(offer.node_id)
        if self.view.hear(offer):
            self._lose(offer.node_id, "it was restarted")
        elif (
            before is not None
            and self.view.own_id in before.peers
            and self.view.own_id not in offer.peers
        ):
            # Nothing of it reaches this node, though the way there may be whole: nobody else would
            # say so.
            self._interrupt(offer.node_id, "it has lost this node")
        if offer.stuck and before is not None and not before.stuck:
            self._set_aside(offer.node_id, offer.stuck)
        if self.view.offers.get(offer.node_id) != before:
            self._changed.set()
            if self._adoption is not None:
                self._adoption.look_again()

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        handle = self.view.handles.get(peer_id)
        if handle is not None and handle.is_connected():
            # Its stream to us broke, ours to it did not (yet): what was under way is lost, the peer
            # may not be. Nothing
            # new begins there before it has noticed as well: it forgets what this node has on it
            # when it does.
            self.view.unheard(peer_id)
            self._interrupt(peer_id, reason)
        elif self.view.lose(peer_id):
            self._lose(peer_id, reason)
        else:  # the second of its streams: what still came through it is over as well
            self._interrupt(peer_id, reason)
        self._changed.set()

    def on_peers(self, handles: list[PeerHandle]) -> None:
        """Discovery's change listener."""
        for node_id in self.view.connect(handles):
            self._lose(node_id, "it is not connected any more")
        if self._links is not None:
            self._links.update(handles)
        self._changed.set()

    async def on_message(self, peer_id: str, message: Message) -> None:
        self.deliver(peer_id, message)

    def deliver(self, sender: str, message: Message) -> None:
        """To the parts of this node it is for. Raises `WrongEpoch`."""
        if self._stage is None or self._entry is None:
            return
        match message:
            case Token():
                self._entry.token(sender, message)
                self._stage.token(sender, message)
            case Forward():
                self._stage.forward(sender, message)
            case Open():
                if is_entry_of(message.entry, message.sequence_id):
                    self._stage.open(sender, message)
            case Close():
                is_entry = is_entry_of(sender, message.sequence_id)
                (self._stage.close if is_entry else self._stage.close_behind)(
                    sender, message.sequence_id
                )
            case Failed():
                self._entry.failed(sender, message)
                assignment = self._stage.epochs.get(message.epoch)
                if assignment is not None and sender in (self.view.own_id, *assignment.nodes):
                    reason = f"{message.node}: {message.reason}"
                    self._stage.fail(message.sequence_id, reason, retryable=message.retryable)

    def undelivered(
        self, node_id: str, message: Message, reason: str, *, retryable: bool = True
    ) -> None:
        if self._stage is None or self._entry is None or isinstance(message, Close | Failed):
            return
        self._stage.fail(message.sequence_id, reason, retryable=retryable)
        # The entry may have sent it to a first stage elsewhere: then no stage here knows it.
        failed = Failed(
            sequence_id=message.sequence_id,
            epoch=message.epoch,
            node=self.view.own_id,
            reason=reason,
            retryable=retryable,
        )
        self._entry.failed(self.view.own_id, failed)

    def _lose(self, node_id: str, reason: str) -> None:
        log.warning("node %s is lost: %s", node_id, reason)
        if self._links is not None:
            self._links.drop(node_id, reason)
        self._interrupt(node_id, reason)

    def _interrupt(self, node_id: str, reason: str) -> None:
        """What runs through this node begins anew, on the next plan."""
        if self._adoption is not None:
            self._adoption.lose(node_id, reason)
        if self._stage is not None and self._entry is not None:
            self._stage.forget_entry(node_id)
            self._stage.fail_through(
                node_id, f"node {self.view.own_id!r} lost node {node_id!r}: {reason}"
            )
            self._entry.replay_on([node_id], f"node {node_id!r} is lost: {reason}")

    def _set_aside(self, node_id: str, reason: str) -> None:
        """The node is there, but its passes hang: as a stage it is lost, as an entry it goes on."""
        log.warning("node %s is stuck: %s", node_id, reason)
        if self._adoption is not None:
            self._adoption.lose(node_id, reason, how="stuck")
        if self._entry is not None:
            self._entry.replay_on([node_id], f"node {node_id!r} is stuck: {reason}")

    # -- reconcile ---------------------------------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        assert self._adoption is not None
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE)
            self._changed.clear()
            settled = True
            try:
                settled = await self._adoption.step()
            except CannotHold as error:
                log.exception("the plan could not be adopted: %s", error)
                self._bow_out()
            except Exception as error:  # the next change, or the sweep, tries again
                log.exception("the plan could not be adopted")
                self._adoption.hinder(error)
            self._steps += settled
            self._left_planned = self.view.own_offer().state is NodeState.LEAVING
            self._tell()

    def _bow_out(self) -> None:
        """A node that cannot load its layers offers nothing for a while: the others plan without
        it.
        """
        memory = self.view.own_offer().memory_mib
        self._change_offer(memory_mib=0)

        async def offer_again() -> None:
            await asyncio.sleep(TRY_AGAIN)
            self._change_offer(memory_mib=memory)
            self._changed.set()

        if memory:
            self._task_manager.start_task("offer memory again", offer_again)

    def leave(self) -> None:
        """This node drains: it is left out of new plans and keeps what it serves until nobody needs
        it.
        """
        self._left_planned = False
        self._change_offer(state=NodeState.LEAVING)
        self._changed.set()

    async def wait_released(self, timeout: float) -> bool:
        """Until no peer needs this node's layers any more; whether that came about in time.

        Where the others cannot hold the model without this node, until none of their sequences runs
        here.
        """
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                # Three parts change it, and it is over soon.
                while not self._is_released():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    def _is_released(self) -> bool:
        if self._stage is None or self._adoption is None or not self.view.offers:
            return True
        if self._stage.live() > 0:
            return False
        adopted, plan = self._adoption.adopted, self._adoption.plan
        if (
            _runs_on(adopted, self.view.own_id)
            and not self._changed.is_set()
            and self._left_planned
        ):
            return True
        if _runs_on(plan, self.view.own_id):
            # Where the next one is not in force yet, the others still open sequences on this.
            return False
        mine = self._stage.epochs
        return not any(offer.epoch in mine for offer in self.view.offers.values())

    def _change_offer(self, **fields: object) -> None:
        if not self.view.change(**fields):
            return
        for node_id, handle in self.view.handles.items():  # do not wait for the next heartbeat
            self._task_manager.start_task(
                f"announce to {node_id}", functools.partial(_announce, handle)
            )

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # -- sweep -------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                self._sweep()
            # The next one may work: without any, a silent stage would go unnoticed.
            except Exception:
                log.exception("a sweep failed")

    def _sweep(self) -> None:
        assert self._adoption is not None
        assert self._entry is not None
        self._look_at_own_work()
        if self.view.watch_speed() or self._adoption.plan is None:
            self._changed.set()
        self._adoption.retire_idle()
        self._entry.sweep()

    def _look_at_own_work(self) -> None:
        assert self._stage is not None
        self._stage.tick(asyncio.get_running_loop().time())
        watchdog = self._stage.watchdog
        before, now = self.view.own_offer().stuck, watchdog.reason
        self._change_offer(stuck=now, pass_ms=watchdog.usual_ms, queued=self._stage.queued)
        if now and not before:
            self._set_aside(self.view.own_id, now)
        if now != before:
            self._changed.set()


def _runs_on(plan: RingPlan | None, node_id: str) -> bool:
    return plan is not None and any(stage.node_id == node_id for stage in plan.stages)


async def _announce(handle: PeerHandle) -> None:
    try:
        await handle.hello()
    except (ResourceError, OSError):
        pass  # its loss is noticed elsewhere
