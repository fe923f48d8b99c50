"""Reconciles one custom resource: takes a snapshot, plans, acts, writes the status.

Level-triggered: it does not matter what caused a run, and running twice changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import ValidationError

from exo_operator.api import names
from exo_operator.api.conditions import CommonReason, NodeCondition
from exo_operator.api.names import Key
from exo_operator.controller.executor import Executor
from exo_operator.controller.metrics import Metrics
from exo_operator.controller.polling import Poller, next_question
from exo_operator.controller.workqueue import Backoff, WorkQueue
from exo_operator.exocluster import plan as cluster_plan
from exo_operator.exocluster import snapshot as cluster_snapshot
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.status import cluster_status
from exo_operator.exonode import plan, snapshot
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.exonode.node_client import NodeClient
from exo_operator.exonode.snapshot import Answers
from exo_operator.exonode.status import node_status
from exo_operator.kube.actions import Action, Conflict
from exo_operator.kube.client import Invalid, KubeClient, KubeError
from exo_operator.kube.objects import Meta, PodView, Raw
from exo_operator.kube.store import Store

log = structlog.get_logger("exo_operator.controller.reconcile")

# An ExoNode without a pod is looked at again after this long.
POD_MISSING_S = 5.0
# In a namespace that is being deleted nothing is created again.
NAMESPACE_GOES_S = 5.0
# An ExoCluster with used restarts is looked at again, since time gives its budget back.
BUDGET_S = 60.0


def utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Owns the queue, and what is remembered between two reconciles. Losing that does no harm."""

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        nodes: NodeClient,
        defaults: Defaults,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.client = client
        self.store = store
        self.metrics = metrics
        self.queue: WorkQueue[Key] = WorkQueue()
        self.backoff: Backoff[Key] = Backoff()
        self._executor = Executor(client, store, metrics, now)
        self._poller = Poller(nodes)
        self._defaults = defaults
        self._now = now

    def forget_pod(self, uid: str) -> None:
        """A pod is gone for good."""
        self._poller.forget(uid)

    async def run(self, key: Key) -> None:
        """Reconcile and decide when to come back. Never raises: after a failure, this key alone
        backs off.
        """
        started = time.perf_counter()
        result = "ok"
        try:
            delay = await self._reconcile(key)
        except asyncio.CancelledError:
            raise
        # Whatever goes wrong with one object must not stop the others.
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
        """Returns the seconds until this key is due again; None to wait for an event."""
        raw = self.store.get(*key)
        if raw is None or Meta(raw).is_deleting:
            return None
        try:
            if key.kind == names.KIND_NODE:
                return await self._exonode(raw)
            return await self._exocluster(raw)
        except ValidationError as error:
            # The schema let a spec through that we cannot read. Trying again does not help before
            # it changes.
            first = error.errors()[0]
            where = ".".join(str(part) for part in ("spec", *first["loc"]))
            message = f"{where}: {first['msg']}"
            await self._executor.write_ready(raw, CommonReason.INVALID_SPEC, message)
            return None

    async def _exonode(self, raw: Raw) -> float | None:
        node = NodeRef.of(raw)
        if node.spec.cluster:
            members = self.store.nodes_of_ring(node.namespace, node.spec.cluster)
            node = replace(node, members=members)
        answers = await self._poller.ask(self._pod(node))

        def look(found: tuple[Conflict, ...] = ()) -> snapshot.Snapshot:
            return snapshot.take(
                self.store, node, self._defaults, now=self._now(), answers=answers, found=found
            )

        seen = look()
        actions = plan.plan(node, seen, self._defaults)
        if actions:
            seen = look(await self._act(raw, actions))
        status = node_status(node, seen, self._defaults)
        await self._executor.write_status(raw, status)
        return self._next_look(node, answers, is_ready=status.holds(NodeCondition.READY))

    def _pod(self, node: NodeRef) -> PodView | None:
        raw = self.store.get("Pod", node.namespace, node.name)
        return None if raw is None else PodView(raw)

    def _next_look(self, node: NodeRef, answers: Answers, *, is_ready: bool) -> float | None:
        if self._pod(node) is None:
            return None if node.spec.suspend else POD_MISSING_S
        nodes = sum(1 for _ in self.store.of_kind(names.KIND_NODE))
        return next_question(answers, is_ready=is_ready, nodes=nodes)

    async def _exocluster(self, raw: Raw) -> float | None:
        exocluster = ClusterRef.of(raw)

        def look(found: tuple[Conflict, ...] = ()) -> cluster_snapshot.ClusterSnapshot:
            return cluster_snapshot.take(self.store, exocluster, now=self._now(), found=found)

        seen = look()
        actions = cluster_plan.plan(exocluster, seen)
        if actions:
            seen = look(await self._act(raw, actions))
        await self._executor.write_status(raw, cluster_status(exocluster, seen))
        return BUDGET_S if seen.budget.used else None

    async def _act(self, raw: Raw, actions: Iterable[Action]) -> tuple[Conflict, ...]:
        """Carry the actions out in their order. Returns the names that were found taken."""
        found: list[Conflict] = []
        for action in actions:
            found.extend(await self._executor.act(raw, action))
        return tuple(found)

    async def _failed(self, key: Key, error: Exception) -> None:
        """Back off, and from the second failure in a row on, say so in the status."""
        delay = self.backoff.failed(key)
        if isinstance(error, KubeError) and "being terminated" in error.message:
            # Its namespace is being deleted, so nothing is wrong.
            self.queue.add(key, NAMESPACE_GOES_S)
            return
        if isinstance(error, KubeError) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        is_expected = isinstance(error, KubeError | OSError | TimeoutError)
        log.warning(
            "reconcile failed",
            key=str(key),
            error=repr(error),
            retry_in=round(delay, 1),
            exc_info=not is_expected,
        )
        self.queue.add(key, delay)
        raw = self.store.get(*key)
        # A single failure is often only two writes that crossed.
        if raw is not None and self.backoff.failures(key) >= 2:
            await self._report_failure(raw, error, delay)

    async def _report_failure(self, raw: Raw, error: Exception, delay: float) -> None:
        reason = CommonReason.RECONCILE_FAILED
        if isinstance(error, Invalid):
            reason = CommonReason.REFUSED
        message = error.message if isinstance(error, KubeError) else repr(error)
        retry = self._now() + timedelta(seconds=delay)
        try:
            await self._executor.write_ready(raw, reason, message, retry)
        except (KubeError, OSError, TimeoutError) as second:
            meta = Meta(raw)
            key = Key(raw["kind"], meta.namespace, meta.name)
            log.warning("status not written", key=str(key), error=repr(second))
