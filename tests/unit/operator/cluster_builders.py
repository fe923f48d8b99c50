"""ExoClusters and their children as the API server would send them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from exo_operator.api import names
from exo_operator.api.fields import timestamp
from exo_operator.exocluster import objects, snapshot
from exo_operator.exocluster.budget import Budget, account
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.snapshot import ClusterSnapshot
from exo_operator.kube.custom import NodeView
from exo_operator.kube.objects import Raw
from exo_operator.kube.store import Store

from .builders import NOW


def exocluster_of(spec: dict[str, Any] | None = None, **extra: Any) -> ClusterRef:
    wanted = {"model": {"name": "smollm2-135m"}, "nodes": 2} | (spec or {})
    metadata = {"name": "ring", "namespace": "default", "uid": "uid-ring", "generation": 4}
    raw = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND_CLUSTER,
        "metadata": metadata,
        "spec": wanted,
    }
    return ClusterRef.of(raw | extra)


def child(
    exocluster: ClusterRef,
    index: int,
    *,
    ready: bool = True,
    since: timedelta = timedelta(0),
    **status: Any,
) -> dict[str, Any]:
    made = objects.node(exocluster, index, stopped=False)
    made["metadata"] |= {"uid": f"uid-{index}", "generation": 1, "resourceVersion": "5"}
    condition = {
        "type": "Ready",
        "status": str(ready),
        "reason": "Ready" if ready else "Loading",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": timestamp(NOW - since),
    }
    return made | {"status": {"conditions": [condition], **status}}


def snapshot_of(exocluster: ClusterRef, *children: Raw, failed: bool = False) -> ClusterSnapshot:
    """What a reconcile sees when the cache holds these children, the Service and the budget."""
    store = Store()
    for obj in (*children, objects.service(exocluster)):
        store.put(obj)
    budget = objects.disruption_budget(exocluster, stopped=False)
    if budget is not None:
        budget["metadata"]["uid"] = "uid-pdb"
        store.put(budget)
    seen = snapshot.take(store, exocluster, now=NOW)
    return replace(seen, budget=seen.budget._replace(failed=True)) if failed else seen


def budget_of(exocluster: ClusterRef, *children: Raw) -> Budget:
    return account(exocluster, [NodeView.of(each) for each in children], NOW)


def layers(start: int, end: int, total: int = 30) -> dict[str, Any]:
    return {
        "layers": {"start": start, "end": end, "text": f"{start}-{end}", "total": total},
        "ringEpoch": "e1",
    }
