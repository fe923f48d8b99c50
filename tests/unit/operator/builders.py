"""Objects as the API server would send them, for the operator's tests."""

from __future__ import annotations

import copy
import itertools
from datetime import UTC, datetime
from typing import Any

from exo_operator.api import names
from exo_operator.api.template import SecretKey
from exo_operator.exonode import plan, snapshot
from exo_operator.exonode import pod as pods
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.exonode.report import NodeReport
from exo_operator.exonode.snapshot import Answers, Snapshot
from exo_operator.kube.actions import Action, Apply, Conflict, Delete, SetGate
from exo_operator.kube.objects import Raw
from exo_operator.kube.store import Store

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
DEFAULTS = Defaults(image="registry.test/exo-node:1", operator_namespace="exo-system")
_versions = itertools.count(1)


def exonode(
    name: str = "paris", spec: dict[str, Any] | None = None, **extra: Any
) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND_NODE,
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "generation": 3,
            "resourceVersion": str(next(_versions)),
            **extra.pop("metadata", {}),
        },
        "spec": spec or {"model": {"name": "smollm2-135m"}},
        **extra,
    }


def node_ref(raw: dict[str, Any], members: list[dict[str, Any]] | None = None) -> NodeRef:
    return NodeRef.of(raw, members or [raw])


def pod_of(
    node: NodeRef, defaults: Defaults = DEFAULTS, *, secret: SecretKey | None = None, **status: Any
) -> dict[str, Any]:
    """The node's pod, running and Ready unless `status` says otherwise."""
    pod = copy.deepcopy(pods.pod(node, defaults, secret))
    pod["metadata"] |= {"uid": f"pod-{node.name}", "resourceVersion": str(next(_versions))}
    pod["spec"]["nodeName"] = "machine-1"
    pod["status"] = {
        "phase": "Running",
        "podIP": "10.0.0.7",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True"},
        ],
        "containerStatuses": [
            {"name": "node", "started": True, "restartCount": 0, "state": {"running": {}}}
        ],
        **status,
    }
    return pod


def not_ready(message: str = "") -> list[dict[str, Any]]:
    return [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": message},
    ]


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "node", "started": False, "restartCount": 2, **state}]


def snapshot_of(
    node: NodeRef,
    *objects: Raw,
    report: NodeReport | None = None,
    defaults: Defaults = DEFAULTS,
    found: tuple[Conflict, ...] = (),
    **answers: Any,
) -> Snapshot:
    """What a reconcile of the node sees when the cache holds these objects."""
    store = Store()
    for obj in objects:
        store.put(obj)
    said = Answers(report=report or NodeReport(), **answers)
    return snapshot.take(store, node, defaults, now=NOW, answers=said, found=found)


def planned(node: NodeRef, *objects: Raw, **more: Any) -> list[Action]:
    """What the planner decides when the cache holds these objects."""
    defaults = more.get("defaults", DEFAULTS)
    return plan.plan(node, snapshot_of(node, *objects, **more), defaults)


def carry_out(actions: list[Action], store: Store) -> None:
    """Do what the API server would do with the actions."""
    for action in actions:
        match action:
            case Apply():
                made = copy.deepcopy(action.manifest)
                made["metadata"] |= {
                    "uid": f"made-{made['kind']}-{made['metadata']['name']}",
                    "resourceVersion": str(next(_versions)),
                }
                made.setdefault("spec", {}).setdefault("defaultedByTheServer", True)
                store.put(made)
            case Delete():
                live = store.get(action.kind, action.namespace, action.name)
                assert live is not None
                store.remove(live)
            case SetGate():
                live = copy.deepcopy(store.get("Pod", action.namespace, action.name))
                assert live is not None
                condition = {
                    "type": "exo.dev/ring-formed",
                    "status": "True" if action.ready else "False",
                }
                live.setdefault("status", {}).setdefault("conditions", [])
                others = [c for c in live["status"]["conditions"] if c["type"] != condition["type"]]
                live["status"]["conditions"] = [*others, condition]
                live["metadata"]["resourceVersion"] = str(next(_versions))
                store.put(live)
