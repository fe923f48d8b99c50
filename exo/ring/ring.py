"""`Ring`: keeps this node's part in the ring up to date, and lets the node leave it in order.

Theory of operation. Whatever the plan depends on (peers, offers, this node's own state) sets one
event, `changed`. The reconcile task waits for it, lets a burst of changes settle, and takes one
step of the `Rollout`: members that see each other -> plan -> layers -> adopted -> in force. Until a
plan is in force no sequence is opened on it, and a stage refuses messages of epochs that it does
not serve. So the two halves of a split ring never serve one sequence. Earlier epochs stay served
while they have sequences and this node still holds their layers.

A second task, the sweep, looks once a second for what no event reports: passes that hang, peers
that have become slow, epochs that are no longer used, sequences without progress.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

from exo.lifecycle import AsyncResource, ResourceError, ResourceStatistics, TaskPriority
from exo.networking.peer_handle import PeerHandle
from exo.pipeline.frontend import Frontend
from exo.pipeline.outboxes import Outboxes
from exo.pipeline.stage import Stage
from exo.ring.membership_view import MembershipView
from exo.ring.peer_events import PeerEvents
from exo.ring.plan_in_force import PlanInForce, has_stage_on
from exo.ring.rollout import SETTLE, CannotHold, Rollout
from exo.ring.shard_manager import ShardManager
from exo.topology import (
    ModelFootprint,
    NodeState,
    PartitioningStrategy,
    RingMemoryWeightedPartitioningStrategy,
    RingPlan,
)

log = logging.getLogger(__name__)
SWEEP = 1.0
# How long a node that could not load its layers stays out of the plans. Seconds.
TRY_AGAIN = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RingStatistics(ResourceStatistics):
    """A snapshot. steps: reconcile steps that came to an end in this life."""

    peers: int
    is_formed: bool
    steps: int


class Ring(AsyncResource):
    """model: the footprint of the model served; asked once the node has found its model."""

    RESOURCE_TYPE: ClassVar[str] = "ring"

    def __init__(
        self,
        view: MembershipView,
        outboxes: Outboxes,
        stage: Stage,
        frontend: Frontend,
        shards: ShardManager,
        in_force: PlanInForce,
        model: Callable[[], ModelFootprint],
        strategy: PartitioningStrategy | None = None,
    ) -> None:
        super().__init__(
            resource_id=f"ring-{view.own_id}", display_name=f"Ring as seen by node {view.own_id}"
        )
        self.view = view
        self._stage, self._frontend = stage, frontend
        self._shards, self._in_force = shards, in_force
        self._changed = asyncio.Event()
        self._rollout = Rollout(
            view,
            stage,
            frontend,
            shards,
            in_force,
            model=model,
            partition=(strategy or RingMemoryWeightedPartitioningStrategy()).partition,
            changed=self._changed,
            change_offer=self._change_offer,
        )
        self.peer_events = PeerEvents(view, outboxes, stage, frontend, self._rollout, self._changed)
        self._settled = asyncio.Event()  # a reconcile step of this life is over
        self._steps = 0
        self._planned_since_leaving = False

    # -- life --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Call before each life of the node, while no peer can see it. To peers, a second life is
        another process: nothing of the first one is left here.
        """
        self.view.change(
            state=NodeState.JOINING, epoch="", incarnation=self.view.own_offer().incarnation + 1
        )
        self._in_force.withdraw("the node has not started")

    async def _do_initialize(self) -> None:
        self._settled.clear()
        self._steps = 0
        self._changed.set()
        self._task_manager.start_task(
            "reconcile", self._reconcile_forever, priority=TaskPriority.HIGH
        )
        self._task_manager.start_task("sweep", self._sweep_forever)

    async def _do_cleanup(self) -> None:
        self._rollout.close()
        self.view.change(epoch="")

    # -- what it has come to -----------------------------------------------------------------------

    @property
    def plan(self) -> RingPlan | None:
        """The plan in force."""
        return self._in_force.plan

    @property
    def reason(self) -> str:
        """Why there is no plan in force; "" while there is one."""
        return self._in_force.reason

    @property
    def load_error(self) -> Exception | None:
        """Why this node could not load what was planned for it."""
        return self._shards.error

    def statistics(self) -> RingStatistics:
        return RingStatistics(
            **asdict(super().statistics()),
            peers=len(self.view.handles),
            is_formed=self.plan is not None,
            steps=self._steps,
        )

    async def wait_settled(self) -> None:
        """Until the first reconcile step is over: layers are loaded, or it is known why not."""
        await self._settled.wait()

    # -- reconcile ---------------------------------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE)
            self._changed.clear()
            if await self._reconcile():
                self._settled.set()
                self._steps += 1
            self._planned_since_leaving = self.view.own_offer().state is NodeState.LEAVING

    async def _reconcile(self) -> bool:
        """One step. Returns False where it was superseded. A step that fails is followed by another
        at the next change or sweep.
        """
        try:
            return await self._rollout.step()
        except CannotHold as error:
            log.exception("the plan could not be adopted: %s", error)
            self._withdraw_memory()
        except Exception as error:
            log.exception("the plan could not be adopted")
            self._in_force.explain(f"the plan could not be adopted: {error}")
        return True

    def _withdraw_memory(self) -> None:
        """A node that cannot load its layers offers no memory for a while, so that the others plan
        without it.
        """
        memory = self.view.own_offer().memory_mib
        self._change_offer(memory_mib=0)

        async def offer_again() -> None:
            await asyncio.sleep(TRY_AGAIN)
            self._change_offer(memory_mib=memory)
            self._changed.set()

        if memory:
            self._task_manager.start_task("offer memory again", offer_again)

    def _change_offer(self, **fields: object) -> None:
        if not self.view.change(**fields):
            return
        for node_id, handle in self.view.handles.items():  # do not wait for the next heartbeat
            self._task_manager.start_task(
                f"announce to {node_id}", functools.partial(_announce, handle)
            )

    # -- leaving -----------------------------------------------------------------------------------

    def leave(self) -> None:
        """This node drains: the others plan without it, and it keeps serving until no peer needs
        it.
        """
        self._planned_since_leaving = False
        self._change_offer(state=NodeState.LEAVING)
        self._changed.set()

    async def wait_released(self, timeout: float) -> bool:
        """Until no peer needs this node's layers any more. Returns False if that took too long.

        Where the others cannot hold the model without this node, they need it until none of their
        sequences runs here.
        """
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                # Stage, view and rollout all have a part in it, and it is over soon.
                while not self._is_released():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    def _is_released(self) -> bool:
        if not self.view.offers:
            return True
        if self._stage.live() > 0:
            return False
        own = self.view.own_id
        nothing_pending = self._planned_since_leaving and not self._changed.is_set()
        if has_stage_on(self._rollout.adopted, own) and nothing_pending:
            return True  # planned again, and it is still in the plan: the others cannot do without
        if self._in_force.has_stage_on(own):
            # Until the next plan is in force, the others still open sequences on this one.
            return False
        served = self._stage.epochs
        return not any(offer.epoch in served for offer in self.view.offers.values())

    # -- sweep -------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                self.sweep()
            # The next one may work. Without any, a silent stage would go unnoticed.
            except Exception:
                log.exception("a sweep failed")

    def sweep(self) -> None:
        self._check_own_passes()
        if self.view.update_slow_peers() or self._in_force.plan is None:
            self._changed.set()
        self._rollout.retire_idle()
        self._frontend.sweep()

    def _check_own_passes(self) -> None:
        self._stage.tick(asyncio.get_running_loop().time())
        watchdog = self._stage.watchdog
        before, now = self.view.own_offer().stuck, watchdog.reason
        self._change_offer(stuck=now, pass_ms=watchdog.usual_ms, queued=self._stage.queued)
        if now and not before:
            self.peer_events.set_aside(self.view.own_id, now)
        if now != before:
            self._changed.set()


async def _announce(handle: PeerHandle) -> None:
    try:
        await handle.hello()
    except (ResourceError, OSError):
        pass  # its loss is noticed elsewhere
