"""`Rollout`: how this node gets from the view to the plan it serves, and to the plan in force.
Knows no messages.

Theory of operation. A step plans (pure, the same on every node), makes the engine hold this node's
layers, serves the plan's epoch and says so in the offer: the plan is *adopted*. It is *in force*
here once every stage says that it has adopted it. New layers are loaded beside the old ones where
both fit, and until the new plan is in force everything goes on by the old one; sequences that run
on it then end there. Where they do not fit the old epochs end first: their sequences wait for the
load and are replayed.
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
from exo.ring.shard_manager import ShardManager
from exo.topology import ModelFootprint, NodeOffer, NodeState, NoPlan, RingPlan

log = logging.getLogger(__name__)
# Changes come in bursts (three nodes start at once): wait this long for the next before planning.
# Seconds.
SETTLE = 0.05
Partition = Callable[[Iterable[NodeOffer], ModelFootprint], RingPlan]


class CannotHold(Exception):
    """This node could not load its layers; `__cause__` says why."""


class _Superseded(Exception):
    """While it loaded, the view changed: other layers are asked for now."""


class Rollout:
    """changed: set whenever the view has changed. change_offer: changes the own offer and tells the
    peers.
    """

    def __init__(
        self,
        view: MembershipView,
        stage: Stage,
        entry: Frontend,
        model: ModelFootprint,
        holder: ShardManager,
        *,
        partition: Partition,
        changed: asyncio.Event,
        change_offer: Callable[..., None],
    ) -> None:
        self._view, self._stage, self._entry = view, stage, entry
        self.model = model
        self.holder = holder
        self._partition = partition
        self._changed = changed
        self._change_offer = change_offer
        self._idle: set[str] = set()
        self._reason = "the node has not started"
        self.adopted: RingPlan | None = None
        self.plan: RingPlan | None = None  # in force

    @property
    def reason(self) -> str:
        """Why there is no plan in force; "" while there is one."""
        return "" if self.plan is not None else self.holder.fault or self._reason

    def close(self) -> None:
        self.plan = self.adopted = None
        self.holder.forget()
        self._reason = "the node is closed"

    def hinder(self, error: Exception) -> None:
        """A step failed: until the next one this is why there is no plan."""
        self._reason = f"the plan could not be adopted: {error}"

    # -- steps -------------------------------------------------------------------------------------

    async def step(self) -> bool:
        """Follow the view; whether that came to an end before the view asked for something else.

        Raises `CannotHold`.
        """
        try:
            plan, newcomer = self._wanted()
        except NoPlan as error:
            self._without_plan(str(error))
            return True
        try:
            if newcomer:
                await self._prepare(plan)
            else:
                await self._follow(plan)
        except _Superseded:
            self._changed.set()
            return False
        await self._drop_unused()
        return True

    def _wanted(self) -> tuple[RingPlan, bool]:
        """What the view asks for; whether this node is to be counted in only once it is loaded.
        Raises `NoPlan`.
        """
        seen = membership.members(self._view.own_id, self._view.all_offers())
        plan = membership.plan_members(seen, self.model, self._partition)
        if membership.is_newcomer(self._view.own_offer()) and not is_member(
            plan, self._view.own_id
        ):
            return self._partition(membership.without_slow(membership.able(seen)), self.model), True
        return plan, False

    async def _prepare(self, plan: RingPlan) -> None:
        """The others serve already: load what will be this node's share, then tell them to count it
        in.
        """
        assignment = Assignment.of(plan, self._view.own_id)
        if assignment is not None:
            await self._hold(assignment.shard)
        self._reason = "joining the ring"
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
            here = [self._view.is_local(node_id) for node_id in assignment.nodes]
            self._stage.serve(assignment, together=all(here))
        self.adopted = plan
        self._change_offer(epoch=plan.epoch)
        log.info("adopted epoch %s: %s", plan.epoch, ", ".join(map(str, plan.stages)))

    def _without_plan(self, reason: str) -> None:
        """An adopted plan goes on while all its stages are there (all of them may be leaving)."""
        if not self._is_whole(self.adopted):
            self.adopted = None
            self._change_offer(epoch="")
        if self.plan is not None and not self._is_whole(self.plan):
            self.plan = None
        self._reason = reason

    def _is_whole(self, plan: RingPlan | None) -> bool:
        """Whether each stage is there and not stuck, and hears this node as this node hears it."""
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
        """Make the engine hold the shard: beside what it holds if it can, else in place of that."""
        if shard in self.holder.held:
            return
        lack = await self._make_room(shard)
        if lack:
            self._stop_serving(shard, lack)
        elif self.plan is None:
            self._reason = f"loading layers {_span(shard)}"
        try:
            await self._load(shard, beside=bool(self.holder.held) and not lack)
        except _Superseded:
            raise
        except Exception as error:
            raise CannotHold(f"layers {_span(shard)}: {error}") from error

    async def _make_room(self, shard: Shard) -> str:
        """Why the shard does not fit beside what is held, once earlier epochs have made room; ""
        where it does.

        Their sequences are replayed on the plan in force, which has its layers here: a prefill, no
        load.
        """
        await self._drop_unused()
        earlier = [
            epoch for epoch in self._stage.epochs if self.plan is None or epoch != self.plan.epoch
        ]
        offered = self._view.own_offer().memory_mib
        while self.holder.held and (lack := self.holder.lack(shard, offered, self._stage.reserved)):
            if not earlier:
                return lack
            self._stage.retire(earlier.pop(0), "its layers make room for newer ones")
            await self._drop_unused()
        return ""

    def _stop_serving(self, shard: Shard, lack: str) -> None:
        old = ", ".join(_span(held) for held in self.holder.held)
        self._reason = f"loading layers {_span(shard)} in place of {old}: {lack}"
        log.warning("streams wait: %s", self._reason)
        for epoch in self._stage.epochs:
            self._stage.retire(epoch, f"node {self._view.own_id!r} loads other layers")
        self.plan = self.adopted = None
        self._change_offer(epoch="")

    async def _load(self, shard: Shard, *, beside: bool) -> None:
        """Raises `_Superseded` as soon as the view asks for another shard: nobody is to wait for
        this one then.
        """
        loading = asyncio.ensure_future(self.holder.hold(shard, beside=beside))
        seen = False
        try:
            while not await self._is_over(loading):
                seen = True
                if self.holder.several and self._is_superseded(shard):
                    raise _Superseded
            await loading
        finally:
            if not loading.done():
                loading.cancel()
                await asyncio.wait({loading})
            if seen:
                self._changed.set()  # what this took notice of has yet to be followed

    async def _is_over(self, loading: asyncio.Future[None]) -> bool:
        """Wait for the load, or for a change of the view."""
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
            assignment = Assignment.of(self._wanted()[0], self._view.own_id)
        except NoPlan:
            return False  # whoever is missing may be back: these layers are as good a guess as any
        return assignment is None or assignment.shard != shard

    async def _drop_unused(self) -> None:
        """Without any epoch the newest stay: a newcomer's layers belong to none yet."""
        used = {assignment.shard for assignment in self._stage.epochs.values()}
        if await self.holder.keep(used or self.holder.held[-1:]):
            self._stage.fit()

    # -- in force ----------------------------------------------------------------------------------

    def _put_in_force(self, plan: RingPlan) -> None:
        offers = self._view.all_offers()
        missing = membership.unconfirmed(plan, offers)
        if missing:
            self.look_again()
            self._reason = f"waiting for {', '.join(missing)} to adopt the plan"
            return
        if self._view.own_offer().state is NodeState.JOINING:
            self._change_offer(state=NodeState.SERVING)
        if self.plan is None or self.plan.epoch != plan.epoch:
            self.plan = plan
            log.info("epoch %s is in force", plan.epoch)
        outsiders = {node_id for node_id in offers if not is_member(plan, node_id)}
        self._entry.leave(membership.leaving_nodes(offers) | outsiders, plan.epoch)

    def look_again(self) -> None:
        """The plan in force is so no more once a stage is gone, or says that it serves nothing."""
        if self.plan is None:
            return
        offers = self._view.all_offers()
        idle = [
            each.node_id
            for each in self.plan.stages
            if each.node_id not in offers or not offers[each.node_id].epoch
        ]
        if idle:
            self.plan = None
            self._reason = f"waiting for {', '.join(idle)} to load other layers"

    def lose(self, node_id: str, reason: str, *, how: str = "lost") -> None:
        """how: "lost" or "stuck"."""
        if self.plan is not None and any(stage.node_id == node_id for stage in self.plan.stages):
            self.plan = None
            self._reason = f"node {node_id!r} is {how} ({reason}); planning anew"

    def retire_idle(self) -> None:
        """Call about once a second. Earlier epochs that nobody used since the last call end.

        Entries that have not heard of the newer plan meanwhile are refused and ask again.
        """
        if self.plan is None:
            return
        keep = {plan.epoch for plan in (self.plan, self.adopted) if plan is not None}
        idle = {
            epoch
            for epoch in self._stage.epochs
            if epoch not in keep and self._stage.live(epoch) == 0
        }
        for epoch in idle & self._idle:
            self._stage.retire(epoch, "a newer plan is in force")
            self._changed.set()  # a step gives the layers back
        self._idle = idle


def is_member(plan: RingPlan, node_id: str) -> bool:
    return node_id in plan.standby or any(stage.node_id == node_id for stage in plan.stages)


def _span(shard: Shard) -> str:
    return f"{shard.start_layer}-{shard.end_layer}"
