"""Reconciles one custom resource: reads the cache, plans, acts, writes the status.

Level-triggered: what woke it up does not matter, and running it twice changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import ValidationError

from exo_operator.api import names
from exo_operator.api.names import Key
from exo_operator.api.spec import ExoClusterSpec, ExoNodeSpec
from exo_operator.controller.executor import Actor
from exo_operator.controller.metrics import Metrics
from exo_operator.controller.workqueue import Backoff, WorkQueue
from exo_operator.exocluster import plan as plan_ring
from exo_operator.exocluster import status as status_ring
from exo_operator.exocluster.objects import RingRef
from exo_operator.exocluster.plan import RingObserved
from exo_operator.exonode import plan, status
from exo_operator.exonode.node_client import NodeClient
from exo_operator.exonode.objects import Defaults, NodeRef
from exo_operator.exonode.plan import Observed
from exo_operator.kube.client import Cluster, ClusterError, Invalid
from exo_operator.kube.store import NodeReport, PodView, Raw, Store

log = structlog.get_logger("exo_operator.controller.reconcile")

# How often a node is asked for its state: quickly while it is not Ready, else so that a fault shows
# within 5 s and many nodes still ask for little.
POLL_UNREADY_S = 1.0
POLL_READY_S = 2.0
POLL_DOUBT_S = 0.25
NODES_PER_POLL_SECOND = 50
FIGURES_EVERY_S = 10.0
NAMESPACE_GOES_S = 5.0
# A ring with used restarts is looked at now and then: time gives the budget back.
RING_LOOK_S = 60.0


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class PodMemory:
    """What is remembered about a pod between two questions. Times are monotonic seconds."""

    # Questions unanswered in a row, after one that was answered.
    misses: int = 0
    answered: bool = False
    figures_at: float = 0.0
    unformed_since: float | None = None

    def note(self, report: NodeReport, now: float) -> None:
        if not report.reachable:
            self.misses += int(self.answered)
            return
        self.answered, self.misses = True, 0
        if report.ring_formed is not False:
            self.unformed_since = None
        elif self.unformed_since is None:
            self.unformed_since = now


class Reconciler:
    """Owns the queue and what is remembered between two reconciles; all of it can be lost without
    harm.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        nodes: NodeClient,
        defaults: Defaults,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.cluster = cluster
        self.store = store
        self.metrics = metrics
        self.queue: WorkQueue[Key] = WorkQueue()
        self.backoff: Backoff[Key] = Backoff()
        self._actor = Actor(cluster, store, metrics, now)
        self._nodes = nodes
        self._defaults = defaults
        self._now = now
        self._pods: dict[str, PodMemory] = {}

    def forget_pod(self, uid: str) -> None:
        """A pod is gone for good."""
        self._pods.pop(uid, None)

    async def run(self, key: Key) -> None:
        """Reconcile and decide when to come back. Never raises: a failure backs off, this key
        alone.
        """
        started = time.perf_counter()
        result = "ok"
        try:
            delay = await self._reconcile(key)
        except asyncio.CancelledError:
            raise
        # Whatever went wrong with one object must not stop the others.
        except Exception as error:  # noqa: BLE001
            result = "error"
            await self._failed(key, error)
        else:
            self.backoff.succeeded(key)
            if delay is not None:
                self.queue.add(key, delay)
        self.metrics.reconciles.labels(key.kind, result).inc()
        self.metrics.seconds.labels(key.kind).observe(time.perf_counter() - started)

    async def _reconcile(self, key: Key) -> float | None:
        raw = self.store.get(*key)
        if raw is None or "deletionTimestamp" in raw["metadata"]:
            return None
        try:
            return await (self._node(raw) if key.kind == names.KIND_NODE else self._ring(raw))
        except ValidationError as error:
            # A spec that the schema let through and we cannot read: no use trying again before it
            # changes.
            first = error.errors()[0]
            where = ".".join(str(part) for part in ("spec", *first["loc"]))
            await self._actor.write_ready(raw, "InvalidSpec", f"{where}: {first['msg']}")
            return None

    async def _node(self, raw: Raw) -> float | None:
        spec = ExoNodeSpec.model_validate(raw.get("spec") or {})
        namespace = raw["metadata"]["namespace"]
        members = self.store.nodes_of_cluster(namespace, spec.cluster) if spec.cluster else []
        node = NodeRef(raw=raw, spec=spec, members=members or [raw])
        report, memory = await self._ask(node)
        misses = memory.misses
        unformed = (
            0.0 if memory.unformed_since is None else time.monotonic() - memory.unformed_since
        )
        observed = Observed(
            get=self.store.get, now=self._now(), report=report, misses=misses, unformed_s=unformed
        )
        taken = []
        for action in plan.plan(node, observed, self._defaults):
            taken.extend(await self._actor.act(raw, action))
        observed = Observed(
            get=self.store.get, now=self._now(), report=report, misses=misses, taken=tuple(taken)
        )
        wanted = status.node_status(node, observed, self._defaults)
        await self._actor.write_status(raw, wanted)
        if misses == 1:
            return POLL_DOUBT_S
        return self._next_look(node, ready=wanted["conditions"][0]["status"] == "True")

    def _next_look(self, node: NodeRef, *, ready: bool) -> float | None:
        pod = self.store.get("Pod", node.namespace, node.name)
        if pod is None:
            return None if node.spec.suspend else 5.0
        if not ready:
            return POLL_UNREADY_S
        count = sum(1 for _ in self.store.of_kind(names.KIND_NODE))
        return max(POLL_READY_S, count / NODES_PER_POLL_SECOND)

    async def _ask(self, node: NodeRef) -> tuple[NodeReport, PodMemory]:
        raw = self.store.get("Pod", node.namespace, node.name)
        pod = PodView(raw) if raw is not None else None
        if pod is None or pod.ip is None or not pod.running:
            return NodeReport(), PodMemory()
        memory = self._pods.setdefault(pod.uid, PodMemory())
        now = time.monotonic()
        figures = now - memory.figures_at > FIGURES_EVERY_S
        report = await self._nodes.report(pod.ip, node.name, figures=figures)
        if figures:
            memory.figures_at = now
        memory.note(report, now)
        return report, memory

    async def _ring(self, raw: Raw) -> float | None:
        ring = RingRef(raw=raw, spec=ExoClusterSpec.model_validate(raw.get("spec") or {}))

        def look(taken: tuple[plan.Conflict, ...] = ()) -> tuple[RingObserved, status_ring.Budget]:
            children = self.store.controlled_by(names.KIND_NODE, ring.namespace, ring.uid)
            now = self._now()
            budget = status_ring.budget(ring, children, now)
            seen = RingObserved(
                get=self.store.get, now=now, children=children, taken=taken, failed=budget.failed
            )
            return seen, budget

        observed, _ = look()
        taken = []
        for action in plan_ring.plan(ring, observed):
            taken.extend(await self._actor.act(raw, action))
        observed, budget = look(tuple(taken))
        await self._actor.write_status(raw, status_ring.ring_status(ring, observed, budget))
        return RING_LOOK_S if budget.used else None

    async def _failed(self, key: Key, error: Exception) -> None:
        delay = self.backoff.failed(key)
        if isinstance(error, ClusterError) and "being terminated" in error.message:
            # Its namespace is going: what disappears there is not to be made anew, and nothing is
            # wrong.
            self.queue.add(key, NAMESPACE_GOES_S)
            return
        if isinstance(error, ClusterError) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        expected = isinstance(error, ClusterError | OSError | TimeoutError)
        log.warning(
            "reconcile failed",
            key=str(key),
            error=repr(error),
            retry_in=round(delay, 1),
            exc_info=not expected,
        )
        self.queue.add(key, delay)
        raw = self.store.get(*key)
        # One failure is often only a crossing of writes; two in a row are worth telling.
        if raw is None or self.backoff.failures(key) < 2:
            return
        reason = "Refused" if isinstance(error, Invalid) else "ReconcileFailed"
        message = error.message if isinstance(error, ClusterError) else repr(error)
        retry = status.timestamp(self._now() + timedelta(seconds=delay))
        try:
            await self._actor.write_ready(raw, reason, message, retry)
        except (ClusterError, OSError, TimeoutError) as second:
            log.warning("status not written", key=str(key), error=repr(second))
