"""Feeds the queue: objects seen by the watches, and a periodic comparison with the API server that
also proves that the watches are alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import structlog

from exo import contract
from exo_operator.api import names
from exo_operator.api.names import Key
from exo_operator.controller.metrics import Health
from exo_operator.controller.reconcile import Reconciler
from exo_operator.exocluster import plan as plan_ring
from exo_operator.kube.client import ClusterError, NotFound
from exo_operator.kube.store import Raw, Ref, ref_of, version_of

log = structlog.get_logger("exo_operator.controller.controller")

OWN_KINDS = (names.KIND_CLUSTER, names.KIND_NODE)
OWNED_KINDS = ("Pod", "Service", "PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget")
# A change that a watch has not delivered this long after a list saw it is missing.
WATCH_GRACE_S = 15.0


class Controller:
    """Which keys an object concerns, and when all of them are looked at again."""

    def __init__(
        self, reconciler: Reconciler, health: Health, namespaces: tuple[str, ...] = ()
    ) -> None:
        self._reconciler = reconciler
        self._store = reconciler.store
        self._health = health
        self._namespaces = namespaces or ("",)
        # What of each custom resource was last acted upon: all but its status, which is our own
        # word.
        self._asked: dict[Ref, Any] = {}

    def seen(self, obj: Raw) -> None:
        """An object was listed, added or modified."""
        self._count(obj)
        if self._store.put(obj, watched=True):
            self._enqueue(obj)

    def deleted(self, obj: Raw) -> None:
        """An object is gone."""
        self._count(obj)
        self._store.remove(obj)
        if obj["kind"] == "Pod":
            self._reconciler.forget_pod(str(obj["metadata"].get("uid")))
        self._enqueue(obj)
        self._asked.pop(ref_of(obj), None)

    def _count(self, obj: Raw) -> None:
        self._reconciler.metrics.events.labels(obj["kind"]).inc()
        self._reconciler.metrics.objects.set(len(self._store))

    def _enqueue(self, obj: Raw) -> None:
        for key in self.keys(obj):
            self._reconciler.queue.add(key)
        self._reconciler.metrics.queue.set(len(self._reconciler.queue))

    def keys(self, obj: Raw) -> Iterator[Key]:
        """The custom resources that an object concerns: itself, its owners, and the rest of its
        ring.

        Itself only where more than its status changed: else each status that we write would wake us
        up again, past any back-off.
        """
        metadata = obj["metadata"]
        namespace = metadata.get("namespace", "")
        if obj["kind"] in OWN_KINDS and self._is_new_wish(obj):
            yield Key(obj["kind"], namespace, metadata["name"])
        for owner in metadata.get("ownerReferences") or ():
            if owner.get("kind") in OWN_KINDS and str(owner.get("apiVersion", "")).startswith(
                f"{contract.GROUP}/"
            ):
                yield Key(owner["kind"], namespace, owner["name"])
        cluster = (obj.get("spec") or {}).get("cluster") if obj["kind"] == names.KIND_NODE else None
        # A new or gone member changes the owners of the shared headless Service.
        new_or_gone = "status" not in obj or "deletionTimestamp" in metadata
        if cluster and new_or_gone:
            for member in self._store.nodes_of_cluster(namespace, cluster):
                yield Key(names.KIND_NODE, namespace, member["metadata"]["name"])

    def _is_new_wish(self, obj: Raw) -> bool:
        metadata = obj["metadata"]
        parts = ("uid", "generation", "labels", "annotations", "deletionTimestamp")
        wish = [metadata.get(part) for part in parts]
        if self._asked.get(ref_of(obj)) == wish:
            return False
        self._asked[ref_of(obj)] = wish
        return True

    async def resync_for_ever(self, every: float) -> None:
        """Compare with the API server every so often. A failure is logged and tried again."""
        while True:
            try:
                await self.resync()
            except (ClusterError, OSError, TimeoutError) as error:
                log.warning("resync failed", error=repr(error))
            await asyncio.sleep(every)

    async def resync(self) -> None:
        """Take in what a watch missed, and say so when it still misses it a while later."""
        late = await self.prime()
        await asyncio.sleep(WATCH_GRACE_S)
        self._judge_watches(late)

    async def prime(self) -> dict[Ref, int]:
        """List everything: take it in, forget what is gone, look at every object. Returns what no
        watch has shown.
        """
        late: dict[Ref, int] = {}
        for kind in (*OWN_KINDS, *OWNED_KINDS):
            selector = "" if kind in OWN_KINDS else names.MANAGED_SELECTOR
            known = {ref_of(obj) for obj in self._store.of_kind(kind)}
            for namespace in self._namespaces:
                async for obj in self._reconciler.cluster.list_all(kind, namespace, selector):
                    known.discard(ref_of(obj))
                    if self._store.watched_version(ref_of(obj)) < version_of(obj):
                        late[ref_of(obj)] = version_of(obj)
                    self._store.put(obj)
            await self._forget_gone(known)
        for kind in OWN_KINDS:
            for obj in self._store.of_kind(kind):
                key = Key(kind, obj["metadata"]["namespace"], obj["metadata"]["name"])
                # One that backs off is looked at when its time has come.
                if not self._reconciler.backoff.failures(key):
                    self._reconciler.queue.add(key)
        self._count_nodes()
        self._health.synced = True
        return late

    def _count_nodes(self) -> None:
        ready = [plan_ring.is_ready(node) for node in self._store.of_kind(names.KIND_NODE)]
        self._reconciler.metrics.nodes.labels("true").set(sum(ready))
        self._reconciler.metrics.nodes.labels("false").set(len(ready) - sum(ready))

    async def _forget_gone(self, refs: set[Ref]) -> None:
        for ref in refs:
            obj = self._store.get(*ref)
            if obj is None:
                continue
            try:
                await self._reconciler.cluster.get(*ref)
            except NotFound:
                self.deleted(obj)

    def _judge_watches(self, late: dict[Ref, int]) -> None:
        """Unhealthy when a watch still has not delivered what the list saw."""
        stale = [
            ref
            for ref, version in late.items()
            if self._store.get(*ref) is not None and self._store.watched_version(ref) < version
        ]
        if stale:
            self._health.problems["watch"] = (
                f"the watch missed changes of {len(stale)} objects, like {stale[0]}"
            )
            log.error("watch is stale", objects=[str(ref) for ref in stale[:10]])
        else:
            self._health.problems.pop("watch", None)
