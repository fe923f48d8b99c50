"""Feeds the queue: with objects that the watches bring, and by a periodic comparison with the API
server, which also proves that the watches are alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import structlog

from exo import contract
from exo_operator.api import names
from exo_operator.api.names import Key
from exo_operator.controller.health import Health
from exo_operator.controller.reconcile import Reconciler
from exo_operator.kube import kinds
from exo_operator.kube.client import KubeError, NotFound
from exo_operator.kube.custom import NodeView
from exo_operator.kube.objects import Meta, Raw, Ref, ref_of, version_of

log = structlog.get_logger("exo_operator.controller.controller")

# A change that a list saw and a watch has not delivered after this long is missing.
WATCH_GRACE_S = 15.0


class Controller:
    """Decides which custom resources an object concerns, and when all of them are reconciled."""

    def __init__(
        self, reconciler: Reconciler, health: Health, namespaces: tuple[str, ...] = ()
    ) -> None:
        self._reconciler = reconciler
        self._store = reconciler.store
        self._health = health
        self._namespaces = namespaces or ("",)
        # What each custom resource last asked for: everything but its status, which the operator
        # itself writes.
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
            self._reconciler.forget_pod(Meta(obj).uid)
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
        """The custom resources that an object concerns: itself, its owners, and the other nodes of
        its ring.

        It concerns itself only if more than its status changed. Otherwise each status that the
        operator writes would wake it up again, past any back-off.
        """
        meta, kind = Meta(obj), obj["kind"]
        if kind in kinds.CUSTOM and self._has_changed(obj):
            yield Key(kind, meta.namespace, meta.name)
        for owner in meta.owners:
            group = str(owner.get("apiVersion", "")).split("/")[0]
            if owner.get("kind") in kinds.CUSTOM and group == contract.GROUP:
                yield Key(owner["kind"], meta.namespace, owner["name"])
        if kind == names.KIND_NODE:
            yield from self._ring_keys(obj)

    def _ring_keys(self, node: Raw) -> Iterator[Key]:
        """The nodes of a ring that gets a new member or loses one: that changes the owners of the
        headless Service that they share.
        """
        ring = (node.get("spec") or {}).get("cluster")
        meta = Meta(node)
        if ring and ("status" not in node or meta.is_deleting):
            for member in self._store.nodes_of_ring(meta.namespace, ring):
                yield Key(names.KIND_NODE, meta.namespace, Meta(member).name)

    def _has_changed(self, obj: Raw) -> bool:
        """Whether a custom resource asks for something else than when it was last seen."""
        parts = ("uid", "generation", "labels", "annotations", "deletionTimestamp")
        asks = [Meta(obj).raw.get(part) for part in parts]
        if self._asked.get(ref_of(obj)) == asks:
            return False
        self._asked[ref_of(obj)] = asks
        return True

    async def resync_forever(self, every: float) -> None:
        """Compare with the API server every so often. A failure is logged and tried again."""
        while True:
            try:
                await self.resync()
            except (KubeError, OSError, TimeoutError) as error:
                log.warning("resync failed", error=repr(error))
            await asyncio.sleep(every)

    async def resync(self) -> None:
        """Take in what a watch missed, and report it if the watch still misses it a while later."""
        late = await self.sync()
        await asyncio.sleep(WATCH_GRACE_S)
        self._judge_watches(late)

    async def sync(self) -> dict[Ref, int]:
        """List everything: take it in, forget what is gone, and reconcile every custom resource.
        Returns the versions that no watch has shown.
        """
        late: dict[Ref, int] = {}
        for kind in kinds.WATCHED:
            late |= await self._sync_kind(kind)
        for name in kinds.CUSTOM:
            for obj in self._store.of_kind(name):
                key = Key(name, Meta(obj).namespace, Meta(obj).name)
                # One that backs off is reconciled when its time has come.
                if not self._reconciler.backoff.failures(key):
                    self._reconciler.queue.add(key)
        self._count_nodes()
        self._health.synced = True
        return late

    async def _sync_kind(self, kind: kinds.Kind) -> dict[Ref, int]:
        late: dict[Ref, int] = {}
        unlisted = {ref_of(obj) for obj in self._store.of_kind(kind.name)}
        for namespace in self._namespaces:
            listed = self._reconciler.client.list_all(kind.name, namespace, kind.selector)
            async for obj in listed:
                ref, version = ref_of(obj), version_of(obj)
                unlisted.discard(ref)
                if self._store.watched_version(ref) < version:
                    late[ref] = version
                self._store.put(obj)
        await self._forget_gone(unlisted)
        return late

    def _count_nodes(self) -> None:
        nodes = [NodeView.of(node) for node in self._store.of_kind(names.KIND_NODE)]
        ready = sum(node.is_ready for node in nodes)
        self._reconciler.metrics.nodes.labels("true").set(ready)
        self._reconciler.metrics.nodes.labels("false").set(len(nodes) - ready)

    async def _forget_gone(self, refs: set[Ref]) -> None:
        for ref in refs:
            obj = self._store.get(*ref)
            if obj is None:
                continue
            try:
                await self._reconciler.client.get(*ref)
            except NotFound:
                self.deleted(obj)

    def _judge_watches(self, late: dict[Ref, int]) -> None:
        """Unhealthy if a watch still has not delivered what the list saw."""
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
