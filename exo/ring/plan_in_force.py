"""`PlanInForce`: the plan that new sequences are placed on, or the reason why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from exo.inference.errors import RingUnavailable
from exo.topology import RingPlan


class PlanInForce:
    """Written by the rollout; read by the frontend, by readiness and by whatever shows the ring.

    load_fault: why this node cannot load its layers, "" while it can. It takes precedence over
        other reasons, because those only follow from it.
    """

    def __init__(self, load_fault: Callable[[], str]) -> None:
        self._load_fault = load_fault
        self._plan: RingPlan | None = None
        self._reason = "the node has not started"
        self._present = asyncio.Event()

    @property
    def plan(self) -> RingPlan | None:
        return self._plan

    @property
    def reason(self) -> str:
        """Why no plan is in force; "" while one is."""
        return "" if self._plan is not None else self._load_fault() or self._reason

    def put(self, plan: RingPlan) -> None:
        self._plan = plan
        self._present.set()

    def withdraw(self, reason: str) -> None:
        self._plan = None
        self._reason = reason
        self._present.clear()

    def explain(self, reason: str) -> None:
        """The reason to give while no plan is in force. A plan that is in force stays."""
        self._reason = reason

    def has_stage_on(self, node_id: str) -> bool:
        return has_stage_on(self._plan, node_id)

    async def wait_plan(self, timeout: float) -> RingPlan:
        """Raises `RingUnavailable` with the reason when no plan came into force in time."""
        try:
            async with asyncio.timeout(timeout):
                # A plan may have been withdrawn again before this task runs.
                while (plan := self._plan) is None:
                    await self._present.wait()
                return plan
        except TimeoutError:
            raise RingUnavailable(self.reason or "the ring changes too often") from None


def has_stage_on(plan: RingPlan | None, node_id: str) -> bool:
    return plan is not None and any(stage.node_id == node_id for stage in plan.stages)
