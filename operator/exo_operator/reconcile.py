"""Reconciles one custom resource: reads the cache, plans, acts, writes the status.

Level-triggered: what woke it up does not matter, and running it twice changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from pydantic import ValidationError

from exo import contract
from exo_operator import names, plan, status
from exo_operator.cluster import Cluster, ClusterError, Conflicted, Invalid, NotFound, event
from exo_operator.metrics import Metrics
from exo_operator.names import Key
from exo_operator.nodes import NodeClient
from exo_operator.observed import NodeReport, PodView, Raw, Store
from exo_operator.plan import Action, Apply, Conflict, Delete, Observed, SetGate
from exo_operator.render import Defaults, NodeRef
from exo_operator.spec import ExoNodeSpec
from exo_operator.workqueue import Backoff, TokenBucket, WorkQueue

log = structlog.get_logger("exo_operator.reconcile")

# How often a node is asked for its state: quickly while it is not Ready, else so that a fault shows within 5 s and many
# nodes still ask for little.
POLL_UNREADY_S = 1.0
POLL_READY_S = 2.0
NODES_PER_POLL_SECOND = 50


def utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Owns the queue and everything remembered between two reconciles; all of it can be lost without harm."""

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
        self.queue: WorkQueue[Key] = WorkQueue()
        self.backoff: Backoff[Key] = Backoff()
        self.defaults = defaults
        self.metrics = metrics
        self.now = now
        self._nodes = nodes
        self._bucket = TokenBucket(rate=50.0, burst=100)
        # Pod uid -> questions unanswered in a row; present once the pod has answered.
        self._misses: dict[str, int] = {}

    async def run(self, key: Key) -> None:
        """Reconcile and decide when to come back. Never raises: a failure backs off, this key alone."""
        started = time.perf_counter()
        try:
            delay = await self._reconcile(key)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever went wrong with one object must not stop the others
            result = "error"
            await self._failed(key, error)
        else:
            result = "ok"
            self.backoff.succeeded(key)
            if delay is not None:
                self.queue.add(key, delay)
        self.metrics.reconciles.labels(key.kind, result).inc()
        self.metrics.seconds.labels(key.kind).observe(time.perf_counter() - started)

    async def _reconcile(self, key: Key) -> float | None:
        raw = self.store.get(*key)
        if raw is None or "deletionTimestamp" in raw["metadata"]:
            self.backoff.succeeded(key)
            return None
        return await self._reconcile_node(key, raw)

    async def _reconcile_node(self, key: Key, raw: Raw) -> float | None:
        try:
            spec = ExoNodeSpec.model_validate(raw.get("spec") or {})
        except ValidationError as error:
            await self._invalid(raw, error)
            return None
        members = self.store.nodes_of_cluster(key.namespace, spec.cluster) if spec.cluster else [raw]
        node = NodeRef(raw=raw, spec=spec, members=members or [raw])
        report, misses = await self._ask(node)
        observed = Observed(get=self.store.get, now=self.now(), report=report, misses=misses)
        taken = []
        for action in plan.plan(node, observed, self.defaults):
            taken.extend(await self._act(raw, action))
        observed = Observed(get=self.store.get, now=self.now(), report=report, misses=misses, taken=tuple(taken))
        wanted = status.node_status(node, observed, self.defaults)
        await self.write_status(raw, wanted)
        return self._next_look(node, wanted)

    def _next_look(self, node: NodeRef, wanted: Raw) -> float | None:
        pod = self.store.get("Pod", node.namespace, node.name)
        if pod is None:
            return None if node.spec.suspend else 5.0
        if wanted["conditions"][0]["status"] != "True":
            return POLL_UNREADY_S
        count = sum(1 for _ in self.store.of_kind(names.KIND_NODE))
        return max(POLL_READY_S, count / NODES_PER_POLL_SECOND)

    async def _ask(self, node: NodeRef) -> tuple[NodeReport, int]:
        raw = self.store.get("Pod", node.namespace, node.name)
        pod = PodView(raw) if raw is not None else None
        if pod is None or pod.ip is None or not pod.running:
            return NodeReport(), 0
        report = await self._nodes.report(pod.ip, node.name)
        if report.reachable:
            self._misses[pod.uid] = 0
        elif pod.uid in self._misses:
            self._misses[pod.uid] += 1
        return report, self._misses.get(pod.uid, 0)

    async def _act(self, owner: Raw, action: Action) -> list[Conflict]:
        """Carry one action out; returns the names found taken."""
        wait = self._bucket.take()
        if wait:
            await asyncio.sleep(wait)
        match action:
            case Apply():
                return await self.apply(owner, action)
            case Delete():
                self.metrics.actions.labels("delete", action.kind).inc()
                log.info("delete", kind=action.kind, namespace=action.namespace, name=action.name, why=action.why)
                await self.cluster.delete(action.kind, action.namespace, action.name, action.uid, action.grace)
                await self.emit(owner, "Normal", action.reason, "Delete", f"{action.kind} {action.name}: {action.why}")
            case SetGate():
                await self._set_gate(action)
        return []

    async def apply(self, owner: Raw, action: Apply) -> list[Conflict]:
        """Apply a manifest, unless an object of that name exists that is not ours."""
        manifest = action.manifest
        kind, metadata = manifest["kind"], manifest["metadata"]
        if action.why == "missing":
            try:
                live = await self.cluster.get(kind, metadata["namespace"], metadata["name"])
            except NotFound:
                pass
            else:
                managed = (live["metadata"].get("labels") or {}).get(names.LABEL_MANAGED_BY) == names.MANAGED_BY
                controller = plan.controller_uid(live)
                if not managed or (controller is not None and controller != owner["metadata"]["uid"]):
                    # A pod of an earlier object with this name is on its way out; any other has the name for good.
                    return [] if "deletionTimestamp" in live["metadata"] else [Conflict(kind, metadata["name"])]
                self.store.put(live)
                if kind == "Pod" or not plan.differs(manifest, live):
                    return []
        log.info("apply", kind=kind, namespace=metadata["namespace"], name=metadata["name"], why=action.why)
        self.metrics.actions.labels("apply", kind).inc()
        self.store.put(await self.cluster.apply(manifest))
        return []

    async def _set_gate(self, action: SetGate) -> None:
        condition = {
            "type": contract.RING_FORMED_GATE,
            "status": "True" if action.ready else "False",
            "reason": action.reason,
            "message": action.message,
            "lastTransitionTime": status.timestamp(self.now()),
        }
        try:
            pod = await self.cluster.set_pod_condition(action.namespace, action.name, action.uid, condition)
        except (NotFound, Conflicted):
            return
        self.store.put(pod)

    async def write_status(self, raw: Raw, wanted: Raw) -> None:
        """Write the status where it changed; tell events about conditions that flipped."""
        live = raw.get("status") or {}
        if not plan.differs(wanted, live) and set(live) <= set(wanted):
            return
        try:
            self.store.put(await self.cluster.apply_status(raw, wanted))
        except (NotFound, Conflicted):
            return
        for condition in status.flips(live.get("conditions") or (), wanted["conditions"]):
            if condition["type"] == "Ready":
                good = condition["status"] == "True"
                reason = condition["reason"] if not good else "Ready"
                note = condition["message"] or f"Ready is {condition['status']}"
                await self.emit(raw, "Normal" if good else "Warning", reason, "StatusChanged", note)

    async def emit(self, regarding: Raw, type_: str, reason: str, action: str, note: str) -> None:
        """Record an event; failing to is no failure of the reconcile."""
        at = self.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        made = event(
            regarding, type_=type_, reason=reason, action=action, note=note, at=at, instance=socket.gethostname()
        )
        try:
            await self.cluster.create_event(made)
        except (ClusterError, OSError) as error:
            log.warning("event not recorded", error=str(error))

    async def _invalid(self, raw: Raw, error: ValidationError) -> None:
        """A spec that the schema let through and we cannot read: told in the status, tried again when it changes."""
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("spec", *first["loc"]))
        await self._write_ready(raw, "InvalidSpec", f"{where}: {first['msg']}")

    async def _write_ready(self, raw: Raw, reason: str, message: str, retry: str | None = None) -> None:
        live: Raw = raw.get("status") or {}
        previous = live.get("conditions") or ()
        generation = int(raw["metadata"].get("generation", 0))
        verdict = {"Ready": status.Verdict(False, reason, message)}
        changed = status.conditions(verdict, previous, generation, self.now())
        kept = [condition for condition in previous if condition["type"] != "Ready"]
        wanted: dict[str, Any] = live | {"conditions": [*changed, *kept], "observedGeneration": generation}
        if retry is not None:
            wanted["nextRetryTime"] = retry
        await self.write_status(raw, wanted)

    async def _failed(self, key: Key, error: Exception) -> None:
        delay = self.backoff.failed(key)
        if isinstance(error, ClusterError) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        expected = isinstance(error, ClusterError | OSError | TimeoutError)
        log.warning(
            "reconcile failed", key=str(key), error=repr(error), retry_in=round(delay, 1), exc_info=not expected
        )
        self.queue.add(key, delay)
        raw = self.store.get(*key)
        # One failure is often only a crossing of writes; two in a row are worth telling.
        if raw is None or self.backoff.failures(key) < 2:
            return
        reason = "Refused" if isinstance(error, Invalid) else "ReconcileFailed"
        message = error.message if isinstance(error, ClusterError) else repr(error)
        retry = status.timestamp(self.now() + timedelta(seconds=delay))
        try:
            await self._write_ready(raw, reason, message, retry)
        except (ClusterError, OSError, TimeoutError) as second:
            log.warning("status not written", key=str(key), error=repr(second))
