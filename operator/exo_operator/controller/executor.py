"""Carries actions out and writes statuses: the thin shell around the pure planners."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog

from exo import contract
from exo_operator.api import names
from exo_operator.controller.metrics import Metrics
from exo_operator.controller.workqueue import TokenBucket
from exo_operator.exonode import plan, status
from exo_operator.exonode import secret as plan_secret
from exo_operator.exonode.plan import Action, Apply, Conflict, Delete, SetGate
from exo_operator.exonode.secret import MakeSecret
from exo_operator.kube.client import Cluster, ClusterError, Conflicted, NotFound, event
from exo_operator.kube.store import Raw, Store

log = structlog.get_logger("exo_operator.controller.executor")


class Actor:
    """Writes to the API server, at a bounded rate, and takes each answer into the cache at once."""

    def __init__(
        self, cluster: Cluster, store: Store, metrics: Metrics, now: Callable[[], datetime]
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._metrics = metrics
        self._now = now
        self._bucket = TokenBucket(rate=50.0, burst=100)

    async def act(self, owner: Raw, action: Action) -> list[Conflict]:
        """Carry one action out; returns the names found taken."""
        wait = self._bucket.take()
        if wait:
            await asyncio.sleep(wait)
        match action:
            case Apply():
                return await self._apply(owner, action)
            case Delete():
                await self._delete(owner, action)
            case SetGate():
                await self._set_gate(action)
            case MakeSecret():
                await self._make_secret(owner, action)
        return []

    async def _apply(self, owner: Raw, action: Apply) -> list[Conflict]:
        manifest = action.manifest
        kind, metadata = manifest["kind"], manifest["metadata"]
        if action.why == "missing":
            # Not in the cache does not mean not there: it may be new, or carry none of our labels.
            live = await self._find(kind, metadata["namespace"], metadata["name"])
            if live is not None:
                return self._adopt(owner, manifest, live)
        log.info(
            "apply",
            kind=kind,
            namespace=metadata["namespace"],
            name=metadata["name"],
            why=action.why,
        )
        self._metrics.actions.labels("apply", kind).inc()
        self._store.put(await self._cluster.apply(manifest))
        return []

    async def _make_secret(self, node: Raw, action: MakeSecret) -> None:
        """Its value is in no log, no event and no cache."""
        service = self._store.get("Service", action.namespace, action.service)
        ours = service is not None and (service["metadata"].get("labels") or {}).get(
            names.LABEL_MANAGED_BY
        )
        chosen = service if service is not None and ours == names.MANAGED_BY else node
        owner = action.owner or names.owner_reference(chosen, controller=False)
        if await self._cluster.create_secret(
            plan_secret.manifest(action, owner, secrets.token_urlsafe(32))
        ):
            self._metrics.actions.labels("create", "Secret").inc()
            log.info("made", kind="Secret", namespace=action.namespace, name=action.name)

    async def _find(self, kind: str, namespace: str, name: str) -> Raw | None:
        try:
            return await self._cluster.get(kind, namespace, name)
        except NotFound:
            return None

    def _adopt(self, owner: Raw, manifest: Raw, live: Raw) -> list[Conflict]:
        """Take an object that is there already into the cache if it is ours; the next look finds
        what differs.
        """
        managed = (live["metadata"].get("labels") or {}).get(
            names.LABEL_MANAGED_BY
        ) == names.MANAGED_BY
        controller = plan.controller_uid(live)
        if managed and (controller is None or controller == owner["metadata"]["uid"]):
            self._store.put(live)
            return []
        # What an earlier object of this name left is on its way out; anything else has the name for
        # good.
        going = "deletionTimestamp" in live["metadata"]
        return [] if going else [Conflict(manifest["kind"], manifest["metadata"]["name"])]

    async def _delete(self, owner: Raw, action: Delete) -> None:
        self._metrics.actions.labels("delete", action.kind).inc()
        log.info(
            "delete", kind=action.kind, namespace=action.namespace, name=action.name, why=action.why
        )
        await self._cluster.delete(
            action.kind, action.namespace, action.name, action.uid, action.grace
        )
        await self.emit(
            owner, "Normal", action.reason, "Delete", f"{action.kind} {action.name}: {action.why}"
        )

    async def _set_gate(self, action: SetGate) -> None:
        condition = {
            "type": contract.RING_FORMED_GATE,
            "status": "True" if action.ready else "False",
            "reason": action.reason,
            "message": action.message,
            "lastTransitionTime": status.timestamp(self._now()),
        }
        try:
            pod = await self._cluster.set_pod_condition(
                action.namespace, action.name, action.uid, condition
            )
        except (NotFound, Conflicted):
            return
        self._store.put(pod)

    async def write_status(self, raw: Raw, wanted: Raw) -> None:
        """Write the status where it changed; tell of Ready having flipped by an event."""
        live = raw.get("status") or {}
        if not plan.differs(wanted, live) and set(live) <= set(wanted):
            return
        try:
            self._store.put(await self._cluster.apply_status(raw, wanted))
        except (NotFound, Conflicted):
            return
        for condition in status.flips(live.get("conditions") or (), wanted["conditions"]):
            if condition["type"] == "Ready":
                good = condition["status"] == "True"
                note = condition["message"] or f"Ready is {condition['status']}"
                await self.emit(
                    raw, "Normal" if good else "Warning", condition["reason"], "StatusChanged", note
                )

    async def write_ready(
        self, raw: Raw, reason: str, message: str, retry: str | None = None
    ) -> None:
        """Say that the object is not Ready, and leave the rest of its status."""
        live: Raw = raw.get("status") or {}
        previous = live.get("conditions") or ()
        generation = int(raw["metadata"].get("generation", 0))
        verdict = {"Ready": status.Verdict(False, reason, message)}
        changed = status.conditions(verdict, previous, generation, self._now())
        kept = [condition for condition in previous if condition["type"] != "Ready"]
        wanted: dict[str, Any] = live | {
            "conditions": [*changed, *kept],
            "observedGeneration": generation,
        }
        if retry is not None:
            wanted["nextRetryTime"] = retry
        await self.write_status(raw, wanted)

    async def emit(self, regarding: Raw, type_: str, reason: str, action: str, note: str) -> None:
        """Record an event; failing to is no failure of the reconcile."""
        at = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        instance = socket.gethostname()
        made = event(
            regarding,
            type_=type_,
            reason=reason,
            action=action,
            note=note,
            at=at,
            instance=instance,
        )
        try:
            await self._cluster.create_event(made)
        except (ClusterError, OSError, TimeoutError) as error:
            log.warning("event not recorded", error=str(error))
