"""`Rollout`: how this node gets from the membership view to the plan it has adopted, and from there
to the plan in force. It knows no messages.

Theory of operation. A step makes a plan (a pure function of the view, so every node makes the same
one), makes the engine hold this node's layers, starts to serve the plan's epoch, and says so in
this node's offer: now the plan is *adopted* here. It is *in force* here once the offers of all its
stages say that they adopted it. No node decides that for another, and no message is needed beyond
the heartbeats.

New layers are loaded in addition to the old ones where both fit. Until the new plan is in force,
everything goes on by the old one, and sequences that run on the old one end there. Where both do
not fit, the old epochs end first: their sequences wait for the load and are replayed.

A load can take minutes, and the view can change meanwhile. So a step that waits for a load also
watches for changes of the view. When the changed view asks for other layers, the load is of no use
and is cancelled: the step is *superseded*, and the next one starts from the new view. See
`Rollout._load`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from exo.inference.shard import Shard
from exo.pipeline.assignment import Assignment
from exo.pipeline.frontend import Frontend
from exo.pipeline.stage import Stage
from exo.ring import membership
from exo.ring.membership_view import MembershipView
from exo.ring.plan_in_force import PlanInForce
from exo.ring.shard_manager import ShardManager
from exo.topology import ModelFootprint, NodeOffer, NodeState, NoPlan, RingPlan

log = logging.getLogger(__name__)
# Changes come in bursts (three nodes start at once): wait this many seconds for the next one before
# planning.
SETTLE = 0.05
Partition = Callable[[Iterable[NodeOffer], ModelFootprint], RingPlan]


class CannotHold(Exception):
    """This node could not load its layers; `__cause__` says why."""


class _Superseded(Exception):
    """The view changed while layers were loading, and it asks for other layers now."""


class Rollout:
    """model: the footprint of the model served; asked once the node has found its model.
    changed: set whenever something has changed that the plan depends on.
    change_offer: changes fields of this node's offer and announces it to the peers.
    """

    def __init__(
        self,
        view: MembershipView,
        stage: Stage,
        frontend: Frontend,
        shards: ShardManager,
        in_force: PlanInForce,
        *,
        model: Callable[[], ModelFootprint],
        partition: Partition,
        changed: asyncio.Event,
        change_offer: Callable[..., None],
    ) -> None:
        self._view, self._stage, self._frontend = view, stage, frontend
        self._shards = shards
        self._in_force = in_force
        self._model = model
        self._partition = partition
        self._changed = changed
        self._change_offer = change_offer
        self._idle: set[str] = set()
        self.adopted: RingPlan | None = None

    def close(self) -> None:
        self.adopted = None
        self._idle.clear()
        self._shards.forget()
        self._in_force.withdraw("the node is closed")

    # -- steps -------------------------------------------------------------------------------------

    async def step(self) -> bool:
        """Follow the view. Returns False where the view asked for something else before this was
        done. Raises `CannotHold`.
        """
        try:
            plan, is_newcomer = self._plan()
        except NoPlan as error:
            self._go_on_without_plan(str(error))
            return True
        try:
            if is_newcomer:
                await self._prepare(plan)
            else:
                await self._follow(plan)
        except _Superseded:
            self._changed.set()
            return False
        await self._drop_unused()
        return True

    def _plan(self) -> tuple[RingPlan, bool]:
        """The plan that the view asks for, and whether this node only prepares for it: then the
        others count this node in when it has loaded. Raises `NoPlan`.
        """
        seen = membership.members(self._view.own_id, self._view.all_offers())
        model = self._model()
        plan = membership.plan_members(seen, model, self._partition)
        if membership.is_newcomer(self._view.own_offer()) and not is_member(
            plan, self._view.own_id
        ):
            return self._partition(membership.without_slow(membership.able(seen)), model), True
        return plan, False

    async def _prepare(self, plan: RingPlan) -> None:
        """The others serve already: load what will be this node's share, then say that it can be
        counted in.
        """
        assignment = Assignment.of(plan, self._view.own_id)
        if assignment is not None:
            await self._hold(assignment.shard)
        self._in_force.explain("joining the ring")
        self._change_offer(state=NodeState.SERVING)
        self._changed.set()

    async def _follow(self, plan: RingPlan) -> None:
        if self.adopted is None or plan.epoch != self.adopted.epoch:
            await self._adopt(plan)
        self._put_in_force(plan)

    async def _adopt(self, plan: RingPlan) -> None:
        assignment = Assignment.of(plan, self._view.own_id)
        if assignment is not None:
            await self._hold(assignment.shard)
            on_this_machine = [self._view.is_local(node_id) for node_id in assignment.nodes]
            self._stage.serve(assignment, together=all(on_this_machine))
        self.adopted = plan
        self._change_offer(epoch=plan.epoch)
        log.info("adopted epoch %s: %s", plan.epoch, ", ".join(map(str, plan.stages)))

    def _go_on_without_plan(self, reason: str) -> None:
        """An adopted plan goes on while all its stages are there (all of them may be leaving)."""
        if not self._is_whole(self.adopted):
            self.adopted = None
            self._change_offer(epoch="")
        if self._is_whole(self._in_force.plan):
            self._in_force.explain(reason)
        else:
            self._in_force.withdraw(reason)

    def _is_whole(self, plan: RingPlan | None) -> bool:
        """Whether each stage is there and not stuck, and is connected to this node in both
        directions.
        """
        offers, own = self._view.all_offers(), self._view.own_id
        nodes = [] if plan is None else [stage.node_id for stage in plan.stages]
        return plan is not None and all(
            node_id in offers
            and not offers[node_id].stuck
            and (node_id == own or own in offers[node_id].peers)
            for node_id in nodes
        )

    # -- layers ------------------------------------------------------------------------------------

    async def _hold(self, shard: Shard) -> None:
        """Make the engine hold the shard: in addition to what it holds where that fits, else in its
        place.
        """
        if shard in self._shards.held:
            return
        lack = await self._make_room(shard)
        if lack:
            self._stop_serving(shard, lack)
        else:
            self._in_force.explain(f"loading layers {_span(shard)}")
        try:
            await self._load(shard, keep_others=bool(self._shards.held) and not lack)
        except _Superseded:
            raise
        except Exception as error:
            raise CannotHold(f"layers {_span(shard)}: {error}") from error

    async def _make_room(self, shard: Shard) -> str:
        """Let earlier epochs end until the shard fits in addition to what is held. Returns why it
        does not fit even then, or "".

        Their sequences are replayed on the plan in force, whose layers are here: that costs them a
        prefill, but no load.
        """
        await self._drop_unused()
        in_force = self._in_force.plan
        earlier = [
            epoch for epoch in self._stage.epochs if in_force is None or epoch != in_force.epoch
        ]
        offered = self._view.own_offer().memory_mib
        while self._shards.held and (
            lack := self._shards.lack(shard, offered, self._stage.reserved)
        ):
            if not earlier:
                return lack
            self._stage.retire(earlier.pop(0), "its layers make room for newer ones")
            await self._drop_unused()
        return ""

    def _stop_serving(self, shard: Shard, lack: str) -> None:
        old = ", ".join(_span(held) for held in self._shards.held)
        reason = f"loading layers {_span(shard)} in place of {old}: {lack}"
        log.warning("streams wait: %s", reason)
        for epoch in self._stage.epochs:
            self._stage.retire(epoch, f"node {self._view.own_id!r} loads other layers")
        self.adopted = None
        self._in_force.withdraw(reason)
        self._change_offer(epoch="")

    async def _load(self, shard: Shard, *, keep_others: bool) -> None:
        """Load, and watch the view meanwhile. Raises `_Superseded` as soon as the view asks for
        another shard.

        Two things must not go wrong here. A load must never be left running: the engine would hold
        layers that the shard manager does not know. So on every way out, the load has ended before
        this returns. And no change of the view may be lost: `changed` is cleared to wait for the
        *next* change, and the step that called this has planned before that. So `changed` is set
        again at the end, and one more step follows. That step mostly finds nothing to do.

        An engine that holds one shard at a time has given up its old layers already. It is left to
        finish: cancelling would leave the node with no layers at all.
        """
        loading = asyncio.ensure_future(self._shards.hold(shard, keep_others=keep_others))
        view_changed = False
        try:
            while not await self._is_over(loading):
                view_changed = True
                if self._shards.several and self._is_superseded(shard):
                    raise _Superseded
            await loading
        finally:
            if not loading.done():
                loading.cancel()
                await asyncio.wait({loading})
            if view_changed:
                self._changed.set()

    async def _is_over(self, loading: asyncio.Future[None]) -> bool:
        """Wait until the load ends (True) or the view changes and has settled (False)."""
        change = asyncio.ensure_future(self._changed.wait())
        either: set[asyncio.Future[Any]] = {loading, change}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
        if loading.done():
            return True
        await asyncio.sleep(SETTLE)
        self._changed.clear()
        return False

    def _is_superseded(self, shard: Shard) -> bool:
        try:
            assignment = Assignment.of(self._plan()[0], self._view.own_id)
        except NoPlan:
            return False  # a missing node may come back: these layers are as good a guess as any
        return assignment is None or assignment.shard != shard

    async def _drop_unused(self) -> None:
        """Give back the shards that no epoch uses. Where there is no epoch, the newest shard stays:
        it may be a newcomer's, and belong to none yet.
        """
        used = {assignment.shard for assignment in self._stage.epochs.values()}
        if await self._shards.keep(used or self._shards.held[-1:]):
            self._stage.fit()

    # -- in force ----------------------------------------------------------------------------------

    def _put_in_force(self, plan: RingPlan) -> None:
        offers = self._view.all_offers()
        missing = membership.unconfirmed(plan, offers)
        if missing:
            self.check_plan_in_force()
            self._in_force.explain(f"waiting for {', '.join(missing)} to adopt the plan")
            return
        if self._view.own_offer().state is NodeState.JOINING:
            self._change_offer(state=NodeState.SERVING)
        current = self._in_force.plan
        if current is None or current.epoch != plan.epoch:
            self._in_force.put(plan)
            log.info("epoch %s is in force", plan.epoch)
        outsiders = {node_id for node_id in offers if not is_member(plan, node_id)}
        self._frontend.leave(membership.leaving_nodes(offers) | outsiders, plan.epoch)

    def check_plan_in_force(self) -> None:
        """Withdraw the plan in force once one of its stages is gone or says that it serves
        nothing.
        """
        plan = self._in_force.plan
        if plan is None:
            return
        offers = self._view.all_offers()
        idle = [
            stage.node_id
            for stage in plan.stages
            if stage.node_id not in offers or not offers[stage.node_id].epoch
        ]
        if idle:
            self._in_force.withdraw(f"waiting for {', '.join(idle)} to load other layers")

    def lose(self, node_id: str, reason: str, *, how: str = "lost") -> None:
        """A node is "lost" or "stuck": a plan in force with a stage there is withdrawn."""
        if self._in_force.has_stage_on(node_id):
            self._in_force.withdraw(f"node {node_id!r} is {how} ({reason}); planning again")

    def retire_idle(self) -> None:
        """Call about once a second. Ends earlier epochs that had no sequences at the last call
        either.

        An entry node that has not heard of the newer plan by then is refused, and asks again.
        """
        in_force = self._in_force.plan
        if in_force is None:
            return
        keep = {plan.epoch for plan in (in_force, self.adopted) if plan is not None}
        idle = {
            epoch
            for epoch in self._stage.epochs
            if epoch not in keep and self._stage.live(epoch) == 0
        }
        for epoch in idle & self._idle:
            self._stage.retire(epoch, "a newer plan is in force")
            self._changed.set()  # the next step gives the layers back
        self._idle = idle


def is_member(plan: RingPlan, node_id: str) -> bool:
    return node_id in plan.standby or any(stage.node_id == node_id for stage in plan.stages)


def _span(shard: Shard) -> str:
    return f"{shard.start_layer}-{shard.end_layer}"
